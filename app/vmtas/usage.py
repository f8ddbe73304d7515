"""What vMTAs have sent: counted against their warm-up before it goes out, and noted by how it was met after."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.vmtas import queries, warmup
from app.vmtas.choice import Vmta


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How a batch of one vMTA's mails was met by one provider on a day (UTC).

    `deferred` counts attempts, without greylisting, which judges nobody.
    """

    org_id: UUID
    vmta_id: UUID
    day: date
    provider: str
    delivered: int = 0
    deferred: int = 0
    hard_bounced: int = 0
    complained: int = 0


async def take(session: AsyncSession, vmta: Vmta, provider: str, count: int, now: datetime) -> int:
    """How many of `count` mails the vMTA may send to the provider now: all, unless its warm-up says fewer.

    What is granted counts at once and for all workers. The day's row is locked until the commit: take in a short
    transaction, and more than one in the order of (vMTA's id, provider).
    """
    if vmta.warmup is None or vmta.warmup_started_at is None:
        return count
    day = now.astimezone(UTC).date()
    started_at = vmta.warmup_started_at
    history = await queries.usage(session, vmta.org_id, vmta.id, since=started_at.astimezone(UTC).date())
    cap = warmup.cap(vmta.warmup, started_at, history, day, provider)
    if cap is not None:
        return await queries.take(session, vmta.org_id, vmta.id, day=day, provider=provider, count=count, cap=cap)
    if warmup.is_finished(vmta.warmup, started_at, history, day):
        await queries.finish_warmup(session, vmta.org_id, vmta.id, started_at=started_at)
    return count


async def give_back(session: AsyncSession, vmta: Vmta, provider: str, count: int, taken_at: datetime) -> None:
    """Let others have what was taken, at `taken_at`, for mails that were not transmitted after all."""
    if vmta.warmup is not None:
        day = taken_at.astimezone(UTC).date()
        await queries.give_back(session, vmta.org_id, vmta.id, day=day, provider=provider, count=count)


async def record(session: AsyncSession, rows: Collection[Outcomes]) -> None:
    """Add the counts of a batch, in one statement."""
    if rows:
        await queries.record(session, [asdict(one) for one in rows])
