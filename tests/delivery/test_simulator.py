"""What an attempt at a simulated delivery comes to."""

from datetime import UTC, datetime
from typing import get_args

import pytest

from app.delivery.simulator import follows, outcomes
from app.mail.reply import classify
from app.messages.schemas import Outcome
from app.messages.status import TRANSITIONS, Status

NOW = datetime(2027, 1, 31, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("simulated", "attempt", "status", "response"),
    [
        ("delivered", 1, "delivered", "250 2.0.0 simulated"),
        ("deferred", 1, "deferred", "451 4.3.2 simulated"),
        ("deferred", 2, "delivered", "250 2.0.0 simulated"),
        ("soft_bounced", 1, "soft_bounced", "452 4.2.2 simulated"),
        ("soft_bounced", 9, "soft_bounced", "452 4.2.2 simulated"),
        ("hard_bounced", 1, "hard_bounced", "550 5.1.1 simulated"),
        ("complained", 1, "delivered", "250 2.0.0 simulated"),
        ("suppressed", 1, "suppressed", "simulated: the recipient is suppressed"),
        ("failed", 1, "failed", "simulated: the delivery failed"),
    ],
)
def test_outcomes(simulated: str, attempt: int, status: str, response: str) -> None:
    outcome = outcomes(simulated, attempt, NOW)
    assert (outcome.status, outcome.response, outcome.host) == (status, response, "simulator")
    # Only what was delivered was sent, and has a `sent` event.
    assert outcome.sent_at == (NOW if status == "delivered" else None)
    assert outcome.facts()["mx"] == "simulator"
    if outcome.reply is not None and not outcome.reply.positive:
        assert outcome.phase is not None
        assert classify(outcome.reply, outcome.phase) == status
    assert Status(status) in TRANSITIONS[Status.QUEUED]


def test_only_complaints_follow() -> None:
    assert {one for one in get_args(Outcome) if follows(one)} == {Status.COMPLAINED}
    assert Status.COMPLAINED in TRANSITIONS[Status.DELIVERED]


@pytest.mark.parametrize("simulated", ["queued", "sending", "cancelled", "nonsense"])
def test_what_is_no_outcome(simulated: str) -> None:
    with pytest.raises(ValueError):
        outcomes(simulated, 1, NOW)
