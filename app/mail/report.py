"""What a mail means that came back to us: a bounce, a complaint, an automatic answer, or none of these.

Anybody can send anything to a return path, and most of what arrives there was written by programs that nobody has
mended for decades. So nothing here raises, all work is linear in the octets given (the caller bounds those), and
what a report says is only said: which mail of ours it is about has to be proved by the signed addresses and links
that it brings back (`app.mail.returnpath`), and is not for this module to decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from app.mail import arf, autoreply, bounce_text, dsn, mime, returned
from app.mail.mime import Entity, Header
from app.mail.reported import Kind, ReportedRecipient


@dataclass(frozen=True, slots=True)
class Report:
    """What a mail tells.

    kind: what it is about; where recipients differ, failure goes before delay, and delay before success.
    recipients: at most 50; those of a failure, a delay or a success, each of its own kind, and of a complaint.
    envelope_candidates: addresses in it that could be a return path of ours, at most 20, those of the report itself
    first. original_message_id: without angle brackets. original_list_unsubscribe: http(s) and mailto URLs of the
    mail that came back, at most 8. feedback_type: of a feedback report, in lower case; a kind other has one too
    when it is no complaint, as not-spam. arrival_date: when the original had arrived, aware. source_ip, user_agent:
    from where it had come, and the program that reports, in a complaint.
    """

    kind: Kind
    recipients: tuple[ReportedRecipient, ...] = ()
    envelope_candidates: tuple[str, ...] = ()
    original_message_id: str | None = None
    original_list_unsubscribe: tuple[str, ...] = ()
    feedback_type: str | None = None
    arrival_date: datetime | None = None
    source_ip: str | None = None
    user_agent: str | None = None


def read(octets: bytes) -> Report:
    """Read a mail as it came over the wire. Never raises; takes time linear in the octets, of which the caller
    accepts a bounded number (10 MiB is plenty)."""
    mail = mime.parse(octets)
    said, pasted = returned.split(mime.own_text(mail))
    original = returned.header(mail, pasted)
    feedback = arf.read(mail, original)
    if feedback:
        kind, recipients, machine = feedback.kind, feedback.recipients, feedback.fields
    else:
        groups = dsn.groups(mail, _by_mail_system(mail))
        kind, recipients = _judge(mail, groups, said)
        machine = Header(tuple(field for group in groups for field in group.fields))
    return Report(
        kind,
        recipients,
        returned.candidates(mail.header, machine, original),
        returned.message_id(original, mail.header),
        returned.unsubscribe_urls(original),
        feedback.type if feedback else None,
        _date(machine.get("arrival-date") or machine.get("received-date")),
        feedback.source_ip if feedback else None,
        feedback.user_agent if feedback else None,
    )


def _judge(mail: Entity, groups: Sequence[Header], said: str) -> tuple[Kind, tuple[ReportedRecipient, ...]]:
    """What a mail is that is no feedback report: what machines say of themselves goes before what words tell."""
    subject = mail.header.text("subject")
    if recipients := dsn.recipients(groups, subject, said):
        kinds = {recipient.kind for recipient in recipients}
        return next(kind for kind in (Kind.FAILURE, Kind.DELAY, Kind.SUCCESS) if kind in kinds), recipients
    if autoreply.is_receipt(mail):
        return Kind.AUTO_REPLY, ()
    by_system = _by_mail_system(mail)
    if not by_system and autoreply.is_challenge(mail, said):
        return Kind.CHALLENGE, ()
    if autoreply.is_reply(mail):
        return Kind.AUTO_REPLY, ()
    if by_system and (told := bounce_text.told(subject, said)):
        return told, bounce_text.recipients(mail, said, told)
    return (Kind.AUTO_REPLY if autoreply.is_automatic(mail) else Kind.OTHER), ()


def _by_mail_system(mail: Entity) -> bool:
    """Whether a mail system wrote it, so that its words can be those of a bounce."""
    return (
        mail.header.get("x-failed-recipients") != ""
        or mail.report_type == "delivery-status"
        or bounce_text.from_machine(mail)
    )


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
        # Without a zone that is known, it is taken for UTC (RFC 5322 section 3.3 on "-0000").
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None
