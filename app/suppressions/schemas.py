"""Shapes of the suppressions' routes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from app.core.errors import ProblemFlaw
from app.core.pagination import Pagination
from app.core.schemas import Body, Text, Timestamp, TimestampInput
from app.mail import address
from app.mail.headers import CONTROL
from app.suppressions.models import Reason

MAX_BULK = 1000
MAX_DETAIL_CHARACTERS = 1000
# As many as a message may carry.
MAX_TAGS = 10
MAX_LINES = 10_000
MAX_LINE_FLAWS = 1000

_LIKE = re.compile(r"([\\%_])")


def _key(value: str) -> str:
    return address.parse(value).key


def _check_line(value: str) -> str:
    if CONTROL.search(value):
        raise ValueError("must be one line, without control characters")
    return value


def _or_malformed(value: object, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError as error:
        return Malformed(error)


# `Name <a@b>` is taken too; names, even quoted ones, end at 256 characters.
AddressKey = Annotated[Text, Field(min_length=1, max_length=800), AfterValidator(_key)]
Tag = Annotated[Text, Field(min_length=1, max_length=128)]

_ADDRESS = "In any spelling; kept in lower case, its domain in A-labels."
_TAG = "Only mail that carries this tag is held back. Null: all mail is."


class NewSuppression(Body):
    """An address that is not to be sent to any more."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"address": "no.more@example.com", "tag": "news", "detail": "asked by phone"}]}
    )

    address: AddressKey = Field(description=_ADDRESS)
    tag: Tag | None = Field(default=None, description=_TAG)
    reason: Reason = "manual"
    detail: Annotated[Text, Field(max_length=MAX_DETAIL_CHARACTERS), AfterValidator(_check_line)] | None = Field(
        default=None, description="A line for whoever wants to know why."
    )


@dataclass(frozen=True, slots=True)
class Malformed:
    """An item that is no suppression, and what pydantic has against it."""

    error: ValidationError


class BulkRequest(Body):
    """Many suppressions at once."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "suppressions": [
                        {"address": "gone@example.com", "reason": "hard_bounce", "detail": "550 5.1.1 No such user"},
                        {"address": "angry@example.com", "reason": "complaint"},
                    ]
                }
            ]
        }
    )

    suppressions: list[Annotated[NewSuppression, WrapValidator(_or_malformed)]] = Field(
        min_length=1, max_length=MAX_BULK
    )

    @property
    def items(self) -> Sequence[NewSuppression | Malformed]:
        """The items, some of them malformed perhaps."""
        return self.suppressions


class Suppression(BaseModel):
    """An address that is not sent to."""

    id: UUID
    address: str = Field(description="In lower case, its domain in A-labels.", examples=["no.more@example.com"])
    tag: str | None = Field(description=_TAG)
    reason: Reason
    message_id: UUID | None = Field(description="The message whose bounce, complaint or unsubscribe told of it.")
    detail: str | None = Field(description="In a line, what was said.")
    created_at: Timestamp


class BulkResult(BaseModel):
    """What became of one item."""

    index: int = Field(description="Counts from 0.")
    status: Literal["added", "already_suppressed", "rejected"]
    suppression: Suppression | None = Field(description="As it stands now; null when the item was rejected.")
    errors: list[ProblemFlaw] = Field(
        default=[], description="What is wrong with a rejected item; their pointers start at the item."
    )


class LineFlaw(BaseModel):
    """What is wrong with a line of an import."""

    line: int = Field(description="Counts from 1.")
    detail: str


class Filters(BaseModel):
    """Which suppressions; every filter given must hold."""

    reason: Reason | None = None
    tag: Text | None = Field(
        default=None, max_length=128, description="Those of this tag; empty: those that hold for all mail."
    )
    address: AddressKey | None = Field(default=None, description="Those of this address, in any spelling.")
    address_prefix: Annotated[Text, Field(min_length=1, max_length=254), BeforeValidator(str.casefold)] | None = Field(
        default=None, description="Those whose address, as it is kept, begins so."
    )
    created_from: TimestampInput | None = None
    created_to: TimestampInput | None = None

    @property
    def pattern(self) -> str | None:
        """`address_prefix` as a LIKE pattern, its wildcards taken literally."""
        return None if self.address_prefix is None else _LIKE.sub(r"\\\1", self.address_prefix) + "%"


class One(BaseModel):
    """Which suppression of an address."""

    address: AddressKey = Field(description="In any spelling.")
    tag: Tag | None = Field(default=None, description="The one of this tag; without it, the one for all mail.")


class CheckQuery(BaseModel):
    """Whom a mail is to go to, and under which tags."""

    address: AddressKey = Field(description="In any spelling.")
    tag: list[Tag] = Field(default=[], max_length=MAX_TAGS, description="A tag that the mail would carry; repeatable.")


class CheckRequest(Body):
    """Whom mails are to go to, and under which tags."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"addresses": ["ada@example.com", "gone@example.com"], "tags": ["news"]}]}
    )

    addresses: list[AddressKey] = Field(min_length=1, max_length=MAX_BULK, description="In any spelling.")
    tags: list[Tag] = Field(default=[], max_length=MAX_TAGS, description="The tags that the mails would carry.")


class Check(BaseModel):
    """Whether a mail to an address would be sent."""

    address: str = Field(description="In lower case, its domain in A-labels.")
    suppressed: bool
    suppressions: list[Suppression] = Field(description="What holds the mail back: for all mail, or under its tags.")


class SuppressionData(BaseModel):
    """`data` with one suppression."""

    suppression: Suppression


class SuppressionsData(BaseModel):
    """`data` with a page of suppressions."""

    suppressions: list[Suppression]
    pagination: Pagination


class BulkData(BaseModel):
    """`data` of a bulk request."""

    added: int
    already_suppressed: int
    rejected: int
    results: list[BulkResult] = Field(description="One for each item, in its order.")


class ImportData(BaseModel):
    """`data` of an import."""

    added: int
    already_suppressed: int
    rejected: int
    errors: list[LineFlaw] = Field(description=f"The rejected lines; the first {MAX_LINE_FLAWS:,} of them.")


class CheckData(BaseModel):
    """`data` of the check of one address."""

    check: Check


class ChecksData(BaseModel):
    """`data` of the check of many addresses."""

    checks: list[Check] = Field(description="One for each address, in its order.")
