"""/api/v1/queues, and a vMTA's queues."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request

from app.accounts.principal import Principal, Requires, Route, Scope
from app.core.db import Database, Transaction, database
from app.core.errors import responses
from app.core.schemas import Envelope
from app.queues import schemas, service
from app.queues.pages import QueuePageQuery

router = APIRouter(prefix="/api/v1", tags=["Queues"], route_class=Route)

Caller = Annotated[Principal, Depends(Requires(Scope.QUEUES))]
VmtaReader = Annotated[Principal, Depends(Requires(Scope.VMTAS))]
Store = Annotated[Database, Depends(database)]
QueueId = Annotated[
    str, Path(description="`<vMTA's id>@<site>` or `default@<site>`.", examples=["default@mx1+mx2.example.com"])
]


@router.get(
    "/queues/status",
    operation_id="get_queue_status",
    summary="Queue status overview",
    responses=responses(401, 403, 422, 429, 503),
)
async def status(principal: Caller, session: Transaction) -> Envelope[schemas.StatusData]:
    """All queues of the organization summed up, and how many there are in each state. Whether workers are alive is
    told by `GET /health`.
    """
    return Envelope(data=schemas.StatusData(status=await service.status(session, principal.org_id)))


@router.get(
    "/queues",
    operation_id="list_queues",
    summary="List all queues",
    responses=responses(401, 403, 422, 429, 503),
)
async def list_queues(
    filters: Annotated[schemas.Filters, Query()], principal: Caller, session: Transaction, where: QueuePageQuery
) -> Envelope[schemas.QueuesData]:
    """The queues that have mail or are held, in the order of their ids. A queue is a vMTA and a destination site: all
    domains with the same mail hosts share it. Simulated mail stands in no queue.
    """
    queues, approximate, pagination = await service.page(session, principal.org_id, where, filters)
    return Envelope(data=schemas.QueuesData(queues=queues, approximate=approximate, pagination=pagination))


@router.get(
    "/queues/{queue_id}",
    operation_id="get_queue",
    summary="Get a queue by id",
    responses=responses(401, 403, 404, 422, 429, 503),
)
async def get_queue(queue_id: QueueId, principal: Caller, session: Transaction) -> Envelope[schemas.QueueData]:
    """The queue as it is; one without mail is empty, not unknown."""
    return Envelope(data=schemas.QueueData(queue=await service.get(session, principal.org_id, queue_id)))


@router.post(
    "/queues/{queue_id}/flush",
    operation_id="flush_queue",
    summary="Retry a queue now",
    responses=responses(401, 403, 404, 422, 429, 503),
)
async def flush(queue_id: QueueId, principal: Caller, store: Store, request: Request) -> Envelope[schemas.ActionData]:
    """Make all its deferred mail due, up to 100,000 mails a request. Scheduled mail keeps its time. Nothing of a queue
    that is held is sent: release it first. Safe to repeat.
    """
    done = await service.flush(store, principal, queue_id)
    request.app.state.doorbell.ring()
    return Envelope(data=done)


@router.post(
    "/queues/{queue_id}/hold",
    operation_id="hold_queue",
    summary="Hold a queue",
    responses=responses(401, 403, 404, 409, 422, 429, 503),
)
async def hold(queue_id: QueueId, principal: Caller, store: Store) -> Envelope[schemas.ActionData]:
    """Let nothing more of it be transmitted until it is released; what is with a worker at this moment may still go
    out. Mail is accepted all the while, and expires as ever. A queue without mail may be held in advance; an
    organization may hold 1,000. Safe to repeat.
    """
    return Envelope(data=await service.hold(store, principal, queue_id))


@router.post(
    "/queues/{queue_id}/release",
    operation_id="release_queue",
    summary="Release a queue",
    responses=responses(401, 403, 404, 422, 429, 503),
)
async def release(queue_id: QueueId, principal: Caller, store: Store, request: Request) -> Envelope[schemas.ActionData]:
    """End its hold and make its held mail due: up to 10,000 mails at once, the rest within the next moments. What was
    deferred is tried again; scheduled mail keeps its time. Safe to repeat.
    """
    done = await service.release(store, principal, queue_id)
    request.app.state.doorbell.ring()
    return Envelope(data=done)


@router.get(
    "/vmtas/{vmta_id}/queue",
    operation_id="get_vmta_queue",
    summary="Get vMTA queue status",
    responses=responses(401, 403, 404, 422, 429, 503),
)
async def vmta_queue(vmta_id: UUID, principal: VmtaReader, session: Transaction) -> Envelope[schemas.VmtaQueueData]:
    """The vMTA's queues summed up, and the fullest of them."""
    return Envelope(data=schemas.VmtaQueueData(queue=await service.of_vmta(session, principal.org_id, vmta_id)))
