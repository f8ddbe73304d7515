"""/api/v1/messages"""

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.lean import LeanRoute
from app.accounts.principal import Principal, Requires, Route
from app.accounts.scopes import Scope
from app.core.db import Transaction, after_commit
from app.core.errors import responses
from app.core.idempotency import Once, OnceKey
from app.core.pagination import PageQuery
from app.core.schemas import Envelope
from app.messages import batch as batches
from app.messages import batch_schemas, cancel, schemas, service, simulator
from app.messages.intake import Intake, Store, store_within

router = APIRouter(prefix="/api/v1/messages", tags=["Messages"], route_class=Route)
# Those that all mail comes in by.
lean = APIRouter(prefix="/api/v1/messages", tags=["Messages"], route_class=LeanRoute)


def _store(session: AsyncSession, once: Once, request: Request) -> Store:
    """How accepted mail is stored: together with the answer that is saved for its key, else with others' in a group."""
    if once.is_inert:
        intake: Intake = request.app.state.intake
        return intake.store
    after_commit(session, request.app.state.doorbell.ring)
    return partial(store_within, session)


Sender = Annotated[Principal, Depends(Requires(Scope.SEND))]
Reader = Annotated[Principal, Depends(Requires(Scope.MESSAGES))]


_SIMULATE = f"""Accept a mail that goes the whole way, events and webhooks included, but never leaves: every copy
ends with `outcome`. Nothing is spent and nobody is suppressed. The answer is a new message, marked `simulated`; one
given by `message_id` stays as it is. The sender's domain must be yours, but need not be verified.

Test keys simulate whatever they send; mail to `{simulator.DOMAIN}` is simulated for every key, copy by copy: other
recipients of the same message get theirs. There the local part names the outcome: `delivered@`, `deferred@`,
`soft_bounced@`, `hard_bounced@`, `complained@` and `suppressed@`, each with any `+label`; any other is delivered, and
so are a test key's recipients elsewhere."""


@lean.post(
    "/send",
    status_code=202,
    operation_id="send_message",
    summary="Send a single email message",
    responses=responses(401, 403, 409, 413, 422, 429, 503),
)
async def send(
    body: schemas.SendRequest, principal: Sender, session: Transaction, once: OnceKey, request: Request
) -> Envelope[schemas.AcceptedData]:
    """Accept a mail for delivery. Once this answers 202 the mail is stored durably and will be delivered, or its
    events will say why not. Send an `Idempotency-Key` so that a repeat after a lost answer cannot send twice.

    Recipients that are suppressed get no copy: theirs end as `suppressed` at once, and the others are sent. When all
    are, the mail is accepted all the same, with the status `suppressed`.

    To try things out, use a test key or `simulate-delivery`: nothing leaves then.
    """
    await once.begin(principal.org_id, principal.id)
    message = await service.send(session, principal, body, request.app.state.settings, _store(session, once, request))
    return await once.remember(202, Envelope(data=schemas.AcceptedData(message=message)))


@lean.post(
    "/batch",
    status_code=202,
    operation_id="send_batch",
    summary="Send up to 100 messages in one request",
    responses=responses(401, 403, 409, 413, 422, 429, 503),
)
async def batch(
    body: batch_schemas.BatchRequest, principal: Sender, session: Transaction, once: OnceKey, request: Request
) -> Envelope[batch_schemas.BatchData]:
    """Accept up to 100 mails at once, stored together: each as `send` would take it, up to 25 MiB, and the whole
    request up to about 34 MiB of JSON. It counts as one request, and an `Idempotency-Key` holds for all of it.

    A `strict` batch (the default) is accepted whole or refused whole: the problem's pointers say which messages are
    at fault (`/messages/3/to/0`), its `code` is theirs when they share one and `batch_rejected` otherwise.

    A `permissive` batch answers 202 when at least one message was accepted, and each rejected one has in `results`
    the problem that `send` would have answered with, its pointers starting at the message (`/to/0`). When none was
    accepted the answer is a problem, as for a strict batch, with `results` besides.
    """
    await once.begin(principal.org_id, principal.id)
    data = await batches.send(session, principal, body, request.app.state.settings, _store(session, once, request))
    return await once.remember(202, Envelope(data=data))


@router.post(
    "/simulate-delivery",
    status_code=202,
    operation_id="simulate_delivery",
    summary="Simulate delivery for testing",
    responses=responses(401, 403, 404, 409, 413, 422, 429, 503),
    description=_SIMULATE,
)
async def simulate_delivery(
    body: schemas.SimulateRequest, principal: Sender, session: Transaction, once: OnceKey, request: Request
) -> Envelope[schemas.AcceptedData]:
    await once.begin(principal.org_id, principal.id)
    store = _store(session, once, request)
    message = await service.simulate(session, principal, body, request.app.state.settings, store)
    return await once.remember(202, Envelope(data=schemas.AcceptedData(message=message)))


@router.get(
    "",
    operation_id="list_messages",
    summary="List messages",
    responses=responses(401, 403, 422, 429, 503),
)
async def list_messages(
    filters: Annotated[schemas.Filters, Query()], principal: Reader, session: Transaction, wanted: PageQuery
) -> Envelope[schemas.MessagesData]:
    """The organization's messages, newest first. Filters are combined: every one given must hold."""
    messages, pagination = await service.page(session, principal, wanted, filters)
    return Envelope(data=schemas.MessagesData(messages=messages, pagination=pagination))


@router.get(
    "/{message_id}",
    operation_id="get_message",
    summary="Get a message by id",
    responses=responses(401, 403, 404, 422, 429, 503),
)
async def get(message_id: UUID, principal: Reader, session: Transaction) -> Envelope[schemas.MessageData]:
    """The message with the state of every recipient's copy."""
    return Envelope(data=schemas.MessageData(message=await service.get(session, principal, message_id)))


@router.get(
    "/{message_id}/events",
    operation_id="list_message_events",
    summary="Get a message's event timeline",
    responses=responses(401, 403, 404, 422, 429, 503),
)
async def events(message_id: UUID, principal: Reader, session: Transaction) -> Envelope[schemas.EventsData]:
    """Everything that happened to the message's copies, oldest first; at most 1,000 events."""
    return Envelope(data=schemas.EventsData(events=await service.timeline(session, principal, message_id)))


@router.post(
    "/{message_id}/cancel",
    operation_id="cancel_message",
    summary="Cancel a queued message",
    responses=responses(401, 403, 404, 409, 422, 429, 503),
)
async def cancel_message(message_id: UUID, principal: Sender, session: Transaction) -> Envelope[schemas.MessageData]:
    """Cancel every copy that has not been sent: those that are pending, queued, held, or wait for another try.

    Copies that were sent, or are being sent, stay as they are. When there is no other, the answer is 409
    `message_not_cancellable`, with the message's status in `message_status`.
    """
    return Envelope(data=schemas.MessageData(message=await cancel.cancel(session, principal, message_id)))
