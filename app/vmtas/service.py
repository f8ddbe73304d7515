"""Virtual MTAs: made, changed, paused; and what sending needs of them.

PostroadError
├── Conflict     vmta_exists, too_many_vmtas, vmta_in_use, address_in_use
├── Invalid      address_not_assigned; vmta_not_found (a mail asks for one that is not there)
└── NotFound     vmta_not_found
"""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import ids
from app.core.db import after_commit
from app.core.errors import Conflict, Invalid, NotFound
from app.core.pagination import Page, Pagination
from app.vmtas import queries, schemas, warmup
from app.vmtas.addresses import can_bind
from app.vmtas.choice import FLEET_SECONDS, Fleet, Vmta, forget, load, load_all
from app.vmtas.models import Vmta as VmtaRow
from app.vmtas.usage import Outcomes, give_back, record, take

__all__ = [
    "FLEET_SECONDS",
    "MAX_VMTAS",
    "Fleet",
    "Outcomes",
    "Vmta",
    "assign_address",
    "can_bind",
    "create",
    "delete",
    "get",
    "give_back",
    "load",
    "load_all",
    "page",
    "pause",
    "record",
    "resume",
    "take",
    "unassign_address",
    "update",
    "warmup_status",
]

MAX_VMTAS = 100


async def create(session: AsyncSession, org_id: UUID, new: schemas.NewVmta, *, any_address: bool) -> schemas.Vmta:
    """Make a vMTA; mail may leave from it at once.

    `any_address` says that the caller is not bound to the addresses that the operator has given to the organization.
    Raises Invalid (address_not_assigned) and Conflict (vmta_exists, too_many_vmtas).
    """
    await _check_address(session, org_id, new.ip_address, any_address=any_address)
    if await queries.count(session, org_id) >= MAX_VMTAS:
        raise Conflict("too_many_vmtas", f"An organization may have {MAX_VMTAS} vMTAs.")
    values = new.model_dump(exclude={"warmup"}) | _warmup(new.warmup, None, moved=False)
    row = await queries.add(session, org_id, ids.new_id(), values)
    if row is None:
        raise _exists(new.name)
    after_commit(session, lambda: forget(org_id))
    return _show(row)


async def get(session: AsyncSession, org_id: UUID, vmta_id: UUID) -> schemas.Vmta:
    """One vMTA. Raises NotFound."""
    return _show(await _load(session, org_id, vmta_id))


async def page(session: AsyncSession, org_id: UUID, wanted: Page) -> tuple[list[schemas.Vmta], Pagination]:
    """A page of the organization's vMTAs, newest first."""
    rows, pagination = wanted.cut(await queries.page(session, org_id, wanted), lambda row: row.id)
    return list(map(_show, rows)), pagination


async def update(
    session: AsyncSession, org_id: UUID, vmta_id: UUID, changes: schemas.VmtaChanges, *, any_address: bool
) -> schemas.Vmta:
    """Change the fields that are given. Raises NotFound, Invalid (address_not_assigned), Conflict (vmta_exists).

    An address that it has already is not asked for again.
    """
    await queries.lock_addresses(session, to_change=False)
    row = await _load(session, org_id, vmta_id, lock=True)
    values = changes.model_dump(include=changes.model_fields_set - {"warmup"})
    moved = "ip_address" in values and values["ip_address"] != row.ip_address
    if moved:
        await _check_address(session, org_id, values["ip_address"], any_address=any_address)
    if moved or "warmup" in changes.model_fields_set:
        given = "warmup" in changes.model_fields_set
        settings = changes.warmup if given else _settings(row)
        values |= _warmup(settings, row, moved=moved)
    for column, value in values.items():
        setattr(row, column, value)
    name = row.name
    try:
        await session.flush()
    except IntegrityError as error:
        raise _exists(name) from error
    after_commit(session, lambda: forget(org_id))
    return _show(row)


async def pause(session: AsyncSession, org_id: UUID, vmta_id: UUID) -> schemas.Vmta:
    """Start no more transmissions from it; within a second, in every worker. Raises NotFound."""
    row = await _load(session, org_id, vmta_id, lock=True)
    row.paused_at = row.paused_at or datetime.now(UTC)
    await session.flush()
    after_commit(session, lambda: forget(org_id))
    return _show(row)


async def resume(session: AsyncSession, org_id: UUID, vmta_id: UUID, *, any_address: bool) -> schemas.Vmta:
    """Send from it again. Raises NotFound, and Invalid (address_not_assigned) when its address was taken away."""
    await queries.lock_addresses(session, to_change=False)
    row = await _load(session, org_id, vmta_id, lock=True)
    if row.paused_at is not None:
        await _check_address(session, org_id, row.ip_address, any_address=any_address)
    row.paused_at = None
    await session.flush()
    after_commit(session, lambda: forget(org_id))
    return _show(row)


async def delete(session: AsyncSession, org_id: UUID, vmta_id: UUID) -> None:
    """Take a vMTA out of use; its name is free again. Raises NotFound, and Conflict (vmta_in_use) while mail waits.

    Mail that another process accepts for it in the 1.5 seconds after names a vMTA that no fleet has any more.
    """
    row = await _load(session, org_id, vmta_id, lock=True)
    if await queries.has_queued_mail(session, org_id, vmta_id):
        raise Conflict(
            "vmta_in_use", f"Mail is still queued for {row.name}: pause it, and delete it when none is left."
        )
    row.deleted_at = datetime.now(UTC)
    after_commit(session, lambda: forget(org_id))


async def warmup_status(session: AsyncSession, org_id: UUID, vmta_id: UUID, now: datetime) -> schemas.WarmupStatus:
    """The schedule of a vMTA's warm-up, and where it stands. Raises NotFound."""
    row = await _load(session, org_id, vmta_id)
    settings, started_at = _settings(row), row.warmup_started_at
    today = now.astimezone(UTC).date()
    history: list[warmup.Usage] = []
    if started_at is not None:
        history = await queries.usage(session, org_id, vmta_id, since=started_at.astimezone(UTC).date())
    status = warmup.status(_ramp(settings), started_at or now, history, today)
    return schemas.WarmupStatus(
        enabled=status.enabled,
        finished=status.is_finished,
        started_at=started_at,
        day=status.day,
        schedule=[
            schemas.WarmupStep(day=one.day, date=one.date, cap_per_provider=one.cap_per_provider)
            for one in status.schedule
        ],
        today=[
            schemas.WarmupToday(
                provider=one.provider,
                day=one.day,
                cap=one.cap,
                used=one.used,
                remaining=one.remaining,
                held_back=one.reason is not None,
                reason=one.reason,
                finishes_on=one.finishes_on,
            )
            for one in status.today
        ],
        finishes_on=status.finishes_on,
    )


async def assign_address(session: AsyncSession, ip_address: str, org_id: UUID | None) -> None:
    """Give a source address to an organization, None for all of them. For the operator.

    Raises Conflict: address_assigned when it was given before, address_in_use when another organization uses it.
    """
    await queries.lock_addresses(session, to_change=True)
    if await queries.assignment(session, ip_address) is not None:
        raise Conflict("address_assigned", f"{ip_address} has been given already; remove it first.")
    others = {row.org_id for row in await queries.using(session, ip_address)} - {org_id}
    if org_id is not None and others:
        listed = ", ".join(sorted(map(str, others)))
        raise Conflict("address_in_use", f"{ip_address} is used by vMTAs of other organizations: {listed}.")
    await queries.assign(session, ip_address, org_id)


async def unassign_address(session: AsyncSession, ip_address: str, *, pause_users: bool) -> int:
    """Take a source address back; how many vMTAs use it. For the operator.

    Raises NotFound when it was not given, and Conflict (address_in_use) when it is used, unless `pause_users` is set:
    then those vMTAs are paused, and cannot be resumed with this address.
    """
    await queries.lock_addresses(session, to_change=True)
    if not await queries.unassign(session, ip_address):
        raise NotFound("address")
    users = await queries.using(session, ip_address)
    if users and not pause_users:
        raise Conflict("address_in_use", f"{ip_address} is used by {len(users)} vMTAs.")
    for row in users:
        row.paused_at = row.paused_at or datetime.now(UTC)
    await session.flush()
    return len(users)


async def _load(session: AsyncSession, org_id: UUID, vmta_id: UUID, *, lock: bool = False) -> VmtaRow:
    row = await queries.get(session, org_id, vmta_id, lock=lock)
    if row is None:
        raise NotFound("vmta")
    return row


async def _check_address(session: AsyncSession, org_id: UUID, ip_address: str | None, *, any_address: bool) -> None:
    """Nobody, not even an operator, uses an address that was given to another organization."""
    if ip_address is None:
        return
    await queries.lock_addresses(session, to_change=False)
    assignment = await queries.assignment(session, ip_address)
    is_free = any_address if assignment is None else assignment.org_id in {None, org_id}
    if not is_free:
        detail = f"{ip_address} has not been given to your organization; the operator of the platform gives addresses."
        raise Invalid.at("/ip_address", detail, code="address_not_assigned")


def _settings(row: VmtaRow) -> schemas.WarmupSettings | None:
    return None if row.warmup is None else schemas.WarmupSettings(**row.warmup)


def _ramp(settings: schemas.WarmupSettings | None) -> warmup.Settings:
    return warmup.Settings(enabled=False) if settings is None else warmup.Settings(**settings.model_dump())


def _warmup(settings: schemas.WarmupSettings | None, row: VmtaRow | None, *, moved: bool) -> dict[str, Any]:
    """The columns of a warm-up: one that is switched on, or moved to another address, begins now."""
    values: dict[str, Any] = {"warmup": settings.model_dump() if settings else None, "warmup_finished_at": None}
    if settings is None or not settings.enabled:
        return {**values, "warmup_started_at": None}
    if row is None or moved or row.warmup_started_at is None:
        return {**values, "warmup_started_at": datetime.now(UTC)}
    if row.warmup == values["warmup"]:
        return {}
    return values


def _show(row: VmtaRow) -> schemas.Vmta:
    settings = _settings(row)
    return schemas.Vmta(
        id=row.id,
        name=row.name,
        ip_address=row.ip_address,
        hostname=row.hostname,
        pool=row.pool,
        weight=row.weight,
        max_connections=row.max_connections,
        max_rate=row.max_rate,
        status="active" if row.paused_at is None else "paused",
        paused_at=row.paused_at,
        warming_up=settings is not None and settings.enabled and row.warmup_finished_at is None,
        warmup=settings,
        warmup_started_at=row.warmup_started_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _exists(name: str) -> Conflict:
    return Conflict("vmta_exists", f"Your organization has a vMTA named {name} already.")
