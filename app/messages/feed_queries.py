"""SQL of the event feed, on the driver's own connection: every event passes here once for each follower."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

# Below the first number every transaction has ended; from the second on none has begun.
_HORIZON = """
    SELECT pg_snapshot_xmin(now.snapshot)::text::bigint, pg_snapshot_xmax(now.snapshot)::text::bigint
    FROM (SELECT pg_current_snapshot() AS snapshot) now
    """

# So many events are looked at and no more, however few of them are wanted: each page ends, and the next goes on there.
# The index of (org_id, tx, id) gives them in their order in every partition, and those of older weeks are left out.
_PAGE = """
    WITH scanned AS MATERIALIZED (
        SELECT e.tx, e.id, e.message_id, e.type, e.recipient, e.occurred_at, e.data FROM events e
        WHERE e.org_id = $1::uuid AND (e.tx, e.id) > ($2::bigint, $3::uuid) AND e.tx < $4::bigint
          AND e.id >= $5::uuid AND %(message)s
        ORDER BY e.tx, e.id LIMIT $7::int
    ), last AS (
        SELECT tx, id, (SELECT count(*) FROM scanned) AS scanned FROM scanned ORDER BY tx DESC, id DESC LIMIT 1
    ), found AS (
        SELECT * FROM scanned s
        WHERE ($8::text[] IS NULL OR s.type = ANY($8)) AND ($9::text IS NULL OR lower(s.recipient) = lower($9))
          AND ($10::text[] IS NULL OR EXISTS (
              SELECT FROM messages m WHERE m.org_id = $1 AND m.id = s.message_id
                AND split_part(m.sender ->> 'email', '@', -1) = ANY($10)))
        ORDER BY s.tx, s.id LIMIT $11::int
    )
    SELECT last.tx, last.id, last.scanned, found.* FROM last LEFT JOIN found ON true ORDER BY found.tx, found.id
    """
_PAGE_OF_ALL = _PAGE % {"message": "$6::uuid IS NULL"}
_PAGE_OF_MESSAGE = _PAGE % {"message": "e.message_id = $6::uuid"}

_MESSAGES = """
    SELECT m.id, m.subject, m.tags, m.metadata, m.simulated
    FROM unnest($2::uuid[]) AS k(id) JOIN messages m ON m.org_id = $1::uuid AND m.id = k.id
    """
# Each message's events are numbered once for the whole page: one whose links are followed all day has very many.
_SEQUENCES = """
    SELECT r.id, r.sequence FROM (
        SELECT e.id, row_number() OVER (PARTITION BY e.message_id ORDER BY e.tx, e.id) AS sequence
        FROM unnest($2::uuid[], $3::uuid[]) AS k(message_id, oldest)
        JOIN events e ON e.org_id = $1::uuid AND e.message_id = k.message_id AND e.id >= k.oldest AND e.tx <= $4::bigint
    ) r WHERE r.id = ANY($5::uuid[])
    """

# (tx, id, message_id, type, recipient, occurred_at, data)
Row = tuple[int, UUID, UUID, str, str, datetime, dict[str, Any]]


async def horizon(connection: asyncpg.Connection) -> tuple[int, int]:
    """(the number below which every transaction has ended, the number from which on none has begun)."""
    below, unborn = await connection.fetchrow(_HORIZON)
    return below, unborn


async def page(
    connection: asyncpg.Connection,
    org_id: UUID,
    *,
    after: tuple[int, UUID],
    below: int,
    oldest: UUID,
    message_id: UUID | None,
    scan: int,
    types: Sequence[str] | None,
    recipient: str | None,
    domains: Sequence[str] | None,
    limit: int,
) -> tuple[list[Row], tuple[int, UUID] | None, int]:
    """(the events wanted among the next `scan` ones, the last one that was looked at, how many were)."""
    values = (org_id, *after, below, oldest, message_id, scan, types, recipient, domains, limit)
    rows = await connection.fetch(_PAGE_OF_ALL if message_id is None else _PAGE_OF_MESSAGE, *values)
    if not rows:
        return [], None, 0
    tx, last_id, scanned, *_ = rows[0]
    return [tuple(row[3:]) for row in rows if row["type"] is not None], (tx, last_id), scanned


async def messages(connection: asyncpg.Connection, org_id: UUID, message_ids: Sequence[UUID]) -> dict[UUID, Any]:
    """(id, subject, tags, metadata, simulated) of those messages that are still kept, by id."""
    return {row["id"]: row for row in await connection.fetch(_MESSAGES, org_id, message_ids)}


async def sequences(
    connection: asyncpg.Connection,
    org_id: UUID,
    message_ids: Sequence[UUID],
    oldest: Sequence[UUID],
    *,
    up_to_tx: int,
    event_ids: Sequence[UUID],
) -> dict[UUID, int]:
    """Each event's place among its message's events, in the order (tx, id). `oldest`: no event of it is older."""
    rows = await connection.fetch(_SEQUENCES, org_id, message_ids, oldest, up_to_tx, event_ids)
    return {event_id: sequence for event_id, sequence in rows}
