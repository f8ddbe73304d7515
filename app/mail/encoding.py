"""How text becomes the octets of a mail: folded fields, encoded words, parameters, transfer encodings."""

import binascii
import re
from typing import Final

from app.mail.address import Address
from app.mail.headers import CONTROL, FIELD_NAME, MAX_WORD_CHARACTERS, HeaderError

MAX_LINE: Final = 76  # RFC 2047 section 2 for lines with encoded words; RFC 5322 asks for 78
MAX_PLAIN_LINE: Final = 988  # RFC 5322 section 2.1.1 has 998; some octets are left to whoever indents a line

_ENCODED_WORD_FRAME = len("=?utf-8?q??=")
_MIN_FIRST_WORD = 24
_PLAIN_TEXT = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_QUOTABLE = re.compile(r"[!-~]+(?: [!-~]+)*")
_MUST_QUOTE = re.compile(r'(["\\])')
_WORDS = re.compile(r" *[^ ]+")

# RFC 2047 section 5 (3): the octets that stand for themselves even in a phrase, the strictest of its places.
_Q = [f"={octet:02X}" for octet in range(256)]
for _plain in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/":
    _Q[ord(_plain)] = _plain
_Q[ord(" ")] = "_"
_ATTRIBUTE_OCTETS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$&+-.^_`{|}~")
_SEGMENT_CHARACTERS = 56
_PARAMETER = re.compile(r"[ -~]{1,255}")

_FROM_LINE = re.compile(rb"^(?:From )+", re.MULTILINE)
_OVERLONG_LINE = re.compile(rb"^([^\n]{74,75})(=20|=09)$", re.MULTILINE)
_SEVEN_BIT = bytes(range(0x20, 0x7F)) + b"\t\n"


def text_field(name: str, value: str) -> str:
    """Return the field `name: value` for unstructured text, folded and ended by CRLF.

    ASCII text stays as it is; encoded words (RFC 2047) carry any other, text with blanks at its ends, with a
    word over 900 characters, or that would itself be read as an encoded word. Raises HeaderError for control
    characters and for an impossible name.
    """
    if FIELD_NAME.fullmatch(name) is None:
        raise HeaderError(f"{name!r} is not a header name.")
    if CONTROL.search(value):
        raise HeaderError(f"The header {name} contains a control character or a line break.")
    if not value:
        return f"{name}: \r\n"
    if _PLAIN_TEXT.fullmatch(value) is None or "=?" in value:
        return _fold(name, _encoded_words(value, MAX_LINE - len(name) - 2))
    if len(name) + 2 + len(value) <= MAX_LINE:
        return f"{name}: {value}\r\n"
    words = _WORDS.findall(value)
    if max(map(len, words)) > MAX_WORD_CHARACTERS:
        words = _encoded_words(value, MAX_LINE - len(name) - 2)
    return _fold(name, words)


def address_field(name: str, addresses: tuple[Address, ...]) -> str:
    """Return the field `name` with a list of mailboxes (RFC 5322 section 3.4), folded and ended by CRLF.

    A non-ASCII local part stays raw UTF-8 (RFC 6532); names are atoms, quoted strings or encoded words.
    """
    texts = [_mailbox(address) for address in addresses]
    value = ", ".join(texts)
    if len(name) + 2 + len(value) <= MAX_LINE:
        return f"{name}: {value}\r\n"
    return _fold(name, _WORDS.findall(value))


def filename_parameter(filename: str) -> str:
    """Return the `filename` parameter(s) of Content-Disposition, each on a folded line after a semicolon.

    A quoted string for ASCII; RFC 2231 for the rest, in numbered continuations, no character split over two.
    """
    if CONTROL.search(filename):
        raise HeaderError("A file name contains a control character or a line break.")
    if _PARAMETER.fullmatch(filename) and "=?" not in filename and filename.strip(" ") == filename:
        return f';\r\n filename="{_MUST_QUOTE.sub(_backslash, filename)}"'
    segments = [""]
    for character in filename:
        encoded = "".join(chr(octet) if octet in _ATTRIBUTE_OCTETS else f"%{octet:02X}" for octet in character.encode())
        if len(segments[-1]) + len(encoded) > _SEGMENT_CHARACTERS:
            segments.append("")
        segments[-1] += encoded
    if len(segments) == 1:
        return f";\r\n filename*=utf-8''{segments[0]}"
    segments[0] = f"utf-8''{segments[0]}"
    return "".join(f";\r\n filename*{number}*={segment}" for number, segment in enumerate(segments))


def text_body(text: str, *, last: bool) -> tuple[str, bytes]:
    """Return (Content-Transfer-Encoding, encoded octets) of a text, its line ends made CRLF.

    Decoded, the octets give the text to the letter. 7bit for ASCII that no server would touch, else
    quoted-printable or base64, whichever is smaller. With `last`, no boundary follows, and the result is
    empty or ends with CRLF.
    """
    data = text.encode()
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    open_end = last and bool(data) and not data.endswith(b"\n")
    others = data.translate(None, _SEVEN_BIT)
    lines = data.split(b"\n") if not others else []
    if lines and not open_end and max(map(len, lines)) <= MAX_PLAIN_LINE and _is_plain(data, lines):
        return "7bit", b"\r\n".join(lines)
    if lines and b"=" not in data:
        # Only some lines need anything: ten times as quick as looking at every octet.
        quoted = b"\n".join([line if len(line) <= MAX_LINE and _stays(line) else _quoted_line(line) for line in lines])
        return "quoted-printable", (_left_open(quoted) if open_end else quoted).replace(b"\n", b"\r\n")
    escaped = len(others) + data.count(b"=")
    # Each escape is of three octets, and a soft line break of three comes with every 75.
    if (len(data) + 2 * escaped) * 78 // 75 > len(data) * 4 // 3 * 78 // 76:
        crlf = data.replace(b"\n", b"\r\n")
        return "base64", base64_lines(crlf, last=last)
    return "quoted-printable", _quoted_printable(data, open_end=open_end).replace(b"\n", b"\r\n")


def base64_lines(data: bytes, *, last: bool) -> bytes:
    """Return base64 in lines of 76 characters (RFC 2045 section 6.8); with `last`, the end has CRLF too."""
    encoded = binascii.b2a_base64(data, newline=False)
    lines = [encoded[i : i + 76] for i in range(0, len(encoded), 76)]
    if last and lines:
        lines.append(b"")
    return b"\r\n".join(lines)


def _quoted_printable(data: bytes, *, open_end: bool) -> bytes:
    """RFC 2045 section 6.7; an open end is ended by a soft line break, so that no line end joins the text."""
    quoted = binascii.b2a_qp(data, quotetabs=False, istext=True)
    if b"From " in quoted:
        # An mbox on the way would write ">From " (RFC 4155); the soft break keeps the line within 76.
        quoted = _FROM_LINE.sub(lambda words: b"=46rom =\n" * (len(words[0]) // 5), quoted)
    if b"=20\n" in quoted or b"=09\n" in quoted or quoted.endswith((b"=20", b"=09")):
        # binascii does not count that the blank at the end of a line has become three octets.
        quoted = _OVERLONG_LINE.sub(rb"\1=\n\2", quoted)
    return _left_open(quoted) if open_end else quoted


def _stays(line: bytes) -> bool:
    return not line.endswith((b" ", b"\t")) and not line.startswith(b"From ")


def _quoted_line(line: bytes) -> bytes:
    room = MAX_LINE - 1
    pieces = [line[start : start + room] for start in range(0, len(line), room)]
    if all(map(_stays, (line, *pieces[1:]))):
        return b"=\n".join(pieces)
    return _quoted_printable(line, open_end=False)


def _left_open(quoted: bytes) -> bytes:
    """A soft line break at the end, within the line's limit."""
    if len(quoted) - quoted.rfind(b"\n") - 1 >= MAX_LINE:
        last = 3 if quoted[-3:-2] == b"=" else 1
        quoted = quoted[:-last] + b"=\n" + quoted[-last:]
    return quoted + b"=\n"


def _is_plain(data: bytes, lines: list[bytes]) -> bool:
    # "=_" is what boundaries begin with: where it can only stand encoded, no body can contain one.
    # Parts are looked at instead of searching for two octets, which reads 10 KB three times more slowly.
    return (
        not any([part.endswith(b"=") for part in data.split(b"_")[:-1]])
        and [*map(bytes.rstrip, lines)] == lines
        and b"\nFrom " not in data
        and not data.startswith(b"From ")
    )


def _mailbox(address: Address) -> str:
    email, name = address.email, address.name
    if CONTROL.search(email) or CONTROL.search(name):
        raise HeaderError("An address contains a control character or a line break.")
    if not name:
        return email
    if "=?" not in name:
        if _ATOMS.fullmatch(name):
            return f"{name} <{email}>"
        if _QUOTABLE.fullmatch(name):
            return f'"{_MUST_QUOTE.sub(_backslash, name)}" <{email}>'
    return f"{' '.join(_encoded_words(name, 64))} <{email}>"


def _backslash(match: re.Match[str]) -> str:
    return f"\\{match[1]}"


def _encoded_words(text: str, first: int) -> list[str]:
    """Encoded words of whole characters, at most 75 characters each, the first at most `first` (but 24)."""
    data = text.encode()
    quoted = [_Q[octet] for octet in data]
    as_q = sum(map(len, quoted)) <= len(data) * 4 // 3 + 4
    words = []
    start = 0
    room = max(first, _MIN_FIRST_WORD)
    while start < len(data):
        room = min(room, MAX_LINE - 1) - _ENCODED_WORD_FRAME
        end = _q_end(quoted, start, room) if as_q else min(start + room // 4 * 3, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        if as_q:
            words.append(f"=?utf-8?q?{''.join(quoted[start:end])}?=")
        else:
            words.append(f"=?utf-8?b?{binascii.b2a_base64(data[start:end], newline=False).decode()}?=")
        start, room = end, MAX_LINE - 1
    return [words[0], *(f" {word}" for word in words[1:])]


def _q_end(quoted: list[str], start: int, room: int) -> int:
    end = start
    while end < len(quoted) and len(quoted[end]) <= room:
        room -= len(quoted[end])
        end += 1
    return end


def _fold(name: str, words: list[str]) -> str:
    """`name: words`, a CRLF before each word that would make its line too long; words bring their blanks."""
    lines = []
    line = f"{name}: {words[0]}"
    for word in words[1:]:
        if len(line) + len(word) > MAX_LINE:
            lines.append(line)
            line = word
        else:
            line += word
    lines.append(line)
    return "\r\n".join(lines) + "\r\n"
