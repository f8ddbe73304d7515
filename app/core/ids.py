"""Identifiers: UUIDv7 (RFC 9562 §5.7), so that they sort by time and partitions can be cut by them."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import uuid_utils

_RANDOM_BITS = 80


def new_id() -> UUID:
    """A new UUIDv7; later calls in one process give greater ids."""
    return UUID(int=uuid_utils.uuid7().int)


def time_of(identifier: UUID) -> datetime:
    """The moment a UUIDv7 was made, to the millisecond, in UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=identifier.int >> _RANDOM_BITS)


def floor(moment: datetime) -> UUID:
    """The least UUID of that millisecond: a lower bound for every id made at or after it."""
    milliseconds = int(moment.timestamp() * 1000)
    return UUID(int=milliseconds << _RANDOM_BITS)
