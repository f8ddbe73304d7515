"""How often anybody may try to log in.

Every attempt counts, the good ones too, and counts before the password is looked at. Unknown accounts are counted like
known ones. From an address where the user has logged in within 30 days only the tries from there count, so whoever
guesses from elsewhere cannot lock them out.
"""

import hmac
from datetime import timedelta
from hashlib import sha256

from app.core.crypto import derive_key, digest
from app.core.ratelimit import Limit

KNOWN_FOR = timedelta(days=30)
KNOWN_MAX = 20

_TRIES_PER_MINUTE = 10
_ACCOUNT_TRIES_PER_HOUR = 100
_ADDRESS_TRIES_PER_HOUR = 300
_HOUR_SECONDS = 3600


def address_hash(address: str) -> bytes:
    """A network address as it is kept: keyed, since there are few enough addresses to try them all."""
    return hmac.new(derive_key("known-address"), address.encode(), sha256).digest()


def login_limits(email: str, address: str, *, is_known: bool) -> list[Limit]:
    """What one try counts against; `address` as `principal.address_subject` gives it."""
    account = digest(email).hex()
    here = Limit("login", f"{account}:{address}", _TRIES_PER_MINUTE)
    if is_known:
        return [here]
    return [
        here,
        Limit("login_account", account, _ACCOUNT_TRIES_PER_HOUR, _HOUR_SECONDS),
        Limit("login_address", address, _ADDRESS_TRIES_PER_HOUR, _HOUR_SECONDS),
    ]


def password_limit(user_id: object) -> Limit:
    """What a try of a logged-in user's present password counts against."""
    return Limit("password", str(user_id), _TRIES_PER_MINUTE)
