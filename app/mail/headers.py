"""What may stand in a header field: checks of the parts of a mail that its sender chooses."""

import binascii
import re
from collections import defaultdict
from typing import Final

MAX_NAME_CHARACTERS: Final = 76
MAX_FILENAME_CHARACTERS: Final = 255
# With the longest field name before it, a word of this size still keeps its line under 998 octets.
MAX_WORD_CHARACTERS: Final = 900

CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
FIELD_NAME: Final = re.compile(r"[!-9;-~]{1,76}")
CONTENT_ID: Final = re.compile(r"[!-;=?-~]{1,255}")
CONTENT_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,128}")

# Liberal on purpose: decoders differ in what they forgive (missing ends, blanks and question marks inside),
# so every "=?" is a possible beginning and the look-ahead lets matches overlap.
_ENCODED_WORD = re.compile(r"(?==\?([^?]*)\?([bBqQ])\?(.*?)(?:\?=|\Z))")
_QUOTED_OCTET = re.compile(rb"=([0-9A-Fa-f]{2})")
_QUOTED_CONTROL = re.compile(r"=(?:[01][0-9A-Fa-f]|7[Ff])")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]+")
_CONTROL_OCTET = re.compile(rb"[\x00-\x1f\x7f]")
_MAX_ENCODED_WORDS = 200
_MAX_NESTING = 4

_RESERVED = frozenset(
    (
        "from",
        "sender",
        "to",
        "cc",
        "bcc",
        "subject",
        "date",
        "message-id",
        "reply-to",
        "mime-version",
        "dkim-signature",
        "domainkey-signature",
        "authentication-results",
        "received",
        "received-spf",
        "return-path",
        "delivered-to",
        "envelope-to",
        "errors-to",
        "apparently-to",
        "x-original-to",
        "x-google-dkim-signature",
        "bimi-location",
        "bimi-indicator",
    )
)
_RESERVED_PREFIXES = ("content-", "arc-", "resent-", "x-postroad-", "x-received")


class HeaderError(ValueError):
    """The value may not stand in a header field; its message is a sentence for the user."""


def check_text(value: str, *, max_characters: int) -> str:
    """Return `value` if it may be the text of a header field (a subject, a name, a custom field's body).

    Raises HeaderError for more than `max_characters`, control characters (Unicode category Cc: CR, LF, NUL,
    tab, DEL, C1), lone surrogates, any of these hidden in encoded words (RFC 2047, malformed and nested ones
    too), and a word that cannot be folded under 998 octets (RFC 5322 section 2.1.1).
    """
    if len(value) > max_characters:
        raise HeaderError(f"It is longer than {max_characters} characters.")
    if CONTROL.search(value):
        raise HeaderError("It contains a control character or a line break.")
    if not value.isascii():
        if SURROGATE.search(value):
            raise HeaderError("It contains a lone surrogate, which is no character.")
    elif len(value) > MAX_WORD_CHARACTERS and max(map(len, value.split(" "))) > MAX_WORD_CHARACTERS:
        raise HeaderError(f"It contains a word of more than {MAX_WORD_CHARACTERS} characters.")
    if "=?" in value:
        _check_encoded_words(value, _MAX_NESTING)
    return value


def check_name(name: str) -> str:
    """Return `name` if a sender may give a field of that name (RFC 5322 section 3.6.8).

    Raises HeaderError for anything but 1-76 printable ASCII characters without colon, and for the fields that
    Postroad writes itself or that receivers trust (From, Content-*, DKIM-Signature, Received, ...).
    """
    if FIELD_NAME.fullmatch(name) is None:
        raise HeaderError(
            f"A header name has 1 to {MAX_NAME_CHARACTERS} printable ASCII characters, no spaces or colons."
        )
    lower = name.lower()
    if lower in _RESERVED or lower.startswith(_RESERVED_PREFIXES):
        raise HeaderError(f"The header {name} is reserved and cannot be given here.")
    return name


def check_filename(name: str) -> str:
    """Return `name` if it may name an attachment.

    Raises HeaderError when empty, `.`, `..`, over 255 characters, with a path separator, a control character
    or a lone surrogate.
    """
    if not name.strip(" ") or name in {".", ".."}:
        raise HeaderError("A file name cannot be empty, '.' or '..'.")
    if "/" in name or "\\" in name:
        raise HeaderError("A file name cannot contain a path separator.")
    return check_text(name, max_characters=MAX_FILENAME_CHARACTERS)


def check_content_type(content_type: str) -> str:
    """Return `content_type` if it is a bare `type/subtype` (RFC 6838 section 4.2); HeaderError otherwise."""
    if CONTENT_TYPE.fullmatch(content_type) is None:
        raise HeaderError("A content type has the form type/subtype, without parameters.")
    return content_type


def check_content_id(content_id: str) -> str:
    """Return `content_id` if it may stand between the angle brackets of Content-ID; HeaderError otherwise."""
    if CONTENT_ID.fullmatch(content_id) is None:
        raise HeaderError("A content id has 1 to 255 printable ASCII characters, without spaces or angle brackets.")
    return content_id


def _check_encoded_words(value: str, depth: int) -> None:
    if depth == 0 or value.count("=?") > _MAX_ENCODED_WORDS:
        raise HeaderError("It contains too many or too deeply nested encoded words.")
    if _QUOTED_CONTROL.search(value):
        raise HeaderError("It hides a control character in an encoded word.")
    # Some decoders join neighbouring words before they decode, so a character can come in two halves.
    joined: dict[str, bytes] = defaultdict(bytes)
    for charset, encoding, payload in _ENCODED_WORD.findall(value):
        for octets in _octets(encoding, payload):
            _check_decoded(octets, charset, depth)
            joined[charset] += octets
    for charset, octets in joined.items():
        _check_decoded(octets, charset, depth)


def _octets(encoding: str, payload: str) -> list[bytes]:
    """What decoders may make of an encoded text: for base64, each stretch between paddings on its own."""
    if encoding in "qQ":
        raw = payload.replace("_", " ").encode("utf-8", "surrogatepass")
        return [_QUOTED_OCTET.sub(lambda match: bytes.fromhex(match[1].decode()), raw)]
    stretches = _NOT_BASE64.sub("", payload).split("=")
    whole = [stretch[: len(stretch) - 1] if len(stretch) % 4 == 1 else stretch for stretch in stretches]
    return [binascii.a2b_base64(stretch + "=" * (-len(stretch) % 4)) for stretch in whole]


def _check_decoded(octets: bytes, charset: str, depth: int) -> None:
    name = charset.partition("*")[0].strip()  # RFC 2231 section 5: charset*language
    try:
        text = octets.decode(name or "utf-8", "replace")
    except (LookupError, ValueError, UnicodeError):
        # Nobody knows the charset: what a lenient reader could show is the octets themselves.
        text = octets.decode("utf-8", "replace")
        if _CONTROL_OCTET.search(octets):
            raise HeaderError("It hides a control character in an encoded word.") from None
    if CONTROL.search(text):
        raise HeaderError("It hides a control character in an encoded word.")
    if "=?" in text:
        _check_encoded_words(text, depth - 1)
