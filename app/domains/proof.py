"""Whether a domain is whose it is said to be: what the DNS says when it is asked, and again from time to time.

A key is proven when its own record is seen, a domain with its RSA key. Keys are random, so whoever has got a key's
record into the zone has the zone's consent. That also decides between organizations with the same domain:

- Only those whose own record has been seen may send.
- When another has proven the name and one's own record was replaced, or is gone at two looks in a row, one's proof is
  taken back and one's keys stop signing.
- Records under two selectors are the zone's consent to both (a company and its agency): both may send. To give the
  earlier one precedence would let the record of a service that was left long ago keep the domain's owner out.

Nothing is taken back because a look-up failed, or only because a record has vanished: the owners are told, once, when
it is gone at two looks in a row, and once when it is back.
"""

import asyncio
import random
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.notices import Mailer
from app.core.config import Settings, get_settings
from app.core.db import Database, after_commit
from app.core.errors import PostroadError
from app.domains import queries, records, rotation, schemas, view
from app.domains.models import DkimKey, Domain
from app.domains.notices import tell
from app.domains.sending import forget
from app.mail.dns import Found, LookupFailed, Records, Resolver

PENDING_FOR = timedelta(hours=72)
# Domains looked up at once; the resolver has room for all records of so many.
_BATCH = 20
_RUN_SECONDS = 20.0
_CLAIM_LEASE = timedelta(minutes=10)
_FIRST_CHECK = timedelta(minutes=1)
_SECOND_LOOK = timedelta(minutes=10)
_MISSES_TOLD = 2

_random = random.SystemRandom()

log = structlog.get_logger(__name__)

Health = Literal["well", "missing", "mismatch", "unknown"]
Looks = list[tuple[records.Record, Found]]


async def verify(
    database: Database, resolver: Resolver, org_id: UUID, domain_id: UUID, *, only: Collection[str] | None
) -> schemas.Domain:
    """Look all of a domain's records up and keep what was found. Raises NotFound.

    Proves keys and the domain, and takes nothing back: a record that has vanished is reported as missing, and where
    the look-up failed what was verified stays so.
    """
    looks = await _look(database, resolver, org_id, domain_id, only)
    async with database.transaction() as session:
        domain, keys = await queries.load(session, org_id, domain_id, only, lock=True)
        now = datetime.now(UTC)
        keys = await _write_down(session, domain, keys, looks, now)
        if _health(domain, keys)[0] == "well":
            domain.misses, domain.failing_since = 0, None
            # The next round of `recheck_due` tells the owners what whoever asked knows already.
            domain.next_check_at = now if domain.told_at else _next_check_at(domain, keys, now)
        elif domain.next_check_at is not None:
            domain.next_check_at = _next_check_at(domain, keys, now)
        return view.show(domain, keys)


async def trust(session: AsyncSession, org_id: UUID, domain_id: UUID) -> None:
    """Verify a domain and activate its keys without asking the DNS: for a domain that Postroad itself serves.

    It is not looked up by ourselves then. Raises NotFound.
    """
    domain, keys = await queries.load(session, org_id, domain_id, None, lock=True)
    rotation.activate(domain, keys, keys, datetime.now(UTC), _overlap())
    domain.next_check_at = None


async def recheck_due(database: Database, resolver: Resolver, mailer: Mailer, settings: Settings) -> int:
    """Look at the domains that are due, for at most 20 seconds; how many that were. For a periodic task.

    Verified domains are due every DOMAIN_RECHECK_SECONDS, sooner after a miss; domains and keys that wait for their
    records from the first minute on, ever more rarely, for 72 hours. Safe in several processes at once: each domain
    is claimed by one, and no transaction is open while the DNS is asked. Retires the keys whose overlap has passed.
    """
    async with database.transaction() as session:
        await queries.retire_keys(session)
    ends_at = time.monotonic() + _RUN_SECONDS
    checked = 0
    while time.monotonic() < ends_at:
        async with database.transaction() as session:
            claimed = await queries.claim_due(session, limit=_BATCH, lease=_CLAIM_LEASE)
        await asyncio.gather(*(_recheck(database, resolver, mailer, settings, *one) for one in claimed))
        checked += len(claimed)
        if len(claimed) < _BATCH:
            break
    return checked


async def _recheck(
    database: Database, resolver: Resolver, mailer: Mailer, settings: Settings, org_id: UUID, domain_id: UUID
) -> None:
    try:
        looks = await _look(database, resolver, org_id, domain_id, None)
        async with database.transaction() as session:
            domain, keys = await queries.load(session, org_id, domain_id, None, lock=True)
            now = datetime.now(UTC)
            keys = await _write_down(session, domain, keys, looks, now)
            await _consider(session, mailer, domain, keys, now)
            domain.next_check_at = _next_check_at(domain, keys, now, settings)
    except (PostroadError, SQLAlchemyError, OSError, TimeoutError) as error:
        # Deleted meanwhile, or the database is away: it is due again when the claim ends.
        log.info("recheck_failed", domain_id=str(domain_id), error=f"{type(error).__name__}: {error}"[:300])


async def _look(
    database: Database, resolver: Resolver, org_id: UUID, domain_id: UUID, only: Collection[str] | None
) -> Looks:
    """Look every record of a domain up, with no transaction open meanwhile."""
    async with database.transaction() as session:
        wanted = view.plan(*await queries.load(session, org_id, domain_id, only))
    answers = await asyncio.gather(*(_look_up(resolver, record) for record in wanted))
    return list(zip(wanted, answers, strict=True))


async def _look_up(resolver: Resolver, record: records.Record) -> Found:
    ask = {"TXT": resolver.txt, "CNAME": resolver.cname, "MX": resolver.mx}[record.type]
    return await ask(record.name, fresh=True)


async def _write_down(
    session: AsyncSession, domain: Domain, keys: Sequence[DkimKey], looks: Looks, now: datetime
) -> list[DkimKey]:
    """Keep what was found, prove what was seen, forget retired keys whose records are gone; the keys that remain."""
    checks = {record.key: _check(domain, record, answer) for record, answer in looks}
    domain.checks = {key: check.stored() for key, check in checks.items()}
    domain.checked_at = now
    seen = {record.name for record, _ in looks if checks[record.key].status == "verified"}
    proven = [key for key in keys if records.dkim_name(key.selector, domain.name) in seen]
    if rotation.activate(domain, keys, proven, now, _overlap()):
        await queries.hasten_rivals(session, domain.org_id, domain.name)
    absent = {record.name for record, _ in looks if checks[record.key].status == "missing"}
    gone = [key for key in keys if key.status == "retired" and records.dkim_name(key.selector, domain.name) in absent]
    await queries.delete_keys(session, domain.org_id, [key.id for key in gone])
    return [key for key in keys if key not in gone]


def _check(domain: Domain, record: records.Record, answer: Found) -> records.Check:
    if isinstance(answer, LookupFailed):
        return records.keep(record.last_check(domain.checks), answer.reason)
    return records.judge(record, answer.values if isinstance(answer, Records) else ())


def _health(domain: Domain, keys: Sequence[DkimKey]) -> tuple[Health, records.Record | None]:
    """What the last check says of the record without which mail cannot be verified: the active RSA key's."""
    for record in view.plan(domain, keys):
        key = record.dkim_key
        if key is not None and (key.algorithm, key.status) == ("rsa-sha256", "active"):
            check = record.last_check(domain.checks)
            match check.status:
                case "missing" | "mismatch":
                    return check.status, record
                case "verified" if check.error is None:
                    return "well", record
            return "unknown", record
    return "unknown", None


async def _consider(
    session: AsyncSession, mailer: Mailer, domain: Domain, keys: Sequence[DkimKey], now: datetime
) -> None:
    """Draw the conclusions from a check that nobody asked for, and tell the owners what they should know."""
    health, record = _health(domain, keys)
    if record is None or health == "unknown":
        return
    if health == "well":
        domain.misses, domain.failing_since = 0, None
        if domain.told_at is not None and await tell(session, mailer, domain, record, "well"):
            domain.told_at = None
        return
    domain.misses += 1
    is_definite = domain.misses >= _MISSES_TOLD
    # An answer with another value is no slow or broken nameserver's: once is enough when somebody else has proven it.
    if (is_definite or health == "mismatch") and await queries.is_proven_elsewhere(session, domain.org_id, domain.name):
        rotation.withdraw(domain, keys)
        org_id, name = domain.org_id, domain.name
        after_commit(session, lambda: forget(org_id, name))
        domain.misses, domain.failing_since = 0, now
        if await tell(session, mailer, domain, record, "lost"):
            domain.told_at = now
    elif is_definite:
        domain.failing_since = domain.failing_since or now
        if domain.told_at is None and await tell(session, mailer, domain, record, "failing"):
            domain.told_at = now


def _next_check_at(
    domain: Domain, keys: Sequence[DkimKey], now: datetime, settings: Settings | None = None
) -> datetime | None:
    """When to look again by ourselves, spread by a tenth; None for a domain that nobody seems to care for."""
    usual = timedelta(seconds=(settings or get_settings()).domain_recheck_seconds)
    waited = [now - key.created_at for key in keys if key.status == "pending"]
    if domain.failing_since is not None:
        waited.append(now - domain.failing_since)
    waiting = [age for age in waited if age < PENDING_FOR]
    if domain.status == "pending" and not waiting:
        return None
    pause = usual if not waiting else min(usual, max(_FIRST_CHECK, min(waiting) / 4))
    if domain.misses == 1:
        pause = min(pause, _SECOND_LOOK)
    return now + pause * _random.uniform(0.9, 1.1)


def _overlap() -> timedelta:
    return timedelta(seconds=get_settings().dkim_overlap_seconds)
