"""What comes in and goes out at /messages."""

import binascii
import math
import mimetypes
import re
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    WithJsonSchema,
    model_validator,
)

from app.core.pagination import Pagination
from app.core.schemas import Body, Text, Timestamp, TimestampInput, check_storable
from app.mail import address, headers
from app.mail.address import Address
from app.messages.status import Status

MAX_RECIPIENTS = 50
MAX_ATTACHMENTS = 100
MAX_HEADERS = 50
MAX_SUBJECT_CHARACTERS = 998
MAX_HEADER_CHARACTERS = 4_000
MAX_TAGS = 10
MAX_METADATA = 50
MAX_METADATA_CHARACTERS = 1000

_NAMED_KEYS = {"email", "name"}


def _read_address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    if isinstance(value, str):
        return address.parse(value)
    if not isinstance(value, dict) or not value.keys() <= _NAMED_KEYS or not isinstance(value.get("email"), str):
        raise ValueError('must be "a@b", "Name <a@b>" or {"email": "a@b", "name": "Name"}')
    name = value.get("name")
    if name is not None and not isinstance(name, str):
        raise ValueError("the name of an address must be a string")
    return address.build(value["email"], name or "")


def _listed(value: object) -> object:
    # A single address is read here, so that an error points at it and not at a list that the client never sent.
    return value if isinstance(value, list) else [_read_address(value)]


def _decode_base64(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("must be a base64 string")
    try:
        return binascii.a2b_base64(value.replace("\r", "").replace("\n", ""), strict_mode=True)
    except ValueError as error:
        raise ValueError("is not valid base64 (RFC 4648 section 4)") from error


def _check_subject(value: str) -> str:
    return headers.check_text(value, max_characters=MAX_SUBJECT_CHARACTERS)


def _check_content_id(value: str) -> str:
    return headers.check_content_id(value.removeprefix("<").removesuffix(">"))


def _check_header_text(value: str) -> str:
    return headers.check_text(value, max_characters=MAX_HEADER_CHARACTERS)


def _check_headers(value: dict[str, str]) -> dict[str, str]:
    seen = set()
    for name in value:
        if name.lower() in seen:
            raise ValueError(f"the header {name} is given twice")
        seen.add(name.lower())
    return value


def _check_metadata_value(value: object) -> str | bool | int | float:
    if isinstance(value, str):
        if len(value) > MAX_METADATA_CHARACTERS:
            raise ValueError(f"a string may have {MAX_METADATA_CHARACTERS} characters")
        return check_storable(value)
    if not isinstance(value, bool | int | float):
        raise ValueError("must be a string, a number or a boolean")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("numbers must be finite")
    if isinstance(value, int) and not -(2**53) < value < 2**53:
        raise ValueError("integers must fit in 53 bits, so that every JSON reader keeps them")
    return value


AddressField = Annotated[
    Address,
    BeforeValidator(_read_address),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "maxLength": 800, "description": "`a@b` or `Name <a@b>`"},
                {
                    "type": "object",
                    "properties": {
                        "email": {"type": "string", "maxLength": 254},
                        "name": {"type": "string", "maxLength": 256},
                    },
                    "required": ["email"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
Recipients = Annotated[list[AddressField], BeforeValidator(_listed), Field(max_length=MAX_RECIPIENTS)]
Label = Annotated[Text, Field(min_length=1, max_length=128)]
# Checked by hand: a union of types would name its members in the pointers of its errors.
MetadataValue = Annotated[
    Any,
    PlainValidator(_check_metadata_value),
    WithJsonSchema({"type": ["string", "boolean", "number"], "maxLength": MAX_METADATA_CHARACTERS}),
]
HeaderName = Annotated[str, AfterValidator(headers.check_name)]
HeaderText = Annotated[str, AfterValidator(_check_header_text)]


class AttachmentIn(Body):
    """A file: attached, or inline in the HTML when it has a `content_id` (`<img src="cid:…">`)."""

    filename: Annotated[str, Field(max_length=255), AfterValidator(headers.check_filename)]
    content: Annotated[
        bytes,
        BeforeValidator(_decode_base64),
        WithJsonSchema({"type": "string", "contentEncoding": "base64", "description": "The file in base64."}),
    ]
    content_type: Annotated[str, Field(max_length=200), AfterValidator(headers.check_content_type)] | None = Field(
        default=None, description="`type/subtype`; guessed from the file name when absent."
    )
    content_id: Annotated[str, Field(max_length=257), AfterValidator(_check_content_id)] | None = None

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
    cc: Recipients = Field(default=[])
    bcc: Recipients = Field(default=[])
    reply_to: Recipients = Field(default=[])
    subject: Annotated[str, AfterValidator(_check_subject)] = Field(max_length=MAX_SUBJECT_CHARACTERS)
    html: Text | None = None
    text: Text | None = None
    headers: Annotated[dict[HeaderName, HeaderText], AfterValidator(_check_headers)] = Field(
        default={}, max_length=MAX_HEADERS, description="Further header fields; those that Postroad writes are refused."
    )
    attachments: list[AttachmentIn] = Field(default=[], max_length=MAX_ATTACHMENTS)
    tags: list[Label] = Field(default=[], max_length=MAX_TAGS, description="Never leave in headers.")
    metadata: dict[Label, MetadataValue] = Field(
        default={}, max_length=MAX_METADATA, description="Yours; never leaves in headers, comes back on every event."
    )
    track_opens: StrictBool = False
    track_clicks: StrictBool = False
    scheduled_at: TimestampInput | None = Field(default=None, description="Not sent before; at most 30 days ahead.")
    expires_at: TimestampInput | None = Field(default=None, description="Not sent after: then it has failed (expired).")
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
        texts = sum(len(part.encode()) for part in (self.text, self.html) if part)
        return texts + sum(len(attachment.content) for attachment in self.attachments)


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
    track_clicks: bool
    recipients: list[RecipientOut]


class AcceptedMessage(BaseModel):
    """What is known of a message the moment it is accepted."""

    id: UUID
    status: Status
    from_email: str
    to_email: str
    subject: str
    recipients: int = Field(description="How many copies will be sent.")
    batch_id: str | None
    created_at: Timestamp
    scheduled_at: Timestamp | None


class EventOut(BaseModel):
    """One thing that happened to one recipient's copy, with whatever is known of it.

    `delivered` carries `tls`, `mx` and `response`; deferrals and bounces carry `code`, `enhanced_code`, `response`
    and `reason`.
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
