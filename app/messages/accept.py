"""The checklist of mail that is to be accepted, and the rows that it is stored as; for one mail or a hundred.

PostroadError
├── Forbidden     domain_not_verified, domain_not_allowed, email_not_verified
├── TooLarge      message_too_large
└── Invalid       domain_not_found, vmta_not_found, too_many_recipients, attachment_not_allowed, invalid_schedule
"""

import random
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import service as accounts
from app.accounts.principal import Principal
from app.core import ids
from app.core.config import Settings
from app.core.errors import Flaw, Forbidden, Invalid, PostroadError, TooLarge
from app.domains import service as domains
from app.domains.service import SendingDomain
from app.mail.address import Address
from app.messages import body, fields, queries, schemas
from app.messages.schemas import SendRequest
from app.messages.simulator import outcome_of
from app.messages.status import Status
from app.vmtas.choice import Fleet

MAX_SCHEDULE = timedelta(days=30)

_rng = random.Random()  # noqa: S311 - shares out mail, keeps no secret


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all mails of one request. `fleet`: the vMTAs that they may leave from.

    `outcome` is how every copy ends without being sent, unless its address at the simulator says otherwise and
    `is_outcome_fixed` is false; None: mail is sent. `is_notice`: Postroad itself writes to a user of its.
    """

    now: datetime
    settings: Settings
    fleet: Fleet
    api_key_id: UUID | None = None
    outcome: Status | None = None
    is_outcome_fixed: bool = False
    is_notice: bool = False

    def outcome_for(self, recipient: Address) -> Status | None:
        """How the copy to this recipient ends without being sent; None: it is sent."""
        if self.is_outcome_fixed:
            return self.outcome
        return outcome_of(recipient) or self.outcome


@dataclass(frozen=True, slots=True)
class Recipient:
    """One copy: whom it goes to, the outcome if it is simulated, and its way out (None: the platform's own)."""

    kind: str
    address: Address
    simulated: Status | None
    vmta_id: UUID | None


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail that has passed the checks of its own; whether its domain may send is asked apart from it.

    `is_simulated`: nothing of it leaves.
    """

    id: UUID
    request: SendRequest
    recipients: Sequence[Recipient]
    size_bytes: int
    status: Status
    due_at: datetime
    is_simulated: bool


def terms_of(principal: Principal, settings: Settings, fleet: Fleet, now: datetime) -> Terms:
    """The terms of whoever sends: a test key's mail is simulated."""
    return Terms(now, settings, fleet, principal.key_id, Status.DELIVERED if principal.is_test else None)


async def check_sender(session: AsyncSession, principal: Principal, terms: Terms) -> None:
    """Whether they may send at all; anybody may simulate. Raises Forbidden."""
    # What the principal remembers may be a moment old, and who has just verified their address should not have to wait.
    is_in_doubt = terms.settings.require_verified_email and not principal.is_verified and terms.outcome is None
    if is_in_doubt and not await accounts.is_verified(session, principal):
        raise Forbidden("email_not_verified", "Verify your e-mail address before you send.")


def check(request: SendRequest, terms: Terms) -> Mail:
    """Every check that needs no look-up. Raises TooLarge and Invalid."""
    size_bytes = request.size_bytes
    if size_bytes > terms.settings.message_max_bytes:
        limit = terms.settings.message_max_bytes
        raise TooLarge("message_too_large", f"Text, HTML and attachments together exceed {limit:,} bytes.")
    _check_attachments(request, terms.settings)
    is_later = request.scheduled_at is not None and request.scheduled_at > terms.now
    due_at = request.scheduled_at if is_later and request.scheduled_at else terms.now
    _check_schedule(request, due_at, terms.now)
    status = Status.PENDING if is_later else Status.QUEUED
    recipients = _recipients(request, terms)
    is_simulated = all([one.simulated for one in recipients])
    return Mail(ids.new_id(), request, recipients, size_bytes, status, due_at, is_simulated)


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


def _check_schedule(request: SendRequest, due_at: datetime, now: datetime) -> None:
    if due_at > now + MAX_SCHEDULE:
        raise Invalid.at("/scheduled_at", "must be at most 30 days ahead", code="invalid_schedule")
    if request.expires_at is not None and request.expires_at <= due_at:
        raise Invalid.at("/expires_at", "must lie in the future and after scheduled_at", code="invalid_schedule")


def _recipients(request: SendRequest, terms: Terms) -> list[Recipient]:
    """Every address once, in the place where it was first named, so that nobody gets a mail twice."""
    found: dict[str, Recipient] = {}
    for kind, addresses in (("to", request.to), ("cc", request.cc), ("bcc", request.bcc)):
        for address in addresses:
            if address.key not in found:
                found[address.key] = _recipient(kind, address, request, terms)
    total = len(request.to) + len(request.cc) + len(request.bcc)
    if total > fields.MAX_RECIPIENTS:
        detail = f"to, cc and bcc together have {total} recipients; at most {fields.MAX_RECIPIENTS} are allowed."
        raise Invalid.at("/to", detail, code="too_many_recipients")
    return list(found.values())


def _recipient(kind: str, address: Address, request: SendRequest, terms: Terms) -> Recipient:
    outcome = terms.outcome_for(address)
    # Each copy is drawn for by itself. A name that is wrong is told also of what is only simulated.
    vmta = terms.fleet.draw(request.vmta, _rng)
    return Recipient(kind, address, outcome, vmta.id if vmta is not None and outcome is None else None)


async def sending_domain(session: AsyncSession, principal: Principal, name: str, terms: Terms) -> SendingDomain:
    """The domain of this name, as its owner may use it now. Raises Forbidden and Invalid.

    Mail that is simulated needs no verified domain: nobody receives what it claims to come from there, and trying
    things out comes before publishing records.
    """
    if principal.domains is not None and name not in principal.domains:
        detail = f"This API key may not send from {name}."
        raise Forbidden("domain_not_allowed", detail, flaws=[Flaw("/from", detail)])
    find = domains.sendable if terms.outcome is None else domains.owned
    domain = await find(session, principal.org_id, name)
    if domain is None:
        detail = f"{name} is not one of your domains: add it with POST /api/v1/domains and verify it."
        raise Invalid.at("/from", detail, code="domain_not_found")
    return domain


def flaws_below(error: PostroadError, place: str) -> list[Flaw]:
    """What the error finds wrong, its pointers taken from further up: `place` is where the mail stands."""
    if not error.flaws:
        return [Flaw(place, error.detail)]
    return [Flaw(place + flaw.pointer, flaw.detail) for flaw in error.flaws]


def answer(mail: Mail, terms: Terms, unsent: Container[UUID]) -> schemas.AcceptedMessage:
    """What its sender is told of an accepted mail; `unsent` are the messages of which every copy is suppressed."""
    request = mail.request
    return schemas.AcceptedMessage(
        id=mail.id,
        status=Status.SUPPRESSED if mail.id in unsent else mail.status,
        from_email=request.sender.email,
        to_email=mail.recipients[0].address.email,
        subject=request.subject,
        recipients=len(mail.recipients),
        batch_id=request.batch_id,
        simulated=mail.is_simulated,
        created_at=terms.now,
        scheduled_at=request.scheduled_at,
    )


def rows(mails: Iterable[tuple[Mail, SendingDomain]], terms: Terms) -> dict[str, queries.Rows]:
    """The rows of accepted mails by table, each whole."""
    tables: dict[str, queries.Rows] = {
        name: [] for name in ("messages", "bodies", "deliveries", "queue", "events", "attachments")
    }
    for mail, domain in mails:
        request = mail.request
        key = {"org_id": domain.org_id, "message_id": mail.id}
        tables["messages"].append(_message(mail, domain, terms))
        tables["bodies"].append({**key, "content": body.pack(request.text, request.html, request.headers)})
        _add_copies(tables, mail, key, terms)
        if request.attachments:
            tables["attachments"] += _attachments(request, key)
    return tables


def _address(address: Address) -> dict[str, str]:
    return {"email": address.email, "name": address.name}


def _message(mail: Mail, domain: SendingDomain, terms: Terms) -> dict[str, Any]:
    request = mail.request
    return {
        "org_id": domain.org_id,
        "id": mail.id,
        "domain_id": domain.id,
        "api_key_id": terms.api_key_id,
        "sender": _address(request.sender),
        "to": [_address(one) for one in request.to],
        "cc": [_address(one) for one in request.cc],
        "reply_to": [_address(one) for one in request.reply_to],
        "subject": request.subject,
        "tags": request.tags,
        "metadata": request.metadata,
        "batch_id": request.batch_id,
        "track_opens": request.track_opens,
        "track_clicks": bool(request.track_clicks),
        "track_text": request.track_clicks == fields.HTML_AND_TEXT,
        "vmta": request.vmta,
        "simulated": mail.is_simulated,
        "notice": terms.is_notice,
        "scheduled_at": request.scheduled_at,
        "expires_at": request.expires_at,
        "size_bytes": mail.size_bytes,
        "created_at": terms.now,
    }


def _add_copies(tables: dict[str, queries.Rows], mail: Mail, key: dict[str, UUID], terms: Terms) -> None:
    """Each recipient's delivery, its place in the queue, and the event that tells of it."""
    expires_at = mail.request.expires_at
    waiting = {
        **key,
        "size_bytes": mail.size_bytes,
        "attempt": 0,
        "urgent": expires_at is not None and expires_at - mail.due_at <= schemas.URGENT_WITHIN,
        "next_attempt_at": mail.due_at,
        "give_up_at": mail.due_at + timedelta(seconds=terms.settings.retry_for_seconds),
        "expires_at": expires_at,
    }
    deliveries, queue, events = tables["deliveries"], tables["queue"], tables["events"]
    for recipient, delivery_id in zip(mail.recipients, ids.siblings(mail.id, len(mail.recipients)), strict=True):
        email = recipient.address.email
        copy = {**key, "recipient": email}
        deliveries.append({**copy, "id": delivery_id, "kind": recipient.kind, "status": mail.status, "attempts": 0})
        queue.append(
            {
                **waiting,
                "delivery_id": delivery_id,
                "recipient": email,
                "domain": recipient.address.domain,
                "vmta_id": recipient.vmta_id,
                "simulated": recipient.simulated,
            }
        )
        event = {"id": ids.new_id(), "delivery_id": delivery_id, "type": "queued", "occurred_at": terms.now, "data": {}}
        events.append({**copy, **event})


def _attachments(request: SendRequest, key: dict[str, UUID]) -> queries.Rows:
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
