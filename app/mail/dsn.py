"""Delivery status notifications: the part that machines read (RFC 3464, RFC 6533)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from app.mail import mime
from app.mail.bounce_text import Named, named_in, told
from app.mail.mime import Entity, Header
from app.mail.reported import MAX_RECIPIENTS, Kind, ReportedRecipient, address_in, clean, phase_in, reported

_TYPES: Final = frozenset({"message/delivery-status", "message/global-delivery-status", "text/delivery-status"})
_MAX_OCTETS: Final = 131_072
_MAX_GROUPS: Final = 2 * MAX_RECIPIENTS
_MAX_HOST_CHARACTERS: Final = 255

_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_COMMENT = re.compile(r"\(([^()]{1,1000})\)")
# smtp; x-postfix; x-unix; and so on, before what the host said.
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,40}\s{0,4};\s{0,4}")
_UNICODE = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
# The words of RFC 3464 section 2.3.3, and those that some write instead.
_ACTIONS: Final = (
    (Kind.FAILURE, ("fail", "error", "expire", "bounce", "reject", "undeliver")),
    (Kind.DELAY, ("delay", "defer", "transient", "warning", "retr")),
    (Kind.SUCCESS, ("deliver", "relay", "expand", "success")),
)
_BY_CLASS: Final = {"2": Kind.SUCCESS, "4": Kind.DELAY, "5": Kind.FAILURE}


def groups(mail: Entity, by_machine: bool) -> list[Header]:
    """The groups of fields of a mail's delivery status: that of the message, then one for each recipient.

    Empty where the mail has no such part, or nothing stands in it. The part belongs into a multipart/report; only
    where a mail system wrote the mail it may stand elsewhere: people attach what they do not understand.
    """
    for whole in mail.walk():
        if by_machine or whole.content_type == "multipart/report":
            for part in (*whole.parts, whole):
                if part.content_type in _TYPES:
                    return list(_grouped(part.content(_MAX_OCTETS)))
    return []


def recipients(groups: Sequence[Header], subject: str, said: str) -> tuple[ReportedRecipient, ...]:
    """What the groups say of each recipient; the report's subject and own words may tell more."""
    named = {each.address.lower(): each for each in named_in(said)}
    found = []
    for group in groups:
        if group.get("final-recipient") or group.get("original-recipient") or group.get("action"):
            kind = _kind(group) or told(subject, said)
            if kind:
                found.append(_recipient(kind, group, named))
    return tuple(found[:MAX_RECIPIENTS])


def _grouped(octets: bytes) -> Iterator[Header]:
    octets = octets.replace(b"\r\n", b"\n")
    for block in octets.split(b"\n\n", _MAX_GROUPS)[:_MAX_GROUPS]:
        group: list[tuple[str, str]] = []
        for name, value in mime.header(block.strip(b"\n")).fields:
            # Some leave out the empty line between two recipients.
            if name == "final-recipient" and any(name == before for before, _ in group):
                yield Header(tuple(group))
                group = []
            group.append((name, value))
        if group:
            yield Header(tuple(group))


def _kind(group: Header) -> Kind | None:
    action = group.get("action").lower()
    for kind, beginnings in _ACTIONS:
        if action.startswith(beginnings):
            return kind
    return _BY_CLASS.get(group.get("status")[:1])


def _recipient(kind: Kind, group: Header, named: Mapping[str, Named]) -> ReportedRecipient:
    final = _address(group.get("final-recipient"))
    original = _address(group.get("original-recipient"))
    address = final or original
    status = _STATUS.match(group.get("status"))
    words = named.get(address.lower()) if address else None
    context = words.text if words else ""
    text = group.get("diagnostic-code").strip()
    if kind_of_text := _TYPE.match(text):
        text = text[kind_of_text.end() :]
    if not text and (comment := _COMMENT.search(group.get("status"))):
        text = comment[1]
    return reported(
        kind,
        address,
        text or context,
        status=status[0] if status else None,
        phase=phase_in(text) or phase_in(context),
        original_address=original or (words.original if words else None),
        action=_word(group.get("action")),
        remote_mta=_host(group.get("remote-mta")),
    )


def _word(action: str) -> str:
    word = (action.split() or [""])[0].lower()
    return word if word in ("failed", "delayed", "delivered", "relayed", "expanded") else ""


def _address(value: str) -> str | None:
    """The address in `type; address`, the escapes of an internationalized one read (RFC 6533 section 3)."""
    if value[:6].lower() == "utf-8;":
        value = _UNICODE.sub(lambda found: chr(min(int(found[1], 16), 0x10FFFF)), value)
    return address_in(value)


def _host(value: str) -> str:
    found = _HOST.match(value.rpartition(";")[2].strip())
    return clean(found[0].strip("[]").rstrip(".").lower(), _MAX_HOST_CHARACTERS) if found else ""
