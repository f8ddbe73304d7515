"""Sending domains: their keys, the records to publish, their proof by DNS, and what sending needs of them.

PostroadError
├── Conflict     domain_exists, too_many_domains
├── Forbidden    domain_not_allowed (a restricted key), domain_not_verified
├── Invalid      name_too_long
└── NotFound     domain_not_found
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import idna
import structlog
from cachetools import LRUCache, TTLCache
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import crypto, ids
from app.core.config import get_settings
from app.core.db import Database, after_commit
from app.core.errors import Conflict, Flaw, Forbidden, Invalid, NotFound
from app.core.pagination import Page, Pagination
from app.domains import queries, records, schemas
from app.domains.models import DkimKey, Domain
from app.mail import dkim
from app.mail.dns import Found, LookupFailed, Records, Resolver

MAX_DOMAINS = 1000
SENDABLE_SECONDS = 2.0

_PURPOSE = "dkim"
# Mail of a request that saw the domain alive, or remembered it so, has certainly committed by then.
_WIPE_GRACE = timedelta(minutes=5)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SendingDomain:
    """A verified domain; `name` in A-labels."""

    org_id: UUID
    id: UUID
    name: str


# Only what may send is remembered, so that a domain can send at once when it is verified.
_sendable: TTLCache[tuple[UUID, str], SendingDomain] = TTLCache(10_000, SENDABLE_SECONDS)
_signers: LRUCache[UUID, dkim.Signer] = LRUCache(2000)


async def create(
    session: AsyncSession, org_id: UUID, *, name: str, selector: str, only: Collection[str] | None
) -> schemas.Domain:
    """Add a domain with an RSA-2048 and an Ed25519 key, both pending until their records are seen.

    `name` is in A-labels, `only` the names that the caller is restricted to. Raises Forbidden
    (domain_not_allowed), Invalid (name_too_long) and Conflict (domain_exists, too_many_domains).
    """
    if only is not None and name not in only:
        raise Forbidden("domain_not_allowed", "This API key is restricted to other domains.")
    ed25519_selector = selector + records.ED25519_SUFFIX
    if len(records.dkim_name(ed25519_selector, name)) > records.MAX_NAME_OCTETS:
        detail = f"With its selector the name is longer than the {records.MAX_NAME_OCTETS} octets that DNS allows."
        raise Invalid.at("/domain", detail, code="name_too_long")
    if await queries.exists(session, org_id, name):
        raise _exists(name)
    if await queries.count(session, org_id) >= MAX_DOMAINS:
        raise Conflict("too_many_domains", f"An organization may have {MAX_DOMAINS} domains.")
    rsa = await asyncio.to_thread(dkim.generate, "rsa-sha256")
    ed25519 = dkim.generate("ed25519-sha256")
    domain = await queries.add(session, org_id, ids.new_id(), name=name, selector=selector)
    if domain is None:
        raise _exists(name)
    keys = [
        _new_key(domain, selector, "rsa-sha256", *rsa),
        _new_key(domain, ed25519_selector, "ed25519-sha256", *ed25519),
    ]
    session.add_all(keys)
    await session.flush()
    return _show(domain, keys)


async def get(session: AsyncSession, org_id: UUID, domain_id: UUID, *, only: Collection[str] | None) -> schemas.Domain:
    """One domain. Raises NotFound."""
    return _show(*await _load(session, org_id, domain_id, only))


async def page(
    session: AsyncSession, org_id: UUID, wanted: Page, *, only: Collection[str] | None
) -> tuple[list[schemas.Domain], Pagination]:
    """A page of the organization's domains, newest first."""
    rows = await queries.page(session, org_id, wanted, only)
    domains, pagination = wanted.cut(rows, lambda domain: domain.id)
    keys = await queries.keys(session, org_id, [domain.id for domain in domains])
    return [_show(domain, keys[domain.id]) for domain in domains], pagination


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
    after_commit(session, lambda: _forget(org_id, name))


async def verify(
    database: Database, resolver: Resolver, org_id: UUID, domain_id: UUID, *, only: Collection[str] | None
) -> schemas.Domain:
    """Look all of a domain's records up and keep what was found. Raises NotFound.

    A key becomes active when its own record is seen, and the domain verified with its RSA key. Neither is
    undone here: a record that has vanished is reported as missing, and where the look-up failed what was
    verified stays so.
    """
    async with database.transaction() as session:
        domain, keys = await _load(session, org_id, domain_id, only)
    wanted = records.plan(domain.name, keys, _platform())
    answers = await asyncio.gather(*(_look_up(resolver, record) for record in wanted))
    async with database.transaction() as session:
        domain, keys = await _load(session, org_id, domain_id, only, lock=True)
        checks = {record.key: _check(domain, record, answer) for record, answer in zip(wanted, answers, strict=True)}
        now = datetime.now(UTC)
        domain.checks = {key: check.stored() for key, check in checks.items()}
        domain.checked_at = now
        seen = {record.name for record in wanted if checks[record.key].status == "verified"}
        proven = [key for key in keys if records.dkim_name(key.selector, domain.name) in seen]
        _activate(domain, proven, now)
        return _show(domain, keys)


async def trust(session: AsyncSession, org_id: UUID, domain_id: UUID) -> None:
    """Verify a domain and activate its keys without asking the DNS: for a domain that Postroad itself serves.

    Raises NotFound.
    """
    domain, keys = await _load(session, org_id, domain_id, None, lock=True)
    _activate(domain, keys, datetime.now(UTC))


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
                private = crypto.unseal(sealed, purpose=_PURPOSE)
                signer = await asyncio.to_thread(dkim.load, name, selector, algorithm, private)
            except (crypto.UnsealError, ValueError) as error:
                log.error("dkim_key_unusable", org_id=org_id, domain=name, selector=selector, error=str(error))
                broken.add((org_id, domain_id))
                continue
            _signers[key_id] = signer
        signers[org_id, domain_id].append(signer)
    return {pair: found for pair, found in signers.items() if pair not in broken}


async def envelope_domains(session: AsyncSession, pairs: Collection[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], str]:
    """The domain of envelope senders by (org_id, domain_id): its own where the return path is verified.

    Pairs that are not in the answer (deleted domains) use the platform's.
    """
    domains = await queries.by_ids(session, pairs)
    platform = _platform()
    return {(one.org_id, one.id): records.envelope_domain(one.name, one.checks, platform) for one in domains}


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
        for record in records.plan(domain.name, keys[domain.id], _platform()):
            if record.name == name and record.type == type.upper():
                values[record.value] = None
    return list(values)


async def wipe_deleted_keys(session: AsyncSession) -> int:
    """Null the private keys of deleted domains once no queued mail needs them; how many. For the sweep."""
    return await queries.wipe_deleted_keys(session, grace=_WIPE_GRACE)


async def _load(
    session: AsyncSession, org_id: UUID, domain_id: UUID, only: Collection[str] | None, *, lock: bool = False
) -> tuple[Domain, list[DkimKey]]:
    domain = await queries.get(session, org_id, domain_id, only, lock=lock)
    if domain is None:
        raise NotFound("domain")
    return domain, (await queries.keys(session, org_id, [domain_id]))[domain_id]


def _new_key(domain: Domain, selector: str, algorithm: dkim.Algorithm, private_der: bytes, public_key: str) -> DkimKey:
    return DkimKey(
        org_id=domain.org_id,
        id=ids.new_id(),
        domain_id=domain.id,
        algorithm=algorithm,
        selector=selector,
        public_key=public_key,
        private_key=crypto.seal(private_der, purpose=_PURPOSE),
        status="pending",
    )


async def _look_up(resolver: Resolver, record: records.Record) -> Found:
    ask = resolver.txt if record.type == "TXT" else resolver.cname
    return await ask(record.name, fresh=True)


def _check(domain: Domain, record: records.Record, answer: Found) -> records.Check:
    if isinstance(answer, LookupFailed):
        return records.keep(record.last_check(domain.checks), answer.reason)
    return records.judge(record, answer.values if isinstance(answer, Records) else ())


def _activate(domain: Domain, keys: Sequence[DkimKey], now: datetime) -> None:
    for key in keys:
        if key.status == "pending":
            key.status, key.activated_at = "active", now
    if domain.status == "pending" and any(key.algorithm == "rsa-sha256" for key in keys):
        domain.status, domain.verified_at = "verified", now


def _show(domain: Domain, keys: Sequence[DkimKey]) -> schemas.Domain:
    platform = _platform()
    return schemas.Domain(
        id=domain.id,
        domain=domain.name,
        domain_unicode=_unicode(domain.name),
        status=domain.status,
        verified=domain.status == "verified",
        dkim_selector=domain.dkim_selector,
        return_path_domain=records.envelope_domain(domain.name, domain.checks, platform),
        dns_records=[_show_record(record, domain) for record in records.plan(domain.name, keys, platform)],
        created_at=domain.created_at,
        verified_at=domain.verified_at,
        checked_at=domain.checked_at,
    )


def _show_record(record: records.Record, domain: Domain) -> schemas.DnsRecord:
    check = record.last_check(domain.checks)
    return schemas.DnsRecord(
        type=record.type,
        name=record.name,
        value=record.value,
        zone_line=record.zone_line,
        purpose=record.purpose,
        required=record.required,
        status=check.status,
        found=list(check.found),
        error=check.error,
    )


def _unicode(name: str) -> str:
    try:
        return idna.decode(name)
    except idna.IDNAError:
        # Names in plain ASCII may break rules of IDNA (hyphens in third and fourth place) and still exist.
        return name


def _platform() -> records.Platform:
    settings = get_settings()
    return records.Platform(settings.return_path_domain, settings.public_host)


def _forget(org_id: UUID, name: str) -> None:
    _sendable.pop((org_id, name), None)


def _exists(name: str) -> Conflict:
    return Conflict("domain_exists", f"{name} is already one of your organization's domains.")
