"""How a simulated delivery ends: the outcome that an attempt comes to when nothing is transmitted."""

from datetime import datetime
from typing import Final

from app.delivery.outcome import Outcome
from app.mail.reply import Phase, Reply
from app.messages.status import Status

HOST: Final = "simulator"
_TEXT: Final = "simulated"

_ACCEPTED: Final = Reply(250, "2.0.0", _TEXT, local=True)
_REFUSALS: Final = {
    Status.DEFERRED: Reply(451, "4.3.2", _TEXT, local=True),
    Status.SOFT_BOUNCED: Reply(452, "4.2.2", _TEXT, local=True),
    Status.HARD_BOUNCED: Reply(550, "5.1.1", _TEXT, local=True),
}
_UNSENT: Final = {
    Status.SUPPRESSED: ("suppressed", "simulated: the recipient is suppressed"),
    Status.FAILED: ("simulated", "simulated: the delivery failed"),
}


def outcomes(simulated: str, attempt: int, now: datetime) -> Outcome:
    """What an attempt (numbered from 1) at a delivery comes to that is to end as `simulated`, a status of `Outcome`.

    A deferral is followed by success; soft bounces go on until the delivery's time is up. `complained` is delivered
    here: see `follows`. Raises ValueError for anything else.
    """
    status = Status(simulated)
    if status is Status.COMPLAINED or (status is Status.DEFERRED and attempt > 1):
        status = Status.DELIVERED
    if status is Status.DELIVERED:
        return Outcome(status, "delivered", "", now, now, phase=Phase.CONTENT, reply=_ACCEPTED, host=HOST, sent_at=now)
    if status in _UNSENT:
        reason, detail = _UNSENT[status]
        return Outcome(status, reason, detail, now, now, host=HOST)
    if status not in _REFUSALS:
        raise ValueError(f"no delivery can be simulated to end as {simulated}")
    return Outcome(status, "refused", "", now, now, phase=Phase.RCPT, reply=_REFUSALS[status], host=HOST)


def follows(simulated: str) -> Status | None:
    """What becomes of the delivery right after it was delivered, with an event of its own; None: nothing."""
    return Status.COMPLAINED if simulated == Status.COMPLAINED else None
