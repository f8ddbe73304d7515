"""SQL of mail that comes back: storing it, claiming it to be read, and writing down what followed from it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import ids

# How much of a mail, as it is stored, is kept after it was read, for whoever wants to know what it said.
KEPT_BYTES_MAX = 64 * 2**10

# Mails of a first reading come together; one that was claimed before without an end to it is read alone, since it may
# be what ended its reader, and the others must not be counted guilty with it.
_CLAIM = """
    WITH due AS MATERIALIZED (
        SELECT id, octet_length(content) AS size FROM inbound_mails
        WHERE next_attempt_at <= now() AND (attempt > 0) = $1
        ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ), chosen AS (
        SELECT id FROM (SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM due) sized WHERE before < $3
    )
    UPDATE inbound_mails m
    SET lease_token = $4, next_attempt_at = now() + make_interval(secs => $5), attempt = m.attempt + 1
    FROM chosen WHERE m.id = chosen.id
    RETURNING m.id, m.received_at, m.recipients, m.content, m.attempt
    """
_HOLD = "SELECT id FROM inbound_mails WHERE id = ANY($1::uuid[]) AND lease_token = $2 ORDER BY id FOR UPDATE"
# In one order for all readers: two that lock copies of one organization must not wait for each other in a circle.
_COPIES = """
    SELECT d.org_id, d.id, d.message_id, d.recipient, d.status
    FROM unnest($1::uuid[], $2::uuid[]) AS k(org_id, id) JOIN deliveries d ON d.org_id = k.org_id AND d.id = k.id
    ORDER BY d.org_id, d.id FOR UPDATE OF d
    """
_DELAYED = """
    SELECT DISTINCT e.org_id, e.delivery_id
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS k(org_id, message_id, delivery_id)
    JOIN events e ON e.org_id = k.org_id AND e.message_id = k.message_id AND e.delivery_id = k.delivery_id
    WHERE e.type = 'deferred' AND e.data ->> 'source' = 'report'
    """
# Of large mails nothing is kept: whoever sends many of them must not fill the disk.
_FINISH = f"""
    UPDATE inbound_mails m
    SET kind = f.kind, verdict = f.verdict, next_attempt_at = NULL, lease_token = NULL,
        content = CASE WHEN octet_length(m.content) > {KEPT_BYTES_MAX} THEN '' ELSE m.content END
    FROM unnest($1::uuid[], $2::text[], $3::text[]) AS f(id, kind, verdict) WHERE m.id = f.id
    """  # noqa: S608 - a number of our own
_POSTPONE = """
    UPDATE inbound_mails m
    SET attempt = p.attempt, next_attempt_at = now() + make_interval(secs => p.seconds), lease_token = NULL
    FROM unnest($1::uuid[], $2::bigint[], $3::float[]) AS p(id, attempt, seconds)
    WHERE m.id = p.id AND m.lease_token = $4
    """
_COUNT = """
    INSERT INTO inbound_counts AS c (kind, verdict, count)
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
    ON CONFLICT (kind, verdict) DO UPDATE SET count = c.count + excluded.count
    """
_FORGET = text(
    """
    DELETE FROM inbound_mails WHERE id IN (
        SELECT id FROM inbound_mails WHERE id < :before AND next_attempt_at IS NULL ORDER BY id LIMIT :limit
    )
    """
)
# Bounded, as /health asks it: beyond a million the exact length tells nothing more.
_UNREAD = text(
    """
    SELECT (SELECT count(*) FROM (SELECT FROM inbound_mails WHERE next_attempt_at IS NOT NULL LIMIT 1000000) bounded),
           greatest(extract(epoch FROM now() - (SELECT min(next_attempt_at) FROM inbound_mails)), 0)
    """
)
_COLUMNS = ("id", "client_address", "helo", "mail_from", "recipients", "content")

Key = tuple[UUID, UUID]


@dataclass(frozen=True, slots=True)
class Taken:
    """A mail that the listener has taken; `content` as it is stored."""

    id: UUID
    client_address: str
    helo: str
    mail_from: str
    recipients: list[str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """A mail that this reader holds a lease on; `attempt` counts from 1."""

    id: UUID
    received_at: datetime
    recipients: list[str]
    content: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Copy:
    """A recipient's copy of a message, as far as reports bear on it."""

    org_id: UUID
    delivery_id: UUID
    message_id: UUID
    recipient: str
    status: str


async def store(connection: asyncpg.Connection, mails: Sequence[Taken]) -> None:
    """Store mails, all or none."""
    records = [tuple(getattr(mail, name) for name in _COLUMNS) for mail in mails]
    await connection.copy_records_to_table("inbound_mails", records=records, columns=_COLUMNS)


async def has_domain(connection: asyncpg.Connection, org_id: UUID, name: str) -> bool:
    """Whether the organization has, or had, this sending domain (A-labels)."""
    statement = "SELECT EXISTS (SELECT FROM domains WHERE org_id = $1 AND name = $2)"
    return bool(await connection.fetchval(statement, org_id, name))


async def claim(
    connection: asyncpg.Connection, *, again: bool, batch: int, size_bytes: int, lease_token: UUID, lease_seconds: float
) -> list[Claimed]:
    """Take up to `batch` unread mails, oldest first, until they come to `size_bytes`.

    `again`: only those that were claimed before, else only those that were not.
    """
    rows = await connection.fetch(_CLAIM, again, batch, size_bytes, lease_token, lease_seconds)
    return sorted((Claimed(*row) for row in rows), key=lambda mail: mail.id)


async def hold(connection: asyncpg.Connection, mail_ids: Collection[UUID], lease_token: UUID) -> set[UUID]:
    """Those of the mails that are still held under this lease; no other reader gets them before the commit."""
    return {row[0] for row in await connection.fetch(_HOLD, list(mail_ids), lease_token)}


async def copies(connection: asyncpg.Connection, keys: Collection[Key]) -> dict[Key, Copy]:
    """Copies by (org_id, delivery_id); their states stay as they are until the commit."""
    rows = await connection.fetch(_COPIES, [org_id for org_id, _ in keys], [delivery_id for _, delivery_id in keys])
    return {(row[0], row[1]): Copy(*row) for row in rows}


async def delayed(connection: asyncpg.Connection, found: Iterable[Copy]) -> set[Key]:
    """The (org_id, delivery_id) of the copies of which a report of a delay has been told."""
    listed = list(found)
    columns = [[getattr(copy, name) for copy in listed] for name in ("org_id", "message_id", "delivery_id")]
    return {(org_id, delivery_id) for org_id, delivery_id in await connection.fetch(_DELAYED, *columns)}


async def finish(connection: asyncpg.Connection, rows: Sequence[tuple[UUID, str, str]]) -> None:
    """Write down mails' (id, kind, verdict): they have been read."""
    await connection.execute(_FINISH, *map(list, zip(*rows, strict=True)))


async def postpone(connection: asyncpg.Connection, rows: Sequence[tuple[UUID, int, float]], lease_token: UUID) -> None:
    """Give back held mails: (id, how many attempts they are to have, seconds until the next)."""
    await connection.execute(_POSTPONE, *map(list, zip(*rows, strict=True)), lease_token)


async def count(connection: asyncpg.Connection, counts: Mapping[tuple[str, str], int]) -> None:
    """Add to the counts by (kind, verdict)."""
    rows = [(kind, verdict, number) for (kind, verdict), number in sorted(counts.items())]
    await connection.execute(_COUNT, *map(list, zip(*rows, strict=True)))


async def forget(session: AsyncSession, before: datetime, limit: int) -> int:
    """Delete mails that were taken before a moment and have been read, oldest first; how many."""
    result: Any = await session.execute(_FORGET, {"before": ids.floor(before), "limit": limit})
    return int(result.rowcount)


async def unread(session: AsyncSession) -> tuple[int, float]:
    """(how many mails wait to be read, seconds for which the first of them has been due)."""
    number, due_seconds = (await session.execute(_UNREAD)).one()
    return number, float(due_seconds)


async def counts(session: AsyncSession) -> list[tuple[str, str, int]]:
    """(kind, verdict, count) of all that was counted."""
    rows = await session.execute(text("SELECT kind, verdict, count FROM inbound_counts ORDER BY kind, verdict"))
    return [(kind, verdict, number) for kind, verdict, number in rows]
