"""SQL that moves queued mail: holding, flushing, releasing, waking; and where domains lead.

Mail that is held is due at infinity. Rows with a lease are never touched: they are their worker's, which puts
them aside itself. Simulated mail has no queue. Each statement moves a bounded number of rows.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.queues.models import Hold

_WAY = "coalesce(q.vmta_id, '00000000-0000-0000-0000-000000000000'::uuid)"
_IS_HELD = "q.next_attempt_at = 'infinity'"
# Beyond so many domains behind one way out, those of an organization that holds some of it wait for a release of all.
_DOMAINS_MAX = 100_000

# Of a vMTA that is paused while no other of its pool can take its mail.
_IS_BLOCKED = """EXISTS (
    SELECT FROM vmtas v WHERE v.org_id = w.org_id AND v.id = w.way AND v.paused_at IS NOT NULL AND v.deleted_at IS NULL
    AND NOT EXISTS (SELECT FROM vmtas s WHERE s.org_id = v.org_id AND s.pool = v.pool AND s.id <> v.id
                    AND s.paused_at IS NULL AND s.deleted_at IS NULL))"""

# The domains with held mail of a way out w, found by skipping from one to the next along the index; less those that are
# held by their own name or by their site's.
_FREE_DOMAINS = f"""
    SELECT f.domain, d.site FROM (
        WITH RECURSIVE found AS (
            (SELECT q.domain FROM delivery_queue q WHERE {_IS_HELD} AND q.org_id = w.org_id AND {_WAY} = w.way
             ORDER BY q.domain LIMIT 1)
            UNION ALL
            SELECT (SELECT q.domain FROM delivery_queue q WHERE {_IS_HELD} AND q.org_id = w.org_id AND {_WAY} = w.way
                    AND q.domain > f.domain ORDER BY q.domain LIMIT 1)
            FROM found f WHERE f.domain IS NOT NULL
        ) SELECT domain FROM found WHERE domain IS NOT NULL LIMIT {_DOMAINS_MAX}
    ) f LEFT JOIN destinations d ON d.domain = f.domain
    WHERE NOT EXISTS (SELECT FROM queue_holds h WHERE h.org_id = w.org_id AND h.vmta_id = w.way
                      AND h.site IN (f.domain, d.site))
"""  # noqa: S608 - names of our own

_MAKE_DUE = """
    UPDATE delivery_queue q SET next_attempt_at = now() FROM picked p
    WHERE q.org_id = p.org_id AND q.delivery_id = p.delivery_id
"""

# Where nothing of a way out is held, its mail is taken without a look at its domains. All that have mail to wake have
# an equal share, so that one tenant's million does not keep the others'.
_WAKE = text(
    f"""
    WITH RECURSIVE ways AS (
        (SELECT q.org_id, {_WAY} AS way FROM delivery_queue q WHERE {_IS_HELD} ORDER BY q.org_id, {_WAY} LIMIT 1)
        UNION ALL
        SELECT n.org_id, n.way FROM ways w CROSS JOIN LATERAL (
            SELECT q.org_id, {_WAY} AS way FROM delivery_queue q
            WHERE {_IS_HELD} AND (q.org_id, {_WAY}) > (w.org_id, w.way) ORDER BY q.org_id, {_WAY} LIMIT 1
        ) n
    ), open AS MATERIALIZED (
        SELECT w.org_id, w.way, EXISTS (
            SELECT FROM queue_holds h WHERE h.org_id = w.org_id AND h.vmta_id = w.way) AS has_holds
        FROM ways w WHERE NOT {_IS_BLOCKED}
    ), free AS MATERIALIZED (
        SELECT w.org_id, w.way, NULL AS domains FROM open w WHERE NOT w.has_holds
        UNION ALL
        SELECT w.org_id, w.way, f.domains FROM open w CROSS JOIN LATERAL (
            SELECT array_agg(f.domain) AS domains FROM ({_FREE_DOMAINS}) f
        ) f WHERE w.has_holds AND f.domains IS NOT NULL
    ), share AS (
        SELECT ceil(CAST(:limit AS numeric) / greatest(1, count(*))) AS size FROM free
    ), picked AS MATERIALIZED (
        SELECT * FROM (
            SELECT r.org_id, r.delivery_id FROM free w CROSS JOIN LATERAL (
                SELECT q.org_id, q.delivery_id FROM delivery_queue q
                WHERE {_IS_HELD} AND q.org_id = w.org_id AND {_WAY} = w.way
                LIMIT (SELECT size FROM share) FOR UPDATE SKIP LOCKED
            ) r WHERE w.domains IS NULL
            UNION ALL
            SELECT r.org_id, r.delivery_id FROM free w CROSS JOIN LATERAL (
                SELECT r.* FROM unnest(w.domains) AS f(domain) CROSS JOIN LATERAL (
                    SELECT q.org_id, q.delivery_id FROM delivery_queue q
                    WHERE {_IS_HELD} AND q.org_id = w.org_id AND {_WAY} = w.way AND q.domain = f.domain
                    LIMIT (SELECT size FROM share) FOR UPDATE SKIP LOCKED
                ) r LIMIT (SELECT size FROM share)
            ) r WHERE w.domains IS NOT NULL
        ) r LIMIT :limit
    )
    {_MAKE_DUE} RETURNING q.org_id
    """  # noqa: S608
)

_WAKE_EXPIRED = text(
    f"""
    WITH picked AS MATERIALIZED (
        SELECT q.org_id, q.delivery_id FROM delivery_queue q
        WHERE {_IS_HELD} AND least(q.give_up_at, q.expires_at) <= now()
        ORDER BY least(q.give_up_at, q.expires_at) LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    {_MAKE_DUE} RETURNING q.org_id
    """  # noqa: S608
)

_RELEASE = text(
    f"""
    WITH w AS (SELECT CAST(:org_id AS uuid) AS org_id, CAST(:way AS uuid) AS way), picked AS MATERIALIZED (
        SELECT r.org_id, r.delivery_id FROM w CROSS JOIN LATERAL ({_FREE_DOMAINS}) f CROSS JOIN LATERAL (
            SELECT q.org_id, q.delivery_id FROM delivery_queue q
            WHERE {_IS_HELD} AND q.org_id = w.org_id AND {_WAY} = w.way AND q.domain = f.domain
            LIMIT :limit FOR UPDATE SKIP LOCKED
        ) r WHERE :site IN (f.domain, f.site) AND NOT {_IS_BLOCKED} LIMIT :limit
    )
    {_MAKE_DUE} RETURNING q.org_id
    """  # noqa: S608
)


def _waiting(condition: str) -> str:
    """The waiting mail of one queue, what is due first."""
    # What is scheduled and was never tried keeps its time. That is asked as a scalar: else the planner might read all
    # messages for it.
    return f"""
        SELECT q.org_id, q.delivery_id FROM delivery_queue q LEFT JOIN destinations d ON d.domain = q.domain
        WHERE q.org_id = :org_id AND {_WAY} = :way AND q.lease_token IS NULL AND q.simulated IS NULL AND {condition}
          AND :site = CASE WHEN EXISTS (SELECT FROM queue_holds h WHERE h.org_id = q.org_id AND h.vmta_id = {_WAY}
                                        AND h.site = q.domain)
                           THEN q.domain ELSE coalesce(d.site, q.domain) END
          AND (q.attempt > 0 OR q.next_attempt_at <= now() OR coalesce((
              SELECT m.scheduled_at FROM messages m WHERE m.org_id = q.org_id AND m.id = q.message_id), now()) <= now())
        ORDER BY q.next_attempt_at LIMIT :limit FOR UPDATE OF q SKIP LOCKED
    """  # noqa: S608 - names of our own


_PARK = text(
    f"""
    WITH picked AS MATERIALIZED ({_waiting("q.next_attempt_at < 'infinity'")})
    UPDATE delivery_queue q SET next_attempt_at = 'infinity' FROM picked p
    WHERE q.org_id = p.org_id AND q.delivery_id = p.delivery_id RETURNING q.org_id
    """  # noqa: S608
)
_FLUSH = text(
    f"""
    WITH picked AS MATERIALIZED ({_waiting("q.next_attempt_at > now() AND q.next_attempt_at < 'infinity'")})
    {_MAKE_DUE} RETURNING q.org_id
    """
)

# Known ones of today are left alone without so much as a row lock: workers ask this all day.
_UPSERT = text(
    """
    INSERT INTO destinations AS d (domain, site, provider)
    SELECT n.domain, n.site, n.provider
    FROM unnest(CAST(:domains AS text[]), CAST(:sites AS text[]), CAST(:providers AS text[]))
         AS n(domain, site, provider)
    WHERE NOT EXISTS (SELECT FROM destinations o WHERE o.domain = n.domain AND o.site = n.site
                      AND o.provider = n.provider AND o.seen_at > now() - interval '1 day')
    ORDER BY n.domain
    ON CONFLICT (domain) DO UPDATE SET site = excluded.site, provider = excluded.provider, seen_at = now()
    """
)


async def holds(session: AsyncSession) -> Sequence[tuple[UUID, UUID, str]]:
    """(org_id, way out, site) of every hold there is."""
    rows = await session.execute(select(Hold.org_id, Hold.vmta_id, Hold.site))
    return [row._tuple() for row in rows]


async def count(session: AsyncSession, org_id: UUID) -> int:
    """How many queues an organization holds."""
    return await session.scalar(select(func.count()).select_from(Hold).where(Hold.org_id == org_id)) or 0


async def is_held(session: AsyncSession, org_id: UUID, way: UUID, site: str) -> bool:
    """Whether this very queue is held."""
    return await session.get(Hold, (org_id, way, site)) is not None


async def add(session: AsyncSession, org_id: UUID, way: UUID, site: str, *, created_by: UUID | None) -> None:
    """Hold a queue."""
    values = {"org_id": org_id, "vmta_id": way, "site": site, "created_by": created_by}
    await session.execute(insert(Hold).values(values).on_conflict_do_nothing())


async def remove(session: AsyncSession, org_id: UUID, way: UUID, site: str) -> None:
    """Hold a queue no longer."""
    await session.execute(delete(Hold).where(Hold.org_id == org_id, Hold.vmta_id == way, Hold.site == site))


async def park(session: AsyncSession, org_id: UUID, way: UUID, site: str, *, limit: int) -> int:
    """Set the waiting mail of a queue aside, what is due first; how many."""
    values = {"org_id": org_id, "way": way, "site": site, "limit": limit}
    return len((await session.execute(_PARK, values)).all())


async def flush(session: AsyncSession, org_id: UUID, way: UUID, site: str, *, limit: int) -> int:
    """Make deferred mail of a queue due; how many."""
    values = {"org_id": org_id, "way": way, "site": site, "limit": limit}
    return len((await session.execute(_FLUSH, values)).all())


async def release(session: AsyncSession, org_id: UUID, way: UUID, site: str, *, limit: int) -> int:
    """Make the held mail of a queue due, as far as nothing holds it any more; how many."""
    values = {"org_id": org_id, "way": way, "site": site, "limit": limit}
    return len((await session.execute(_RELEASE, values)).all())


async def wake(session: AsyncSession, *, limit: int) -> int:
    """Make held mail of all organizations due that nothing holds any more; how many."""
    return len((await session.execute(_WAKE, {"limit": limit})).all())


async def wake_expired(session: AsyncSession, *, limit: int) -> int:
    """Make held mail of all organizations due that has expired; how many."""
    return len((await session.execute(_WAKE_EXPIRED, {"limit": limit})).all())


async def upsert(session: AsyncSession, domains: list[str], sites: list[str], providers: list[str]) -> None:
    """Write down where domains lead; no domain twice."""
    await session.execute(_UPSERT, {"domains": domains, "sites": sites, "providers": providers})
