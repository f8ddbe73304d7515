"""Shapes that every noun shares: the envelope, the strict body, bounded text and UTC times."""

from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, PlainSerializer

DataT = TypeVar("DataT")


class Body(BaseModel):
    """A request body: unknown fields are refused, so that a misspelt option is never silently ignored."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Envelope(BaseModel, Generic[DataT]):
    """Every successful answer: the thing under its own name in `data`."""

    status: Literal["success"] = "success"
    data: DataT


def _without_nul(value: str) -> str:
    # PostgreSQL cannot store U+0000 in text; no mail or name has a use for it.
    if "\x00" in value:
        raise ValueError("must not contain NUL characters")
    return value


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _in_bounds(value: datetime) -> datetime:
    if not 1970 <= value.year <= 9000:
        raise ValueError("must lie between the years 1970 and 9000")
    return value.astimezone(UTC)


Text = Annotated[str, AfterValidator(_without_nul)]
Timestamp = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str, when_used="json")]
TimestampInput = Annotated[AwareDatetime, AfterValidator(_in_bounds)]
