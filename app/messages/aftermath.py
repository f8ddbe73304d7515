"""What is learnt of a copy after its attempts have ended: bounces that came later, complaints, opens, clicks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from app.core import ids
from app.messages import queries
from app.messages.status import Status, sources

# Of these the copy's status tells too, if it may still come to it.
_MOVES = {Status.HARD_BOUNCED: sources(Status.HARD_BOUNCED), Status.COMPLAINED: sources(Status.COMPLAINED)}


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened to one copy; `type` and `data` as its event will tell them.

    `hard_bounced` and `complained` change the copy's status, and `data` may name the `response` and `category` that it
    shows then. `early` is laid over `data` when it happened less than two seconds after the copy had been handed over,
    or before that: sooner than a person can have read it.
    """

    org_id: UUID
    delivery_id: UUID
    type: str
    occurred_at: datetime
    data: dict[str, Any] = field(default_factory=dict)
    event_id: UUID = field(default_factory=ids.new_id)
    early: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """A happening that was written down, and whom it is about."""

    happening: Happening
    message_id: UUID
    recipient: str
    is_simulated: bool


async def record(connection: asyncpg.Connection, happenings: Sequence[Happening], *, again: bool = False) -> list[Told]:
    """Write events, and move statuses, in one statement; those that were written, in the order given.

    Left out: what tells of copies that do not exist (any more), and a status that the copy cannot come to, such as a
    second hard bounce: the late and the repeated change nothing. `again`: the answer to an earlier attempt was lost, so
    some may have been written then, and are left out too. Raises DATABASE_ERRORS.
    """
    # In one statement a copy can move once only.
    firsts: dict[tuple[UUID, UUID, str], Happening] = {}
    for one in happenings:
        moves = one.type in _MOVES
        firsts.setdefault((one.org_id, one.delivery_id, one.type if moves else str(one.event_id)), one)
    rows = [
        queries.Later(
            *(one.org_id, one.delivery_id, one.event_id, one.type, one.occurred_at, one.data, one.early),
            _sources(one.type),
        )
        for one in firsts.values()
    ]
    if again:
        written = await queries.written_later(connection, rows)
        rows = [row for row in rows if row.event_id not in written]
    found = await queries.record_later(connection, rows)
    return [Told(one, *found[one.event_id]) for one in firsts.values() if one.event_id in found]


def _sources(type: str) -> list[str] | None:
    return [state.value for state in _MOVES[Status(type)]] if type in _MOVES else None
