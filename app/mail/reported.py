"""One recipient of a report: what was said of it, and what that means.

Reports tell of a host's reply in many ways: as a diagnostic code (RFC 3464 section 2.3.6), with or without numbers,
or within sentences. Here the reply is found in them, and `app.mail.diagnosis` says what it means.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from app.mail.diagnosis import Diagnosis, diagnose
from app.mail.reply import MAX_TEXT_CHARACTERS, Phase, Reply, parse

MAX_RECIPIENTS: Final = 50
MAX_ADDRESS_CHARACTERS: Final = 320

# An address as people and machines write it into sentences: wider than app.mail.address, which reads what we send to.
# It begins where a word begins: the tail of one that is too long is nobody's address.
_LETTER = r"[^\s<>()\[\]\",;:\\@]"
ADDRESS: Final = rf"(?:\"[^\"\n]{{1,62}}\"|(?<!{_LETTER}){_LETTER}{{1,250}})@[\w.-]{{1,255}}"
_ADDRESS = re.compile(ADDRESS)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_STATUS = r"[245]\.[0-7]\.\d{1,3}(?!\.?\d)"
# A code at the very beginning; else one with a status code behind it, after words that announce a reply, or where a
# reply would begin.
_FIRST_CODE = re.compile(r"[\s\"'<(\[#]{0,8}([245]\d\d)(?=[ -]|$|[:;,])")
_CODE = re.compile(
    rf"(?<![\w.])([245]\d\d)(?=[ -]{{1,3}}[(\[]?#?{_STATUS})"
    r"|(?:\b(?:said|returned|replied|responded|error|code|status|responsecode|error_code)\b|<<<|>>>|smtp;)"
    r"[\s:='\"(\[]{1,6}([45]\d\d)(?=[\s\-:,.;)'\"\]]|$)"
    r"|\b(?:with|was|says|response|reason|reply|follows)\s?[:='\"\[]\s{0,3}[\['\"]?([45]\d\d)(?=[\s\-:,.;)'\"\]]|$)"
    r"|[:>)\]]\s{1,3}([45]\d\d)(?=[ -]\S)"
    r"|^[ \t>]{0,8}([45]\d\d)(?=[ -]\S|: \S)",
    re.IGNORECASE | re.MULTILINE,
)
_STATUS_AFTER = re.compile(rf"[\s:-]{{0,3}}[(\[]?#?({_STATUS})[)\]]?")
_STATUS_WITHIN = re.compile(
    rf"(?:[#(\[<:]|\b(?:status|code|error|reason|dsn)[\s:=]{{1,4}}|^[^\w\n]{{0,8}}|>>> )#?({_STATUS})",
    re.IGNORECASE | re.MULTILINE,
)
_END_OF_REPLY = re.compile(r"\n[ \t]*\n|\n[ \t]*(?:---|Giving up on)|\(in reply to ")
_CLOSING: Final = {"'": "'", '"': '"', "[": "]", "(": ")"}
_AROUND: Final = " -:;,\t\n"
_REPEATED = re.compile(rf"(?<!\S)([245]\d\d)[ -](?:{_STATUS}[ :]{{0,2}})?")

_PHASES: Final = {
    "end of data": Phase.CONTENT,
    "text command": Phase.CONTENT,
    "data": Phase.DATA,
    "rcpt": Phase.RCPT,
    "mail from": Phase.MAIL,
    "mail command": Phase.MAIL,
    "ehlo": Phase.EHLO,
    "helo": Phase.EHLO,
    "initial connection": Phase.GREETING,
    # In qmail's words.
    "sender was rejected": Phase.MAIL,
    "greeting failed": Phase.GREETING,
    "my name was rejected": Phase.EHLO,
}
_PHASE = re.compile(
    r"(?:(?:in reply to|after|following|on|for|>>>|<<<)\s(?:the\s|pipelined\s)?|host\.? but |but )"
    rf"({'|'.join(_PHASES)})\b",
    re.IGNORECASE,
)


class Kind(StrEnum):
    """What a report tells."""

    FAILURE = "failure"  # the mail was given up
    DELAY = "delay"  # it is late, and still tried
    SUCCESS = "success"  # it was delivered, handed on to a host that makes no reports, or expanded
    COMPLAINT = "complaint"  # the recipient or the provider takes it for spam or worse
    AUTO_REPLY = "auto_reply"  # a machine answered in the recipient's name, or a receipt was sent
    CHALLENGE = "challenge"  # somebody's filter wants the sender to prove to be human
    OTHER = "other"  # none of these, or nothing that can be relied on


ACTIONS: Final = {Kind.FAILURE: "failed", Kind.DELAY: "delayed", Kind.SUCCESS: "delivered"}


@dataclass(frozen=True, slots=True)
class ReportedRecipient:
    """What a report says of one recipient.

    kind: failure, delay or success; complaint in a complaint. address: the mailbox it speaks of, as written there,
    None where it names none. original_address: the one that was sent to, where the report tells the two apart: then
    what failed is a mailbox behind it, not the one we know. action: the word of RFC 3464 section 2.3.3, "" in a
    complaint. status: its status code such as "5.1.1". code: the SMTP reply's. diagnostic: the reply, one line of at
    most 2,000 characters, without control characters. remote_mta: the host that gave it, "" where none is named.
    diagnosis: what it means; None for a success or a complaint. Only a failure can have one of address_level.
    """

    kind: Kind
    address: str | None
    original_address: str | None = None
    action: str = ""
    status: str | None = None
    code: int | None = None
    diagnostic: str = ""
    remote_mta: str = ""
    diagnosis: Diagnosis | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A reply found in a text: its code and status where it has them, and its words."""

    code: int | None
    status: str | None
    words: str


def clean(text: str, limit: int = MAX_TEXT_CHARACTERS) -> str:
    """The text in one line of at most `limit` characters, without control characters and lone surrogates."""
    return _CONTROLS.sub("\ufffd", " ".join(text[: 2 * limit].split()))[:limit]


def address_in(text: str) -> str | None:
    """The first address in a text such as `rfc822; <a@b>`, as it is written; None when there is none."""
    found = _ADDRESS.search(text[: 2 * MAX_ADDRESS_CHARACTERS])
    return tidy(found[0]) if found else None


def tidy(address: str) -> str:
    """An address that `ADDRESS` found, without what the sentence around it has left there."""
    return clean(address.lstrip("'*-|•").rstrip("."), MAX_ADDRESS_CHARACTERS)


def reply_in(text: str) -> Found:
    """Find the reply in what a report says.

    Where no code can be told, the words are those of the paragraph with a status code, else of the first that says
    anything.
    """
    text = text[: 2 * MAX_TEXT_CHARACTERS].strip()
    found = _FIRST_CODE.match(text) or _CODE.search(text)
    if found is None:
        return _without_code(text)
    code = next(each for each in found.groups() if each)
    begin = found.end()
    after = _STATUS_AFTER.match(text, begin)
    words = _ended(text, after.end() if after else begin, text[begin - 4 : begin - 3])
    if after:
        status = after[1]
    else:
        within = _STATUS_WITHIN.search(text, text.rfind("\n\n", 0, begin) + 1, begin) or _STATUS_WITHIN.search(words)
        status = within[1] if within else None
    if code in words:
        # Each line of a reply repeats its code, and so parts words that belong together.
        words = _REPEATED.sub(lambda again: " " if again[1] == code else again[0], words)
    return Found(int(code), status, words.strip(_AROUND))


def _without_code(text: str) -> Found:
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
    for paragraph in paragraphs:
        if within := _STATUS_WITHIN.search(paragraph):
            return Found(None, within[1], _ended(paragraph, 0).strip(_AROUND))
    # A line such as "because:" only leads to what is said.
    telling = (each for each in paragraphs if each and not each.endswith(":"))
    return Found(None, None, _ended(next(telling, ""), 0).strip(_AROUND))


def _ended(text: str, begin: int, opened: str = "") -> str:
    """The text from there to where the reply ends: also where what is open before it is closed at a line's end."""
    end = _END_OF_REPLY.search(text, begin)
    words = text[begin : end.start() if end else len(text)]
    if closing := _CLOSING.get(opened):
        words = words.rstrip().removesuffix(closing).partition(f"{closing}\n")[0]
    return words


def phase_in(text: str) -> Phase | None:
    """In reply to what the text says that it happened, if it does."""
    found = _PHASE.search(text[: 2 * MAX_TEXT_CHARACTERS])
    return _PHASES[found[1].lower()] if found else None


def reported(
    kind: Kind,
    address: str | None,
    text: str,
    *,
    status: str | None = None,
    phase: Phase | None = None,
    original_address: str | None = None,
    action: str = "",
    remote_mta: str = "",
) -> ReportedRecipient:
    """Say what a text means that a report gives for a recipient, beside a status code of its own if it has one."""
    found = reply_in(text)
    status = _more_telling(found.status, status)
    words = clean(found.words)
    numbers = f"{found.code} {found.status or ''}".strip() if found.code else ""
    if original_address and address and original_address.casefold() == address.casefold():
        original_address = None
    return ReportedRecipient(
        kind,
        address,
        original_address,
        action or ACTIONS.get(kind, ""),
        status,
        found.code,
        clean(f"{numbers} {words}"),
        remote_mta,
        None if kind is Kind.SUCCESS else diagnose(_reply(kind, found.code, status, words), phase or Phase.RCPT),
    )


def _more_telling(said: str | None, stated: str | None) -> str | None:
    """The host's own status code before the one that the reporting host made of it: unless that one is better.

    A x.7.z speaks of security, and keeps the address from being blamed, whoever says so; a x.0.0 says nothing.
    """
    given = [each for each in (said, stated) if each]
    security = [each for each in given if each[1:4] == ".7."]
    telling = [each for each in given if each[1:] != ".0.0"]
    return next(iter([*security, *telling, *given]), None)


def _reply(kind: Kind, code: int | None, status: str | None, words: str) -> Reply:
    """The reply to be diagnosed: permanent only where the mail was given up and nothing calls it transient."""
    transient = kind is Kind.DELAY or (code or 500) // 100 == 4 or (status or "5")[0] == "4"
    digit = "4" if transient else "5"
    if code is None or str(code)[0] != digit:
        code = int(f"{digit}50")
    enhanced = f"{digit}{status[1:]} " if status and status[0] != "2" else ""
    return parse([f"{code} {enhanced}{words}".encode("utf-8", "replace")])
