"""Composing a mail: from what a sender gave to the octets that are signed and sent (RFC 5322, RFC 2045)."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

from app.mail.address import Address
from app.mail.encoding import address_field, base64_lines, filename_parameter, text_body, text_field
from app.mail.headers import HeaderError, check_content_id, check_content_type

_MESSAGE_ID = re.compile(r"[!-;=?-~]{1,255}")
_OPAQUE: Final = "application/octet-stream"
# Written here, and at most once each (RFC 5322 section 3.6).
_OWN_FIELDS = frozenset(
    (
        "from",
        "to",
        "cc",
        "bcc",
        "reply-to",
        "subject",
        "date",
        "message-id",
        "mime-version",
        "content-type",
        "content-transfer-encoding",
    )
)


@dataclass(frozen=True, slots=True)
class Part:
    """One attachment; with a `content_id` and an HTML body, an inline part that the body shows as `cid:…`.

    `content_type` is a bare `type/subtype`; `content_id` comes without angle brackets. RFC 2046 section 5
    forbids base64 for multipart/* and message/rfc822, so whatever claims such a type is sent as
    application/octet-stream: its octets arrive unchanged, and a file name ending in .eml still opens it.
    """

    filename: str
    content_type: str
    content: bytes
    content_id: str | None = None


@dataclass(frozen=True, slots=True)
class Mail:
    """All that a mail consists of. `message_id` comes without angle brackets, `date` is aware.

    `headers` are further fields in order, as (name, text), none of which Mail has a place for.
    """

    message_id: str
    date: datetime
    sender: Address
    to: tuple[Address, ...]
    cc: tuple[Address, ...] = ()
    reply_to: tuple[Address, ...] = ()
    subject: str = ""
    text: str | None = None
    html: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    attachments: tuple[Part, ...] = ()


def needs_smtputf8(mail: Mail) -> bool:
    """Whether the header has raw UTF-8, so that only a server with SMTPUTF8 may get it (RFC 6531)."""
    return any(address.needs_smtputf8 for address in (mail.sender, *mail.to, *mail.cc, *mail.reply_to))


def compose(mail: Mail) -> bytes:
    """Return the mail as it goes over the wire: CRLF line ends, no line over 998 octets, CRLF at the end.

    The result is 7-bit unless `needs_smtputf8`, and always the same for the same Mail. A body arrives to the
    letter but for its line ends, which become CRLF.

    Raises HeaderError for what cannot be written safely (control characters in a header, a field given that
    Mail has a place for, a malformed Message-ID, content type or content id), ValueError for a naive date and
    for lone surrogates.
    """
    if _MESSAGE_ID.fullmatch(mail.message_id) is None:
        raise HeaderError("The Message-ID is malformed.")
    if mail.date.tzinfo is None:
        raise ValueError("The date of a mail needs a time zone.")
    fields = [address_field("From", (mail.sender,))]
    for name, addresses in (("To", mail.to), ("Cc", mail.cc), ("Reply-To", mail.reply_to)):
        if addresses:
            fields.append(address_field(name, addresses))
    if not mail.to and not mail.cc:
        fields.append("To: undisclosed-recipients:;\r\n")
    fields.append(text_field("Subject", mail.subject))
    fields.append(f"Date: {format_datetime(mail.date.astimezone(UTC))}\r\n")
    fields.append(f"Message-ID: <{mail.message_id}>\r\n")
    for name, value in mail.headers:
        if name.lower() in _OWN_FIELDS:
            raise HeaderError(f"The header {name} has its own place in a mail.")
        fields.append(text_field(name, value))
    fields.append("MIME-Version: 1.0\r\n")
    return "".join(fields).encode() + _entity(mail)


def _entity(mail: Mail) -> bytes:
    """The content, from its Content-Type field on."""
    inline: list[Part] = []
    attached: list[Part] = []
    for part in mail.attachments:
        (attached if part.content_id is None or mail.html is None else inline).append(part)
    bodies = (mail.text is not None) + (mail.html is not None)
    last = not attached and not inline and bodies < 2
    boundary = "=_" + hashlib.blake2b(mail.message_id.encode(), digest_size=12).hexdigest()
    entities = []
    if mail.text is not None or (mail.html is None and not attached):
        entities.append(_text("plain", mail.text or "", last=last))
    if mail.html is not None:
        html = _text("html", mail.html, last=last)
        if inline:
            parts = [html, *(_attachment(part, "inline") for part in inline)]
            html = _multipart('related; type="text/html"', f"{boundary}r", parts)
        entities.append(html)
    if len(entities) > 1:
        entities = [_multipart("alternative", f"{boundary}a", entities)]
    if attached:
        entities += [_attachment(part, "attachment") for part in attached]
        return _multipart("mixed", f"{boundary}m", entities)
    return entities[0]


def _text(subtype: str, text: str, *, last: bool) -> bytes:
    encoding, body = text_body(text, last=last)
    head = f"Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    return head.encode() + body


def _multipart(subtype: str, boundary: str, entities: list[bytes]) -> bytes:
    # Neither base64 nor quoted-printable has "=_", and 7bit is not chosen for a text that has: no body can
    # contain a boundary.
    delimiter = f"\r\n--{boundary}\r\n".encode()
    head = f'Content-Type: multipart/{subtype};\r\n boundary="{boundary}"\r\n'.encode()
    return b"".join((head, delimiter, delimiter.join(entities), f"\r\n--{boundary}--\r\n".encode()))


def _attachment(part: Part, disposition: str) -> bytes:
    content_type = check_content_type(part.content_type).lower()
    if content_type.startswith(("multipart/", "message/")):
        content_type = _OPAQUE
    head = (
        f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: base64\r\n"
        f"Content-Disposition: {disposition}{filename_parameter(part.filename)}\r\n"
    )
    if part.content_id is not None:
        head += f"Content-ID: <{check_content_id(part.content_id)}>\r\n"
    return f"{head}\r\n".encode() + base64_lines(part.content, last=False)
