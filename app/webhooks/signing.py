"""Standard Webhooks: secrets, and the three header fields by which a receiver knows who has sent a payload."""

import base64
import hmac
import secrets
from collections.abc import Iterable
from functools import lru_cache

from app.core import crypto

_PREFIX = "whsec_"
_SECRET_BYTES = 24
_PURPOSE = "webhook-secret"


def make_secret() -> str:
    """A new secret, as customers are shown it."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def seal(secret: str) -> bytes:
    """A secret as it is stored."""
    return crypto.seal(secret.encode(), purpose=_PURPOSE)


# Opened for every attempt.
@lru_cache(maxsize=10_000)
def key_of(sealed: bytes) -> bytes:
    """The key that signs, from a secret as it is stored. Raises UnsealError."""
    return base64.b64decode(crypto.unseal(sealed, purpose=_PURPOSE).decode().removeprefix(_PREFIX))


def headers(webhook_id: str, timestamp: int, payload: bytes, keys: Iterable[bytes]) -> dict[str, str]:
    """The header fields of a payload: its id, the time of sending (Unix seconds), a signature by each key."""
    signed = f"{webhook_id}.{timestamp}.".encode() + payload
    signatures = (base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
