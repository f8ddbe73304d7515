"""API keys: minting, rotating, reading, deleting. A secret is shown once and never does more than who asked for it.

Errors: Forbidden (`scope_exceeded`), Invalid, NotFound, Unauthenticated.
"""

import ipaddress
import secrets
import string
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import key_queries, queries
from app.accounts.models import ApiKey
from app.accounts.principal import IpNetwork, Principal
from app.accounts.scopes import ROLE_SCOPES, Role, Scope
from app.core.crypto import digest
from app.core.errors import Forbidden, Invalid, NotFound, Unauthenticated
from app.core.ids import new_id
from app.core.pagination import Page, Pagination

_ALPHABET = string.digits + string.ascii_letters
_SECRET_CHARACTERS = 32  # of 62 kinds: 190 bits


async def create_api_key(
    session: AsyncSession,
    principal: Principal,
    *,
    name: str,
    scopes: Collection[Scope] | None = None,
    domains: Collection[str] | None = None,
    source_addresses: Collection[str] | None = None,
    expires_at: datetime | None = None,
    is_test: bool = False,
) -> tuple[ApiKey, str]:
    """A new key of the principal's organization, and the whole key, which is kept nowhere.

    `scopes` None grants all that the principal has; other Nones restrict nothing. Domains are A-labels in
    lower case, source addresses CIDR networks. Raises Forbidden (`scope_exceeded`) when the key would be
    wider than the principal in any respect, Invalid when it would have expired already.
    """
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Invalid.at("/expires_at", "Must lie in the future.")
    parent, own = await _caller(session, principal)
    granted = own if scopes is None else frozenset(scopes)
    _refuse_scopes(granted, own)
    values = {
        "id": new_id(),
        "name": name,
        "scopes": sorted(granted),
        "domains": None if domains is None else sorted(set(domains)),
        "source_addresses": None if source_addresses is None else sorted(set(source_addresses)),
        "expires_at": expires_at,
        "is_test": is_test,
        "created_by": parent.created_by if parent else principal.user_id,
    }
    if parent is not None:
        _refuse_wider(parent, ApiKey(**values))
    prefix, secret = _new_secret(is_test=is_test)
    stored = {**values, "prefix": prefix, "secret_hash": digest(secret)}
    return await key_queries.insert_key(session, principal.org_id, stored), secret


async def rotate_api_key(
    session: AsyncSession, principal: Principal, key_id: UUID, *, overlap: timedelta
) -> tuple[ApiKey, str]:
    """A new secret for a key, whose present one works for the overlap still; one from before that is void.

    The new secret does what the key does, so that may not be more than the principal does. Raises NotFound,
    Forbidden (`scope_exceeded`), Unauthenticated.
    """
    own = await _user_scopes(session, principal)
    wanted = {key_id} if principal.key_id is None else {key_id, principal.key_id}
    found = await key_queries.keys_to_rotate(session, principal.org_id, wanted)
    if principal.key_id is not None and principal.key_id not in found:
        raise _deleted()
    key = found.get(key_id)
    if key is None:
        raise NotFound("api key")
    _refuse_scopes(frozenset(map(Scope, key.scopes)), own)
    if principal.key_id is not None:
        _refuse_wider(found[principal.key_id], key)
    prefix, secret = _new_secret(is_test=key.is_test)
    key.previous_prefix, key.previous_secret_hash = key.prefix, key.secret_hash
    key.previous_expires_at = datetime.now(UTC) + overlap
    key.prefix, key.secret_hash = prefix, digest(secret)
    await session.flush()
    return key, secret


async def list_api_keys(session: AsyncSession, org_id: UUID, page: Page) -> tuple[list[ApiKey], Pagination]:
    """One page of the organization's keys, newest first."""
    return page.cut(await key_queries.keys(session, org_id, page), lambda key: key.id)


async def get_api_key(session: AsyncSession, org_id: UUID, key_id: UUID) -> ApiKey:
    """One key. Raises NotFound."""
    key = await key_queries.key(session, org_id, key_id)
    if key is None:
        raise NotFound("api key")
    return key


async def delete_api_key(session: AsyncSession, org_id: UUID, key_id: UUID) -> None:
    """Delete a key; within two seconds no process accepts it any more. Raises NotFound."""
    if not await key_queries.delete_key(session, org_id, key_id):
        raise NotFound("api key")


async def _caller(session: AsyncSession, principal: Principal) -> tuple[ApiKey | None, frozenset[Scope]]:
    """The key that the principal is, None for a user, and what they may do now, whatever they could a moment ago."""
    if principal.key_id is not None:
        key = await key_queries.key_to_mint_by(session, principal.org_id, principal.key_id)
        if key is None:
            raise _deleted()
        return key, principal.scopes
    return None, await _user_scopes(session, principal)


async def _user_scopes(session: AsyncSession, principal: Principal) -> frozenset[Scope]:
    if principal.user_id is None:
        return principal.scopes
    user = await queries.user_to_mint_by(session, principal.org_id, principal.user_id)
    if user is None:
        raise Unauthenticated("invalid_token", "The access token has been withdrawn; log in again.")
    return principal.scopes & ROLE_SCOPES[Role(user.role)]


def _deleted() -> Unauthenticated:
    return Unauthenticated("invalid_api_key", "The API key is unknown or has been deleted.")


def _new_secret(*, is_test: bool) -> tuple[str, str]:
    """(prefix, whole key)."""
    prefix = f"{'pmta_test_' if is_test else 'pmta_'}{secrets.token_hex(4)}"
    return prefix, f"{prefix}_{''.join(secrets.choice(_ALPHABET) for _ in range(_SECRET_CHARACTERS))}"


def _refuse_scopes(wanted: frozenset[Scope], own: frozenset[Scope]) -> None:
    if not wanted <= own:
        raise Forbidden("scope_exceeded", f"You do not have {_listed(wanted - own)} to give.")


def _refuse_wider(parent: ApiKey, child: ApiKey) -> None:
    """Raises Forbidden where the child is bound less than the parent."""
    if parent.is_test and not child.is_test:
        raise Forbidden("scope_exceeded", "Your key is a test key: it has test keys alone to give.")
    if parent.domains is not None and (child.domains is None or not set(child.domains) <= set(parent.domains)):
        raise Forbidden("scope_exceeded", f"Your key is restricted to the domains {_listed(parent.domains)}.")
    if parent.source_addresses is not None and not _within(child.source_addresses, parent.source_addresses):
        raise Forbidden(
            "scope_exceeded", f"Your key is restricted to the addresses {_listed(parent.source_addresses)}."
        )
    if parent.expires_at is not None and (child.expires_at is None or child.expires_at > parent.expires_at):
        raise Forbidden("scope_exceeded", "Your key expires, and what it gives must not outlive it.")


def _within(inner: Collection[str] | None, outer: Sequence[str]) -> bool:
    if inner is None:
        return False
    allowed = [ipaddress.ip_network(network) for network in outer]
    return all(any(_contains(one, ipaddress.ip_network(network)) for one in allowed) for network in inner)


def _contains(outer: IpNetwork, inner: IpNetwork) -> bool:
    return (
        outer.version == inner.version
        and outer.network_address <= inner.network_address  # type: ignore[operator]
        and inner.broadcast_address <= outer.broadcast_address  # type: ignore[operator]
    )


def _listed(values: Collection[str]) -> str:
    return ", ".join(f"`{value}`" for value in sorted(values))
