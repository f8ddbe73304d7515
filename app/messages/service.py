"""Accepting mail and telling what became of it.

PostroadError
├── Forbidden     domain_not_verified, domain_not_allowed, email_not_verified
├── NotFound      message_not_found
├── TooLarge      message_too_large
├── Unavailable   too_many_searches, simulator_not_available
└── Invalid       domain_not_found, vmta_not_found, too_many_recipients, attachment_not_allowed, invalid_schedule
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import service as accounts
from app.accounts.principal import Principal
from app.core import ids
from app.core.config import Settings
from app.core.errors import Flaw, Forbidden, Invalid, NotFound, TooLarge, Unavailable
from app.core.pagination import Page, Pagination
from app.domains import service as domains
from app.domains.service import SendingDomain
from app.mail.address import Address
from app.messages import queries, schemas
from app.messages.models import Message
from app.messages.schemas import Filters, SendRequest
from app.messages.status import PRECEDENCE, Status

MAX_SCHEDULE = timedelta(days=30)
MAX_EVENTS = 1000
# Searches of one process at once: a filter that finds little reads a lot, and sending must not wait behind it.
_searches = asyncio.Semaphore(4)
_SEARCH_WAIT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class _Recipient:
    kind: str
    address: Address


async def send(
    session: AsyncSession, principal: Principal, request: SendRequest, settings: Settings
) -> schemas.AcceptedMessage:
    """Accept one mail; it is Postroad's responsibility once the transaction commits. The caller rings then.

    Raises the errors at the head of this module; nothing is stored then.
    """
    now = datetime.now(UTC)
    await _check_sender(session, principal, settings)
    _check_size(request, settings)
    _check_attachments(request, settings)
    _check_schedule(request, now)
    _check_vmta(request)
    recipients = _recipients(request)
    domain = await _sending_domain(session, principal, request)
    return await _accept(session, request, recipients, domain, api_key_id=principal.key_id, now=now, settings=settings)


async def send_own(session: AsyncSession, request: SendRequest, domain: SendingDomain, settings: Settings) -> None:
    """Accept a mail that Postroad writes itself; no caller's rights are asked for. The caller rings."""
    now = datetime.now(UTC)
    await _accept(session, request, _recipients(request), domain, api_key_id=None, now=now, settings=settings)


async def _accept(
    session: AsyncSession,
    request: SendRequest,
    recipients: Sequence[_Recipient],
    domain: SendingDomain,
    *,
    api_key_id: UUID | None,
    now: datetime,
    settings: Settings,
) -> schemas.AcceptedMessage:
    message_id = ids.new_id()
    rows = _rows(request, recipients, domain, api_key_id=api_key_id, message_id=message_id, now=now, settings=settings)
    await queries.accept(session, rows)
    return schemas.AcceptedMessage(
        id=message_id,
        status=_first_status(request, now),
        from_email=request.sender.email,
        to_email=recipients[0].address.email,
        subject=request.subject,
        recipients=len(recipients),
        batch_id=request.batch_id,
        created_at=now,
        scheduled_at=request.scheduled_at,
    )


async def _check_sender(session: AsyncSession, principal: Principal, settings: Settings) -> None:
    if principal.is_test:
        raise Unavailable("simulator_not_available", "Test keys cannot send yet: nothing was sent, nothing stored.")
    # What the principal remembers may be a moment old, and who has just verified their address should not have to wait.
    is_in_doubt = settings.require_verified_email and not principal.is_verified
    if is_in_doubt and not await accounts.is_verified(session, principal):
        raise Forbidden("email_not_verified", "Verify your e-mail address before you send.")


def _check_size(request: SendRequest, settings: Settings) -> None:
    if request.size_bytes > settings.message_max_bytes:
        limit = settings.message_max_bytes
        raise TooLarge("message_too_large", f"Text, HTML and attachments together exceed {limit:,} bytes.")


def _check_attachments(request: SendRequest, settings: Settings) -> None:
    for position, attachment in enumerate(request.attachments):
        # Windows ignores trailing dots and spaces, so "x.exe. " would still run.
        extension = attachment.filename.rstrip(". ").rpartition(".")[2].lower()
        if extension in settings.blocked_attachment_extensions:
            raise Invalid.at(
                f"/attachments/{position}/filename",
                f"Files that can be executed (.{extension}) are not accepted as attachments.",
                code="attachment_not_allowed",
            )


def _check_schedule(request: SendRequest, now: datetime) -> None:
    if request.scheduled_at is not None and request.scheduled_at > now + MAX_SCHEDULE:
        raise Invalid.at("/scheduled_at", "must be at most 30 days ahead", code="invalid_schedule")
    if request.expires_at is not None and request.expires_at <= max(now, request.scheduled_at or now):
        raise Invalid.at("/expires_at", "must lie in the future and after scheduled_at", code="invalid_schedule")


def _check_vmta(request: SendRequest) -> None:
    # Organizations have no virtual MTAs yet, so no name can be right: better told now than sent from elsewhere.
    if request.vmta is not None:
        raise Invalid.at("/vmta", "There is no such vMTA in your organization.", code="vmta_not_found")


def _recipients(request: SendRequest) -> list[_Recipient]:
    """Every address once, in the place where it was first named, so that nobody gets a mail twice."""
    found: dict[str, _Recipient] = {}
    for kind, addresses in (("to", request.to), ("cc", request.cc), ("bcc", request.bcc)):
        for address in addresses:
            found.setdefault(address.key, _Recipient(kind, address))
    total = len(request.to) + len(request.cc) + len(request.bcc)
    if total > schemas.MAX_RECIPIENTS:
        detail = f"to, cc and bcc together have {total} recipients; at most {schemas.MAX_RECIPIENTS} are allowed."
        raise Invalid.at("/to", detail, code="too_many_recipients")
    return list(found.values())


async def _sending_domain(session: AsyncSession, principal: Principal, request: SendRequest) -> SendingDomain:
    name = request.sender.domain
    if principal.domains is not None and name not in principal.domains:
        detail = f"This API key may not send from {name}."
        raise Forbidden("domain_not_allowed", detail, flaws=[Flaw("/from", detail)])
    domain = await domains.sendable(session, principal.org_id, name)
    if domain is None:
        detail = f"{name} is not one of your domains: add it with POST /api/v1/domains and verify it."
        raise Invalid.at("/from", detail, code="domain_not_found")
    return domain


def _first_status(request: SendRequest, now: datetime) -> Status:
    return Status.PENDING if request.scheduled_at is not None and request.scheduled_at > now else Status.QUEUED


def _address(address: Address) -> dict[str, str]:
    return {"email": address.email, "name": address.name}


def _rows(
    request: SendRequest,
    recipients: Sequence[_Recipient],
    domain: SendingDomain,
    *,
    api_key_id: UUID | None,
    message_id: UUID,
    now: datetime,
    settings: Settings,
) -> dict[str, queries.Rows]:
    """The rows of one accepted mail by table, each whole."""
    key = {"org_id": domain.org_id, "message_id": message_id}
    message = {
        "org_id": domain.org_id,
        "id": message_id,
        "domain_id": domain.id,
        "api_key_id": api_key_id,
        "sender": _address(request.sender),
        "to": [_address(one) for one in request.to],
        "cc": [_address(one) for one in request.cc],
        "reply_to": [_address(one) for one in request.reply_to],
        "subject": request.subject,
        "tags": request.tags,
        "metadata": request.metadata,
        "batch_id": request.batch_id,
        "track_opens": request.track_opens,
        "track_clicks": request.track_clicks,
        "vmta": request.vmta,
        "simulated": False,
        "scheduled_at": request.scheduled_at,
        "expires_at": request.expires_at,
        "size_bytes": request.size_bytes,
        "created_at": now,
    }
    return {
        "messages": [message],
        "bodies": [{**key, "text": request.text, "html": request.html, "headers": request.headers}],
        **_copies(request, recipients, key, now=now, settings=settings),
        "attachments": _attachment_rows(request, key),
    }


def _copies(
    request: SendRequest, recipients: Sequence[_Recipient], key: dict[str, UUID], *, now: datetime, settings: Settings
) -> dict[str, queries.Rows]:
    """Each recipient's delivery, its place in the queue, and the event that tells of it."""
    due_at = max(now, request.scheduled_at or now)
    waiting = {
        "size_bytes": request.size_bytes,
        "attempt": 0,
        "urgent": False,
        "next_attempt_at": due_at,
        "give_up_at": due_at + timedelta(seconds=settings.retry_for_seconds),
        "expires_at": request.expires_at,
    }
    status = _first_status(request, now)
    rows: dict[str, queries.Rows] = {"deliveries": [], "queue": [], "events": []}
    for recipient, delivery_id in zip(recipients, ids.siblings(key["message_id"], len(recipients)), strict=True):
        email, domain = recipient.address.email, recipient.address.domain
        delivery = {**key, "id": delivery_id, "kind": recipient.kind, "recipient": email, "status": status}
        event = {"id": ids.new_id(), "delivery_id": delivery_id, "recipient": email, "type": "queued"}
        rows["deliveries"].append({**delivery, "attempts": 0})
        rows["queue"].append({**key, **waiting, "delivery_id": delivery_id, "recipient": email, "domain": domain})
        rows["events"].append({**key, **event, "occurred_at": now, "data": {}})
    return rows


def _attachment_rows(request: SendRequest, key: dict[str, UUID]) -> queries.Rows:
    return [
        {
            **key,
            "position": position,
            "filename": attachment.filename,
            "content_type": attachment.media_type,
            "content_id": attachment.content_id,
            "content": attachment.content,
        }
        for position, attachment in enumerate(request.attachments)
    ]


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
        track_clicks=message.track_clicks,
        recipients=[
            schemas.RecipientOut(
                email=delivery.recipient,
                kind=delivery.kind,
                status=status,
                attempts=delivery.attempts if attempt is None else attempt,
                last_response=delivery.last_response,
                next_attempt_at=None if status == Status.SENDING else next_attempt_at,
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
        "created_at": message.created_at,
        "scheduled_at": message.scheduled_at,
        "expires_at": message.expires_at,
        "delivered_at": settled_at if status == Status.DELIVERED else None,
    }
