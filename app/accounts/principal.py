"""Who is calling: the Principal, and `Requires`, the dependency through which every route learns of it.

Three ways in: an access token as bearer, an API key in `X-API-Key`, an API key as bearer.
"""

import hmac
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar
from uuid import UUID

from cachetools import TTLCache
from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app.accounts import queries, tokens
from app.accounts.last_used import LAST_USED
from app.accounts.models import ApiKey, User
from app.accounts.scopes import ROLE_SCOPES, Role, Scope
from app.core.crypto import digest
from app.core.db import Database
from app.core.errors import Forbidden, PostroadError, Unauthenticated
from app.core.ratelimit import Limit

__all__ = ["ROLE_SCOPES", "Principal", "Requires", "Role", "Scope", "limit_address", "principal_of"]

# A revoked key must be dead in every process within two seconds.
_CACHE_SECONDS = 1.5
_CACHE_ENTRIES = 10_000
_KEY = re.compile(r"(pmta_[0-9a-f]{8})_[0-9A-Za-z]{32}")
# One subscriber holds a whole /64 (RFC 6177), so counting single IPv6 addresses would count nothing.
_IPV6_SUBSCRIBER_BITS = 64

_BEARER = HTTPBearer(scheme_name="bearer", description="An access token from log-in, or an API key.", auto_error=False)
_API_KEY = APIKeyHeader(name="X-API-Key", scheme_name="apiKey", description="An API key, `pmta_…`.", auto_error=False)

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, and what they may do. Either a user (`user_id`, `role`) or an API key (`key_id`).

    `domains` restricts the sender domains, None meaning all; `is_verified` tells whether the address of the
    user, or of the key's creator, is verified.
    """

    org_id: UUID
    user_id: UUID | None
    key_id: UUID | None
    role: Role | None
    scopes: frozenset[Scope]
    domains: frozenset[str] | None
    is_verified: bool
    is_operator: bool

    @property
    def id(self) -> UUID | None:
        """The user or the API key."""
        return self.user_id or self.key_id


@dataclass(frozen=True, slots=True)
class _Key:
    id: UUID
    principal: Principal
    secret_hash: bytes
    expires_at: datetime | None
    networks: tuple[IpNetwork, ...] | None


@dataclass(frozen=True, slots=True)
class _User:
    principal: Principal
    token_epoch: int


class _Recent(Generic[ValueT]):
    """The database's answers of the last moment, "no such thing" too. Their age counts from the question."""

    def __init__(self) -> None:
        self._entries: TTLCache[bytes, tuple[float, ValueT | None]] = TTLCache(_CACHE_ENTRIES, _CACHE_SECONDS)

    async def get(self, key: bytes, load: Callable[[], Awaitable[ValueT | None]]) -> ValueT | None:
        now = time.monotonic()
        entry = self._entries.get(key)
        if entry is not None and now - entry[0] < _CACHE_SECONDS:
            return entry[1]
        value = await load()
        self._entries[key] = (now, value)
        return value


_keys: _Recent[_Key] = _Recent()
_users: _Recent[_User] = _Recent()


class Requires:
    """A dependency that answers with the Principal if it has the scope; None asks for any principal at all.

    Raises Unauthenticated, Forbidden and TooManyRequests; leaves the rate-limit headers in
    `request.state.rate_limit_headers` and the Principal in `request.state.principal`.
    """

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    async def __call__(
        self,
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
        api_key: Annotated[str | None, Security(_API_KEY)],
    ) -> Principal:
        try:
            principal = await _authenticate(request, bearer.credentials if bearer else None, api_key)
        except PostroadError:
            await limit_address(request)
            raise
        request.state.principal = principal
        await _limit_principal(request, principal)
        if self.scope is not None and self.scope not in principal.scopes:
            raise Forbidden("insufficient_scope", f"This needs the scope `{self.scope}`.")
        return principal


def principal_of(user: User) -> Principal:
    """The principal that a logged-in user is."""
    role = Role(user.role)
    return Principal(
        org_id=user.org_id,
        user_id=user.id,
        key_id=None,
        role=role,
        scopes=ROLE_SCOPES[role],
        domains=None,
        is_verified=user.email_verified_at is not None,
        is_operator=user.is_operator,
    )


async def limit_address(request: Request) -> None:
    """Count a request that no credentials vouch for against its client address. Raises TooManyRequests."""
    state = request.app.state
    limit = Limit("address", address_subject(request), state.settings.rate_limit_address_per_minute)
    request.state.rate_limit_headers = await state.rate_limiter.take([limit])


def address_subject(request: Request) -> str:
    """The client as rate limits count it: an IPv4 address, an IPv6 subscriber's /64, or `unknown`."""
    address = _client_address(request)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address), _IPV6_SUBSCRIBER_BITS), strict=False))
    return str(address) if address else "unknown"


def _client_address(request: Request) -> IpAddress | None:
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


async def _authenticate(request: Request, bearer: str | None, api_key: str | None) -> Principal:
    if bearer is not None and api_key is not None and not hmac.compare_digest(bearer.encode(), api_key.encode()):
        raise Unauthenticated("conflicting_credentials", "Authorization and X-API-Key name different credentials.")
    credential = bearer or api_key
    if not credential:
        raise Unauthenticated("credentials_required", "Give an access token or an API key.")
    database: Database = request.app.state.database
    if api_key is None and not credential.startswith("pmta_"):
        return await _user_principal(database, credential)
    return await _key_principal(database, credential, _client_address(request))


async def _user_principal(database: Database, token: str) -> Principal:
    claims = tokens.read(token)

    async def load() -> _User | None:
        async with database.transaction() as session:
            user = await queries.user(session, claims.org_id, claims.user_id)
        return _User(principal_of(user), user.token_epoch) if user else None

    # The epoch is part of the question: a log-in right after a new password must not meet the old answer.
    user = await _users.get(f"{claims.org_id}{claims.user_id}{claims.epoch}".encode(), load)
    if user is None or user.token_epoch != claims.epoch:
        raise Unauthenticated("invalid_token", "The access token has been withdrawn; log in again.")
    return user.principal


async def _key_principal(database: Database, secret: str, address: IpAddress | None) -> Principal:
    matched = _KEY.fullmatch(secret)
    if matched is None:
        raise Unauthenticated("invalid_api_key", "The API key is unknown or has been deleted.")

    async def load() -> _Key | None:
        async with database.transaction() as session:
            found = await queries.key_by_prefix(session, matched[1])
        return _known(*found) if found else None

    secret_hash = digest(secret)
    key = await _keys.get(secret_hash, load)
    if key is None or not hmac.compare_digest(key.secret_hash, secret_hash):
        raise Unauthenticated("invalid_api_key", "The API key is unknown or has been deleted.")
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        raise Unauthenticated("api_key_expired", "The API key has expired.")
    if key.networks is not None and not (address and any(address in network for network in key.networks)):
        raise Forbidden("source_address_not_allowed", "The API key may not be used from this address.")
    LAST_USED.note(key.principal.org_id, key.id)
    return key.principal


def _known(key: ApiKey, is_verified: bool) -> _Key:
    principal = Principal(
        org_id=key.org_id,
        user_id=None,
        key_id=key.id,
        role=None,
        scopes=frozenset(map(Scope, key.scopes)),
        domains=None if key.domains is None else frozenset(key.domains),
        is_verified=is_verified,
        is_operator=False,
    )
    networks = None if key.source_addresses is None else tuple(map(ipaddress.ip_network, key.source_addresses))
    return _Key(key.id, principal, key.secret_hash, key.expires_at, networks)


async def _limit_principal(request: Request, principal: Principal) -> None:
    settings = request.app.state.settings
    caller = "user" if principal.key_id is None else "key"
    limits = [
        Limit(caller, str(principal.id), settings.rate_limit_key_per_minute),
        Limit("organization", str(principal.org_id), settings.rate_limit_organization_per_minute),
    ]
    request.state.rate_limit_headers = await request.app.state.rate_limiter.take(limits)
