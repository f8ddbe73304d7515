"""Reading the structure of a mail that others made, within bounds (RFC 5322, RFC 2045 to 2047, RFC 2231).

What comes back may be malformed, enormous or hostile. The standard library's parser descends once for each nested
part, until Python's stack ends, and holds each line against every boundary that is open; so a mail is cut along its
boundaries here, to a depth and number of parts that no honest report reaches, and the library only reads what is
small: the parameters of a content type, encoded words, character references.

Everything here takes time linear in the octets given. Nothing raises, whatever the octets.
"""

import binascii
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from typing import Final

MAX_DEPTH: Final = 8
MAX_PARTS: Final = 60
MAX_HEADER_OCTETS: Final = 65_536
MAX_FIELDS: Final = 400
MAX_VALUE_CHARACTERS: Final = 4_096
MAX_TEXT_CHARACTERS: Final = 65_536
MAX_LINE_CHARACTERS: Final = 1_000

_FIELD = re.compile(r"^([!-9;-~]{1,76})[ \t]{0,8}:(.*(?:\n[ \t].*)*)", re.MULTILINE)
_FOLD = re.compile(r"\n[ \t]+")
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,80}/[a-z0-9!#$&^_.+-]{1,80}")
# Any other name costs a search of the disk and a place in a table of the interpreter that never shrinks; and some of
# the codecs that Python has are no charsets, or slow.
_CHARSET = re.compile(
    r"utf-?8|(?:us-)?ascii|(?:iso-?)?8859-?\d{1,2}|latin-?\d{1,2}|(?:windows-|cp)\d{3,4}|koi8-[ru]"
    r"|macintosh|iso-2022-(?:jp|kr)(?:-\d)?|(?:shift_?|x-s|s)jis|euc-(?:jp|kr)|gb2312|gbk|gb18030|big5|tis-620"
    r"|ks_c_5601-1987",
    re.IGNORECASE,
)
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_BREAK = re.compile(r"<(?:br|/?(?:p|div|tr|li|ul|ol|table|h\d|pre|blockquote|hr|title|body))\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z!][^<>]*>")
_HIDDEN = re.compile(r"<(style\b|script\b|!--)", re.IGNORECASE)
_HIDDEN_END: Final = {
    name: re.compile(end, re.IGNORECASE)
    for name, end in (("style", "</style[^<>]{0,9}>?"), ("script", "</script[^<>]{0,9}>?"), ("!--", "-->"))
}
_CHARACTER_SETS: Final = {"ascii": "us-ascii", "x-sjis": "shift_jis", "macintosh": "mac-roman", "gb2312": "gb18030"}


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header in their order: names in lower case, values unfolded and otherwise as they came."""

    fields: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str:
        """The first value of the field (its name in lower case), or "" when there is none."""
        return next((value for each, value in self.fields if each == name), "")

    def all(self, name: str) -> list[str]:
        """Every value of the field (its name in lower case)."""
        return [value for each, value in self.fields if each == name]

    def text(self, name: str) -> str:
        """The first value of the field with its encoded words (RFC 2047) read."""
        value = self.get(name)
        if "=?" not in value:
            return value
        try:
            pieces = decode_header(value)
        except (HeaderParseError, ValueError):
            return value
        return "".join(each if isinstance(each, str) else _decoded(each, charset or "") for each, charset in pieces)


@dataclass(frozen=True, slots=True)
class Entity:
    """A mail or one of its parts. `parts` is empty unless it is a multipart; `body` is as it was transferred.

    `content_type` and the names of `parameters` are in lower case. A message/* has no parts: what it holds is
    somebody else's mail.
    """

    header: Header
    content_type: str
    parameters: dict[str, str]
    body: bytes
    parts: tuple["Entity", ...] = ()

    def walk(self) -> Iterator["Entity"]:
        """The entity itself and everything within, in the order in which it came."""
        yield self
        for part in self.parts:
            yield from part.walk()

    def content(self, limit: int) -> bytes:
        """At least the first `limit` octets of the body, its transfer encoding undone."""
        encoding = self.header.get("content-transfer-encoding").strip().lower()
        if encoding == "base64":
            # A third more, and line ends.
            letters = _NOT_BASE64.sub(b"", self.body[: limit * 3 // 2 + 4])
            return binascii.a2b_base64(letters[: len(letters) - (len(letters) % 4 == 1)] + b"==")
        if encoding == "quoted-printable":
            return binascii.a2b_qp(self.body[: limit * 3])
        return self.body[:limit]

    def text(self) -> str:
        """The beginning of the body as text, at most `MAX_TEXT_CHARACTERS`; HTML without its tags."""
        limit = MAX_TEXT_CHARACTERS
        if self.content_type == "text/html":
            text = _decoded(self.content(4 * limit), self.parameters.get("charset", ""))
            return _without_tags(text)[:limit]
        return _lines(_decoded(self.content(limit), self.parameters.get("charset", "")))[:limit]

    @property
    def report_type(self) -> str:
        """What a multipart/report is about, in lower case (RFC 6522); "" for anything else."""
        return self.parameters.get("report-type", "").lower() if self.content_type == "multipart/report" else ""

    @property
    def attached(self) -> bool:
        """Whether it is meant to be saved, not to be read with the rest."""
        return self.header.get("content-disposition").lower().startswith("attachment")


@dataclass(slots=True)
class _Budget:
    parts: int = field(default=MAX_PARTS)


def parse(octets: bytes) -> Entity:
    """Read a mail. Whatever is nested deeper than `MAX_DEPTH`, or beyond `MAX_PARTS` parts, is not looked into."""
    octets = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").lstrip(b"\n")
    return _entity(octets, "text/plain", MAX_DEPTH, _Budget())


def header(octets: bytes) -> Header:
    """Read the fields at the beginning, to the first empty line, within `MAX_HEADER_OCTETS` and `MAX_FIELDS`.

    Lines that are no fields are passed over.
    """
    text = octets[:MAX_HEADER_OCTETS].decode("utf-8", "replace")
    fields = []
    for found in _FIELD.finditer(text.partition("\n\n")[0]):
        # Cut before unfolding: a field of many short lines costs no more than it may keep.
        value = _FOLD.sub(" ", found[2][: 2 * MAX_VALUE_CHARACTERS]).strip()
        fields.append((found[1].lower(), value[:MAX_VALUE_CHARACTERS]))
        if len(fields) == MAX_FIELDS:
            break
    return Header(tuple(fields))


def own_text(mail: Entity) -> str:
    """What the mail itself says: its first text that is not empty and stands before any mail that it carries.

    Of a multipart/report that is the part for people (RFC 6522 section 3). Attachments do not count.
    """
    for leaf in _own_leaves(mail):
        if leaf.content_type.startswith("message/"):
            return ""
        if leaf.content_type in ("text/plain", "text/html") and not leaf.attached:
            text = leaf.text()
            if text.strip():
                return text
    return ""


def _own_leaves(mail: Entity) -> Iterator[Entity]:
    if mail.content_type == "multipart/report":
        for part in mail.parts[:1]:
            yield from _own_leaves(part)
    elif mail.parts:
        for part in mail.parts:
            yield from _own_leaves(part)
    else:
        yield mail


def _entity(octets: bytes, default: str, depth: int, budget: _Budget) -> Entity:
    budget.parts -= 1
    if octets.startswith(b"\n"):
        head, body = b"", octets[1:]
    else:
        head, _, body = octets.partition(b"\n\n")
    fields = header(head)
    content_type, parameters = _typed(fields.get("content-type"), default)
    parts: list[Entity] = []
    boundary = parameters.get("boundary", "")
    if content_type.startswith("multipart/") and boundary and depth > 0:
        inner = "message/rfc822" if content_type == "multipart/digest" else "text/plain"
        for piece in _cut(body, boundary.encode("utf-8", "replace")):
            if budget.parts <= 0:
                break
            parts.append(_entity(piece, inner, depth - 1, budget))
    return Entity(fields, content_type, parameters, body, tuple(parts))


def _typed(value: str, default: str) -> tuple[str, dict[str, str]]:
    """The content type and its parameters; what cannot be read is plain text (RFC 2045 section 5.2)."""
    if not value:
        return default, {}
    message = Message()
    message["Content-Type"] = value[: MAX_VALUE_CHARACTERS // 2]
    try:
        found = message.get_params([])
    except (TypeError, ValueError):  # the library cannot sort a parameter's pieces when only some are numbered
        found = [(value.partition(";")[0], "")]
    (name, _), *rest = found
    name = name.strip().lower()
    parameters: dict[str, str] = {}
    for key, given in rest:
        # With RFC 2231, a tuple whose last is the text.
        parameters.setdefault(key.lower(), (given[-1] if isinstance(given, tuple) else given).strip()[:256])
    return (name if _TYPE.fullmatch(name) else "text/plain"), parameters


def _cut(body: bytes, boundary: bytes) -> Iterator[bytes]:
    """The parts between the boundary's lines (RFC 2046 section 5.1.1), the last also where the end is missing."""
    pieces = (b"\n" + body).split(b"\n--" + boundary, 4 * MAX_PARTS)
    part: list[bytes] = []
    for piece in pieces[1:]:
        rest, _, content = piece.partition(b"\n")
        if not rest.strip():
            if part:
                yield b"".join(part)
            part = [content]
        elif rest.startswith(b"--") and not rest[2:].strip():
            break
        elif part:
            # Another boundary, of which ours is only the beginning.
            part += [b"\n--", boundary, piece]
    if part:
        yield b"".join(part)


def _decoded(octets: bytes, charset: str) -> str:
    name = charset.partition("*")[0].strip().lower()  # RFC 2231 section 5: charset*language
    if not _CHARSET.fullmatch(name):
        name = "utf-8"
    try:
        return octets.decode(_CHARACTER_SETS.get(name, name), "replace")
    except LookupError:  # a number that no charset has
        return octets.decode("utf-8", "replace")


def _lines(text: str) -> str:
    """The text with its lines ended by line feeds, each within `MAX_LINE_CHARACTERS`."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    return "\n".join(line[:MAX_LINE_CHARACTERS] for line in text.split("\n"))


def _without_tags(text: str) -> str:
    """What a reader sees of HTML, more or less: lines where blocks end, no styles, scripts or comments."""
    shown: list[str] = []
    at = 0
    while found := _HIDDEN.search(text, at):
        shown.append(text[at : found.start()])
        end = _HIDDEN_END[found[1].lower()].search(text, found.end())
        # What never ends hides all the rest: looked for once, not once for each beginning.
        at = end.end() if end else len(text)
    shown.append(text[at:])
    text = _TAG.sub("", _BREAK.sub("\n", "".join(shown)))
    # Cut to lines first: the library fails at a numeric reference of thousands of digits.
    return "\n".join(html.unescape(line) for line in _lines(text).split("\n")).replace("\u00a0", " ")
