"""Who is calling: the Principal, and `Requires`, the dependency through which every route learns of it.

Three ways in: an access token as bearer, an API key in `X-API-Key`, an API key as bearer.
"""

import hmac
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from cachetools import TTLCache
from fastapi import Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app.accounts import key_queries, queries, tokens
from app.accounts.last_used import LAST_USED
from app.accounts.models import ApiKey, User
from app.accounts.scopes import ROLE_SCOPES, Role, Scope
from app.core.body import StrictRequest
from app.core.crypto import digest
from app.core.db import Database
from app.core.errors import Forbidden, PostroadError, Unauthenticated
from app.core.networks import IpAddress, client_address, subscriber
from app.core.ratelimit import Limit

__all__ = [
    "ROLE_SCOPES",
    "Principal",
    "Requires",
    "Role",
    "Route",
    "Scope",
    "address_subject",
    "limit_address",
    "principal_of",
    "suspended",
]

# A revoked key must be dead in every process within two seconds.
_CACHE_SECONDS = 1.5
_CACHE_ENTRIES = 10_000
_KEY = re.compile(r"(pmta_(?:test_)?[0-9a-f]{8})_[0-9A-Za-z]{32}")
_READING = {"GET", "HEAD"}

_BEARER = HTTPBearer(scheme_name="bearer", description="An access token from log-in, or an API key.", auto_error=False)
_API_KEY = APIKeyHeader(name="X-API-Key", scheme_name="apiKey", description="An API key, `pmta_…`.", auto_error=False)

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, and what they may do. Either a user (`user_id`, `role`) or an API key (`key_id`).

    `domains` restricts the sender domains, None meaning all; `is_verified` tells whether the address of the
    user, or of the key's creator, is verified; `suspension` is why their organization is suspended, None when it is
    not. What an `is_test` principal sends goes nowhere.
    """

    org_id: UUID
    user_id: UUID | None
    key_id: UUID | None
    role: Role | None
    scopes: frozenset[Scope]
    domains: frozenset[str] | None
    is_verified: bool
    is_operator: bool
    is_test: bool = False
    suspension: str | None = None

    @property
    def id(self) -> UUID | None:
        """The user or the API key."""
        return self.user_id or self.key_id


@dataclass(frozen=True, slots=True)
class _Key:
    id: UUID
    principal: Principal
    expires_at: datetime | None
    # When this secret of the key ceases to work, if another has taken its place.
    rotated_out_at: datetime | None
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

    `users_only` keeps API keys out, `all_domains` those that are restricted to some domains. A suspended organization
    may only read.

    Raises Unauthenticated, Forbidden and TooManyRequests; leaves the rate-limit headers in
    `request.state.rate_limit_headers`. Asked again in one request, it answers from `request.state.admitted`.
    """

    def __init__(self, scope: Scope | None, *, users_only: bool = False, all_domains: bool = False) -> None:
        self.scope = scope
        self.users_only = users_only
        self.all_domains = all_domains

    async def __call__(
        self,
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
        api_key: Annotated[str | None, Security(_API_KEY)],
    ) -> Principal:
        return await self.admit(request, bearer.credentials if bearer else None, api_key)

    async def admit(self, request: Request, bearer: str | None, api_key: str | None) -> Principal:
        """As when called as a dependency, with the credentials themselves."""
        admitted: tuple[Requires, Principal] | None = getattr(request.state, "admitted", None)
        if admitted is not None and admitted[0] is self:
            return admitted[1]
        try:
            principal = await _authenticate(request, bearer, api_key)
        except PostroadError:
            await limit_address(request)
            raise
        await _limit_principal(request, principal)
        if self.scope is not None and self.scope not in principal.scopes:
            raise Forbidden("insufficient_scope", f"This needs the scope `{self.scope}`.")
        if self.users_only and principal.user_id is None:
            raise Forbidden("user_required", "This is for logged-in users, not for API keys.")
        if self.all_domains and principal.domains is not None:
            raise Forbidden("key_restricted", "This is about all mail, and the API key is restricted to some domains.")
        if principal.suspension is not None and request.method not in _READING:
            raise suspended(principal.suspension)
        request.state.admitted = (self, principal)
        return principal


class Route(APIRoute):
    """The route of every router: admits the caller before it reads the body, and reads JSON strictly.

    FastAPI by itself reads and parses a body of any size first and asks for credentials then.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        required = [one.call for one in self.dependant.dependencies if isinstance(one.call, Requires)]

        async def admit_and_handle(request: Request) -> Response:
            for requires in required:
                await requires(request, await _BEARER(request), await _API_KEY(request))
            return await handle(StrictRequest(request.scope, request.receive))

        return admit_and_handle


def suspended(reason: str) -> Forbidden:
    """What a suspended organization is told."""
    return Forbidden(
        "organization_suspended",
        f"Your organization is suspended: {reason.rstrip('.')}. You can read everything, but neither send nor change "
        "anything, and mail that waits is not sent until the suspension ends.",
    )


def principal_of(user: User, suspension: str | None = None) -> Principal:
    """The principal that a logged-in user is; `suspension` is why their organization is suspended."""
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
        suspension=suspension,
    )


async def limit_address(request: Request) -> None:
    """Count a request that no credentials vouch for against its client address. Raises TooManyRequests."""
    state = request.app.state
    limit = Limit("address", address_subject(request), state.settings.rate_limit_address_per_minute)
    request.state.rate_limit_headers = await state.rate_limiter.take([limit])


def address_subject(request: Request) -> str:
    """The client as rate limits count it: an IPv4 address, an IPv6 subscriber's /64, or `unknown`."""
    return subscriber(request.client.host if request.client else "")


async def _authenticate(request: Request, bearer: str | None, api_key: str | None) -> Principal:
    if bearer is not None and api_key is not None and not hmac.compare_digest(bearer.encode(), api_key.encode()):
        raise Unauthenticated("conflicting_credentials", "Authorization and X-API-Key name different credentials.")
    credential = bearer or api_key
    if not credential:
        raise Unauthenticated("credentials_required", "Give an access token or an API key.")
    database: Database = request.app.state.database
    if api_key is None and not credential.startswith("pmta_"):
        return await _user_principal(database, credential)
    return await _key_principal(database, credential, client_address(request.client.host if request.client else ""))


async def _user_principal(database: Database, token: str) -> Principal:
    claims = tokens.read(token)

    async def load() -> _User | None:
        async with database.transaction() as session:
            found = await queries.user_with_suspension(session, claims.org_id, claims.user_id)
        return _User(principal_of(*found), found[0].token_epoch) if found else None

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
            found = await key_queries.keys_by_prefix(session, matched[1])
        known = (_known(key, is_verified, suspension, secret_hash) for key, is_verified, suspension in found)
        return next(filter(None, known), None)

    secret_hash = digest(secret)
    key = await _keys.get(secret_hash, load)
    if key is None:
        raise Unauthenticated("invalid_api_key", "The API key is unknown or has been deleted.")
    if key.rotated_out_at is not None and key.rotated_out_at <= datetime.now(UTC):
        raise Unauthenticated("api_key_rotated", "The API key has a new secret, and this one works no longer.")
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        raise Unauthenticated("api_key_expired", "The API key has expired.")
    if key.networks is not None and not (address and any(address in network for network in key.networks)):
        raise Forbidden("source_address_not_allowed", "The API key may not be used from this address.")
    LAST_USED.note(key.principal.org_id, key.id)
    return key.principal


def _known(key: ApiKey, is_verified: bool, suspension: str | None, secret_hash: bytes) -> _Key | None:
    """What is remembered of a key for one of its secrets; None when it is neither of them."""
    is_present = hmac.compare_digest(key.secret_hash, secret_hash)
    if not is_present and not hmac.compare_digest(key.previous_secret_hash or b"", secret_hash):
        return None
    principal = Principal(
        org_id=key.org_id,
        user_id=None,
        key_id=key.id,
        role=None,
        scopes=frozenset(map(Scope, key.scopes)),
        domains=None if key.domains is None else frozenset(key.domains),
        is_verified=is_verified,
        is_operator=False,
        is_test=key.is_test,
        suspension=suspension,
    )
    networks = None if key.source_addresses is None else tuple(map(ipaddress.ip_network, key.source_addresses))
    return _Key(key.id, principal, key.expires_at, None if is_present else key.previous_expires_at, networks)


async def _limit_principal(request: Request, principal: Principal) -> None:
    settings = request.app.state.settings
    caller = "user" if principal.key_id is None else "key"
    limits = [
        Limit(caller, str(principal.id), settings.rate_limit_key_per_minute),
        Limit("organization", str(principal.org_id), settings.rate_limit_organization_per_minute),
    ]
    request.state.rate_limit_headers = await request.app.state.rate_limiter.take(limits)
