"""The corpus of mails that come back: in corpus/*.txt, written by us after the formats of those who send them.

A mail begins with a line of `=====` and its name. Then come lines on what is to be understood, and after an empty
line the mail itself, whose lines end with CRLF on the wire:

  expect KIND
  recipient KIND ADDRESS STATUS CODE CATEGORY [address] [original=ADDRESS]   "-" is none; address: it may be suppressed
  mta HOST, feedback TYPE, ip ADDRESS, agent NAME, arrival TIME
  original header|id|none       what is learnt of the original: Message-ID and List-Unsubscribe (the default); the
                                Message-ID; nothing

In the mail, @VERP@ stands for a signed return path (@LOCAL@ and @DOMAIN@ for its halves), @ORIGINAL@ for a mail sent
with it, @BARE@ for the same without Return-Path and Received, @HEADERS@ for its header, @ESCAPED@ for the header in
HTML. The original does all it can to be taken for a bounce of trap@example.net. What stands between `<<base64 CHARSET`
(or qp, or raw for 8bit) and `>>` is encoded so.
"""

import base64
import html
import quopri
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from app.mail import returnpath

KEY = b"k" * 32
ORG, DELIVERY = uuid.UUID(int=7), uuid.UUID("01998000-0000-7000-8000-000000000001")
LOCAL = returnpath.encode(ORG, DELIVERY, key=KEY)
DOMAIN = "bounces.postroad.example"
VERP = f"{LOCAL}@{DOMAIN}"
MESSAGE_ID = "20261006071200.1@shop.example.com"
UNSUBSCRIBE = ("https://postroad.example/u/abc.def", "mailto:u+abc.def@postroad.example")

_TRACE = f"""\
Return-Path: <{VERP}>
Received: from out.postroad.example (out.postroad.example [198.51.100.7])
\tby mx.example.org (Postfix) with ESMTPS id 4XYZ12
\tfor <user@example.org>; Tue,  6 Oct 2026 07:12:43 +0000 (UTC)
"""
_FIELDS = f"""\
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=shop.example.com; s=p1;
 h=from:to:subject:date:message-id:list-unsubscribe; bh=abc=; b=def=
From: Shop <hello@shop.example.com>
To: user@example.org
Subject: Undeliverable: your parcel is delayed
Date: Tue, 06 Oct 2026 07:12:00 +0000
Message-ID: <{MESSAGE_ID}>
List-Unsubscribe: <{UNSUBSCRIBE[0]}>,
 <{UNSUBSCRIBE[1]}>
List-Unsubscribe-Post: List-Unsubscribe=One-Click
X-Failed-Recipients: trap@example.net
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
"""
_BODY = """
Your parcel is late.

This is the mail system at host trap.example.net.

<trap@example.net>: host mx.example.net[192.0.2.99] said: 550 5.1.1
    <trap@example.net>: User unknown (in reply to RCPT TO command)

Final-Recipient: rfc822; trap@example.net
Action: failed
Status: 5.1.1

Feedback-Type: abuse
Original-Rcpt-To: trap@example.net
"""
_MACROS = {
    "@VERP@": VERP,
    "@LOCAL@": LOCAL,
    "@DOMAIN@": DOMAIN,
    "@ORIGINAL@": _TRACE + _FIELDS + _BODY,
    "@BARE@": _FIELDS + _BODY,
    "@HEADERS@": _TRACE + _FIELDS,
    "@ESCAPED@": html.escape(_TRACE + _FIELDS),
}
_BLOCK = re.compile(r"^<<(base64|qp|raw) (\S+)\n(.*?)\n>>\n", re.MULTILINE | re.DOTALL)


@dataclass
class Wanted:
    """One mail of the corpus and what is to be read in it; recipients in the words of their lines."""

    name: str
    octets: bytes
    said: dict[str, str] = field(default_factory=dict)
    recipients: list[str] = field(default_factory=list)


def corpus() -> list[Wanted]:
    """All mails, in the order of the files."""
    found = []
    for path in sorted(Path(__file__).with_name("corpus").glob("*.txt")):
        for piece in re.split(r"^===== ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            found.append(_read(piece))
    return found


def wire(text: str) -> bytes:
    """A mail written with the corpus's abbreviations as it goes over the wire."""
    for macro, meaning in _MACROS.items():
        text = text.replace(macro, meaning)
    octets, at = b"", 0
    for block in _BLOCK.finditer(text):
        inner = (block[3] + "\n").encode(block[2])
        if block[1] == "base64":
            inner = base64.encodebytes(inner.replace(b"\n", b"\r\n"))
        elif block[1] == "qp":
            inner = quopri.encodestring(inner)
        octets += text[at : block.start()].encode() + inner
        at = block.end()
    return (octets + text[at:].encode()).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _read(piece: str) -> Wanted:
    head, _, mail = piece.partition("\n\n")
    name, *lines = head.split("\n")
    wanted = Wanted(name, wire(mail.rstrip("\n") + "\n"))
    for line in lines:
        key, _, value = line.partition(" ")
        if key == "recipient":
            wanted.recipients.append(value)
        else:
            assert key in ("expect", "mta", "feedback", "ip", "agent", "arrival", "original"), line
            wanted.said[key] = value
    return wanted
