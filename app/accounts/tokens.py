"""Access tokens: signed JWTs (RFC 7519, HS256) that name a user, never a right, for a quarter of an hour."""

import time
from dataclasses import dataclass
from uuid import UUID

from jose import jwt
from jose.exceptions import ExpiredSignatureError, JOSEError

from app.core.crypto import derive_key
from app.core.errors import Unauthenticated
from app.core.ids import new_id

ACCESS_SECONDS = 900
ISSUER = "postroad"
AUDIENCE = "postroad-api"

_ALGORITHM = "HS256"
_TYPE = "access"
_MAX_CHARACTERS = 2048


@dataclass(frozen=True, slots=True)
class Claims:
    """Whom a token speaks for, and the token epoch that user was in."""

    org_id: UUID
    user_id: UUID
    epoch: int


def issue(claims: Claims) -> str:
    """A signed access token for `ACCESS_SECONDS` from now."""
    now = int(time.time())
    payload = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "type": _TYPE,
        "sub": str(claims.user_id),
        "org": str(claims.org_id),
        "epoch": claims.epoch,
        "iat": now,
        "exp": now + ACCESS_SECONDS,
        "jti": str(new_id()),
    }
    return str(jwt.encode(payload, derive_key("jwt"), algorithm=_ALGORITHM))


def read(token: str) -> Claims:
    """The claims of a token of ours. Raises Unauthenticated (`token_expired`, `invalid_token`)."""
    required = {f"require_{claim}": True for claim in ("iss", "aud", "sub", "iat", "exp", "jti")}
    try:
        if len(token) > _MAX_CHARACTERS:
            raise ValueError("longer than any token of ours")
        payload = jwt.decode(
            token,
            derive_key("jwt"),
            algorithms=[_ALGORITHM],
            issuer=ISSUER,
            audience=AUDIENCE,
            options=required,
        )
        if payload["type"] != _TYPE:
            raise ValueError("a token of another type")
        return Claims(UUID(payload["org"]), UUID(payload["sub"]), int(payload["epoch"]))
    except ExpiredSignatureError as error:
        raise Unauthenticated("token_expired", "The access token has expired; refresh it or log in again.") from error
    except (JOSEError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unauthenticated("invalid_token", "The access token is not one that this server accepts.") from error
