"""Shapes that every noun shares: the envelope, the strict body, bounded text and UTC times."""

import re
from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, PlainSerializer

DataT = TypeVar("DataT")

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d")


class Body(BaseModel):
    """A request body: unknown fields are refused, so that a misspelt option is never silently ignored."""

    model_config = ConfigDict(extra="forbid")


class Envelope(BaseModel, Generic[DataT]):
    """Every successful answer: the thing under its own name in `data`."""

    status: Literal["success"] = "success"
    data: DataT


def check_storable(value: str) -> str:
    """Return `value` if PostgreSQL and UTF-8 can hold it; ValueError for U+0000 and lone surrogates."""
    if "\x00" in value:
        raise ValueError("must not contain NUL characters")
    if not value.isascii() and _SURROGATE.search(value):
        raise ValueError("must not contain lone surrogates, which are no characters")
    return value


def rfc3339(value: datetime) -> str:
    """A time as the API writes it: UTC, milliseconds, ending in Z."""
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_rfc3339(value: object) -> object:
    # pydantic would take numbers too, as seconds or milliseconds depending on their size.
    if not isinstance(value, str) or not _RFC3339.match(value):
        raise ValueError("must be an RFC 3339 time with an offset, for example 2027-01-31T09:30:00Z")
    return value


def _in_bounds(value: datetime) -> datetime:
    # Looked at twice: far years cannot be converted, and an offset may lead to before the first UUIDv7.
    if not 1969 <= value.year <= 9000 or value.astimezone(UTC).year < 1970:
        raise ValueError("must lie between the years 1970 and 9000")
    return value.astimezone(UTC)


Text = Annotated[str, AfterValidator(check_storable)]
Timestamp = Annotated[datetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]
TimestampInput = Annotated[AwareDatetime, BeforeValidator(_is_rfc3339), AfterValidator(_in_bounds)]
