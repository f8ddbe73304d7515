"""Reads stored mails for people: headers, text, HTML, attachments. Nothing here trusts what it reads."""

import base64
import email
import email.policy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from email.parser import BytesHeaderParser

HEADER_BYTES_MAX = 256 * 2**10
HEADERS_MAX = 200
PARTS_MAX = 200
TEXT_CHARACTERS_MAX = 500_000
INLINE_BYTES_MAX = 5 * 2**20

_CID = re.compile(r"cid:([^\s\"'<>)]{1,500})", re.IGNORECASE)
# What a mail may contain is broken in ways that the parser answers with any of these.
_PARSE_ERRORS = (MessageError, LookupError, ValueError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Part:
    """An attachment or inline part: `index` counts the leaves of the MIME tree."""

    index: int
    name: str
    content_type: str
    content_id: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Content:
    """A mail taken apart. `problem` is a sentence when it could not be parsed as MIME."""

    headers: tuple[tuple[str, str], ...]
    text: str
    html: str
    attachments: tuple[Part, ...]
    problem: str


def head(start: bytes) -> tuple[tuple[str, str], ...]:
    """The decoded header fields at the beginning of a mail, in their order; at most HEADERS_MAX."""
    try:
        message = BytesHeaderParser(policy=email.policy.compat32).parsebytes(start[:HEADER_BYTES_MAX])
        return tuple((name, _decode(str(value))) for name, value in message.items()[:HEADERS_MAX])
    except _PARSE_ERRORS:
        return ()


def first(headers: tuple[tuple[str, str], ...], name: str) -> str:
    """The first value of a header field, or an empty string."""
    return next((value for field, value in headers if field.lower() == name.lower()), "")


def take_apart(raw: bytes) -> Content:
    """Parse a whole mail. Never raises: whatever is wrong with it ends in `problem`."""
    headers = head(raw)
    try:
        message = email.message_from_bytes(raw, policy=email.policy.compat32)
        leaves = list(_leaves(message))
    except _PARSE_ERRORS as error:
        return Content(headers, "", "", (), f"This mail cannot be parsed ({type(error).__name__}).")
    text, html = "", ""
    attachments = []
    for index, leaf in enumerate(leaves):
        kind = leaf.get_content_type()
        is_attached = leaf.get_content_disposition() == "attachment"
        if kind == "text/plain" and not text and not is_attached:
            text = _text_of(leaf)
        elif kind == "text/html" and not html and not is_attached:
            html = _text_of(leaf)
        else:
            attachments.append(_part(index, leaf))
    return Content(headers, text, _with_inline_images(html, attachments), tuple(attachments), "")


def _leaves(message: Message) -> Iterator[Message]:
    """The parts that are no multiparts, in order; the contents of forwarded mails count as one part."""
    waiting = [message]
    seen = 0
    while waiting and seen < PARTS_MAX:
        part = waiting.pop(0)
        children = part.get_payload()
        if part.get_content_maintype() == "multipart" and isinstance(children, list):
            waiting[:0] = [child for child in children if isinstance(child, Message)]
        else:
            yield part
        seen += 1


def _part(index: int, leaf: Message) -> Part:
    try:
        name = _decode(leaf.get_filename() or "")
    except _PARSE_ERRORS:
        name = ""
    content_id = str(leaf.get("Content-ID", "")).strip().strip("<>")
    return Part(index, name or f"part-{index}", leaf.get_content_type(), content_id, _bytes_of(leaf))


def _bytes_of(leaf: Message) -> bytes:
    try:
        if leaf.get_content_type() == "message/rfc822":
            inner = leaf.get_payload(0)
            return inner.as_bytes() if isinstance(inner, Message) else b""
        content = leaf.get_payload(decode=True)
    except _PARSE_ERRORS:
        return b""
    return content if isinstance(content, bytes) else b""


def _text_of(leaf: Message) -> str:
    content = _bytes_of(leaf)
    try:
        text = content.decode(leaf.get_content_charset("utf-8"), errors="replace")
    except _PARSE_ERRORS:
        text = content.decode("utf-8", errors="replace")
    return text[:TEXT_CHARACTERS_MAX]


def _decode(value: str) -> str:
    """A header value for display: unfolded, encoded words (RFC 2047) and raw UTF-8 (RFC 6532) as text."""
    raw = value.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")
    unfolded = re.sub(r"\r?\n[ \t]*", " ", raw).strip()
    try:
        return str(make_header(decode_header(unfolded)))
    except _PARSE_ERRORS:
        return unfolded


def _with_inline_images(html: str, parts: list[Part]) -> str:
    """Put inline images (RFC 2392) into the page as data: addresses, since it may load nothing."""
    images = {part.content_id: part for part in parts if part.content_id and part.content_type.startswith("image/")}
    left = INLINE_BYTES_MAX

    def replace(found: re.Match[str]) -> str:
        nonlocal left
        image = images.get(found[1])
        if image is None or len(image.content) > left:
            return found[0]
        left -= len(image.content)
        kind = re.sub(r"[^a-z0-9/.+-]", "", image.content_type)
        return f"data:{kind};base64,{base64.b64encode(image.content).decode()}"

    return _CID.sub(replace, html) if images else html
