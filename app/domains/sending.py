"""What sending needs of domains: who may send, with which keys, and under which names of their own."""

import asyncio
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

import structlog
from cachetools import LRUCache, TTLCache
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import crypto
from app.core.errors import Flaw, Forbidden
from app.domains import queries, records
from app.domains.view import platform
from app.mail import dkim

KEY_PURPOSE = "dkim"
SENDABLE_SECONDS = 2.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SendingDomain:
    """A domain that mail is accepted from; `name` in A-labels."""

    org_id: UUID
    id: UUID
    name: str


@dataclass(frozen=True, slots=True)
class OwnNames:
    """The domain of envelope senders, and the host of links in mails; None: that of PUBLIC_URL."""

    envelope_domain: str
    link_host: str | None


# Only what may send is remembered, so that a domain can send at once when it is verified.
_sendable: TTLCache[tuple[UUID, str], SendingDomain] = TTLCache(10_000, SENDABLE_SECONDS)
_signers: LRUCache[UUID, dkim.Signer] = LRUCache(2000)


async def sendable(session: AsyncSession, org_id: UUID, name: str) -> SendingDomain | None:
    """The organization's domain of this name (A-labels) if mail may be sent from it; None when there is none.

    Costs no round trip when asked again within SENDABLE_SECONDS. Raises Forbidden (domain_not_verified), which
    points at the `from` that asked for it.
    """
    if (known := _sendable.get((org_id, name))) is not None:
        return known
    found = await queries.status(session, org_id, name)
    if found is None:
        return None
    domain_id, status = found
    if status != "verified":
        detail = f"{name} is not verified: publish its DNS records, then POST /api/v1/domains/{domain_id}/verify."
        raise Forbidden("domain_not_verified", detail, flaws=[Flaw("/from", "Its domain is not verified.")])
    domain = _sendable[org_id, name] = SendingDomain(org_id, domain_id, name)
    return domain


async def owned(session: AsyncSession, org_id: UUID, name: str) -> SendingDomain | None:
    """The organization's domain of this name (A-labels), verified or not, for mail that never leaves; None: no such."""
    found = await queries.status(session, org_id, name)
    return None if found is None else SendingDomain(org_id, found[0], name)


async def signing_keys(
    session: AsyncSession, pairs: Collection[tuple[UUID, UUID]]
) -> dict[tuple[UUID, UUID], list[dkim.Signer]]:
    """The signers of the active keys by (org_id, domain_id), the RSA key first; deleted domains included.

    A pair is absent when it has no active key, or when one of its keys cannot be opened: half a signature is
    not sent. Keys are unsealed and parsed once, then kept by this process (the 2,000 used last).
    """
    signers: dict[tuple[UUID, UUID], list[dkim.Signer]] = defaultdict(list)
    broken = set()
    for org_id, domain_id, key_id, name, selector, algorithm, sealed in await queries.active_keys(session, pairs):
        signer = _signers.get(key_id)
        if signer is None:
            try:
                private = crypto.unseal(sealed, purpose=KEY_PURPOSE)
                signer = await asyncio.to_thread(dkim.load, name, selector, algorithm, private)
            except (crypto.UnsealError, ValueError) as error:
                log.error("dkim_key_unusable", org_id=org_id, domain=name, selector=selector, error=str(error))
                broken.add((org_id, domain_id))
                continue
            _signers[key_id] = signer
        signers[org_id, domain_id].append(signer)
    return {pair: found for pair, found in signers.items() if pair not in broken}


async def own_names(session: AsyncSession, pairs: Collection[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], OwnNames]:
    """The names that mail of a domain bears, by (org_id, domain_id): its own where their records are verified.

    Pairs that are not in the answer (deleted domains) use the platform's.
    """
    ours = platform()
    return {
        (one.org_id, one.id): OwnNames(
            records.envelope_domain(one.name, one.checks, ours), records.link_host(one.name, one.checks, ours)
        )
        for one in await queries.by_ids(session, pairs)
    }


def forget(org_id: UUID, name: str) -> None:
    """Let nothing more be sent because of what this process remembers."""
    _sendable.pop((org_id, name), None)
