"""What comes in and goes out at /messages/batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from app.core.errors import ProblemFlaw
from app.core.schemas import Body
from app.messages.fields import Label
from app.messages.schemas import AcceptedMessage, SendRequest

MAX_BATCH = 100


@dataclass(frozen=True, slots=True)
class Malformed:
    """An item of a permissive batch that is no valid mail, and what pydantic has against it."""

    error: ValidationError


def _or_malformed(value: object, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    if info.data.get("mode") != "permissive":
        return read(value)
    try:
        return read(value)
    except ValidationError as error:
        return Malformed(error)


class BatchRequest(Body):
    """Up to 100 mails. Each is what `send` takes, and everything that holds there holds here."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "batch_id": "spring-2027",
                    "messages": [
                        {
                            "from": "Postroad <hello@mail.postroad.test>",
                            "to": ["ada@example.com"],
                            "subject": "Hello, Ada",
                            "text": "Spring is here.",
                        },
                        {
                            "from": "Postroad <hello@mail.postroad.test>",
                            "to": ["grace@example.com"],
                            "subject": "Hello, Grace",
                            "text": "Spring is here.",
                        },
                    ],
                }
            ]
        }
    )

    # Before the messages, which are read according to it.
    mode: Literal["strict", "permissive"] = Field(
        default="strict",
        description="`strict`: all are accepted, or none. `permissive`: the valid ones are accepted, and the answer "
        "tells what is wrong with each of the others.",
    )
    batch_id: Label | None = Field(
        default=None, description="The `batch_id` of every message. One that names its own must name this."
    )
    messages: list[Annotated[SendRequest, WrapValidator(_or_malformed)]] = Field(min_length=1, max_length=MAX_BATCH)

    @property
    def items(self) -> Sequence[SendRequest | Malformed]:
        """The messages, some of them malformed if the mode is permissive."""
        return self.messages


class Refusal(BaseModel):
    """Why a mail of a batch was rejected: the problem document that `send` would have answered with."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ProblemFlaw] = Field(default=[], description="Their pointers start at the item.")


class BatchAccepted(BaseModel):
    """An accepted item of a batch."""

    index: int
    status: Literal["accepted"] = "accepted"
    message: AcceptedMessage


class BatchRejected(BaseModel):
    """A rejected item of a permissive batch."""

    index: int
    status: Literal["rejected"] = "rejected"
    error: Refusal


class BatchData(BaseModel):
    """`data` of a batch."""

    batch_id: str | None
    accepted: int
    rejected: int
    results: list[Annotated[BatchAccepted | BatchRejected, Field(discriminator="status")]] = Field(
        description="One for each item, in its order; `index` counts from 0."
    )
