"""The state of a delivery: which states there are, which moves between them exist, and how a message sums them up."""

from collections.abc import Iterable
from enum import StrEnum


class Status(StrEnum):
    """The state of one recipient's copy, and of a message as the sum of its copies."""

    PENDING = "pending"
    QUEUED = "queued"
    SENDING = "sending"
    DELIVERED = "delivered"
    SOFT_BOUNCED = "soft_bounced"
    HARD_BOUNCED = "hard_bounced"
    COMPLAINED = "complained"
    DEFERRED = "deferred"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPPRESSED = "suppressed"
    HELD = "held"


# `sending` is never stored: it is a live lease on the queue row, so that claiming mail writes one small row only.
_WAITING = {Status.PENDING, Status.QUEUED, Status.DEFERRED, Status.SOFT_BOUNCED}
_SETTLED = {Status.DELIVERED, Status.HARD_BOUNCED, Status.FAILED, Status.SUPPRESSED}

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset(_SETTLED | {Status.DEFERRED, Status.SOFT_BOUNCED, Status.CANCELLED, Status.HELD}),
    Status.QUEUED: frozenset(_SETTLED | {Status.DEFERRED, Status.SOFT_BOUNCED, Status.CANCELLED, Status.HELD}),
    Status.DEFERRED: frozenset(_SETTLED | {Status.DEFERRED, Status.SOFT_BOUNCED, Status.CANCELLED, Status.HELD}),
    Status.SOFT_BOUNCED: frozenset(_SETTLED | {Status.DEFERRED, Status.SOFT_BOUNCED, Status.CANCELLED, Status.HELD}),
    Status.HELD: frozenset({Status.QUEUED, Status.CANCELLED, Status.FAILED}),
    Status.DELIVERED: frozenset({Status.COMPLAINED, Status.HARD_BOUNCED}),
    Status.HARD_BOUNCED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
    Status.SUPPRESSED: frozenset(),
    Status.COMPLAINED: frozenset(),
}

# What a message shows of its copies: whatever is still under way first, then the worst of how they ended.
PRECEDENCE: tuple[Status, ...] = (
    Status.SENDING,
    Status.QUEUED,
    Status.SOFT_BOUNCED,
    Status.DEFERRED,
    Status.HELD,
    Status.PENDING,
    Status.COMPLAINED,
    Status.HARD_BOUNCED,
    Status.FAILED,
    Status.DELIVERED,
    Status.SUPPRESSED,
    Status.CANCELLED,
)


def sources(target: Status) -> list[Status]:
    """The states from which a delivery may move to `target`; anything else absorbs the late or repeated event."""
    return [state for state, targets in TRANSITIONS.items() if target in targets]


def aggregate(statuses: Iterable[Status]) -> Status:
    """The status of a message with copies in these states (at least one)."""
    return min(statuses, key=PRECEDENCE.index)
