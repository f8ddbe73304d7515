"""What the engine and the sweep ask of queues: what is held, what may go on, where domains lead."""

from collections.abc import Collection, Iterable
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.queues import hold_queries

# (organization, vMTA or the nil UUID, site)
Held = tuple[UUID, UUID, str]

_NIL = UUID(int=0)


async def load_holds(session: AsyncSession) -> set[Held]:
    """Every hold there is, as (org_id, vmta_id or the nil UUID, site); to be asked with `is_held`."""
    return set(await hold_queries.holds(session))


def is_held(holds: Collection[Held], org_id: UUID, vmta_id: UUID | None, domain: str, site: str) -> bool:
    """Whether a domain's mail is held: by its site, or by its own name (a hold made before its site was known)."""
    way = vmta_id or _NIL
    return (org_id, way, site) in holds or (org_id, way, domain) in holds


async def wake(session: AsyncSession, limit: int = 10_000) -> int:
    """Make held mail due that has expired, or that neither a hold nor a paused vMTA keeps any more; how many.

    At most `limit` of each kind. What has expired comes due whatever holds it, for the engine to settle it as failed.
    """
    expired = await hold_queries.wake_expired(session, limit=limit)
    return expired + await hold_queries.wake(session, limit=limit)


async def upsert_destinations(session: AsyncSession, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write down where domains lead, as (domain, site, provider). What is known from today costs no write."""
    # In one order everywhere, so that two workers never wait for each other's rows.
    unique = sorted({row[0]: row for row in rows}.values())
    if unique:
        domains, sites, providers = map(list, zip(*unique, strict=True))
        await hold_queries.upsert(session, domains, sites, providers)
