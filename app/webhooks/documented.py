"""What webhooks are sent, as the OpenAPI document describes it (`webhooks:`), and an example of each type of event."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field, create_model

from app.core.schemas import Timestamp
from app.webhooks.schemas import WebhookType


class EventData(BaseModel):
    """What every event tells. What is not known is absent, and more may be added."""

    model_config = ConfigDict(extra="allow")

    event_id: UUID = Field(description="The `webhook-id`: the same whenever this event is sent.")
    message_id: UUID
    recipient: str = Field(description="Whose copy it is about.")
    sequence: int = Field(description="The event's place among those of its message, from 1; never changes.")
    subject: str
    tags: list[str]
    metadata: dict[str, Any]
    simulated: bool = Field(description="Whether nothing of the message leaves.")
    test: bool = Field(default=False, description="True in events that were asked for at `…/test`.")


class SentData(EventData):
    """The mail went to a host, which is yet to say whether it takes it."""

    attempt: int
    mx: str
    mx_address: str


class OutcomeData(EventData):
    """How an attempt ended, or what a report that came later says of it (`source` is `report` then)."""

    reason: str = Field(description="For programs.")
    mta_response: str | None = Field(default=None, description="The host's answer, or why there was none.")
    code: int | None = Field(default=None, description="Of the SMTP reply.")
    enhanced_code: str | None = None
    category: str | None = Field(default=None, description="What the trouble is about, as `bad_mailbox` or `spam`.")
    attempt: int | None = None
    phase: str | None = Field(default=None, description="Of the SMTP session, in which the answer was given.")
    next_attempt_at: Timestamp | None = Field(default=None, description="When it is tried again.")
    mx: str | None = None
    mx_address: str | None = None
    vmta_id: UUID | None = None
    source_address: str | None = None
    tls: bool | None = None
    tls_version: str | None = None
    tls_policy: str | None = None
    tls_verified: bool | None = None
    source: Literal["report"] | None = None


class SuppressedData(EventData):
    """The mail was not sent, as the recipient is suppressed."""

    reason: str


class VisitData(EventData):
    """Somebody, or something, fetched the pixel or followed a link."""

    is_bot: bool = Field(description="Whether it was a program: a scanner, a prefetch, a mail proxy.")
    agent: str | None = Field(default=None, description="What kind of client it was.")
    client: str | None = None
    user_agent: str | None = None
    ip: str | None = Field(default=None, description="The network that it came from.")


class ClickData(VisitData):
    """A link was followed."""

    url: str


class UnsubscribeData(EventData):
    """The recipient wants no more mail; with a `tag`, no more that carries it."""

    tag: str | None = None


_COMMON: dict[str, Any] = {
    "event_id": "019a8f5e-3c1b-7d42-9a6e-0c5b8f2d4e71",
    "message_id": "019a8f5e-31f0-7a13-8b5d-6e2f9c0a4b38",
    "recipient": "ada@example.com",
    "sequence": 3,
    "subject": "Your order is confirmed",
    "tags": ["order"],
    "metadata": {"order_id": "1042"},
    "simulated": False,
}
_HOST = {"mx": "mx.example.com", "mx_address": "192.0.2.25"}
_TLS = {"tls": True, "tls_version": "TLSv1.3", "tls_policy": "opportunistic", "tls_verified": True}
_REFUSED = {"code": 550, "enhanced_code": "5.1.1", "mta_response": "550 5.1.1 No such user", "phase": "rcpt"}
_LATER = {"code": 451, "enhanced_code": "4.7.1", "mta_response": "451 4.7.1 Try again later", "phase": "rcpt"}
_FULL = {"code": 452, "enhanced_code": "4.2.2", "mta_response": "452 4.2.2 Mailbox full", "phase": "rcpt"}
_TAKEN = {"code": 250, "enhanced_code": "2.0.0", "mta_response": "250 2.0.0 OK", "phase": "data"}
_AGAIN = {"next_attempt_at": "2026-11-25T12:05:02.000Z"}
_VISITOR = {"is_bot": False, "agent": "browser", "user_agent": "Mozilla/5.0", "ip": "198.51.100.0/24"}

# Of each type: its data, what the example tells beside what all tell, and what it means.
_TYPES: dict[str, tuple[type[EventData], dict[str, Any], str]] = {
    "message.queued": (EventData, {"sequence": 1}, "A copy was accepted."),
    "message.sent": (SentData, {"sequence": 2, "attempt": 1, **_HOST}, "A copy went to a host."),
    "message.delivered": (
        OutcomeData,
        {"attempt": 1, "reason": "delivered", **_TAKEN, **_HOST, **_TLS},
        "The recipient's host took the mail.",
    ),
    "message.deferred": (
        OutcomeData,
        {"attempt": 1, "reason": "greylisted", "category": "greylisted", **_LATER, **_HOST, **_AGAIN},
        "Not now: it is tried again.",
    ),
    "message.soft_bounced": (
        OutcomeData,
        {"attempt": 1, "reason": "mailbox_full", "category": "mailbox_full", **_FULL, **_HOST, **_AGAIN},
        "The mailbox takes nothing at the moment: it is tried again.",
    ),
    "message.hard_bounced": (
        OutcomeData,
        {"attempt": 1, "reason": "bad_mailbox", "category": "bad_mailbox", **_REFUSED, **_HOST},
        "The mail was refused for good, at once or by a report later.",
    ),
    "message.complained": (
        OutcomeData,
        {"sequence": 4, "reason": "feedback", "source": "report"},
        "The recipient called it spam.",
    ),
    "message.opened": (VisitData, {"sequence": 4, **_VISITOR}, "The mail was opened."),
    "message.clicked": (
        ClickData,
        {"sequence": 5, "url": "https://shop.example.com/orders/1042", **_VISITOR},
        "A link was followed.",
    ),
    "message.unsubscribed": (UnsubscribeData, {"sequence": 5}, "The recipient wants no more mail."),
    "message.failed": (
        OutcomeData,
        {"sequence": 9, "attempt": 7, "reason": "retries_exhausted", **_LATER, **_HOST},
        "It was tried until its time was up.",
    ),
    "message.cancelled": (EventData, {"sequence": 2}, "A copy was cancelled before it was sent."),
    "message.suppressed": (
        SuppressedData,
        {"sequence": 1, "reason": "hard_bounce"},
        "A copy was not sent, as its recipient is suppressed.",
    ),
}


def example(type: str) -> dict[str, Any]:
    """A payload of this type."""
    _, told, _ = _TYPES[type]
    return {"type": type, "timestamp": "2026-11-25T12:00:02.123Z", "data": {**_COMMON, **told}}


def _payload(type: str, data: type[EventData]) -> type[BaseModel]:
    name = "".join(part.title() for part in type.replace(".", "_").split("_")) + "Payload"
    fields: dict[str, Any] = {
        "type": (Literal[type], ...),
        "timestamp": (Annotated[Timestamp, Field(description="When it happened.")], ...),
        "data": (data, ...),
    }
    config = ConfigDict(json_schema_extra={"examples": [example(type)]})
    return create_model(name, __config__=config, __doc__=_TYPES[type][2], **fields)


def _receiver(model: type[BaseModel]) -> Callable[..., Awaitable[None]]:
    async def receive(
        body: model,  # type: ignore[valid-type]
        webhook_id: Annotated[str, Header(description="The event's id.")],
        webhook_timestamp: Annotated[int, Header(description="When this was sent, in Unix seconds.")],
        webhook_signature: Annotated[str, Header(description="`v1,` and base64, one for each live secret.")],
    ) -> None:
        """Never called: it is the customer's."""

    return receive


def router() -> APIRouter:
    """The receivers that customers write, for the OpenAPI document alone."""
    found = APIRouter()
    for type in get_args(WebhookType):
        data, _, meaning = _TYPES[type]
        found.add_api_route(
            type,
            _receiver(_payload(type, data)),
            methods=["POST"],
            status_code=204,
            operation_id=f"on_{type.replace('.', '_')}",
            summary=meaning,
            description="Verify the signature before you believe it (Standard Webhooks), and answer 2xx.",
            tags=["Webhooks"],
            responses={
                410: {"description": "Nothing is wanted here any more: the webhook is disabled."},
                "default": {"description": "Anything but 2xx is a failure, and is tried again."},
            },
        )
    return found
