"""The life of DKIM keys: pending → active → retiring → retired, each algorithm for itself.

A new key is pending until its record has been seen in the DNS: signing with it earlier would make signatures that
nobody can check. The moment that it becomes active, the key that it replaces is retiring: it signs nothing more, but
mail that it signed is still on its way, in queues of receivers and forwarders, so its record has to stay for
DKIM_OVERLAP_SECONDS. Then it is retired, its private part is wiped, and its record may be removed.

No queued mail needs a key that was replaced: mail is signed when it is transmitted, at every attempt anew, with the
keys that are active then. A worker that had loaded its keys before the change signs with those it holds in memory,
whatever becomes of the rows, and for no longer than one claim of mail lasts; the overlap outlasts that by far. So
nothing has to be waited for when a key is retired.
"""

import asyncio
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.core import crypto, ids
from app.core.errors import Conflict, Invalid
from app.domains import queries, records, schemas, view
from app.domains.models import DkimKey, Domain
from app.domains.sending import KEY_PURPOSE
from app.mail import dkim

# A rotation is waited for from the first minute on.
_FIRST_CHECK = timedelta(minutes=1)
# Beside those in use; the oldest are forgotten.
MAX_RETIRED = 20

Pair = tuple[bytes, str]


async def rotate(
    session: AsyncSession, org_id: UUID, domain_id: UUID, *, selector: str | None, only: Collection[str] | None
) -> schemas.Domain:
    """Make a new RSA-2048 and Ed25519 key, pending, under `selector` or else the next free numbered one.

    Keys of an earlier rotation whose records were never seen are given up for it if another selector is named: they
    have signed nothing. Raises NotFound, Conflict (rotation_pending, selector_used) and Invalid (name_too_long).
    """
    domain, keys = await queries.load(session, org_id, domain_id, only, lock=True)
    waiting = [key for key in keys if key.status == "pending"]
    is_waited_for = any(key.algorithm == "rsa-sha256" for key in waiting)
    if is_waited_for and (selector is None or selector in {key.selector for key in waiting}):
        raise Conflict(
            "rotation_pending",
            "The newest keys still wait for their DNS records: publish those, or name another `dkim_selector` to "
            "give them up and begin anew.",
        )
    chosen = selector or next_selector(domain.dkim_selector, keys)
    if not {chosen, chosen + records.ED25519_SUFFIX}.isdisjoint(key.selector for key in keys):
        raise Conflict("selector_used", f"A key of this domain has the selector {chosen} already; choose another.")
    check_length(domain.name, chosen, pointer="/dkim_selector")
    for key in waiting:
        key.status, key.private_key = "retired", None
    new = new_keys(domain, chosen, await generate())
    session.add_all(new)
    domain.dkim_selector = selector or domain.dkim_selector
    domain.next_check_at = datetime.now(UTC) + _FIRST_CHECK
    surplus = [key for key in keys if key.status == "retired"][:-MAX_RETIRED]
    await session.flush()
    await queries.delete_keys(session, org_id, [key.id for key in surplus])
    return view.show(domain, [key for key in keys if key not in surplus] + new)


def next_selector(base: str, keys: Sequence[DkimKey]) -> str:
    """`base` with the number after the highest in use: pmta, pmta2, pmta3; after a digit with a hyphen before it."""
    stem = base + "-" if base[-1].isdigit() else base
    pattern = re.compile(rf"{re.escape(stem)}(\d{{1,9}})(?:{records.ED25519_SUFFIX})?")
    numbers = [int(found[1]) for key in keys if (found := pattern.fullmatch(key.selector))]
    return f"{stem}{max([1, *numbers]) + 1}"


def check_length(name: str, selector: str, *, pointer: str) -> None:
    """Raise Invalid (name_too_long) if a key's record could not stand in the DNS."""
    if len(records.dkim_name(selector + records.ED25519_SUFFIX, name)) > records.MAX_NAME_OCTETS:
        detail = f"With its selector the name is longer than the {records.MAX_NAME_OCTETS} octets that DNS allows."
        raise Invalid.at(pointer, detail, code="name_too_long")


async def generate() -> tuple[Pair, Pair]:
    """An RSA and an Ed25519 key as `dkim.generate` gives them."""
    return await asyncio.to_thread(dkim.generate, "rsa-sha256"), dkim.generate("ed25519-sha256")


def new_keys(domain: Domain, selector: str, pairs: tuple[Pair, Pair]) -> list[DkimKey]:
    """Rows for generated keys, pending."""
    rsa, ed25519 = pairs
    return [
        _new_key(domain, selector, "rsa-sha256", *rsa),
        _new_key(domain, selector + records.ED25519_SUFFIX, "ed25519-sha256", *ed25519),
    ]


def _new_key(domain: Domain, selector: str, algorithm: dkim.Algorithm, private_der: bytes, public_key: str) -> DkimKey:
    return DkimKey(
        org_id=domain.org_id,
        id=ids.new_id(),
        domain_id=domain.id,
        algorithm=algorithm,
        selector=selector,
        public_key=public_key,
        private_key=crypto.seal(private_der, purpose=KEY_PURPOSE),
        status="pending",
        created_at=datetime.now(UTC),
    )


def activate(
    domain: Domain, keys: Sequence[DkimKey], seen: Sequence[DkimKey], now: datetime, overlap: timedelta
) -> bool:
    """Let pending keys that were seen sign, and those that they replace retire; whether the domain became verified.

    `keys` are all of the domain's, oldest first. The domain is verified with its RSA key.
    """
    for algorithm in ("rsa-sha256", "ed25519-sha256"):
        fresh = [key for key in seen if key.algorithm == algorithm and key.status == "pending"]
        if not fresh:
            continue
        newest = max(fresh, key=lambda key: key.id)
        for key in keys:
            is_older = key.algorithm == algorithm and key.id < newest.id
            if is_older and key.status in {"active", "pending"}:
                key.status, key.retire_at = "retiring", now + overlap
        newest.status, newest.activated_at = "active", now
    if domain.status == "pending" and any(key.algorithm == "rsa-sha256" and key.status == "active" for key in seen):
        domain.status, domain.verified_at = "verified", now
        return True
    return False


def withdraw(domain: Domain, keys: Sequence[DkimKey]) -> None:
    """Take back the proof of a domain: nothing is accepted from it nor signed for it until its keys are seen again."""
    domain.status, domain.verified_at = "pending", None
    for key in keys:
        if key.status == "active":
            key.status = "pending"
