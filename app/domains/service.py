"""Sending domains: their keys, the records to publish, their proof by DNS, and what sending needs of them.

PostroadError
├── Conflict     domain_exists, too_many_domains, rotation_pending, selector_used
├── Forbidden    domain_not_allowed (a restricted key), domain_not_verified
├── Invalid      name_too_long, and what is wrong with a logo (see `bimi`)
└── NotFound     domain_not_found
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.core import ids
from app.core.db import after_commit
from app.core.errors import Conflict, Forbidden, NotFound
from app.core.pagination import Page, Pagination
from app.domains import queries, rotation, schemas, view
from app.domains.proof import recheck_due, trust, verify
from app.domains.sending import (
    SENDABLE_SECONDS,
    OwnNames,
    SendingDomain,
    forget,
    own_names,
    owned,
    sendable,
    signing_keys,
)

__all__ = [
    "MAX_DOMAINS",
    "SENDABLE_SECONDS",
    "OwnNames",
    "SendingDomain",
    "create",
    "delete",
    "get",
    "own_names",
    "owned",
    "page",
    "published",
    "recheck_due",
    "sendable",
    "signing_keys",
    "trust",
    "verify",
    "wipe_deleted_keys",
    "zone_file",
]

MAX_DOMAINS = 1000

# Mail of a request that saw the domain alive, or remembered it so, has certainly committed by then.
_WIPE_GRACE = timedelta(minutes=5)
# Records are rarely published sooner than this after they were asked for.
_FIRST_CHECK = timedelta(minutes=1)


async def create(
    session: AsyncSession, org_id: UUID, *, name: str, selector: str, only: Collection[str] | None
) -> schemas.Domain:
    """Add a domain with an RSA-2048 and an Ed25519 key, both pending until their records are seen.

    `name` is in A-labels, `only` the names that the caller is restricted to. Raises Forbidden
    (domain_not_allowed), Invalid (name_too_long) and Conflict (domain_exists, too_many_domains).
    """
    if only is not None and name not in only:
        raise Forbidden("domain_not_allowed", "This API key is restricted to other domains.")
    rotation.check_length(name, selector, pointer="/domain")
    if await queries.exists(session, org_id, name):
        raise _exists(name)
    if await queries.count(session, org_id) >= MAX_DOMAINS:
        raise Conflict("too_many_domains", f"An organization may have {MAX_DOMAINS} domains.")
    pairs = await rotation.generate()
    first_check = datetime.now(UTC) + _FIRST_CHECK
    domain = await queries.add(session, org_id, ids.new_id(), name=name, selector=selector, next_check_at=first_check)
    if domain is None:
        raise _exists(name)
    keys = rotation.new_keys(domain, selector, pairs)
    session.add_all(keys)
    await session.flush()
    return view.show(domain, keys)


async def get(session: AsyncSession, org_id: UUID, domain_id: UUID, *, only: Collection[str] | None) -> schemas.Domain:
    """One domain. Raises NotFound."""
    return view.show(*await queries.load(session, org_id, domain_id, only))


async def zone_file(session: AsyncSession, org_id: UUID, domain_id: UUID, *, only: Collection[str] | None) -> str:
    """One domain's records as a zone file. Raises NotFound."""
    return view.zone_file(*await queries.load(session, org_id, domain_id, only))


async def page(
    session: AsyncSession, org_id: UUID, wanted: Page, *, only: Collection[str] | None
) -> tuple[list[schemas.Domain], Pagination]:
    """A page of the organization's domains, newest first."""
    rows = await queries.page(session, org_id, wanted, only)
    domains, pagination = wanted.cut(rows, lambda domain: domain.id)
    keys = await queries.keys(session, org_id, [domain.id for domain in domains])
    return [view.show(domain, keys[domain.id]) for domain in domains], pagination


async def delete(session: AsyncSession, org_id: UUID, domain_id: UUID, *, only: Collection[str] | None) -> None:
    """Take a domain out of use. Raises NotFound.

    Its name is free again at once and nothing more is accepted from it (by other processes, after
    SENDABLE_SECONDS). Mail accepted before is still signed: the keys stay until `wipe_deleted_keys`.
    """
    domain = await queries.get(session, org_id, domain_id, only, lock=True)
    if domain is None:
        raise NotFound("domain")
    domain.deleted_at = datetime.now(UTC)
    name = domain.name
    after_commit(session, lambda: forget(org_id, name))


async def published(session: AsyncSession, name: str, type: str) -> list[str]:
    """The values that Postroad asks anyone, of any organization, to publish under a DNS name.

    For the local mode's nameserver, which thereby serves its users' domains as they should be.
    """
    name = name.rstrip(".").lower()
    labels = name.split(".")
    # A record's name is the domain's with none, one (links) or two (selector._domainkey) labels before it.
    candidates = [".".join(labels[skip:]) for skip in range(min(3, len(labels)))]
    values: dict[str, None] = {}
    for domain in await queries.by_names(session, candidates):
        keys = await queries.keys(session, domain.org_id, [domain.id])
        for record in view.plan(domain, keys[domain.id]):
            if record.name == name and record.type == type.upper():
                values[record.value] = None
    return list(values)


async def wipe_deleted_keys(session: AsyncSession) -> int:
    """Null the private keys of deleted domains once no queued mail needs them; how many. For the sweep."""
    return await queries.wipe_deleted_keys(session, grace=_WIPE_GRACE)


def _exists(name: str) -> Conflict:
    return Conflict("domain_exists", f"{name} is already one of your organization's domains.")
