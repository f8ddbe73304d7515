"""SQL that looks at queues: one grouped scan of an organization's queued mail, at most SCANNED_MAX rows of it.

Simulated mail has no queue, as nothing of it leaves. A way out is a vMTA's id, or the nil UUID.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.queues.pages import QueuePage
from app.queues.schemas import State
from app.vmtas.models import Vmta

SCANNED_MAX = 1_000_000
DEFAULT_WAY = UUID(int=0)

# Grouped by domain first, so that a million rows are not each joined to their site. A domain that is held by its own
# name is a queue by itself, whatever its site: a hold made before its hosts were looked up goes on after that.
_QUEUES = """
    WITH scanned AS (
        SELECT q.vmta_id, q.domain, q.next_attempt_at, q.lease_token
        FROM delivery_queue q WHERE q.org_id = :org_id AND q.simulated IS NULL {conditions}
        LIMIT {scanned_max} + 1
    ), grouped AS MATERIALIZED (
        SELECT coalesce(vmta_id, '00000000-0000-0000-0000-000000000000'::uuid) AS way, domain, count(*) AS total,
               count(*) FILTER (WHERE next_attempt_at <= now()) AS waiting,
               count(*) FILTER (WHERE next_attempt_at = 'infinity') AS held,
               count(*) FILTER (WHERE lease_token IS NOT NULL AND next_attempt_at > now()
                                AND next_attempt_at < 'infinity') AS sending,
               min(next_attempt_at) FILTER (WHERE next_attempt_at <= now()) AS due_at,
               min(next_attempt_at) FILTER (WHERE lease_token IS NULL AND next_attempt_at > now()
                                            AND next_attempt_at < 'infinity') AS next_at
        FROM scanned GROUP BY 1, 2
    ), filled AS (
        SELECT g.way, CASE WHEN h.site IS NULL THEN coalesce(d.site, g.domain) ELSE g.domain END AS site,
               sum(g.total) AS total, sum(g.waiting) AS waiting, sum(g.held) AS held, sum(g.sending) AS sending,
               min(g.due_at) AS due_at, min(g.next_at) AS next_at, max(d.provider) AS provider,
               (array_agg(g.domain ORDER BY g.total DESC, g.domain))[1:10] AS domains
        FROM grouped g LEFT JOIN destinations d ON d.domain = g.domain
        LEFT JOIN queue_holds h ON h.org_id = :org_id AND h.vmta_id = g.way AND h.site = g.domain
        GROUP BY 1, 2
    ), named AS (
        SELECT vmta_id AS way, site FROM queue_holds WHERE org_id = :org_id
        UNION SELECT CAST(:way AS uuid), CAST(:site AS text) WHERE :is_named
    ), queues AS (
        SELECT coalesce(v.id::text, 'default') || '@' || f.site COLLATE "C" AS id, v.id AS vmta_id,
               v.name AS vmta_name, f.way, f.site, f.total, f.waiting, f.held, f.sending, f.next_at, f.domains,
               CASE WHEN h.site IS NOT NULL THEN 'held' WHEN v.paused_at IS NOT NULL THEN 'paused'
                    ELSE coalesce(t.kind, 'active') END AS state,
               t.reason, t.until,
               coalesce(f.provider, (SELECT p.provider FROM destinations p WHERE p.site = f.site LIMIT 1), 'generic')
               AS provider,
               extract(epoch FROM now() - f.due_at) AS oldest_due_seconds
        FROM (SELECT coalesce(f.way, n.way) AS way, coalesce(f.site, n.site) AS site, coalesce(f.total, 0) AS total,
                     coalesce(f.waiting, 0) AS waiting, coalesce(f.held, 0) AS held,
                     coalesce(f.sending, 0) AS sending, f.due_at, f.next_at, f.provider,
                     coalesce(f.domains, '{{}}') AS domains
              FROM filled f FULL JOIN named n ON n.way = f.way AND n.site = f.site) f
        LEFT JOIN vmtas v ON v.org_id = :org_id AND v.id = f.way
        LEFT JOIN queue_holds h ON h.org_id = :org_id AND h.vmta_id = f.way AND h.site = f.site
        LEFT JOIN queue_throttles t ON t.vmta_id = f.way AND t.site = f.site AND t.until > now()
    ), bound AS (
        SELECT coalesce(sum(total), 0) > {scanned_max} AS is_met FROM grouped
    )
"""
_OF_DEFAULT = "AND q.vmta_id IS NULL"
_OF_VMTA = "AND q.vmta_id = :way"
_TO_SITE = "AND q.domain IN (SELECT domain FROM destinations WHERE site = :site UNION ALL SELECT :site)"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which queues: of this way out, to this site, in this state; None for any."""

    way: UUID | None = None
    site: str | None = None
    state: State | None = None


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue as it was found."""

    id: str
    vmta_id: UUID | None
    vmta_name: str | None
    site: str
    provider: str
    state: str
    reason: str | None
    until: datetime | None
    total: int
    waiting: int
    held: int
    sending: int
    oldest_due_seconds: float | None
    next_at: datetime | None
    domains: list[str]


_COLUMNS = ", ".join(QueueRow.__slots__)


async def limit_time(session: AsyncSession) -> None:
    """Let this transaction's statements take a few seconds at most."""
    await session.execute(text("SET LOCAL statement_timeout = '4s'"))


async def vmta(session: AsyncSession, org_id: UUID, vmta_id: UUID) -> Vmta | None:
    """A vMTA of the organization, be it deleted: mail may be left in its queues."""
    return await session.scalar(select(Vmta).where(Vmta.org_id == org_id, Vmta.id == vmta_id))


async def page(session: AsyncSession, org_id: UUID, wanted: Wanted, where: QueuePage) -> tuple[list[QueueRow], bool]:
    """(queues in the order of their ids, one more than asked if there is one; whether the scan met its bound).

    With `before` the order is reversed.
    """
    backward = where.before is not None
    cursor = where.before if backward else where.after
    compared = "" if cursor is None else f"AND id {'<' if backward else '>'} :cursor"
    rest = f"ORDER BY id {'DESC' if backward else 'ASC'} LIMIT :limit"
    values = {"limit": where.limit + 1} | ({} if cursor is None else {"cursor": cursor})
    return await _select(session, org_id, wanted, rest, values, compared=compared)


async def fullest(session: AsyncSession, org_id: UUID, wanted: Wanted, *, limit: int) -> list[QueueRow]:
    """Queues, those with the most mail first."""
    rows, _ = await _select(session, org_id, wanted, "ORDER BY total DESC, id LIMIT :limit", {"limit": limit})
    return rows


async def one(session: AsyncSession, org_id: UUID, way: UUID, site: str) -> QueueRow:
    """One queue, be it empty."""
    rows, _ = await _select(session, org_id, Wanted(way, site), "LIMIT 1", {}, is_named=True)
    return rows[0]


async def totals(session: AsyncSession, org_id: UUID, wanted: Wanted) -> Sequence[Any]:
    """Per state: (state, queues, waiting, held, sending, total, oldest_due_seconds, next_at, is_met)."""
    tail = f"""
        SELECT state, count(*) AS queues, sum(waiting) AS waiting, sum(held) AS held, sum(sending) AS sending,
               sum(total) AS total, max(oldest_due_seconds) AS oldest_due_seconds, min(next_at) AS next_at, is_met
        FROM queues, bound WHERE {_matching(wanted)} GROUP BY state, is_met
    """  # noqa: S608 - names of our own
    return (await session.execute(*_statement(org_id, wanted, tail, {}, is_named=False))).all()


async def _select(
    session: AsyncSession,
    org_id: UUID,
    wanted: Wanted,
    rest: str,
    values: dict[str, Any],
    *,
    compared: str = "",
    is_named: bool = False,
) -> tuple[list[QueueRow], bool]:
    # The bound is told of an empty page, too.
    matching = f"{_matching(wanted)} {compared}"
    tail = f"SELECT is_met, {_COLUMNS} FROM bound LEFT JOIN queues ON {matching} {rest}"  # noqa: S608
    rows = (await session.execute(*_statement(org_id, wanted, tail, values, is_named=is_named))).all()
    return [QueueRow(*row[1:]) for row in rows if row.id is not None], rows[0].is_met


def _matching(wanted: Wanted) -> str:
    conditions = ["true"]
    if wanted.way is not None:
        conditions.append("way = :way")
    if wanted.site is not None:
        conditions.append("site = :site")
    if wanted.state is not None:
        conditions.append("state = :state")
    return " AND ".join(conditions)


def _statement(
    org_id: UUID, wanted: Wanted, tail: str, values: dict[str, Any], *, is_named: bool
) -> tuple[Any, dict[str, Any]]:
    conditions = ""
    if wanted.way is not None:
        conditions += _OF_DEFAULT if wanted.way == DEFAULT_WAY else _OF_VMTA
    if wanted.site is not None:
        conditions += " " + _TO_SITE
    statement = (_QUEUES + tail).format(conditions=conditions, scanned_max=SCANNED_MAX)
    given = {"org_id": org_id, "way": wanted.way, "site": wanted.site, "is_named": is_named, **values}
    return text(statement), given | ({} if wanted.state is None else {"state": wanted.state.value})
