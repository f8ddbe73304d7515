"""Identifiers: UUIDv7 (RFC 9562 §5.7), so that they sort by time and partitions can be cut by them."""

import secrets
from datetime import UTC, datetime, timedelta
from uuid import UUID

import uuid_utils

_RANDOM_BITS = 80


def new_id() -> UUID:
    """A new UUIDv7; later calls in one process give greater ids."""
    return UUID(int=uuid_utils.uuid7().int)


def siblings(identifier: UUID, count: int) -> list[UUID]:
    """Ids of the same millisecond, ascending: what belongs together lies in the same time partition everywhere."""
    time_and_version = identifier.int >> _RANDOM_BITS << _RANDOM_BITS | 7 << 76
    drawn = sorted(secrets.randbits(74) for _ in range(count))
    # 12 random bits, the variant's two (RFC 9562 section 4.1), 62 random bits.
    return [UUID(int=time_and_version | bits >> 62 << 64 | 2 << 62 | bits & (1 << 62) - 1) for bits in drawn]


def time_of(identifier: UUID) -> datetime:
    """The moment a UUIDv7 was made, to the millisecond, in UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=identifier.int >> _RANDOM_BITS)


def floor(moment: datetime) -> UUID:
    """The least UUID of that millisecond: a lower bound for every id made at or after it."""
    milliseconds = int(moment.timestamp() * 1000)
    return UUID(int=milliseconds << _RANDOM_BITS)
