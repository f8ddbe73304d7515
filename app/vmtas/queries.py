"""Statements on vMTAs, their usage, and the addresses that organizations may use. Deleted vMTAs are not seen."""

from collections.abc import Collection, Sequence
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import ColumnElement, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.pagination import Page
from app.vmtas import warmup
from app.vmtas.models import EgressAddress, Vmta, VmtaUsage

# More than all days and providers of the longest ramp.
_MAX_USAGE_ROWS = 5000
_MAX_LISTED = 1000

# One number for all transactions that look at, or change, who may use which address.
_ADDRESSES_LOCK = 0x766D7461

_TAKE = text(
    """
    UPDATE vmta_usage u SET taken = old.taken + greatest(0, least(:count, :cap - old.taken))
    FROM (
        SELECT taken FROM vmta_usage
        WHERE org_id = :org_id AND vmta_id = :vmta_id AND day = :day AND provider = :provider FOR UPDATE
    ) old
    WHERE u.org_id = :org_id AND u.vmta_id = :vmta_id AND u.day = :day AND u.provider = :provider
    RETURNING u.taken - old.taken
    """
)

# Summed and in order: one statement may not meet a row twice, and two must not meet each other's in different orders.
_RECORD = text(
    """
    INSERT INTO vmta_usage AS u
        (org_id, vmta_id, day, provider, delivered, deferred, hard_bounced, complained)
    SELECT r.org_id, r.vmta_id, r.day, r.provider,
        sum(r.delivered), sum(r.deferred), sum(r.hard_bounced), sum(r.complained)
    FROM json_to_recordset(:rows) r (org_id uuid, vmta_id uuid, day date, provider text,
        delivered bigint, deferred bigint, hard_bounced bigint, complained bigint)
    JOIN vmtas v ON v.org_id = r.org_id AND v.id = r.vmta_id
    GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    ON CONFLICT (org_id, vmta_id, day, provider) DO UPDATE SET
        delivered = u.delivered + excluded.delivered, deferred = u.deferred + excluded.deferred,
        hard_bounced = u.hard_bounced + excluded.hard_bounced, complained = u.complained + excluded.complained
    """
)


def _live(org_id: UUID) -> list[ColumnElement[bool]]:
    return [Vmta.org_id == org_id, Vmta.deleted_at.is_(None)]


async def get(session: AsyncSession, org_id: UUID, vmta_id: UUID, *, lock: bool = False) -> Vmta | None:
    """A vMTA by id. `lock` keeps other writers off until the commit."""
    statement = select(Vmta).where(Vmta.id == vmta_id, *_live(org_id))
    if lock:
        # FOR NO KEY UPDATE: usage is counted (a foreign key's share lock) all the while.
        statement = statement.with_for_update(key_share=True).execution_options(populate_existing=True)
    return await session.scalar(statement)


async def page(session: AsyncSession, org_id: UUID, page: Page) -> Sequence[Vmta]:
    """The rows for one page, to be cut by `page.cut`."""
    return (await session.scalars(page.select(select(Vmta).where(*_live(org_id)), Vmta.id))).all()


async def count(session: AsyncSession, org_id: UUID) -> int:
    """How many vMTAs the organization has. Others who ask wait for the end of this transaction, and may add then."""
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"vmtas {org_id}", 0))))
    return await session.scalar(select(func.count()).select_from(Vmta).where(*_live(org_id))) or 0


async def add(session: AsyncSession, org_id: UUID, vmta_id: UUID, values: dict[str, Any]) -> Vmta | None:
    """Insert a vMTA; None when the organization has one of that name."""
    statement = (
        insert(Vmta)
        .values(org_id=org_id, id=vmta_id, **values)
        .on_conflict_do_nothing(index_elements=[Vmta.org_id, Vmta.name], index_where=Vmta.deleted_at.is_(None))
        .returning(Vmta)
    )
    return await session.scalar(statement)


async def of_organization(session: AsyncSession, org_id: UUID) -> Sequence[Any]:
    """All of the organization's vMTAs, as rows of their columns."""
    return (await session.execute(select(*Vmta.__table__.columns).where(*_live(org_id)))).all()


async def changed(session: AsyncSession, *, within_seconds: float | None) -> Sequence[Any]:
    """Of all organizations: the live vMTAs, or what has changed lately, deleted ones too; rows of columns."""
    # now(), not the wall clock: an index can be searched by it.
    since = func.now() - timedelta(seconds=within_seconds or 0)
    is_wanted = Vmta.deleted_at.is_(None) if within_seconds is None else Vmta.updated_at >= since
    return (await session.execute(select(*Vmta.__table__.columns).where(is_wanted))).all()


async def has_queued_mail(session: AsyncSession, org_id: UUID, vmta_id: UUID) -> bool:
    """Whether mail still waits to leave from the vMTA."""
    # SQL text, because vmtas stand below messages and may not import their models.
    statement = text("SELECT EXISTS (SELECT FROM delivery_queue WHERE org_id = :org_id AND vmta_id = :vmta_id)")
    return bool(await session.scalar(statement, {"org_id": org_id, "vmta_id": vmta_id}))


# ── Usage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def usage(session: AsyncSession, org_id: UUID, vmta_id: UUID, *, since: date) -> list[warmup.Usage]:
    """What the vMTA did since a day, by day and provider, the newest first."""
    statement = (
        select(
            VmtaUsage.day,
            VmtaUsage.provider,
            VmtaUsage.taken,
            VmtaUsage.delivered,
            VmtaUsage.deferred,
            VmtaUsage.hard_bounced,
            VmtaUsage.complained,
        )
        .where(VmtaUsage.org_id == org_id, VmtaUsage.vmta_id == vmta_id, VmtaUsage.day >= since)
        .order_by(VmtaUsage.day.desc())
        .limit(_MAX_USAGE_ROWS)
    )
    return [warmup.Usage(*row) for row in await session.execute(statement)]


async def take(
    session: AsyncSession, org_id: UUID, vmta_id: UUID, *, day: date, provider: str, count: int, cap: int
) -> int:
    """Take up to `count` mails of what `cap` leaves of the day; how many. The row stays locked until the commit."""
    key = {"org_id": org_id, "vmta_id": vmta_id, "day": day, "provider": provider}
    granted = await session.scalar(_TAKE, {**key, "count": count, "cap": cap})
    if granted is None:
        # The day's first: once it is there, whoever made it, it is there for good.
        await session.execute(insert(VmtaUsage).values(**key).on_conflict_do_nothing())
        granted = await session.scalar(_TAKE, {**key, "count": count, "cap": cap})
    return int(granted or 0)


async def give_back(
    session: AsyncSession, org_id: UUID, vmta_id: UUID, *, day: date, provider: str, count: int
) -> None:
    """Undo a part of what was taken."""
    statement = update(VmtaUsage).where(
        VmtaUsage.org_id == org_id,
        VmtaUsage.vmta_id == vmta_id,
        VmtaUsage.day == day,
        VmtaUsage.provider == provider,
    )
    await session.execute(statement.values(taken=func.greatest(0, VmtaUsage.taken - count)))


async def record(session: AsyncSession, rows: Collection[dict[str, Any]]) -> None:
    """Add counts to usage; rows of vMTAs that do not exist are left out."""
    await session.execute(_RECORD, {"rows": orjson.dumps(list(rows), default=str).decode()})


async def finish_warmup(session: AsyncSession, org_id: UUID, vmta_id: UUID, *, started_at: datetime) -> None:
    """Note that the ramp that began then is over."""
    statement = update(Vmta).where(
        Vmta.id == vmta_id,
        Vmta.warmup_started_at == started_at,
        Vmta.warmup_finished_at.is_(None),
        *_live(org_id),
    )
    await session.execute(statement.values(warmup_finished_at=func.now()))


# ── Addresses ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def lock_addresses(session: AsyncSession, *, to_change: bool) -> None:
    """Until the commit nobody changes who may use which address; with `to_change` nobody else looks either."""
    lock = func.pg_advisory_xact_lock if to_change else func.pg_advisory_xact_lock_shared
    await session.execute(select(lock(_ADDRESSES_LOCK)))


async def assignment(session: AsyncSession, ip_address: str) -> EgressAddress | None:
    """To whom the address was given; None when to nobody."""
    return await session.get(EgressAddress, ip_address)


async def assignments(
    session: AsyncSession, ip_address: str | None = None
) -> Sequence[tuple[EgressAddress, str | None, int]]:
    """Addresses that were given, at most a thousand, with the name of whom to (None: all) and how many vMTAs use it."""
    statement = text(
        "SELECT e.ip_address, e.org_id, e.created_at, o.name, "
        "(SELECT count(*) FROM vmtas v WHERE v.ip_address = e.ip_address AND v.deleted_at IS NULL) "
        "FROM egress_addresses e LEFT JOIN organizations o ON o.id = e.org_id "
        "WHERE e.ip_address = coalesce(:ip_address, e.ip_address) ORDER BY e.ip_address::inet LIMIT :limit"
    )
    parameters = {"ip_address": ip_address, "limit": _MAX_LISTED}
    return [
        (EgressAddress(ip_address=address, org_id=org_id, created_at=created_at), name, users)
        for address, org_id, created_at, name, users in await session.execute(statement, parameters)
    ]


async def assign(session: AsyncSession, ip_address: str, org_id: UUID | None) -> None:
    """Write down that the address was given."""
    session.add(EgressAddress(ip_address=ip_address, org_id=org_id))
    await session.flush()


async def unassign(session: AsyncSession, ip_address: str) -> bool:
    """Forget that the address was given; whether it was."""
    statement = delete(EgressAddress).where(EgressAddress.ip_address == ip_address).returning(EgressAddress.ip_address)
    return await session.scalar(statement) is not None


async def using(session: AsyncSession, ip_address: str) -> Sequence[Vmta]:
    """The vMTAs of all organizations that use the address."""
    statement = select(Vmta).where(Vmta.ip_address == ip_address, Vmta.deleted_at.is_(None)).order_by(Vmta.id)
    return (await session.scalars(statement.with_for_update(key_share=True))).all()
