"""What follows from a mail that came back.

A report can be written by anybody and say anything. So it bears on the copy whose return path it was sent to; a report
to one of the report addresses, on the copy whose return path or unsubscribe link stands in what it brings back. We have
signed both, and nobody knows them but those through whose hands that copy went.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from app.inbound.queries import Copy, Key
from app.inbound.recipients import delivery_of
from app.mail.report import Report
from app.mail.reported import Kind, ReportedRecipient
from app.messages.aftermath import Happening
from app.messages.status import Status
from app.suppressions.service import Entry
from app.tracking import tokens

# Of mails of other kinds nothing follows.
OF_EFFECT: Final = frozenset({Kind.FAILURE, Kind.DELAY, Kind.COMPLAINT})

_WAITING = frozenset({Status.PENDING, Status.QUEUED, Status.DEFERRED, Status.SOFT_BOUNCED, Status.HELD})
# Of several that a report says of one copy.
_WEIGHT = {Kind.FAILURE: 0, Kind.DELAY: 1, Kind.SUCCESS: 2}


class Verdict(StrEnum):
    """What became of a mail that was taken."""

    APPLIED = "applied"  # an event tells of it
    REPEATED = "repeated"  # it was told of before
    ABSORBED = "absorbed"  # the copy is in a state that this changes no more, or is not delivered at all
    IGNORED = "ignored"  # nothing follows from mails of this kind
    UNPROVEN = "unproven"  # no token shows which mail of ours it is about
    UNKNOWN_DELIVERY = "unknown_delivery"  # the token is ours, and the copy does not exist (any more)
    UNREADABLE = "unreadable"  # reading it failed again and again
    WAITING = "waiting"  # the copy is still under way here: to be looked at again later


@dataclass(frozen=True, slots=True)
class Ruling:
    """What follows for one copy. `status`: what the copy's becomes; `entry`: whom it suppresses."""

    verdict: Verdict
    happening: Happening | None = None
    status: Status | None = None
    entry: Entry | None = None


def bears_on(report: Report, recipients: Sequence[str]) -> list[Key]:
    """The (org_id, delivery_id) of the copies that a mail to these recipients is proven to be about, each once."""
    proven = filter(None, map(delivery_of, recipients))
    if found := list(dict.fromkeys(proven)):
        return found
    for address in report.envelope_candidates:
        if (key := delivery_of(address)) is not None:
            return [key]
    for url in report.original_list_unsubscribe:
        token = url.partition(tokens.UNSUBSCRIBE_PATH)[2]
        if (key := tokens.read_unsubscribe(token)) is not None:
            return [key]
    return []


def rule(report: Report, copy: Copy, *, was_delayed: bool, received_at: datetime) -> Ruling:
    """Say what follows from a report for a copy that it bears on, in the state that the copy is in.

    `was_delayed`: an event has told of a report of a delay already. Of a copy that has not been delivered nothing is
    believed: the delivery goes its own way.
    """
    status = Status(copy.status)
    if report.kind is Kind.COMPLAINT:
        return _complaint(report, copy, status, received_at)
    said = _said_of(copy, report.recipients)
    if said is None or said.kind is Kind.SUCCESS:
        return Ruling(Verdict.IGNORED)
    if said.kind is Kind.FAILURE:
        return _failure(said, copy, status, received_at)
    if status is not Status.DELIVERED:
        return _unmoved(status, Status.DEFERRED)
    if was_delayed:
        return Ruling(Verdict.REPEATED)
    return Ruling(Verdict.APPLIED, _happening(copy, Status.DEFERRED, received_at, _facts(said, "delayed")))


def _failure(said: ReportedRecipient, copy: Copy, status: Status, received_at: datetime) -> Ruling:
    if status is not Status.DELIVERED:
        return _unmoved(status, Status.HARD_BOUNCED)
    happening = _happening(copy, Status.HARD_BOUNCED, received_at, _facts(said, "returned"))
    entry = None
    if said.diagnosis is not None and said.diagnosis.address_level and _is_about_ours(said, copy):
        entry = Entry(
            copy.org_id,
            copy.recipient.casefold(),
            "hard_bounce",
            message_id=copy.message_id,
            detail=said.diagnostic or None,
        )
    return Ruling(Verdict.APPLIED, happening, Status.HARD_BOUNCED, entry)


def _complaint(report: Report, copy: Copy, status: Status, received_at: datetime) -> Ruling:
    if status is not Status.DELIVERED:
        return _unmoved(status, Status.COMPLAINED)
    told = {"feedback_type": report.feedback_type, "user_agent": report.user_agent}
    facts = {"reason": "feedback", **{name: value for name, value in told.items() if value}}
    entry = Entry(
        copy.org_id,
        copy.recipient.casefold(),
        "complaint",
        message_id=copy.message_id,
        detail=f"{report.feedback_type or 'complaint'}, reported by {report.user_agent or 'a feedback loop'}",
    )
    happening = _happening(copy, Status.COMPLAINED, received_at, facts)
    return Ruling(Verdict.APPLIED, happening, Status.COMPLAINED, entry)


def _unmoved(status: Status, target: Status) -> Ruling:
    """The ruling on what would bring a copy to `target` that was not delivered, or has come further since."""
    if status in _WAITING:
        return Ruling(Verdict.WAITING)
    return Ruling(Verdict.REPEATED if status is target else Verdict.ABSORBED)


def _said_of(copy: Copy, recipients: Sequence[ReportedRecipient]) -> ReportedRecipient | None:
    """What a report says of a copy: of its own recipient if it names that one, else the worst that it says.

    A host that hands mail on, or knows the mailbox under another name, reports under that one.
    """
    ours = [one for one in recipients if _is_about_ours(one, copy)]
    return min(ours or recipients, key=lambda one: _WEIGHT[one.kind], default=None)


def _is_about_ours(said: ReportedRecipient, copy: Copy) -> bool:
    """Whether it is said of the address that the copy was sent to, not of a mailbox that this one leads to."""
    return said.address is None or said.address.casefold() == copy.recipient.casefold()


def _happening(copy: Copy, type: Status, received_at: datetime, facts: dict[str, Any]) -> Happening:
    # When the report came: what it says of times is its own word.
    return Happening(copy.org_id, copy.delivery_id, type.value, received_at, {"source": "report", **facts})


def _facts(said: ReportedRecipient, reason: str) -> dict[str, Any]:
    """What an event tells of it, under the names that events of our own attempts use."""
    facts = {
        "reason": reason,
        "mx": said.remote_mta,
        "category": said.diagnosis and said.diagnosis.category,
        "code": said.code,
        "enhanced_code": said.status,
        "response": said.diagnostic,
    }
    return {name: value for name, value in facts.items() if value}
