"""SQL of the engine: claim, load, renew, settle, release. Each is one statement and commits by itself.

By the driver's own connection (`Database.bare`), and in batches: every mail passes through here.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import dumps, plan_anew
from app.delivery.outcome import Claimed

# Their mail waits, and goes out after the suspension. Few, and found by an index of their own.
_SUSPENDED = "ARRAY(SELECT id FROM organizations WHERE suspended_at IS NOT NULL)"

# Tenants take turns: each that has due mail gets an equal share of the batch, found by skipping from tenant to tenant
# along the index rather than by reading anybody's backlog. Domains at this worker's limit are left for later, and so is
# mail for vMTAs that other hosts have, unless nobody takes it.
_CLAIM = f"""
    WITH RECURSIVE tenants AS (
        (SELECT org_id FROM delivery_queue ORDER BY org_id LIMIT 1)
        UNION ALL
        SELECT (SELECT q.org_id FROM delivery_queue q WHERE q.org_id > t.org_id ORDER BY q.org_id LIMIT 1)
        FROM tenants t WHERE t.org_id IS NOT NULL
    ), due AS MATERIALIZED (
        SELECT t.org_id FROM tenants t
        WHERE t.org_id <> ALL($4::uuid[]) AND t.org_id <> ALL({_SUSPENDED})
          AND EXISTS (SELECT FROM delivery_queue q
                      WHERE q.org_id = t.org_id AND q.next_attempt_at <= now() %(lane)s)
        ORDER BY random()
    ), picked AS MATERIALIZED (
        SELECT q.org_id, q.delivery_id FROM due CROSS JOIN LATERAL (
            SELECT q.org_id, q.delivery_id FROM delivery_queue q
            WHERE q.org_id = due.org_id AND q.next_attempt_at <= now() %(lane)s
              AND q.domain <> ALL($3::text[]) AND q.size_bytes <= $5::bigint
              AND (q.vmta_id IS NULL OR q.vmta_id <> ALL($8::uuid[])
                   OR q.next_attempt_at <= now() - make_interval(secs => $9::float8))
            ORDER BY q.next_attempt_at
            LIMIT (SELECT least($2::int, ceil($1::numeric / greatest(1, count(*)))) FROM due)
            FOR UPDATE SKIP LOCKED
        ) q LIMIT $1::int
    )
    UPDATE delivery_queue q
    SET lease_token = $6::uuid, attempt = q.attempt + 1,
        next_attempt_at = now() + make_interval(secs => $7::float8)
    FROM picked p WHERE q.org_id = p.org_id AND q.delivery_id = p.delivery_id
    RETURNING q.org_id, q.delivery_id, q.message_id, q.recipient, q.domain, q.vmta_id, q.urgent, q.simulated,
              q.size_bytes, q.attempt, q.give_up_at, q.expires_at, q.lease_token
    """  # noqa: S608 - a query of our own
_CLAIM_ANY = _CLAIM % {"lane": ""}
_CLAIM_URGENT = _CLAIM % {"lane": "AND q.urgent"}

_LEASED = """
    unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS h(org_id, delivery_id, lease_token)
    WHERE q.org_id = h.org_id AND q.delivery_id = h.delivery_id AND q.lease_token = h.lease_token
    """
_RENEW = f"""
    UPDATE delivery_queue q SET next_attempt_at = now() + make_interval(secs => $4::float8) FROM {_LEASED}
    RETURNING q.org_id, q.delivery_id
    """  # noqa: S608 - a query of our own
_RELEASE = f"""
    UPDATE delivery_queue q SET next_attempt_at = now(), lease_token = NULL, attempt = q.attempt - 1 FROM {_LEASED}
    """  # noqa: S608 - a query of our own
_PARK = """
    UPDATE delivery_queue q SET next_attempt_at = h.due_at, lease_token = NULL, attempt = q.attempt - 1
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[]) AS h(org_id, delivery_id, lease_token, due_at)
    WHERE q.org_id = h.org_id AND q.delivery_id = h.delivery_id AND q.lease_token = h.lease_token
    """

# What this worker still held is returned: a stale worker's outcome changes nothing.
_SETTLE = """
    WITH o AS (
        SELECT * FROM unnest(
            $1::uuid[], $2::uuid[], $3::uuid[], $4::int[], $5::text[], $6::text[], $7::text[], $8::uuid[],
            $9::timestamptz[], $10::timestamptz[], $11::text[])
        AS o(org_id, delivery_id, lease_token, attempt, status, last_response, category, vmta_id, settled_at,
             next_attempt_at, sources)
    ), done AS (
        DELETE FROM delivery_queue q USING o
        WHERE q.org_id = o.org_id AND q.delivery_id = o.delivery_id AND q.lease_token = o.lease_token
          AND o.next_attempt_at IS NULL
        RETURNING q.org_id, q.delivery_id
    ), again AS (
        UPDATE delivery_queue q SET next_attempt_at = o.next_attempt_at, lease_token = NULL FROM o
        WHERE q.org_id = o.org_id AND q.delivery_id = o.delivery_id AND q.lease_token = o.lease_token
          AND o.next_attempt_at IS NOT NULL
        RETURNING q.org_id, q.delivery_id
    ), mine AS (
        SELECT org_id, delivery_id FROM done UNION ALL SELECT org_id, delivery_id FROM again
    ), d AS (
        UPDATE deliveries d
        SET status = o.status, attempts = o.attempt, last_response = o.last_response, category = o.category,
            vmta_id = o.vmta_id, settled_at = o.settled_at
        FROM o JOIN mine USING (org_id, delivery_id)
        WHERE d.org_id = o.org_id AND d.id = o.delivery_id AND d.status = ANY(o.sources::text[])
    )
    SELECT org_id, delivery_id FROM mine
    """
_EVENT_COLUMNS = ("org_id", "id", "message_id", "delivery_id", "type", "recipient", "occurred_at", "data")

# Bounded, as /health asks it: beyond a million the exact length of the queue tells nothing more. The oldest due one is
# found tenant by tenant along the index.
_OVERVIEW = text(
    f"""
    WITH RECURSIVE tenants AS (
        (SELECT org_id FROM delivery_queue ORDER BY org_id LIMIT 1)
        UNION ALL
        SELECT (SELECT q.org_id FROM delivery_queue q WHERE q.org_id > t.org_id ORDER BY q.org_id LIMIT 1)
        FROM tenants t WHERE t.org_id IS NOT NULL
    ), oldest AS (
        SELECT min(first.next_attempt_at) AS due_at FROM tenants t CROSS JOIN LATERAL (
            SELECT q.next_attempt_at FROM delivery_queue q
            WHERE q.org_id = t.org_id AND q.next_attempt_at <= now() ORDER BY q.next_attempt_at LIMIT 1
        ) first WHERE t.org_id <> ALL({_SUSPENDED})
    )
    SELECT (SELECT count(*) FROM (SELECT FROM delivery_queue LIMIT 1000000) bounded),
           (SELECT count(*) FROM (SELECT FROM delivery_queue WHERE next_attempt_at <= now()
                                  AND org_id <> ALL({_SUSPENDED}) LIMIT 1000000) bounded),
           coalesce(extract(epoch FROM now() - (SELECT due_at FROM oldest)), 0)
    """  # noqa: S608 - a query of our own
)

_HEARTBEAT = text(
    """
    INSERT INTO workers (id, host, pid, in_flight, outcomes)
    VALUES (:id, :host, :pid, :in_flight, CAST(:outcomes AS jsonb))
    ON CONFLICT (id) DO UPDATE SET seen_at = now(), in_flight = :in_flight, outcomes = CAST(:outcomes AS jsonb)
    """
)

# Three missed beats: one late beat is no dead worker.
_ALIVE = text("SELECT count(*) FROM workers WHERE seen_at > now() - interval '15 seconds'")

Key = tuple[UUID, UUID]
# The driver writes this as infinity.
_INFINITY = datetime.max  # noqa: DTZ901 - it has no zone


@dataclass(frozen=True, slots=True)
class File:
    """An attached or inline file as it is stored."""

    filename: str
    content_type: str
    content_id: str | None
    content: bytes


@dataclass(frozen=True, slots=True)
class Content:
    """A message as it is stored, to be composed."""

    org_id: UUID
    message_id: UUID
    domain_id: UUID
    sender: dict[str, Any]
    to: list[dict[str, Any]]
    cc: list[dict[str, Any]]
    reply_to: list[dict[str, Any]]
    subject: str
    tags: list[str]
    notice: bool
    track_opens: bool
    track_clicks: bool
    track_text: bool
    created_at: datetime
    scheduled_at: datetime | None
    size_bytes: int
    body: bytes
    files: tuple[File, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """How a claimed delivery is to be written down. `next_attempt_at` None: it has come to its end."""

    claimed: Claimed
    status: str
    reason: str
    response: str
    category: str | None
    vmta_id: UUID | None
    settled_at: datetime | None
    next_attempt_at: datetime | None
    # The states from which it may come to this one, as an array in PostgreSQL's notation.
    sources: str


EventRow = tuple[UUID, UUID, UUID, UUID, str, str, datetime, dict[str, Any]]

# Named as Content's fields are; the files in the order of File's.
_CONTENT = """
    SELECT m.org_id, m.id, m.domain_id, m.sender, m."to", m.cc, m.reply_to, m.subject, m.tags, m.notice,
           m.track_opens, m.track_clicks, m.track_text, m.created_at, m.scheduled_at, m.size_bytes, b.content
    FROM unnest($1::uuid[], $2::uuid[]) AS k(org_id, id)
    JOIN messages m ON m.org_id = k.org_id AND m.id = k.id
    JOIN message_bodies b ON b.org_id = k.org_id AND b.message_id = k.id
    """
_FILES = """
    SELECT a.org_id, a.message_id, a.filename, a.content_type, a.content_id, a.content
    FROM unnest($1::uuid[], $2::uuid[]) AS k(org_id, id)
    JOIN attachments a ON a.org_id = k.org_id AND a.message_id = k.id
    ORDER BY a.position
    """


async def claim(
    connection: asyncpg.Connection,
    *,
    batch: int,
    tenant_batch: int,
    busy_domains: Collection[str],
    busy_tenants: Collection[UUID],
    size_max_bytes: int,
    lease_token: UUID,
    lease_seconds: float,
    foreign_vmtas: Collection[UUID] = (),
    foreign_seconds: float = 0,
    urgent: bool = False,
) -> list[Claimed]:
    """Take up to `batch` due deliveries, up to `tenant_batch` of a tenant; none of the busy, none above the size.

    Mail for the `foreign_vmtas` only when it has been due for `foreign_seconds`. `urgent`: only such.
    """
    values = (
        *(batch, tenant_batch, list(busy_domains), list(busy_tenants), size_max_bytes),
        *(lease_token, lease_seconds, list(foreign_vmtas), foreign_seconds),
    )
    return [Claimed(*row) for row in await connection.fetch(_CLAIM_URGENT if urgent else _CLAIM_ANY, *values)]


async def load(connection: asyncpg.Connection, keys: Collection[Key]) -> dict[Key, Content]:
    """The contents of messages by (org_id, message_id)."""
    wanted = ([org_id for org_id, _ in keys], [message_id for _, message_id in keys])
    files: dict[Key, list[File]] = {}
    for row in await connection.fetch(_FILES, *wanted):
        files.setdefault((row[0], row[1]), []).append(File(*row[2:]))
    rows = await connection.fetch(_CONTENT, *wanted)
    return {(row[0], row[1]): Content(*(*row, tuple(files.get((row[0], row[1]), ())))) for row in rows}


def _leases(claims: Collection[Claimed]) -> tuple[list[UUID], list[UUID], list[UUID]]:
    return ([one.org_id for one in claims], [one.delivery_id for one in claims], [one.lease_token for one in claims])


async def renew(connection: asyncpg.Connection, claims: Collection[Claimed], *, lease_seconds: float) -> set[Key]:
    """Prolong leases; returns the (org_id, delivery_id) of those that were still held."""
    rows = await connection.fetch(_RENEW, *_leases(claims), lease_seconds)
    return {(org_id, delivery_id) for org_id, delivery_id in rows}


async def release(connection: asyncpg.Connection, claims: Collection[Claimed]) -> None:
    """Give back deliveries whose transmission was not begun, as if they had never been claimed."""
    await connection.execute(_RELEASE, *_leases(claims))


async def park(connection: asyncpg.Connection, claims: Collection[Claimed], due: Sequence[datetime | None]) -> None:
    """Give back deliveries that may not be transmitted before a moment each; None: not until they are released."""
    moments = [_INFINITY if moment is None else moment for moment in due]
    await connection.execute(_PARK, *_leases(claims), moments)


async def settle(connection: asyncpg.Connection, rows: Sequence[Settled], events: Sequence[EventRow]) -> set[Key]:
    """Write outcomes of deliveries that are still held; returns the (org_id, delivery_id) of those.

    The events of the others are left out. To be called in a transaction.
    """
    columns = (
        *_leases([row.claimed for row in rows]),
        [row.claimed.attempt for row in rows],
        [row.status for row in rows],
        [row.response for row in rows],
        [row.category for row in rows],
        [row.vmta_id for row in rows],
        [row.settled_at for row in rows],
        [row.next_attempt_at for row in rows],
        [row.sources for row in rows],
    )
    await plan_anew(connection)
    kept = {(org_id, delivery_id) for org_id, delivery_id in await connection.fetch(_SETTLE, *columns)}
    if len(kept) < len(rows):
        events = [event for event in events if (event[0], event[3]) in kept]
    await connection.copy_records_to_table("events", records=events, columns=_EVENT_COLUMNS)
    return kept


async def heartbeat(
    session: AsyncSession, worker_id: UUID, *, host: str, pid: int, in_flight: int, outcomes: dict[str, int]
) -> int:
    """Say that a worker lives, and what it has counted; returns how many are alive."""
    values = {"id": worker_id, "host": host, "pid": pid, "in_flight": in_flight}
    await session.execute(_HEARTBEAT, {**values, "outcomes": dumps(outcomes)})
    return int(await session.scalar(_ALIVE) or 1)


async def forget_worker(session: AsyncSession, worker_id: UUID) -> None:
    """A worker ended in order."""
    await session.execute(text("DELETE FROM workers WHERE id = :id"), {"id": worker_id})


async def forget_lost_workers(session: AsyncSession) -> None:
    """Drop the heartbeats of workers that fell silent an hour ago."""
    await session.execute(text("DELETE FROM workers WHERE seen_at < now() - interval '1 hour'"))


async def queue_overview(session: AsyncSession) -> tuple[int, int, float]:
    """(queued, due, seconds that the oldest due one has waited)."""
    queued, due, oldest = (await session.execute(_OVERVIEW)).one()
    return queued, due, float(oldest)


async def is_due(session: AsyncSession) -> bool:
    """Whether any delivery waits that may be claimed now (one with an expired lease is such a one)."""
    due = f"next_attempt_at <= now() AND org_id <> ALL({_SUSPENDED})"
    return bool(await session.scalar(text(f"SELECT EXISTS (SELECT FROM delivery_queue WHERE {due})")))  # noqa: S608
