"""SQL of the engine: claim, load, renew, settle, release. Each is one statement in a transaction of its own."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import dumps
from app.delivery.outcome import Claimed
from app.messages.models import Attachment, Message, MessageBody

# Tenants take turns: each that has due mail gets an equal share of the batch, found by skipping from tenant to tenant
# along the index rather than by reading anybody's backlog. Sites at this worker's limit are left for later.
_CLAIM = text(
    """
    WITH RECURSIVE tenants AS (
        (SELECT org_id FROM delivery_queue ORDER BY org_id LIMIT 1)
        UNION ALL
        SELECT (SELECT q.org_id FROM delivery_queue q WHERE q.org_id > t.org_id ORDER BY q.org_id LIMIT 1)
        FROM tenants t WHERE t.org_id IS NOT NULL
    ), due AS MATERIALIZED (
        SELECT t.org_id FROM tenants t
        WHERE EXISTS (SELECT FROM delivery_queue q WHERE q.org_id = t.org_id AND q.next_attempt_at <= now())
        ORDER BY random()
    ), picked AS MATERIALIZED (
        SELECT q.org_id, q.delivery_id FROM due CROSS JOIN LATERAL (
            SELECT q.org_id, q.delivery_id FROM delivery_queue q
            WHERE q.org_id = due.org_id AND q.next_attempt_at <= now() AND q.site <> ALL(CAST(:busy_sites AS text[]))
            ORDER BY q.next_attempt_at
            LIMIT (SELECT greatest(1, ceil(CAST(:batch AS numeric) / greatest(1, count(*)))) FROM due)
            FOR UPDATE SKIP LOCKED
        ) q LIMIT :batch
    )
    UPDATE delivery_queue q
    SET lease_token = :lease_token, attempt = q.attempt + 1,
        next_attempt_at = now() + make_interval(secs => :lease_seconds)
    FROM picked p WHERE q.org_id = p.org_id AND q.delivery_id = p.delivery_id
    RETURNING q.org_id, q.delivery_id, q.message_id, q.recipient, q.site, q.size_bytes, q.attempt, q.give_up_at,
              q.expires_at, q.lease_token
    """
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
_SETTLE = text(
    """
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
        INSERT INTO attempts
        SELECT a.* FROM json_populate_recordset(NULL::attempts, :attempts) a JOIN mine USING (org_id, delivery_id)
    ), e AS (
        INSERT INTO events
        SELECT e.* FROM json_populate_recordset(NULL::events, :events) e JOIN mine USING (org_id, delivery_id)
    )
    SELECT org_id, delivery_id FROM mine
    """
)

_OVERVIEW = text(
    """
    SELECT count(*) AS queued, count(*) FILTER (WHERE next_attempt_at <= now()) AS due,
           coalesce(extract(epoch FROM now() - min(next_attempt_at) FILTER (WHERE next_attempt_at <= now())), 0)
    FROM delivery_queue
    """
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
class Content:
    """A message as it is stored, to be composed."""

    message: Message
    body: MessageBody
    attachments: tuple[Attachment, ...]


def _held(claims: Collection[Claimed]) -> str:
    return dumps(
        [{"org_id": one.org_id, "delivery_id": one.delivery_id, "lease_token": one.lease_token} for one in claims]
    )


async def claim(
    session: AsyncSession, *, batch: int, busy_sites: Collection[str], lease_token: UUID, lease_seconds: float
) -> list[Claimed]:
    """Take up to `batch` due deliveries, fairly across tenants."""
    values = {
        "batch": batch,
        "busy_sites": list(busy_sites),
        "lease_token": lease_token,
        "lease_seconds": lease_seconds,
    }
    return [Claimed(*row) for row in await session.execute(_CLAIM, values)]


async def load(session: AsyncSession, keys: Collection[Key]) -> dict[Key, Content]:
    """The contents of messages by (org_id, message_id)."""
    wanted = list(keys)
    bodies = select(Message, MessageBody).join(
        MessageBody, (MessageBody.org_id == Message.org_id) & (MessageBody.message_id == Message.id)
    )
    rows = (await session.execute(bodies.where(tuple_(Message.org_id, Message.id).in_(wanted)))).all()
    files: dict[Key, list[Attachment]] = {}
    attached = select(Attachment).where(tuple_(Attachment.org_id, Attachment.message_id).in_(wanted))
    for file in await session.scalars(attached.order_by(Attachment.position)):
        files.setdefault((file.org_id, file.message_id), []).append(file)
    return {
        (message.org_id, message.id): Content(message, body, tuple(files.get((message.org_id, message.id), ())))
        for message, body in rows
    }


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
    """Whether any delivery waits whose time has come (an expired lease is such a one)."""
    return bool(await session.scalar(text("SELECT EXISTS (SELECT FROM delivery_queue WHERE next_attempt_at <= now())")))
