"""SMTP replies as values, and what a reply means for a delivery (RFC 5321 §4.2, RFC 3463)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

MAX_TEXT_CHARACTERS = 2000

_ENHANCED = re.compile(rb"[ #]*([245]\.\d{1,3}\.\d{1,3})(?:[ \t:]+|$)")
# C0, DEL and C1 would harm logs, terminals and databases alike; the line feed joins lines.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x0A} | {0x09: " "}


class Phase(StrEnum):
    """Where in an SMTP session something happened."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"
    QUIT = "quit"


@dataclass(frozen=True, slots=True)
class Reply:
    """One SMTP reply.

    code: 200–599. enhanced: the status code of RFC 3463 such as "5.1.1". text: its lines without codes,
    joined by line feeds, at most 2,000 characters, free of other control characters. local: we made it
    ourselves, the peer was not asked.
    """

    code: int
    enhanced: str | None
    text: str
    local: bool = False

    @property
    def positive(self) -> bool:
        return self.code < 400

    @property
    def transient(self) -> bool:
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        return self.code >= 500

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)


def parse(lines: Sequence[bytes]) -> Reply:
    """Make a Reply of the lines of one reply, each with its code, without line ends.

    The last line's code counts. An enhanced code is taken from the first line that has one of the same class.
    Raises ValueError when there is no line or no three-digit code.
    """
    if not lines:
        raise ValueError("a reply has at least one line")
    last = lines[-1][:3]
    if len(last) != 3 or not last.isdigit() or last[0] not in b"2345":
        raise ValueError("a reply begins with a code from 200 to 599")
    enhanced: bytes | None = None
    texts: list[bytes] = []
    for line in lines:
        text = line[4:]
        found = _ENHANCED.match(text)
        if found and found[1][0] == last[0]:
            enhanced = enhanced or found[1]
            text = text[found.end() :]
        texts.append(text)
    # A character takes up to four octets: this cuts only what the bound on characters would cut anyway.
    joined = b"\n".join(texts)[: 4 * MAX_TEXT_CHARACTERS].decode("utf-8", "replace")
    if not joined.isprintable():
        joined = joined.translate(_CONTROLS)
    return Reply(int(last), enhanced.decode() if enhanced else None, joined[:MAX_TEXT_CHARACTERS].strip())


def classify(reply: Reply, phase: Phase) -> Literal["deferred", "soft_bounced", "hard_bounced"]:
    """What a negative reply at this phase means for the delivery.

    5yz is final. 4yz is to be tried again: as soft_bounced when the recipient's mailbox is the cause
    (enhanced status 4.2.x, RFC 3463 §3.3, said of the recipient or the content), else as deferred.
    """
    if reply.permanent:
        return "hard_bounced"
    about_mailbox = reply.enhanced is not None and reply.enhanced.startswith("4.2.")
    if about_mailbox and phase in (Phase.RCPT, Phase.DATA, Phase.CONTENT):
        return "soft_bounced"
    return "deferred"
