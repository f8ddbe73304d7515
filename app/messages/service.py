"""Accepting mail and telling what became of it.

PostroadError
├── NotFound      message_not_found
├── Unavailable   too_many_searches
└── what `accept` has against a mail
"""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.principal import Principal
from app.core.config import Settings
from app.core.errors import NotFound, PostroadError, Unavailable
from app.core.pagination import Page, Pagination
from app.domains.service import SendingDomain
from app.mail import address
from app.mail.address import Address
from app.messages import accept, body, fields, queries, schemas
from app.messages.intake import Store, store_within
from app.messages.models import Message
from app.messages.schemas import Filters, SendRequest, SimulateRequest
from app.messages.status import PRECEDENCE, Status
from app.vmtas import choice

MAX_EVENTS = 1000
# Searches of one process at once: a filter that finds little reads a lot, and sending must not wait behind it.
_searches = asyncio.Semaphore(4)
_SEARCH_WAIT_SECONDS = 10
# A lease's end says nothing to customers, and nobody knows when what is held is tried again.
_NO_TIME = {Status.SENDING, Status.HELD}


async def send(
    session: AsyncSession, principal: Principal, request: SendRequest, settings: Settings, store: Store
) -> schemas.AcceptedMessage:
    """Accept one mail; it is Postroad's responsibility once what it is stored by has committed.

    Raises the errors of `accept`; nothing is stored then.
    """
    fleet = await choice.load(session, principal.org_id, [request.vmta])
    terms = accept.terms_of(principal, settings, fleet, datetime.now(UTC))
    return await _send(session, principal, request, terms, store)


async def _send(
    session: AsyncSession, principal: Principal, request: SendRequest, terms: accept.Terms, store: Store
) -> schemas.AcceptedMessage:
    await accept.check_sender(session, principal, terms)
    mail = accept.check(request, terms)
    domain = await accept.sending_domain(session, principal, request.sender.domain, terms)
    unsent = await store(accept.rows([(mail, domain)], terms))
    return accept.answer(mail, terms, unsent)


async def send_own(session: AsyncSession, request: SendRequest, domain: SendingDomain, settings: Settings) -> None:
    """Accept a mail that Postroad writes itself; no caller's rights are asked for. The caller rings."""
    fleet = await choice.load(session, domain.org_id)
    terms = accept.Terms(datetime.now(UTC), settings, fleet, is_notice=True)
    await store_within(session, accept.rows([(accept.check(request, terms), domain)], terms))


async def simulate(
    session: AsyncSession, principal: Principal, request: SimulateRequest, settings: Settings, store: Store
) -> schemas.AcceptedMessage:
    """Accept a mail of which every copy ends with the wanted outcome and nothing leaves.

    Raises the errors of `accept`, their pointers below /message, and NotFound for an unknown `message_id`.
    """
    wanted, outcome = request.wanted, Status(request.outcome)
    fleet = await choice.load(session, principal.org_id, [wanted.vmta] if isinstance(wanted, SendRequest) else ())
    terms = accept.Terms(datetime.now(UTC), settings, fleet, principal.key_id, outcome, is_outcome_fixed=True)
    if isinstance(wanted, SendRequest):
        try:
            return await _send(session, principal, wanted, terms, store)
        except PostroadError as error:
            error.flaws = tuple(accept.flaws_below(error, "/message"))
            raise
    message, again = await _again(session, principal, wanted)
    mail = accept.check(again, terms)
    domain = SendingDomain(message.org_id, message.domain_id, again.sender.domain)
    unsent = await store(accept.rows([(mail, domain)], terms))
    return accept.answer(mail, terms, unsent)


async def _again(session: AsyncSession, principal: Principal, message_id: UUID) -> tuple[Message, SendRequest]:
    """A message as it was asked for, but for its times and its way out. Raises NotFound."""
    row = await queries.get(session, principal.org_id, message_id, _only(principal))
    stored = None if row is None else await queries.content(session, principal.org_id, message_id)
    if row is None or stored is None:
        raise NotFound("message")
    message: Message = row[0]
    packed, files = stored
    said = body.unpack(packed)
    copies = await queries.deliveries(session, principal.org_id, message_id)
    # Checked when it was accepted, so it is not checked again.
    return message, SendRequest.model_construct(
        sender=_built(message.sender),
        to=[_built(one) for one in message.to],
        cc=[_built(one) for one in message.cc],
        bcc=[address.build(copy.recipient) for copy, *_ in copies if copy.kind == "bcc"],
        reply_to=[_built(one) for one in message.reply_to],
        subject=message.subject,
        text=said.text,
        html=said.html,
        headers=said.headers,
        attachments=[
            schemas.AttachmentIn.model_construct(
                filename=file.filename,
                content=file.content,
                content_type=file.content_type,
                content_id=file.content_id,
            )
            for file in files
        ],
        tags=message.tags,
        metadata=message.custom,
        track_opens=message.track_opens,
        track_clicks=_track_clicks(message),
        batch_id=message.batch_id,
    )


def _track_clicks(message: Message) -> fields.TrackClicks:
    return fields.HTML_AND_TEXT if message.track_text else message.track_clicks


def _built(stored: dict[str, Any]) -> Address:
    return address.build(stored["email"], stored["name"])


async def page(
    session: AsyncSession, principal: Principal, wanted: Page, filters: Filters
) -> tuple[list[schemas.MessageSummary], Pagination]:
    """A page of the organization's messages, newest first. Raises Unavailable (too_many_searches)."""
    try:
        async with asyncio.timeout(_SEARCH_WAIT_SECONDS), _searches:
            await queries.limit_time(session)
            rows = await queries.page(session, principal.org_id, wanted, filters, _only(principal))
    except TimeoutError as error:
        raise Unavailable("too_many_searches", "Too many searches run at the moment; try again.") from error
    found, pagination = wanted.cut(rows, lambda row: row[0].id)
    return [schemas.MessageSummary(**_summary(*row)) for row in found], pagination


async def get(session: AsyncSession, principal: Principal, message_id: UUID) -> schemas.MessageOut:
    """One message with every recipient's state. Raises NotFound."""
    row = await queries.get(session, principal.org_id, message_id, _only(principal))
    if row is None:
        raise NotFound("message")
    message: Message = row[0]
    copies = await queries.deliveries(session, principal.org_id, message_id)
    return schemas.MessageOut(
        **_summary(*row),
        domain_id=message.domain_id,
        sender=schemas.AddressOut(**message.sender),
        to=[schemas.AddressOut(**one) for one in message.to],
        cc=[schemas.AddressOut(**one) for one in message.cc],
        reply_to=[schemas.AddressOut(**one) for one in message.reply_to],
        size_bytes=message.size_bytes,
        track_opens=message.track_opens,
        track_clicks=_track_clicks(message),
        recipients=[
            schemas.RecipientOut(
                email=delivery.recipient,
                kind=delivery.kind,
                status=status,
                attempts=delivery.attempts if attempt is None else attempt,
                last_response=delivery.last_response,
                category=delivery.category,
                vmta_id=delivery.vmta_id,
                next_attempt_at=None if status in _NO_TIME else next_attempt_at,
                settled_at=delivery.settled_at,
            )
            for delivery, status, next_attempt_at, attempt in copies
        ],
    )


async def timeline(session: AsyncSession, principal: Principal, message_id: UUID) -> list[schemas.EventOut]:
    """A message's events in the order in which they happened, at most MAX_EVENTS. Raises NotFound."""
    row = await queries.get(session, principal.org_id, message_id, _only(principal))
    if row is None:
        raise NotFound("message")
    message: Message = row[0]
    events = await queries.events(session, principal.org_id, message_id, limit=MAX_EVENTS)
    return [
        schemas.EventOut(
            id=event.id,
            type=event.type,
            timestamp=event.occurred_at,
            recipient=event.recipient,
            tags=message.tags,
            metadata=message.custom,
            **event.data,
        )
        for event in sorted(events, key=lambda event: (event.occurred_at, event.id))
    ]


def _only(principal: Principal) -> list[str] | None:
    """The domains that a restricted key may see; None for all."""
    return None if principal.domains is None else sorted(principal.domains)


def _summary(message: Message, rank: int, settled_at: datetime | None, first_recipient: str) -> dict[str, Any]:
    status = PRECEDENCE[rank - 1]
    return {
        "id": message.id,
        "status": status,
        "from_email": message.sender["email"],
        "to_email": first_recipient,
        "subject": message.subject,
        "tags": message.tags,
        "metadata": message.custom,
        "batch_id": message.batch_id,
        "simulated": message.simulated,
        "created_at": message.created_at,
        "scheduled_at": message.scheduled_at,
        "expires_at": message.expires_at,
        "delivered_at": settled_at if status == Status.DELIVERED else None,
    }
