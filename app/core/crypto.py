"""Secrets at rest: sealed with AES-256-GCM, or kept only as a digest.

Every key derives from SECRET_KEY (HKDF, RFC 5869).
"""

import hashlib
import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.core.config import get_settings

_VERSION = b"\x01"
_NONCE_BYTES = 12


class UnsealError(Exception):
    """The value was sealed with another SECRET_KEY, for another purpose, or was altered."""


@lru_cache(maxsize=64)
def derive_key(purpose: str) -> bytes:
    """A 32-byte key for one purpose; purposes never share a key."""
    secret = get_settings().secret_key.get_secret_value().encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"postroad:" + purpose.encode()).derive(secret)


def seal(value: bytes, *, purpose: str) -> bytes:
    """Encrypt and authenticate `value`; the purpose is bound to it."""
    nonce = os.urandom(_NONCE_BYTES)
    return _VERSION + nonce + AESGCM(derive_key(purpose)).encrypt(nonce, value, _VERSION)


def unseal(sealed: bytes, *, purpose: str) -> bytes:
    """The inverse of `seal`. Raises UnsealError."""
    version, nonce, body = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    try:
        return AESGCM(derive_key(purpose)).decrypt(nonce, body, version)
    except (InvalidTag, ValueError) as error:
        raise UnsealError("a sealed value cannot be opened: has SECRET_KEY changed?") from error


def digest(secret: str) -> bytes:
    """SHA-256 of a random secret (never of a password), for look-ups by equality."""
    return hashlib.sha256(secret.encode()).digest()
