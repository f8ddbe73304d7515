"""The signed tokens in a mail's links: whose copy it is, and for a click where it leads. None is kept anywhere.

A token is the base64url (RFC 4648 section 5, no padding) of a version, both ids, 96 bits of keyed BLAKE2b (RFC 7693,
a MAC by itself, at a third of HMAC's cost) over all of it, and for clicks the target's URL. Each kind is signed with a
key of its own, so that none passes as another, and has exactly one spelling.
"""

import base64
import binascii
import hashlib
import hmac
import re
from functools import lru_cache
from typing import Final
from urllib.parse import quote, urlsplit
from uuid import UUID

import idna

from app.core import crypto

OPEN_PATH: Final = "/track/open/"
CLICK_PATH: Final = "/track/click/"
UNSUBSCRIBE_PATH: Final = "/track/unsubscribe/"
# Longer targets are not tracked: a token is a third longer than its target, and some readers cut URLs at 4,096.
MAX_TARGET_CHARACTERS: Final = 2000

_OPEN, _CLICK, _UNSUBSCRIBE = "track open", "track click", "track unsubscribe"
_VERSION = b"\x01"
_IDS_OCTETS = 33
_TAG_OCTETS = 12
# Whole groups of three octets, so no spelling of the ids has bits to spare.
_HEAD_OCTETS = _IDS_OCTETS + _TAG_OCTETS
_HEAD_CHARACTERS = _HEAD_OCTETS * 4 // 3
_MAX_CHARACTERS = _HEAD_CHARACTERS + -(-MAX_TARGET_CHARACTERS * 4 // 3)

_URLSAFE = bytes.maketrans(b"+/", b"-_")
_TARGET = re.compile(r"[hH][tT][tT][pP][sS]?://(?![/?#\\])[!-~]++")
_PARTS = re.compile(r"(https?://)([^/?#\\\x00-\x1f\x7f]*)([^\x00-\x1f\x7f]*)", re.IGNORECASE)
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


def links_base(public_url: str, host: str | None) -> str:
    """Where a mail's links lead: PUBLIC_URL, at the sender's own host if there is one, with its scheme and port."""
    if host is None:
        return public_url
    parts = urlsplit(public_url)
    netloc = host if parts.port is None else f"{host}:{parts.port}"
    return parts._replace(netloc=netloc).geturl()


class Links:
    """The addresses in one copy of a mail, at `base_url`."""

    __slots__ = ("_base_url", "_ids")

    def __init__(self, base_url: str, org_id: UUID, delivery_id: UUID) -> None:
        self._base_url = base_url
        self._ids = _VERSION + org_id.bytes + delivery_id.bytes

    def open(self) -> str:
        """The address of the copy's pixel."""
        return self._base_url + OPEN_PATH + _sign(_OPEN, self._ids, b"")

    def click(self, target: str) -> str | None:
        """The address that leads to `target` and tells of it; None for what cannot be a target.

        That is anything but an http(s) URL of at most MAX_TARGET_CHARACTERS once it is written in ASCII.
        """
        target = _in_ascii(target)
        if len(target) > MAX_TARGET_CHARACTERS or _TARGET.fullmatch(target) is None:
            return None
        return self._base_url + CLICK_PATH + _sign(_CLICK, self._ids, target.encode())

    def unsubscribe(self) -> str:
        """Where the copy's recipient says that they want no more: a page, and RFC 8058's one click."""
        return self._base_url + UNSUBSCRIBE_PATH + _sign(_UNSUBSCRIBE, self._ids, b"")


def read_open(token: str) -> tuple[UUID, UUID] | None:
    """(org_id, delivery_id) of a pixel's token; None for any other text."""
    return _read_ids(_OPEN, token)


def read_click(token: str) -> tuple[UUID, UUID, str] | None:
    """(org_id, delivery_id, target) of a click's token; None for any other text. The target is http(s) and ASCII."""
    octets = _read(_CLICK, token)
    if octets is None:
        return None
    target = octets[_HEAD_OCTETS:].decode("ascii", "replace")
    if _TARGET.fullmatch(target) is None:
        return None
    return *_ids_of(octets), target


def read_unsubscribe(token: str) -> tuple[UUID, UUID] | None:
    """(org_id, delivery_id) of an unsubscribe token; None for any other text."""
    return _read_ids(_UNSUBSCRIBE, token)


def _sign(kind: str, ids: bytes, target: bytes) -> str:
    mac = _keyed(kind).copy()
    mac.update(ids + target)
    return binascii.b2a_base64(ids + mac.digest() + target, newline=False).translate(_URLSAFE, b"=").decode()


@lru_cache(maxsize=8)
def _keyed(kind: str) -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=_TAG_OCTETS, key=crypto.derive_key(kind))


def _read_ids(kind: str, token: str) -> tuple[UUID, UUID] | None:
    octets = _read(kind, token) if len(token) == _HEAD_CHARACTERS else None
    return None if octets is None else _ids_of(octets)


def _read(kind: str, token: str) -> bytes | None:
    """The octets of a token that this installation has signed; None otherwise."""
    if not _HEAD_CHARACTERS <= len(token) <= _MAX_CHARACTERS or not token.isascii():
        return None
    try:
        octets = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except binascii.Error:
        return None
    # Decoders are lenient. Comparing whole spellings, not tags, leaves exactly one for each token.
    signed = _sign(kind, octets[:_IDS_OCTETS], octets[_HEAD_OCTETS:])
    if octets[:1] != _VERSION or not hmac.compare_digest(token, signed):
        return None
    return octets


def _ids_of(octets: bytes) -> tuple[UUID, UUID]:
    return UUID(bytes=octets[1:17]), UUID(bytes=octets[17:33])


def _in_ascii(url: str) -> str:
    """The URL as it may stand in a Location field: its host in A-labels, other characters percent-encoded."""
    if url.isascii() and " " not in url:
        return url
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return ""
    scheme, authority, rest = parts.groups()
    user, at, host = authority.rpartition("@")
    name, colon, port = host.partition(":")
    try:
        name = idna.encode(name, uts46=True).decode() if not name.isascii() else name
    except idna.IDNAError:
        return ""
    return scheme + "".join(quote(part, _VISIBLE, errors="replace") for part in (user, at, name, colon, port, rest))
