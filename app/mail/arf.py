"""Complaints: feedback loops in the Abuse Reporting Format (RFC 5965), and Microsoft's older form without it."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from app.mail import mime
from app.mail.mime import Entity, Header
from app.mail.reported import MAX_RECIPIENTS, Kind, ReportedRecipient, address_in, clean

_MAX_OCTETS: Final = 65_536
_MAX_AGENT_CHARACTERS: Final = 255
# RFC 5965 section 7.3, and what was in use before it. Not among them: not-spam takes a complaint back, auth-failure
# (RFC 6591) tells of mail that was not ours, and nobody is to be suppressed for a word that is not known.
_COMPLAINTS: Final = frozenset({"abuse", "fraud", "virus", "other", "opt-out", "opt-out-list", "spam", "phishing"})
_WORD = re.compile(r"[A-Za-z][A-Za-z-]{0,39}")
_JMRP_SUBJECT = re.compile(r"complaint about message from\s+([0-9a-f.:]{3,45})", re.IGNORECASE)
_JMRP_RECIPIENT: Final = "x-hmxmroriginalrecipient"
_IP = re.compile(r"[0-9A-Fa-f.:]{3,45}")


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a feedback report tells. `fields` are its own, without the mail that it is about."""

    kind: Kind
    type: str | None
    recipients: tuple[ReportedRecipient, ...]
    source_ip: str | None
    user_agent: str | None
    fields: Header


def read(mail: Entity, original: Header) -> Feedback | None:
    """Read a feedback report about the mail with the `original` header; None if it is none."""
    fields = _fields(mail)
    if fields is None:
        return _read_jmrp(mail, original)
    word = _WORD.match(fields.get("feedback-type"))
    feedback_type = word[0].lower() if word else None
    # A report without a type is a complaint all the same: that is what the loops are for.
    kind = Kind.COMPLAINT if feedback_type is None or feedback_type in _COMPLAINTS else Kind.OTHER
    stated = [*fields.all("original-rcpt-to"), *fields.all("removal-recipient"), original.get(_JMRP_RECIPIENT)]
    ip = _IP.search(fields.get("source-ip").strip("[] "))
    return Feedback(
        kind,
        feedback_type,
        _recipients(kind, stated),
        ip_address(ip[0]) if ip else None,
        clean(fields.get("user-agent"), _MAX_AGENT_CHARACTERS) or None,
        fields,
    )


def ip_address(text: str) -> str | None:
    """The text if it is an IP address, else None."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _fields(mail: Entity) -> Header | None:
    for whole in mail.walk():
        if whole.content_type != "multipart/report":
            continue
        for part in whole.parts[1:]:
            if part.content_type == "message/feedback-report":
                return _fields_of(part)
            # Some give the part another type.
            if whole.report_type == "feedback-report" and part.content_type == "text/plain":
                fields = _fields_of(part)
                if fields.get("feedback-type"):
                    return fields
    return None


def _fields_of(part: Entity) -> Header:
    return mime.header(part.content(_MAX_OCTETS).replace(b"\r\n", b"\n").strip(b"\n"))


def _read_jmrp(mail: Entity, original: Header) -> Feedback | None:
    """Outlook.com before 2026: a mail about an address with nothing but the original attached."""
    subject = _JMRP_SUBJECT.match(mail.header.text("subject").strip())
    if not original.fields or not (subject and any(part.content_type == "message/rfc822" for part in mail.walk())):
        return None
    recipients = _recipients(Kind.COMPLAINT, [original.get(_JMRP_RECIPIENT)])
    return Feedback(Kind.COMPLAINT, "abuse", recipients, ip_address(subject[1]), None, Header())


def _recipients(kind: Kind, stated: list[str]) -> tuple[ReportedRecipient, ...]:
    if kind is not Kind.COMPLAINT:
        return ()
    found = dict.fromkeys(address for value in stated if (address := address_in(value)))
    return tuple(ReportedRecipient(kind, address) for address in found)[:MAX_RECIPIENTS]
