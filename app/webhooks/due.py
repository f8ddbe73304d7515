"""SQL of delivering: claim, renew, settle, give back, cancel; on the driver's own connection, and in batches."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

# The webhooks for which anything waits, found by skipping from one to the next along the index.
WAITING = """
    waiting AS (
        (SELECT org_id, webhook_id FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL
         ORDER BY org_id, webhook_id LIMIT 1)
        UNION ALL
        SELECT n.org_id, n.webhook_id FROM waiting w CROSS JOIN LATERAL (
            SELECT d.org_id, d.webhook_id FROM webhook_deliveries d
            WHERE d.next_attempt_at IS NOT NULL AND (d.org_id, d.webhook_id) > (w.org_id, w.webhook_id)
            ORDER BY d.org_id, d.webhook_id LIMIT 1
        ) n
    )
    """

# Webhooks take turns, each for as many as there is room for: none pays for another's backlog or silence.
_PICK = f"""
    WITH RECURSIVE {WAITING}, open AS MATERIALIZED (
        SELECT w.org_id, w.webhook_id, coalesce(r.room, $3::int) AS room
        FROM waiting w
        JOIN webhooks h ON h.org_id = w.org_id AND h.id = w.webhook_id AND h.disabled_at IS NULL
        LEFT JOIN unnest($1::uuid[], $2::int[]) AS r(webhook_id, room) ON r.webhook_id = w.webhook_id
        ORDER BY random()
    )
    SELECT q.* FROM open o CROSS JOIN LATERAL (
        SELECT d.org_id, d.id, d.webhook_id, d.event_id, d.payload, d.attempt FROM webhook_deliveries d
        WHERE d.org_id = o.org_id AND d.webhook_id = o.webhook_id AND d.next_attempt_at <= now()
        ORDER BY d.next_attempt_at LIMIT o.room FOR UPDATE SKIP LOCKED
    ) q LIMIT $4::int
    """  # noqa: S608 - a query of our own
# Rows are named by arrays: of those the planner expects few, and looks them up one by one in their partitions.
_LEASE = """
    UPDATE webhook_deliveries d SET lease_token = $3::uuid, next_attempt_at = now() + make_interval(secs => $4::float8)
    FROM unnest($1::uuid[], $2::uuid[]) AS k(org_id, id) WHERE d.org_id = k.org_id AND d.id = k.id
    """
_RENEW = """
    UPDATE webhook_deliveries d SET next_attempt_at = now() + make_interval(secs => $4::float8)
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS h(org_id, id, lease_token)
    WHERE d.org_id = h.org_id AND d.id = h.id AND d.lease_token = h.lease_token
    RETURNING d.id
    """
_GIVE_BACK = """
    UPDATE webhook_deliveries d
    SET next_attempt_at = now() + make_interval(secs => $4::float8), lease_token = NULL
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS h(org_id, id, lease_token)
    WHERE d.org_id = h.org_id AND d.id = h.id AND d.lease_token = h.lease_token
    """
_SETTLE = """
    UPDATE webhook_deliveries d
    SET status = o.status, attempt = d.attempt + 1, attempts = d.attempts || o.entry, lease_token = NULL,
        next_attempt_at = o.next_attempt_at, settled_at = o.settled_at
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::jsonb[], $6::timestamptz[], $7::timestamptz[])
        AS o(org_id, id, lease_token, status, entry, next_attempt_at, settled_at)
    WHERE d.org_id = o.org_id AND d.id = o.id AND d.lease_token = o.lease_token
    RETURNING d.id
    """
# What is leased is in somebody's hands, and ends by itself.
_CANCEL = f"""
    WITH RECURSIVE {WAITING}, closed AS MATERIALIZED (
        SELECT w.org_id, w.webhook_id FROM waiting w
        LEFT JOIN webhooks h ON h.org_id = w.org_id AND h.id = w.webhook_id
        WHERE h.id IS NULL OR h.disabled_at IS NOT NULL
    )
    SELECT q.* FROM closed c CROSS JOIN LATERAL (
        SELECT d.org_id, d.id FROM webhook_deliveries d
        WHERE d.org_id = c.org_id AND d.webhook_id = c.webhook_id AND d.next_attempt_at IS NOT NULL
          AND (d.lease_token IS NULL OR d.next_attempt_at <= now())
        LIMIT $1::int FOR UPDATE SKIP LOCKED
    ) q LIMIT $1::int
    """  # noqa: S608 - a query of our own
_CANCEL_THESE = """
    UPDATE webhook_deliveries d
    SET status = 'cancelled', next_attempt_at = NULL, lease_token = NULL, settled_at = now()
    FROM unnest($1::uuid[], $2::uuid[]) AS k(org_id, id) WHERE d.org_id = k.org_id AND d.id = k.id
    """
_SUCCEEDED = """
    UPDATE webhooks w SET failing_since = NULL, last_success_at = greatest(w.last_success_at, s.at)
    FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS s(org_id, id, at)
    WHERE w.org_id = s.org_id AND w.id = s.id
    """
_FAILED = """
    UPDATE webhooks w SET failing_since = f.at
    FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS f(org_id, id, at)
    WHERE w.org_id = f.org_id AND w.id = f.id AND w.failing_since IS NULL
      AND (w.last_success_at IS NULL OR w.last_success_at < f.at)
    """
_ENDPOINTS = """
    SELECT w.org_id, w.id, w.url, w.secret, w.previous_secret, w.previous_expires_at, w.failing_since
    FROM unnest($1::uuid[], $2::uuid[]) AS k(org_id, id) JOIN webhooks w ON w.org_id = k.org_id AND w.id = k.id
    WHERE w.disabled_at IS NULL
    """
_COUNT = """
    INSERT INTO webhook_counts AS c (outcome, count) SELECT * FROM unnest($1::text[], $2::bigint[])
    ON CONFLICT (outcome) DO UPDATE SET count = c.count + excluded.count
    """

Key = tuple[UUID, UUID]


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """What delivering needs of a webhook; secrets sealed."""

    org_id: UUID
    id: UUID
    url: str
    secret: bytes
    previous_secret: bytes | None
    previous_expires_at: datetime | None
    failing_since: datetime | None


@dataclass(slots=True)
class Job:
    """A delivery that this process holds a lease on, until `leased_until` by the monotonic clock."""

    org_id: UUID
    id: UUID
    webhook_id: UUID
    event_id: UUID
    payload: str
    attempts_before: int
    lease_token: UUID
    leased_until: float


@dataclass(frozen=True, slots=True)
class Settled:
    """How a claimed delivery is to be written down. `next_attempt_at` None: it has come to its end."""

    job: Job
    status: str
    entry: dict[str, Any]
    next_attempt_at: datetime | None
    settled_at: datetime | None


async def claim(
    connection: asyncpg.Connection,
    rooms: Mapping[UUID, int],
    *,
    room: int,
    batch: int,
    lease_token: UUID,
    lease_seconds: float,
    leased_until: float,
) -> list[Job]:
    """Take up to `batch` due deliveries: for each webhook as many as it has room for in `rooms`, else `room`."""
    async with connection.transaction():
        rows = await connection.fetch(_PICK, list(rooms), list(rooms.values()), room, batch)
        if rows:
            keys = ([row["org_id"] for row in rows], [row["id"] for row in rows])
            await connection.execute(_LEASE, *keys, lease_token, lease_seconds)
    return [Job(*(*row, lease_token, leased_until)) for row in rows]


def _leases(jobs: Collection[Job]) -> tuple[list[UUID], list[UUID], list[UUID]]:
    return [job.org_id for job in jobs], [job.id for job in jobs], [job.lease_token for job in jobs]


async def renew(connection: asyncpg.Connection, jobs: Collection[Job], *, lease_seconds: float) -> set[UUID]:
    """Prolong leases; the ids of the deliveries that were still held."""
    return {row["id"] for row in await connection.fetch(_RENEW, *_leases(jobs), lease_seconds)}


async def give_back(connection: asyncpg.Connection, jobs: Collection[Job], *, after_seconds: float) -> None:
    """Let deliveries whose attempt was not begun be due again, that much later."""
    await connection.execute(_GIVE_BACK, *_leases(jobs), after_seconds)


async def settle(connection: asyncpg.Connection, rows: Sequence[Settled]) -> set[UUID]:
    """Write down what attempts came to; the ids of those deliveries that were still held."""
    written = await connection.fetch(
        _SETTLE,
        *_leases([row.job for row in rows]),
        [row.status for row in rows],
        [row.entry for row in rows],
        [row.next_attempt_at for row in rows],
        [row.settled_at for row in rows],
    )
    return {row["id"] for row in written}


async def cancel_for_closed(connection: asyncpg.Connection, *, limit: int) -> int:
    """Cancel what waits for webhooks that are disabled or deleted; how many that were, at most `limit`."""
    async with connection.transaction():
        rows = await connection.fetch(_CANCEL, limit)
        if rows:
            await connection.execute(_CANCEL_THESE, [row["org_id"] for row in rows], [row["id"] for row in rows])
    return len(rows)


async def succeeded(connection: asyncpg.Connection, moments: Mapping[Key, datetime]) -> None:
    """Webhooks have taken something at these moments."""
    await connection.execute(_SUCCEEDED, *_columns(moments))


async def failed(connection: asyncpg.Connection, moments: Mapping[Key, datetime]) -> None:
    """Webhooks have failed at these moments, and have not taken anything since."""
    await connection.execute(_FAILED, *_columns(moments))


def _columns(moments: Mapping[Key, datetime]) -> tuple[list[UUID], list[UUID], list[datetime]]:
    return [org_id for org_id, _ in moments], [webhook_id for _, webhook_id in moments], list(moments.values())


async def endpoints(connection: asyncpg.Connection, keys: Collection[Key]) -> list[EndpointRow]:
    """Those of these webhooks that are on."""
    wanted = ([org_id for org_id, _ in keys], [webhook_id for _, webhook_id in keys])
    return [EndpointRow(*row) for row in await connection.fetch(_ENDPOINTS, *wanted)]


async def count(connection: asyncpg.Connection, counts: Mapping[str, int]) -> None:
    """Add to the numbers of attempts by outcome."""
    await connection.execute(_COUNT, list(counts), list(counts.values()))
