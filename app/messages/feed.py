"""The event feed: an organization's events handed on forward, each once, however late its transaction ended.

Their order is (tx, id), see `app.events.models.Event`. Only what lies below every transaction that is still under way
is handed on, so nothing can come in behind a reader, and an event's place among those of its message is final.

A database that was restored from a dump counts its transactions from the beginning, while positions and old events
bear the old, higher numbers. A position from a number that has not been reached is taken for one before all events of
the new count, a day earlier than it was: nobody waits for the count to come there, and some events may be met twice.

PostroadError
└── Invalid   invalid_cursor
"""

import asyncio
import base64
import binascii
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from app.core import ids
from app.core.errors import Flaw, Invalid
from app.messages import feed_queries

# Ids are made before the commit: an event may be stored this much later than its id says, clocks' differences included.
_LATE = timedelta(days=7)
_CLOCKS_APART = timedelta(hours=1)
_AHEAD = timedelta(days=1)
_CURSOR = struct.Struct(">Q16s")
_NEVER = 2**63
_PATIENCE_SECONDS = 2.0
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Position:
    """A place between events: behind the event of this transaction and id."""

    tx: int
    event_id: UUID


START = Position(0, UUID(int=0))


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far can be read: all transactions below `below` have ended, none has begun from `unborn` on."""

    below: int
    unborn: int

    @property
    def position(self) -> Position:
        """Behind everything below the horizon. Its id is later than any of an event there, and tells the time."""
        return Position(self.below - 1, ids.floor(datetime.now(UTC) + _AHEAD))


@dataclass(frozen=True, slots=True)
class Wanted:
    """At most `limit` events among the next `scan`; those of these types, of this message or recipient, recorded since
    then, from senders at these domains. None: all of them.
    """

    limit: int
    scan: int
    types: Sequence[str] | None = None
    message_id: UUID | None = None
    recipient: str | None = None
    since: datetime | None = None
    domains: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One event, with what its message says. `sequence`: its place among its message's events, from 1.

    Of a message that is no longer kept the sequence is None and the rest empty.
    """

    tx: int
    id: UUID
    type: str
    occurred_at: datetime
    message_id: UUID
    recipient: str
    sequence: int | None
    subject: str
    tags: list[str]
    metadata: dict[str, Any]
    is_simulated: bool
    facts: dict[str, Any]

    def told(self) -> dict[str, Any]:
        """What the feed and webhooks both tell of it beside its facts, by the names of their fields."""
        return {
            "message_id": self.message_id,
            "recipient": self.recipient,
            "sequence": self.sequence,
            "subject": self.subject,
            "tags": self.tags,
            "metadata": self.metadata,
            "simulated": self.is_simulated,
        }


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Events in their order, and the position behind all that was looked at."""

    events: list[FeedEvent]
    next: Position
    has_more: bool


async def horizon(connection: asyncpg.Connection) -> Horizon:
    """How far events can be read now."""
    return Horizon(*await feed_queries.horizon(connection))


async def horizon_of_now(connection: asyncpg.Connection) -> tuple[Horizon, bool]:
    """How far events can be read once everything that has begun by now has ended, and whether it has.

    That is waited for, but no longer than a moment.
    """
    found = await horizon(connection)
    begun, deadline = found.unborn, time.monotonic() + _PATIENCE_SECONDS
    while found.below < begun and time.monotonic() < deadline:
        await asyncio.sleep(_PAUSE_SECONDS)
        found = await horizon(connection)
    return found, found.below >= begun


async def read(
    connection: asyncpg.Connection, org_id: UUID, after: Position, until: Horizon, wanted: Wanted
) -> FeedPage:
    """The events behind a position. There may be fewer than wanted, even none, though there are more: read on.

    Raises DATABASE_ERRORS.
    """
    if after.tx >= until.unborn:
        after = Position(0, _earlier(after.event_id, _AHEAD))
    rows, last, scanned = await feed_queries.page(
        connection,
        org_id,
        after=(after.tx, after.event_id),
        below=until.below,
        oldest=_oldest(after, wanted),
        message_id=wanted.message_id,
        scan=wanted.scan,
        types=wanted.types,
        recipient=wanted.recipient,
        domains=wanted.domains,
        limit=wanted.limit,
    )
    events = await _completed(connection, org_id, rows)
    if len(rows) == wanted.limit:
        tx, event_id, *_ = rows[-1]
        return FeedPage(events, Position(tx, event_id), has_more=scanned == wanted.scan or (tx, event_id) != last)
    if last is not None and scanned == wanted.scan:
        return FeedPage(events, Position(*last), has_more=True)
    # What a restored database has above the horizon does not lead backwards.
    return FeedPage(events, max(until.position, after, key=lambda one: one.tx), has_more=False)


async def _completed(connection: asyncpg.Connection, org_id: UUID, rows: Sequence[feed_queries.Row]) -> list[FeedEvent]:
    if not rows:
        return []
    message_ids = list({message_id for _, _, message_id, *_ in rows})
    messages = await feed_queries.messages(connection, org_id, message_ids)
    sequences = await feed_queries.sequences(
        connection,
        org_id,
        message_ids,
        [_earlier(message_id, _CLOCKS_APART) for message_id in message_ids],
        up_to_tx=rows[-1][0],
        event_ids=[event_id for _, event_id, *_ in rows],
    )
    found = []
    for tx, event_id, message_id, type, recipient, occurred_at, facts in rows:
        message = messages.get(message_id)
        found.append(
            FeedEvent(
                tx=tx,
                id=event_id,
                type=type,
                occurred_at=occurred_at,
                message_id=message_id,
                recipient=recipient,
                sequence=sequences[event_id] if message else None,
                subject=message["subject"] if message else "",
                tags=message["tags"] if message else [],
                metadata=message["metadata"] if message else {},
                is_simulated=bool(message and message["simulated"]),
                facts=facts,
            )
        )
    return found


def _oldest(after: Position, wanted: Wanted) -> UUID:
    """No event that is wanted has a lower id, so that older partitions are not looked into."""
    found = _earlier(after.event_id, _LATE)
    if wanted.since is not None:
        found = max(found, ids.floor(wanted.since))
    if wanted.message_id is not None:
        found = max(found, _earlier(wanted.message_id, _CLOCKS_APART))
    return found


def _earlier(identifier: UUID, by: timedelta) -> UUID:
    milliseconds = (identifier.int >> 80) - int(by.total_seconds() * 1000)
    return UUID(int=max(0, milliseconds) << 80)


def encode(position: Position) -> str:
    """The position as clients are given it, to hand it back."""
    return base64.urlsafe_b64encode(_CURSOR.pack(position.tx, position.event_id.bytes)).decode()


def decode(cursor: str) -> Position:
    """The inverse of `encode`. Raises Invalid (invalid_cursor)."""
    try:
        tx, octets = _CURSOR.unpack(base64.b64decode(cursor.encode("ascii"), b"-_", validate=True))
        if tx >= _NEVER:
            raise ValueError("beyond what PostgreSQL counts to")
    except (ValueError, binascii.Error, struct.error) as error:
        flaw = Flaw("/after", "Not a cursor of this feed.", "query")
        raise Invalid("invalid_cursor", "The cursor is not one that this feed gave out.", flaws=[flaw]) from error
    return Position(tx, UUID(bytes=octets))
