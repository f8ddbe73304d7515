"""The mail that came back within a report, as far as it tells which of ours it was.

Only its header is read. It is somebody's content, and what its body says is never taken for the report's own words:
`split` cuts the report's text where the copy begins.
"""

import re
from collections.abc import Iterable
from typing import Final

from app.mail import mime, returnpath
from app.mail.mime import Entity, Header
from app.mail.reported import clean

MAX_CANDIDATES: Final = 20
MAX_URLS: Final = 8
MAX_URL_CHARACTERS: Final = 2_000
MAX_MESSAGE_ID_CHARACTERS: Final = 995

_TYPES: Final = frozenset(
    {"message/rfc822", "message/global", "text/rfc822-headers", "message/rfc822-headers", "message/global-headers"}
)
_DECORATION: Final = " \t-=+*_|>#:.,~•"
_WHAT = r"(?:message|mail|e-?mail|bounce)"
# A line that says nothing but that a copy follows, without the hyphens around it.
_COPY_FOLLOWS = re.compile(
    rf"(?:this|below(?: this line| the next line)?|here|enclosed|included|attached|following)(?: below)? (?:is|are)"
    rf" (?:a copy|the (?:original|returned|header))\b.{{0,80}}"
    rf"|(?:start of )?(?:the |your )?(?:original|returned|unsent|undelivered|bounced|old|rejected) {_WHAT}"
    rf"(?: was| is)?(?: headers?| text| body)?(?: follows?| below| attached)?"
    rf"|{_WHAT} (?:headers?|text|body) follows?.{{0,60}}"
    rf"|(?:original|returned) (?:{_WHAT} )?headers?(?: follow)?"
    rf"|(?:the )?headers? of the original {_WHAT}(?: is| are)?(?: following| below)?"
    rf"|a copy of (?:the|your) (?:original )?{_WHAT}.{{0,40}} (?:follows|is below|below)"
    r"|(?:der header der )?urspr(?:ü|ue)ngliche[rn]? (?:nachricht|nachrichten-?kopfzeilen|kopfzeilen)(?: folgt)?"
    r"|original-?nachricht|nachrichtenkopf|(?:en-t[êe]tes d[eu] )?message d['’]origine|copie du message.{0,60}"
    r"|encabezados (?:de|del) mensajes? original(?:es)?|mensaje original|mensagem original"
    r"|cabeçalhos originais da mensagem|intestazioni originali del messaggio|messaggio originale"
    r"|oorspronkelijke? (?:bericht(?:koppen)?|headers)|ursprungshuvuden|ursprungligt meddelande"
    r"|oprindelige meddelelse|oryginalna wiadomość|původní zpráva|исходное (?:сообщение|письмо)"
    r"|(?:копия|заголовки) (?:вашего |исходного )?(?:сообщения|письма).{0,60}|orijinal ileti"
    r"|元の?メッセージ ?(?:ヘッダー)?|以下は.{0,40}(?:元|オリジナル).{0,40}|原始邮件(?:标头|头)?|原邮件.{0,10}|原始郵件"
)
# A header that nothing announces: these fields begin nobody's sentence.
_HEADER_BEGINS = re.compile(
    r"(?:> ?|[ \t]{1,4})?(?:Return-Path|Received|DKIM-Signature|X-Received|ARC-Seal|Delivered-To):[ \t]"
)
_QUOTE = re.compile(r"^(?:> ?|[ \t]{1,8}(?=[A-Za-z-]{2,40}:))", re.MULTILINE)
_MESSAGE_ID = re.compile(r"<([^<>\s]{1,995})>")
_URL = re.compile(r"<\s{0,4}((?:https?|mailto):[^<>\s]{1,2000})\s{0,4}>", re.IGNORECASE)
_DOMAIN = re.compile(r"[@=]([A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,10})")
_DOMAIN_BEFORE = re.compile(r"[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,10}")


def split(text: str) -> tuple[str, str]:
    """The report's own words, and what stands behind them as a copy of the original; either may be empty."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        bare = line.strip(_DECORATION).lower()
        if len(bare) < 160 and _COPY_FOLLOWS.fullmatch(bare):
            return "\n".join(lines[:number]), "\n".join(lines[number + 1 :])
        if number and _HEADER_BEGINS.match(line):
            return "\n".join(lines[:number]), "\n".join(lines[number:])
    return text, ""


def header(mail: Entity, pasted: str) -> Header:
    """The original's header: of the part that carries it, else of an attachment, else of what the text has pasted."""
    attachments = []
    for part in mail.walk():
        if part.content_type in _TYPES:
            if (found := _header(part)).fields:
                return found
        elif part.attached and not part.parts:
            attachments.append(part)
    for part in attachments:
        if (found := _header(part)).get("message-id") and found.get("from"):
            return found
    return mime.header(_QUOTE.sub("", pasted.lstrip(_DECORATION + "\n")).encode("utf-8", "replace"))


def candidates(*headers: Header) -> tuple[str, ...]:
    """Every address in the headers that could be a return path of ours, in their order, at most `MAX_CANDIDATES`.

    Those within other addresses too, as forwarders make them: SRS0=….=domain=local@forwarder, prvs=…=local@domain,
    list+local=domain@list.
    """
    found: dict[str, str] = {}
    for fields in headers:
        for _, value in fields.fields:
            for shape in returnpath.SHAPE.finditer(value):
                domain = _domain_of(value, shape.start(), shape.end())
                if domain and len(found) < MAX_CANDIDATES:
                    found.setdefault(shape[0].lower(), f"{shape[0]}@{domain}")
    return tuple(found.values())


def message_id(original: Header, report: Header) -> str | None:
    """The original's Message-ID, without angle brackets: from its header, else what the report is a reply to."""
    for value in (original.get("message-id"), report.get("in-reply-to"), report.get("references").rpartition("<")[2]):
        if found := _MESSAGE_ID.search(value if "<" in value else f"<{value.strip()}>"):
            return clean(found[1], MAX_MESSAGE_ID_CHARACTERS)
    return None


def unsubscribe_urls(original: Header) -> tuple[str, ...]:
    """The URLs of the original's List-Unsubscribe (RFC 2369), at most `MAX_URLS`."""
    found: Iterable[str] = (url for value in original.all("list-unsubscribe") for url in _URL.findall(value))
    return tuple(dict.fromkeys(clean(url, MAX_URL_CHARACTERS) for url in found))[:MAX_URLS]


def _header(part: Entity) -> Header:
    return mime.header(part.content(mime.MAX_HEADER_OCTETS).replace(b"\r\n", b"\n").lstrip(b"\n"))


def _domain_of(value: str, begin: int, end: int) -> str:
    """The domain of the address whose local part stands at these places: the one that was joined to it first."""
    before = value[max(0, begin - 254) : begin]
    if before.endswith("="):
        joined = before[:-1].rpartition("=")[2]
        if _DOMAIN_BEFORE.fullmatch(joined):
            return joined
    behind = _DOMAIN.match(value, end)
    return behind[1] if behind else ""
