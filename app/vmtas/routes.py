"""Routes of virtual MTAs."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request

from app.accounts.principal import Principal, Requires, Route, Scope
from app.core import errors
from app.core.db import Transaction
from app.core.idempotency import OnceKey
from app.core.pagination import PageQuery
from app.core.schemas import Envelope
from app.vmtas import schemas, service

router = APIRouter(prefix="/api/v1/vmtas", tags=["vMTAs"], route_class=Route)

Caller = Annotated[Principal, Depends(Requires(Scope.VMTAS))]


def _any_address(request: Request, principal: Principal) -> bool:
    """Whether the caller may use addresses that were given to nobody: an operator may, and everybody in local mode."""
    return principal.is_operator or request.app.state.settings.mode == "local"


@router.post(
    "",
    status_code=201,
    operation_id="create_vmta",
    summary="Create a virtual MTA",
    description="A way out for your mail: a source address, the name it greets with, its share of a pool, its limits. "
    "Mail asks for it in `vmta`, by its name or id or its pool's name. In production its address must be one that the "
    "operator of the platform has given to your organization: else 422 `address_not_assigned`.",
    responses=errors.responses(401, 403, 409, 413, 422, 429),
)
async def create_vmta(
    body: schemas.NewVmta, principal: Caller, session: Transaction, once: OnceKey, request: Request
) -> Envelope[schemas.VmtaData]:
    await once.begin(principal.org_id, principal.id)
    vmta = await service.create(session, principal.org_id, body, any_address=_any_address(request, principal))
    return await once.remember(201, Envelope(data=schemas.VmtaData(vmta=vmta)))


@router.get(
    "",
    operation_id="list_vmtas",
    summary="List virtual MTAs",
    description="The organization's vMTAs, newest first.",
    responses=errors.responses(401, 403, 422, 429),
)
async def list_vmtas(principal: Caller, session: Transaction, page: PageQuery) -> Envelope[schemas.VmtasData]:
    vmtas, pagination = await service.page(session, principal.org_id, page)
    return Envelope(data=schemas.VmtasData(vmtas=vmtas, pagination=pagination))


@router.get(
    "/{vmta_id}",
    operation_id="get_vmta",
    summary="Get a virtual MTA",
    description="One vMTA, as it was set, and its state.",
    responses=errors.responses(401, 403, 404, 422, 429),
)
async def get_vmta(vmta_id: UUID, principal: Caller, session: Transaction) -> Envelope[schemas.VmtaData]:
    return Envelope(data=schemas.VmtaData(vmta=await service.get(session, principal.org_id, vmta_id)))


@router.put(
    "/{vmta_id}",
    operation_id="update_vmta",
    summary="Update a virtual MTA",
    description="Changes the fields that are given; the others stay as they are. Null takes a setting away. Workers "
    "know within a second.",
    responses=errors.responses(401, 403, 404, 409, 413, 422, 429),
)
async def update_vmta(
    vmta_id: UUID, body: schemas.VmtaChanges, principal: Caller, session: Transaction, request: Request
) -> Envelope[schemas.VmtaData]:
    vmta = await service.update(session, principal.org_id, vmta_id, body, any_address=_any_address(request, principal))
    return Envelope(data=schemas.VmtaData(vmta=vmta))


@router.post(
    "/{vmta_id}/pause",
    operation_id="pause_vmta",
    summary="Pause a virtual MTA",
    description="No transmission is begun from it any more; those that are under way end. Other members of its pool "
    "stand in for it; mail that none of them can take waits, and expires when its time is up. Pausing twice is fine.",
    responses=errors.responses(401, 403, 404, 422, 429),
)
async def pause_vmta(vmta_id: UUID, principal: Caller, session: Transaction) -> Envelope[schemas.VmtaData]:
    return Envelope(data=schemas.VmtaData(vmta=await service.pause(session, principal.org_id, vmta_id)))


@router.post(
    "/{vmta_id}/resume",
    operation_id="resume_vmta",
    summary="Resume a virtual MTA",
    description="What waited for it is sent. Resuming one that is not paused is fine. When the operator has taken its "
    "address back it is a 422 `address_not_assigned`: give it another one first.",
    responses=errors.responses(401, 403, 404, 422, 429),
)
async def resume_vmta(
    vmta_id: UUID, principal: Caller, session: Transaction, request: Request
) -> Envelope[schemas.VmtaData]:
    vmta = await service.resume(session, principal.org_id, vmta_id, any_address=_any_address(request, principal))
    return Envelope(data=schemas.VmtaData(vmta=vmta))


@router.get(
    "/{vmta_id}/warmup",
    operation_id="get_vmta_warmup",
    summary="Get a virtual MTA's warm-up",
    description="The schedule, what today allows and has used for each mailbox provider, who holds the address back "
    "and why, and when it will send freely. Each provider has its own cap a day (UTC), the same for all: "
    "`daily_start` on the first day, then `growth` times as much each day, up to `daily_limit`. A day counts when "
    "anything was sent on it. When a provider defers more than 10 % of attempts, or more than 5 % bounce hard, or "
    "more than 0.1 % of mails are complained of, on a day and the one before, that day's cap for this provider is "
    "halved, and it does not count.",
    responses=errors.responses(401, 403, 404, 422, 429),
)
async def get_vmta_warmup(vmta_id: UUID, principal: Caller, session: Transaction) -> Envelope[schemas.WarmupData]:
    status = await service.warmup_status(session, principal.org_id, vmta_id, datetime.now(UTC))
    return Envelope(data=schemas.WarmupData(warmup=status))


@router.delete(
    "/{vmta_id}",
    status_code=204,
    operation_id="delete_vmta",
    summary="Delete a virtual MTA",
    description="Nothing leaves from it any more, and its name is free. While mail is queued for it it is a 409 "
    "`vmta_in_use`: pause it, so that its pool takes the mail, or wait.",
    responses=errors.responses(401, 403, 404, 409, 422, 429),
)
async def delete_vmta(vmta_id: UUID, principal: Caller, session: Transaction) -> None:
    await service.delete(session, principal.org_id, vmta_id)
