"""/api/v1/messages"""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request

from app.accounts.principal import Principal, Requires, Route
from app.accounts.scopes import Scope
from app.core.db import Transaction, after_commit
from app.core.errors import responses
from app.core.idempotency import OnceKey
from app.core.pagination import PageQuery
from app.core.schemas import Envelope
from app.messages import schemas, service

router = APIRouter(prefix="/api/v1/messages", tags=["Messages"], route_class=Route)

Sender = Annotated[Principal, Depends(Requires(Scope.SEND))]
Reader = Annotated[Principal, Depends(Requires(Scope.MESSAGES))]


@router.post(
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
    """
    await once.begin(principal.org_id, principal.id)
    message = await service.send(session, principal, body, request.app.state.settings)
    after_commit(session, request.app.state.doorbell.ring)
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
