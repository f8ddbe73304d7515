"""What comes in and goes out at /webhooks."""

from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.core.pagination import Pagination
from app.core.schemas import Body, Text, Timestamp, TimestampInput
from app.core.web import MAX_URL_CHARACTERS

MAX_OVERLAP_SECONDS = 7 * 86_400

WebhookType = Literal[
    "message.queued",
    "message.sent",
    "message.delivered",
    "message.deferred",
    "message.soft_bounced",
    "message.hard_bounced",
    "message.complained",
    "message.opened",
    "message.clicked",
    "message.unsubscribed",
    "message.failed",
    "message.cancelled",
    "message.suppressed",
]
Subscription = Literal["*"] | WebhookType
DisabledReason = Literal["manual", "gone", "failing"]
DeliveryStatus = Literal["pending", "delivered", "failed", "cancelled"]

_URL = "Where payloads are posted to: https, a public address, no user name or password. Redirects are not followed."
_EVENTS = "The types of events that it gets; `*` is all of them, those to come included."
_MAX_EVENTS = 20


def _example(**body: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [body]})


class NewWebhook(Body):
    """An endpoint that is to be told of events."""

    model_config = _example(
        url="https://hooks.example.com/postroad",
        events=["message.delivered", "message.hard_bounced", "message.complained"],
        description="Order mails",
    )

    url: Text = Field(min_length=1, max_length=MAX_URL_CHARACTERS, description=_URL)
    events: list[Subscription] = Field(default=["*"], min_length=1, max_length=_MAX_EVENTS, description=_EVENTS)
    description: Text = Field(default="", max_length=200)


class WebhookChanges(Body):
    """What is to change; fields that are left out stay as they are."""

    model_config = _example(events=["*"], enabled=True)

    url: Text | None = Field(default=None, min_length=1, max_length=MAX_URL_CHARACTERS, description=_URL)
    events: list[Subscription] | None = Field(default=None, min_length=1, max_length=_MAX_EVENTS, description=_EVENTS)
    description: Text | None = Field(default=None, max_length=200)
    enabled: bool | None = Field(
        default=None,
        description="While it is off no event is queued for it, and what waited is cancelled; a replay brings both.",
    )


class RotateSecret(Body):
    """How long the old secret signs along."""

    model_config = _example(overlap_seconds=3600)

    overlap_seconds: int = Field(
        default=86_400,
        ge=0,
        le=MAX_OVERLAP_SECONDS,
        description="For so long payloads bear two signatures, by the new secret and by the one before.",
    )


class TestEvent(Body):
    """Which event to play."""

    model_config = _example(type="message.hard_bounced")

    type: WebhookType = "message.delivered"


class ReplayRange(Body):
    """Which events to send again."""

    model_config = _example(**{"from": "2026-11-24T00:00:00Z", "types": ["message.delivered"]})

    since: TimestampInput = Field(alias="from", description="The first moment, by when events were recorded.")
    until: TimestampInput | None = Field(
        default=None, alias="to", description="The moment after the last; now if absent."
    )
    types: list[WebhookType] | None = Field(
        default=None,
        min_length=1,
        max_length=_MAX_EVENTS,
        description="Only these types; if absent, those that the webhook gets.",
    )
    after: str | None = Field(
        default=None, max_length=64, description="`next` of the answer before, to go on where it ended."
    )

    @model_validator(mode="after")
    def _is_forward(self) -> Self:
        if self.until is not None and self.until <= self.since:
            raise ValueError("`to` must be later than `from`")
        return self


class Webhook(BaseModel):
    """A webhook as it is set, and how it does."""

    id: UUID
    url: str
    description: str
    events: list[Subscription]
    enabled: bool
    disabled_at: Timestamp | None
    disabled_reason: DisabledReason | None = Field(
        description="`manual`: by you; `gone`: it answered 410; `failing`: for five days it took nothing."
    )
    failing_since: Timestamp | None = Field(description="Its first failure since it took something last.")
    last_success_at: Timestamp | None = Field(description="When it took something last, to some seconds.")
    previous_secret_expires_at: Timestamp | None = Field(description="Until then the secret before signs along.")
    created_at: Timestamp
    updated_at: Timestamp


class Attempt(BaseModel):
    """One attempt, and what came of it."""

    number: int
    started_at: Timestamp
    status_code: int | None = Field(description="Null when there was no answer.")
    latency_ms: int
    response: str = Field(description="The first bytes of the answer, at most 1 KB.")
    error: str | None = Field(description="Why it was no success.")


class Delivery(BaseModel):
    """One event on its way to one webhook."""

    id: UUID
    event_id: UUID = Field(description="The `webhook-id`: the same whenever this event is sent.")
    event_type: WebhookType
    message_id: UUID | None = Field(description="Null when it is a test.")
    status: DeliveryStatus
    attempts: list[Attempt]
    next_attempt_at: Timestamp | None = Field(description="When it is tried again; null while it is being tried.")
    is_replay: bool
    created_at: Timestamp
    settled_at: Timestamp | None = Field(description="When it came to its end.")


class DeliveryDetail(Delivery):
    """A delivery with what is sent."""

    payload: str = Field(description="The very text that is signed and sent.")


class Replay(BaseModel):
    """How much was queued, and where to go on."""

    queued: int
    next: str | None = Field(description="Pass as `after` to go on; null when all of the range has been queued.")


class WebhookData(BaseModel):
    """`data` of one webhook."""

    webhook: Webhook


class WebhookSecretData(WebhookData):
    """`data` of a webhook with its secret, which is shown only now."""

    secret: str = Field(examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"])


class WebhooksData(BaseModel):
    """`data` of a list of webhooks."""

    webhooks: list[Webhook]
    pagination: Pagination


class DeliveryData(BaseModel):
    """`data` of one delivery."""

    delivery: DeliveryDetail


class DeliveriesData(BaseModel):
    """`data` of a list of deliveries."""

    deliveries: list[Delivery]
    pagination: Pagination


class ReplayData(BaseModel):
    """`data` of a replay."""

    replay: Replay
