"""What comes in and goes out at /messages."""

import mimetypes
import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self, cast
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    model_validator,
)

from app.core.pagination import Pagination
from app.core.schemas import Body, Text, Timestamp, TimestampInput
from app.messages.fields import (
    AddressField,
    Base64,
    ContentId,
    ContentType,
    FileName,
    Headers,
    Label,
    Metadata,
    Recipients,
    Subject,
    Tags,
    TrackClicks,
)
from app.messages.status import Status

MAX_ATTACHMENTS = 100
# Mail that expires this soon after it becomes due goes before the other.
URGENT_WITHIN = timedelta(minutes=15)

_BODY = "`{{unsubscribe_url}}` in it becomes the address at which the copy's recipient unsubscribes."
_TAGS = (
    "Never leave in headers. Whoever unsubscribes may choose one of them, and gets other mail as before; so the "
    "unsubscribe page shows them."
)

# What OpenAPI says of the defaults. They are made anew for each mail: pydantic deep-copies a default that is given as
# a value, and that takes a tenth of all the time of a mail in a batch.
_NONE: Any = {"default": []}
_NO_FIELDS: Any = {"default": {}}


# How a simulated copy can end.
Outcome = Literal[
    Status.DELIVERED,
    Status.DEFERRED,
    Status.SOFT_BOUNCED,
    Status.HARD_BOUNCED,
    Status.COMPLAINED,
    Status.SUPPRESSED,
    Status.FAILED,
]


class AttachmentIn(Body):
    """A file: attached, or inline in the HTML when it has a `content_id` (`<img src="cid:…">`)."""

    filename: FileName
    content: Base64
    content_type: ContentType | None = Field(
        default=None, description="`type/subtype`; guessed from the file name when absent."
    )
    content_id: ContentId | None = None

    @property
    def media_type(self) -> str:
        """The content type given, or the one that the file name suggests."""
        return self.content_type or mimetypes.guess_type(self.filename)[0] or "application/octet-stream"


class SendRequest(Body):
    """One mail. Every recipient gets a copy of their own; `bcc` recipients are named in no header."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "from": "Postroad <hello@mail.postroad.test>",
                    "to": ["Ada <ada@example.com>"],
                    "subject": "Your order is confirmed",
                    "text": "Thank you for your order.",
                    "html": "<p>Thank you for your order.</p>",
                    "tags": ["order"],
                    "metadata": {"order_id": "1042"},
                }
            ]
        }
    )

    sender: AddressField = Field(alias="from", description="An address at one of your verified domains.")
    to: Annotated[Recipients, Field(min_length=1)] = Field(description="One address or a list; at most 50 in all.")
    cc: Recipients = Field(default_factory=list, json_schema_extra=_NONE)
    bcc: Recipients = Field(default_factory=list, json_schema_extra=_NONE)
    reply_to: Recipients = Field(default_factory=list, json_schema_extra=_NONE)
    subject: Subject
    html: Text | None = Field(default=None, description=_BODY)
    text: Text | None = Field(default=None, description=_BODY)
    headers: Headers = Field(
        default_factory=dict,
        json_schema_extra=_NO_FIELDS,
        description="Further header fields; those that Postroad writes are refused. Unless you give a "
        "`List-Unsubscribe` of your own, every copy gets one, with one-click unsubscribing (RFC 8058).",
    )
    attachments: list[AttachmentIn] = Field(default_factory=list, json_schema_extra=_NONE, max_length=MAX_ATTACHMENTS)
    tags: Tags = Field(default_factory=list, json_schema_extra=_NONE, description=_TAGS)
    metadata: Metadata = Field(
        default_factory=dict,
        json_schema_extra=_NO_FIELDS,
        description="Yours; never leaves in headers, comes back on every event.",
    )
    track_opens: StrictBool = Field(
        default=False, description="Put a pixel into the HTML, and tell by events `opened` when it is fetched."
    )
    track_clicks: TrackClicks = Field(
        default=False,
        description="Lead the http(s) links of the HTML over Postroad, and tell by events `clicked` when they are "
        "followed; `html_and_text`: those of the plain text too. A link with the attribute "
        '`data-postroad-track="off"` stays as it is, and so do the URLs of a `List-Unsubscribe` of your own.',
    )
    scheduled_at: TimestampInput | None = Field(default=None, description="Not sent before; at most 30 days ahead.")
    expires_at: TimestampInput | None = Field(
        default=None,
        description="Not sent after: then it has failed (expired). A mail that expires within 15 minutes of the moment "
        "it becomes due, a one-time code for example, goes before the other mail.",
    )
    vmta: Label | None = Field(default=None, description="Name or id of the virtual MTA to send from.")
    batch_id: Label | None = Field(default=None, description="A label of yours to find mails by.")

    @model_validator(mode="after")
    def _has_body(self) -> Self:
        if not self.text and not self.html:
            raise ValueError("a mail needs a body: give text, html or both")
        return self

    @property
    def size_bytes(self) -> int:
        """Text, HTML and decoded attachments together."""
        texts = sum(_octets(part) for part in (self.text, self.html) if part)
        return texts + sum(len(attachment.content) for attachment in self.attachments)


def _octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


class SimulateRequest(Body):
    """A mail, or the id of one that was sent before, and how every copy of it is to end."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "outcome": "hard_bounced",
                    "message": {
                        "from": "Postroad <hello@mail.postroad.test>",
                        "to": ["ada@example.com"],
                        "subject": "Your order is confirmed",
                        "text": "Thank you for your order.",
                    },
                }
            ]
        }
    )

    message: SendRequest | None = Field(default=None, description="As `send` takes it. Either this or `message_id`.")
    message_id: UUID | None = Field(
        default=None, description="A message of yours: a copy of it is simulated, and it stays as it is."
    )
    outcome: Outcome = Field(
        default=Status.DELIVERED,
        description="`deferred` is delivered when it is tried again; `soft_bounced` is tried until its time is up, and "
        "has failed then; `complained` is delivered first.",
    )

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.message is None) == (self.message_id is None):
            raise ValueError("give either message or message_id")
        return self

    @property
    def wanted(self) -> SendRequest | UUID:
        """The one that was given."""
        return self.message or cast(UUID, self.message_id)


class AddressOut(BaseModel):
    """A mailbox as it stands in the mail."""

    email: str
    name: str = ""


class RecipientOut(BaseModel):
    """One recipient's copy."""

    email: str
    kind: Literal["to", "cc", "bcc"]
    status: Status
    attempts: int = Field(description="Transmissions begun so far.")
    last_response: str | None = Field(description="The receiving host's last answer, or why there was none.")
    category: str | None = Field(
        description="What the trouble is about when it was not delivered at the last attempt: `bad_mailbox`, "
        "`mailbox_full`, `bad_domain`, `blocklisted`, `auth_failure`, `spam`, `content`, `policy`, `rate_limited`, "
        "`greylisted`, `tls`, `network` and others."
    )
    vmta_id: UUID | None = Field(
        description="The vMTA from which the last attempt was made; null: the platform's own way out, or none was made."
    )
    next_attempt_at: Timestamp | None = Field(description="When it is tried again, while it waits.")
    settled_at: Timestamp | None = Field(description="When it came to its end.")


class MessageSummary(BaseModel):
    """A message as lists show it. `status` sums up its recipients' copies."""

    id: UUID
    status: Status
    from_email: str
    to_email: str = Field(description="The first recipient.")
    subject: str
    tags: list[str]
    metadata: dict[str, Any]
    batch_id: str | None
    simulated: bool = Field(description="Whether nothing of it leaves: a test key's, or a simulated delivery.")
    created_at: Timestamp
    scheduled_at: Timestamp | None
    expires_at: Timestamp | None
    delivered_at: Timestamp | None = Field(description="When the last recipient's host took it, once all have.")


class MessageOut(MessageSummary):
    """A message with every recipient's state."""

    domain_id: UUID
    sender: AddressOut = Field(serialization_alias="from")
    to: list[AddressOut]
    cc: list[AddressOut]
    reply_to: list[AddressOut]
    size_bytes: int
    track_opens: bool
    track_clicks: TrackClicks
    recipients: list[RecipientOut]


class AcceptedMessage(BaseModel):
    """What is known of a message the moment it is accepted."""

    id: UUID
    status: Status = Field(
        description="`queued`, or `pending` until its schedule; `suppressed` when all its recipients are, so that "
        "nothing of it is sent."
    )
    from_email: str
    to_email: str
    subject: str
    recipients: int = Field(description="How many copies there are; those to suppressed recipients are not sent.")
    batch_id: str | None
    simulated: bool = Field(description="Whether nothing of it leaves.")
    created_at: Timestamp
    scheduled_at: Timestamp | None


class EventOut(BaseModel):
    """One thing that happened to one recipient's copy, with whatever is known of it. What is not known is absent.

    `sent`: the mail went to a host, `mx` at `mx_address`, which is yet to say whether it takes it.

    `suppressed`: the mail was not sent, because its recipient is suppressed: when it was accepted, in place of
    `queued`, or before it was to be transmitted. `reason` is that of the suppression (`hard_bounce complaint
    unsubscribe manual`; `suppressed` when it is simulated), `suppression_id` its id, and `tag` the one under which it
    holds; none when it holds for all mail.

    How an attempt ended (`delivered deferred soft_bounced hard_bounced failed`): its number, `attempt`; `reason`, for
    programs; `response`, the host's answer in one line or why there was none, with its `code` and `enhanced_code` and
    the `phase` of the session in which it was given; `category`, what the trouble is about; when it is tried again,
    `next_attempt_at`; `mx` and `mx_address`. From where: `vmta_id` and `source_address`; neither for the platform's
    own way out. How it was protected: `tls`, `tls_version`; `tls_policy`, what was demanded of the connection, by us
    or by the recipient's domain (`opportunistic required mta_sts mta_sts_testing dane`); `tls_verified`, whether the
    host proved to be the right one; `tls_failure`, why it did not where that is only reported.

    What its reader does (`opened clicked`), as often as it is seen: `agent`, by whom or what (`person`; `proxy`, for a
    person; `prefetch`, whether anybody reads or not; `scanner`, in search of danger; `crawler`; `unknown`), and
    `is_bot`, whether it is not to be counted as a person's doing: clicks within two seconds of the delivery are not.
    `client`, the program or service where it is known; `user_agent`; `ip`, the network that it came from, no more of
    the address than /24 (IPv6: /48). `clicked`: the `url` it led to.

    `unsubscribed`: by which `method` (`one_click page`), and the `tag` where not all mail is meant; `user_agent`, `ip`.
    """

    model_config = ConfigDict(extra="allow")

    id: UUID
    type: str
    timestamp: Timestamp
    recipient: str
    tags: list[str]
    metadata: dict[str, Any]


class AcceptedData(BaseModel):
    """`data` of a send."""

    message: AcceptedMessage


class MessageData(BaseModel):
    """`data` of one message."""

    message: MessageOut


class MessagesData(BaseModel):
    """`data` of a list of messages."""

    messages: list[MessageSummary]
    pagination: Pagination


class EventsData(BaseModel):
    """`data` of a message's timeline."""

    events: list[EventOut]


# What can happen to a copy, as events tell it.
EventType = Literal[
    "queued",
    "sent",
    "delivered",
    "deferred",
    "soft_bounced",
    "hard_bounced",
    "complained",
    "opened",
    "clicked",
    "unsubscribed",
    "failed",
    "cancelled",
    "suppressed",
]


class FeedEventOut(EventOut):
    """An event as the feed hands it on: as the message's timeline shows it, and which message it is about."""

    message_id: UUID
    sequence: int | None = Field(
        description="Its place among the message's events, from 1; null when the message is no longer kept. "
        "`subject`, `tags` and `metadata` are empty then."
    )
    subject: str
    simulated: bool = Field(description="Whether nothing of the message left.")


class FeedPagination(BaseModel):
    """Where this page of the feed stands."""

    limit: int
    has_more: bool = Field(description="Whether more can be read at once; if not, wait a little before asking again.")
    next: str = Field(description="Pass as `after` to go on; always given.")


class FeedData(BaseModel):
    """`data` of the event feed."""

    events: list[FeedEventOut]
    pagination: FeedPagination


_LIKE = re.compile(r"([\\%_])")


class Filters(BaseModel):
    """Which messages to list; every filter given must hold."""

    status: Status | None = None
    sender: Text | None = Field(default=None, alias="from", max_length=254, description="The sender's address.")
    to: Text | None = Field(default=None, max_length=254, description="A recipient's address (to, cc or bcc).")
    tag: Text | None = Field(default=None, max_length=128)
    batch_id: Text | None = Field(default=None, max_length=128)
    domain_id: UUID | None = None
    created_from: TimestampInput | None = None
    created_to: TimestampInput | None = None
    q: Text | None = Field(
        default=None, min_length=1, max_length=200, description="Words of the subject, or part of an address."
    )

    @property
    def pattern(self) -> str | None:
        """`q` as a LIKE pattern, its wildcards taken literally."""
        return None if self.q is None else "%" + _LIKE.sub(r"\\\1", self.q) + "%"
