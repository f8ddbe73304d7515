"""Signed return paths (VERP): the envelope sender that tells a bounce's delivery, and cannot be forged."""

import base64
import binascii
import hmac
import re
from typing import Final
from uuid import UUID

LOCAL_CHARACTERS: Final = 62
# Finds what could be one of our local parts in any text; only `decode` knows.
SHAPE: Final = re.compile(r"(?<![A-Za-z0-9])[bB][A-Za-z2-7]{61}(?![A-Za-z0-9])")
_PREFIX = "b"
_TAG_OCTETS = 6
_CONTEXT = b"postroad return path\x00"


def encode(org_id: UUID, delivery_id: UUID, *, key: bytes) -> str:
    """Return the local part for a delivery's envelope sender: 62 lower-case letters and digits.

    "b" and the base32 of both ids and 48 bits of HMAC-SHA256: within RFC 5321's 64 octets, and readable after
    a server has changed its case.
    """
    ids = org_id.bytes + delivery_id.bytes
    tag = hmac.digest(key, _CONTEXT + ids, "sha256")[:_TAG_OCTETS]
    return _PREFIX + base64.b32encode(ids + tag).decode().rstrip("=").lower()


def decode(local: str, *, key: bytes) -> tuple[UUID, UUID] | None:
    """Return (org_id, delivery_id) of a local part made by `encode` with this key, in any case; else None."""
    if len(local) != LOCAL_CHARACTERS or not local.isascii():
        return None
    local = local.lower()
    try:
        octets = base64.b32decode(local[1:].upper() + "===")
    except binascii.Error:
        return None
    org_id, delivery_id = UUID(bytes=octets[:16]), UUID(bytes=octets[16:32])
    # Comparing whole spellings, not tags, leaves exactly one spelling for each return path.
    if not hmac.compare_digest(local, encode(org_id, delivery_id, key=key)):
        return None
    return org_id, delivery_id
