"""API keys: minting, reading, deleting. A key is shown once and never does more than who minted it.

Errors: Forbidden (`scope_exceeded`), Invalid, NotFound, Unauthenticated.
"""

import ipaddress
import secrets
import string
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import queries
from app.accounts.models import ApiKey
from app.accounts.principal import IpNetwork, Principal
from app.accounts.scopes import Scope
from app.core.crypto import digest
from app.core.errors import Forbidden, Invalid, NotFound, Unauthenticated
from app.core.ids import new_id
from app.core.pagination import Page, Pagination

_ALPHABET = string.digits + string.ascii_letters
_SECRET_CHARACTERS = 32  # of 62 kinds: 190 bits
_PREFIX_TRIES = 8


async def create_api_key(
    session: AsyncSession,
    principal: Principal,
    *,
    name: str,
    scopes: Collection[Scope] | None = None,
    domains: Collection[str] | None = None,
    source_addresses: Collection[str] | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key of the principal's organization, and the whole key, which is kept nowhere.

    `scopes` None grants all that the principal has; other Nones restrict nothing. Domains are A-labels in
    lower case, source addresses CIDR networks. Raises Forbidden (`scope_exceeded`) when the key would be
    wider than the principal in any respect, Invalid when it would have expired already.
    """
    granted = principal.scopes if scopes is None else frozenset(scopes)
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Invalid.at("/expires_at", "Must lie in the future.")
    if not granted <= principal.scopes:
        raise Forbidden("scope_exceeded", f"You do not have {_listed(granted - principal.scopes)} to give.")
    parent = await _minting_key(session, principal)
    if parent is not None:
        _refuse_wider(parent, domains=domains, source_addresses=source_addresses, expires_at=expires_at)
    for _ in range(_PREFIX_TRIES):
        prefix = f"pmta_{secrets.token_hex(4)}"
        secret = f"{prefix}_{''.join(secrets.choice(_ALPHABET) for _ in range(_SECRET_CHARACTERS))}"
        values = {
            "id": new_id(),
            "name": name,
            "prefix": prefix,
            "secret_hash": digest(secret),
            "scopes": sorted(granted),
            "domains": None if domains is None else sorted(set(domains)),
            "source_addresses": None if source_addresses is None else sorted(set(source_addresses)),
            "expires_at": expires_at,
            "created_by": parent.created_by if parent else principal.user_id,
        }
        key = await queries.insert_key(session, principal.org_id, values)
        if key is not None:
            return key, secret
    raise RuntimeError(f"{_PREFIX_TRIES} random prefixes in a row were taken")


async def list_api_keys(session: AsyncSession, org_id: UUID, page: Page) -> tuple[list[ApiKey], Pagination]:
    """One page of the organization's keys, newest first."""
    return page.cut(await queries.keys(session, org_id, page), lambda key: key.id)


async def get_api_key(session: AsyncSession, org_id: UUID, key_id: UUID) -> ApiKey:
    """One key. Raises NotFound."""
    key = await queries.key(session, org_id, key_id)
    if key is None:
        raise NotFound("api key")
    return key


async def delete_api_key(session: AsyncSession, org_id: UUID, key_id: UUID) -> None:
    """Delete a key; within two seconds no process accepts it any more. Raises NotFound."""
    if not await queries.delete_key(session, org_id, key_id):
        raise NotFound("api key")


async def _minting_key(session: AsyncSession, principal: Principal) -> ApiKey | None:
    """The key that the principal is, or None for a user. Who was removed a moment ago mints nothing any more."""
    if principal.key_id is not None:
        key = await queries.key_to_mint_by(session, principal.org_id, principal.key_id)
        if key is None:
            raise Unauthenticated("invalid_api_key", "The API key is unknown or has been deleted.")
        return key
    if principal.user_id and not await queries.user_to_mint_by(session, principal.org_id, principal.user_id):
        raise Unauthenticated("invalid_token", "The access token has been withdrawn; log in again.")
    return None


def _refuse_wider(
    parent: ApiKey,
    *,
    domains: Collection[str] | None,
    source_addresses: Collection[str] | None,
    expires_at: datetime | None,
) -> None:
    if parent.domains is not None and (domains is None or not set(domains) <= set(parent.domains)):
        raise Forbidden("scope_exceeded", f"Your key is restricted to the domains {_listed(parent.domains)}.")
    if parent.source_addresses is not None and not _within(source_addresses, parent.source_addresses):
        raise Forbidden(
            "scope_exceeded", f"Your key is restricted to the addresses {_listed(parent.source_addresses)}."
        )
    if parent.expires_at is not None and (expires_at is None or expires_at > parent.expires_at):
        raise Forbidden("scope_exceeded", "Your key expires, and what it mints must not outlive it.")


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
