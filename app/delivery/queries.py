"""SQL of the engine: claim, load, renew, settle, release. Each is one statement in a transaction of its own."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import dumps, insert_json
from app.delivery.outcome import Claimed
from app.events.models import Event
from app.messages.models import Attachment, Attempt, Message, MessageBody

# Their mail waits, and goes out after the suspension. Few, and found by an index of their own.
_SUSPENDED = "ARRAY(SELECT id FROM organizations WHERE suspended_at IS NOT NULL)"

# Tenants take turns: each that has due mail gets an equal share of the batch, found by skipping from tenant to tenant
# along the index rather than by reading anybody's backlog. Sites at this worker's limit are left for later.
_CLAIM = text(
    f"""
    WITH RECURSIVE tenants AS (
        (SELECT org_id FROM delivery_queue ORDER BY org_id LIMIT 1)
        UNION ALL
        SELECT (SELECT q.org_id FROM delivery_queue q WHERE q.org_id > t.org_id ORDER BY q.org_id LIMIT 1)
        FROM tenants t WHERE t.org_id IS NOT NULL
    ), due AS MATERIALIZED (
        SELECT t.org_id FROM tenants t
        WHERE t.org_id <> ALL(CAST(:busy_tenants AS uuid[])) AND t.org_id <> ALL({_SUSPENDED})
          AND EXISTS (SELECT FROM delivery_queue q WHERE q.org_id = t.org_id AND q.next_attempt_at <= now())
        ORDER BY random()
    ), picked AS MATERIALIZED (
        SELECT q.org_id, q.delivery_id FROM due CROSS JOIN LATERAL (
            SELECT q.org_id, q.delivery_id FROM delivery_queue q
            WHERE q.org_id = due.org_id AND q.next_attempt_at <= now()
              AND q.domain <> ALL(CAST(:busy_domains AS text[])) AND q.size_bytes <= :size_max_bytes
            ORDER BY q.next_attempt_at
            LIMIT (SELECT least(:tenant_batch, ceil(CAST(:batch AS numeric) / greatest(1, count(*)))) FROM due)
            FOR UPDATE SKIP LOCKED
        ) q LIMIT :batch
    )
    UPDATE delivery_queue q
    SET lease_token = :lease_token, attempt = q.attempt + 1,
        next_attempt_at = now() + make_interval(secs => :lease_seconds)
    FROM picked p WHERE q.org_id = p.org_id AND q.delivery_id = p.delivery_id
    RETURNING q.org_id, q.delivery_id, q.message_id, q.recipient, q.domain, q.size_bytes, q.attempt, q.give_up_at,
              q.expires_at, q.lease_token
    """  # noqa: S608 - a query of our own
)

_RENEW = text(
    """
    UPDATE delivery_queue q SET next_attempt_at = now() + make_interval(secs => :lease_seconds)
    FROM json_to_recordset(:held) AS h(org_id uuid, delivery_id uuid, lease_token uuid)
    WHERE q.org_id = h.org_id AND q.delivery_id = h.delivery_id AND q.lease_token = h.lease_token
    RETURNING q.org_id, q.delivery_id
    """
)

_RELEASE = text(
    """
    UPDATE delivery_queue q SET next_attempt_at = now(), lease_token = NULL, attempt = q.attempt - 1
    FROM json_to_recordset(:held) AS h(org_id uuid, delivery_id uuid, lease_token uuid)
    WHERE q.org_id = h.org_id AND q.delivery_id = h.delivery_id AND q.lease_token = h.lease_token
    """
)

# `mine` is what this worker still held: a stale worker's outcome changes nothing.
_MINE = "JOIN mine USING (org_id, delivery_id)"
_SETTLE = text(
    f"""
    WITH o AS (
        SELECT * FROM json_to_recordset(:outcomes) AS o(
            org_id uuid, delivery_id uuid, lease_token uuid, attempt int, status text, sources text[],
            last_response text, settled_at timestamptz, next_attempt_at timestamptz)
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
        SET status = o.status, attempts = o.attempt, last_response = o.last_response, settled_at = o.settled_at
        FROM o JOIN mine USING (org_id, delivery_id)
        WHERE d.org_id = o.org_id AND d.id = o.delivery_id AND d.status = ANY(o.sources)
    ), a AS (
        {insert_json(Attempt, "attempts", joined=_MINE)}
    ), e AS (
        {insert_json(Event, "events", joined=_MINE)}
    )
    SELECT org_id, delivery_id FROM mine
    """  # noqa: S608 - names of our own
)

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

Key = tuple[UUID, UUID]


@dataclass(frozen=True, slots=True)
class File:
    """An attached or inline file as it is stored."""

    filename: str
    content_type: str
    content_id: str | None
    content: bytes


@dataclass(frozen=True, slots=True)
class Content:
    """A message as it is stored, to be composed. Not the models: rows are a fifth of their cost in a batch."""

    org_id: UUID
    message_id: UUID
    domain_id: UUID
    sender: dict[str, Any]
    to: list[dict[str, Any]]
    cc: list[dict[str, Any]]
    reply_to: list[dict[str, Any]]
    subject: str
    created_at: datetime
    scheduled_at: datetime | None
    text: str | None
    html: str | None
    headers: dict[str, Any]
    size_bytes: int
    files: tuple[File, ...]


# Named as Content's fields are; the files in the order of File's.
_CONTENT = select(
    Message.org_id,
    Message.id.label("message_id"),
    Message.domain_id,
    Message.sender,
    Message.to,
    Message.cc,
    Message.reply_to,
    Message.subject,
    Message.created_at,
    Message.scheduled_at,
    MessageBody.text,
    MessageBody.html,
    MessageBody.headers,
    Message.size_bytes,
).join(MessageBody, (MessageBody.org_id == Message.org_id) & (MessageBody.message_id == Message.id))
_FILES = select(
    Attachment.org_id,
    Attachment.message_id,
    Attachment.filename,
    Attachment.content_type,
    Attachment.content_id,
    Attachment.content,
).order_by(Attachment.position)


def _held(claims: Collection[Claimed]) -> str:
    return dumps(
        [{"org_id": one.org_id, "delivery_id": one.delivery_id, "lease_token": one.lease_token} for one in claims]
    )


async def claim(
    session: AsyncSession,
    *,
    batch: int,
    tenant_batch: int,
    busy_domains: Collection[str],
    busy_tenants: Collection[str],
    size_max_bytes: int,
    lease_token: UUID,
    lease_seconds: float,
) -> list[Claimed]:
    """Take up to `batch` due deliveries, up to `tenant_batch` of a tenant; none of the busy, none above the size."""
    values = {
        "batch": batch,
        "tenant_batch": tenant_batch,
        "busy_domains": list(busy_domains),
        "busy_tenants": list(busy_tenants),
        "size_max_bytes": size_max_bytes,
        "lease_token": lease_token,
        "lease_seconds": lease_seconds,
    }
    return [Claimed(*row) for row in await session.execute(_CLAIM, values)]


async def load(session: AsyncSession, keys: Collection[Key]) -> dict[Key, Content]:
    """The contents of messages by (org_id, message_id)."""
    wanted = list(keys)
    rows = await session.execute(_CONTENT.where(tuple_(Message.org_id, Message.id).in_(wanted)))
    files: dict[Key, list[File]] = {}
    attached = _FILES.where(tuple_(Attachment.org_id, Attachment.message_id).in_(wanted))
    for row in await session.execute(attached):
        files.setdefault((row.org_id, row.message_id), []).append(File(*row[2:]))
    found: dict[Key, Content] = {}
    for row in rows:
        key = (row.org_id, row.message_id)
        found[key] = Content(**row._mapping, files=tuple(files.get(key, ())))
    return found


async def renew(session: AsyncSession, claims: Collection[Claimed], *, lease_seconds: float) -> set[Key]:
    """Prolong leases; returns the (org_id, delivery_id) of those that were still held."""
    rows = await session.execute(_RENEW, {"held": _held(claims), "lease_seconds": lease_seconds})
    return {(org_id, delivery_id) for org_id, delivery_id in rows}


async def release(session: AsyncSession, claims: Collection[Claimed]) -> None:
    """Give back deliveries whose transmission was not begun, as if they had never been claimed."""
    await session.execute(_RELEASE, {"held": _held(claims)})


async def settle(
    session: AsyncSession,
    *,
    outcomes: Sequence[dict[str, Any]],
    attempts: Sequence[dict[str, Any]],
    events: Sequence[dict[str, Any]],
) -> set[Key]:
    """Write outcomes of deliveries that are still held; returns the (org_id, delivery_id) of those."""
    values = {"outcomes": dumps(outcomes), "attempts": dumps(attempts), "events": dumps(events)}
    return {(org_id, delivery_id) for org_id, delivery_id in await session.execute(_SETTLE, values)}


async def heartbeat(
    session: AsyncSession, worker_id: UUID, *, host: str, pid: int, in_flight: int, outcomes: dict[str, int]
) -> None:
    """Say that a worker lives, and what it has counted."""
    values = {"id": worker_id, "host": host, "pid": pid, "in_flight": in_flight}
    await session.execute(_HEARTBEAT, {**values, "outcomes": dumps(outcomes)})


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
