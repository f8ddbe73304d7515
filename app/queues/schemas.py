"""What the API says of queues."""

from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from app.core.pagination import Pagination
from app.core.schemas import Text, Timestamp

_VMTA_ID = "018f2f6e-7c1a-7d21-9f43-0a1b2c3d4e5f"


class State(StrEnum):
    """How a queue does. Where several hold, the first of held, paused, suspended, slowed is told."""

    ACTIVE = "active"
    HELD = "held"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    SLOWED = "slowed"


class QueueVmta(BaseModel):
    """The vMTA that a queue leaves by."""

    id: UUID
    name: str


class Counts(BaseModel):
    """Mails in a queue; each recipient's copy counts as one."""

    waiting: int = Field(description="Due now.")
    deferred: int = Field(description="Due later: to be tried again, or scheduled.")
    sending: int = Field(description="With a worker at this moment.")
    held: int = Field(description="Set aside until the queue is released, or its vMTA resumed.")
    total: int


class Load(BaseModel):
    """What waits, and for how long."""

    counts: Counts
    oldest_due_seconds: float | None = Field(description="How long the oldest due mail has waited; null if none is.")
    next_attempt_at: Timestamp | None = Field(description="When the first of the deferred mails is due.")


class Queue(Load):
    """The mail that leaves by one vMTA for one site."""

    id: str = Field(
        description="`<vMTA's id>@<site>`; `default@<site>` for mail without a vMTA.",
        examples=[f"{_VMTA_ID}@gmail", "default@mx1+mx2.example.com"],
    )
    vmta: QueueVmta | None = Field(description="Null: the platform's own way out.")
    site: str = Field(
        description="All domains with the same mail hosts: a provider's name, or the hosts joined by `+`. A "
        "domain that was never looked up, or that is held by its own name, is a site by itself."
    )
    provider: str = Field(description="The mailbox provider; `generic` if it is none of the known ones.")
    state: State
    reason: str | None = Field(description="Why it is suspended or slowed: the category of the site's replies.")
    until: Timestamp | None = Field(description="When that ends by itself.")
    domains: list[str] = Field(description="Up to ten of the recipients' domains in it.")


class StateCounts(BaseModel):
    """Queues by state."""

    active: int = 0
    held: int = 0
    paused: int = 0
    suspended: int = 0
    slowed: int = 0


class Totals(Load):
    """Queues summed up."""

    queues: int = Field(description="How many there are, held ones without mail included.")
    states: StateCounts
    approximate: bool = Field(description="Whether only the first 1,000,000 mails were counted.")


class VmtaLoad(Totals):
    """A vMTA's queues summed up, and the fullest of them."""

    vmta: QueueVmta
    paused: bool
    fullest: list[Queue] = Field(description="Up to 25; `GET /api/v1/queues?vmta_id=…` lists them all.")


class Filters(BaseModel):
    """Which queues to list; every filter given must hold."""

    vmta_id: UUID | Literal["default"] | None = Field(
        default=None, description="A vMTA's id; `default` for mail without one."
    )
    site: Text | None = Field(default=None, min_length=1, max_length=500)
    state: State | None = None


class QueueData(BaseModel):
    """`data` of one queue."""

    queue: Queue


class QueuesData(BaseModel):
    """`data` of a list of queues."""

    queues: list[Queue]
    approximate: bool = Field(description="Whether only the first 1,000,000 mails were counted.")
    pagination: Pagination


class StatusData(BaseModel):
    """`data` of the overview."""

    status: Totals


class VmtaQueueData(BaseModel):
    """`data` of a vMTA's queues."""

    queue: VmtaLoad


class ActionData(BaseModel):
    """`data` of an action."""

    queue: Queue
    action: Literal["flush", "hold", "release"]
    mails: int = Field(description="How many mails this request made due (flush, release) or set aside (hold).")
    complete: bool = Field(
        description="Whether these were all. If not: after hold and release the rest follows by itself; flush again."
    )
