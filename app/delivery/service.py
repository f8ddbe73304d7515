"""What the rest of the house may ask of the engine: how it does, and its upkeep."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import idempotency, partitions
from app.core.config import Settings
from app.core.db import Database
from app.delivery import queries
from app.delivery.models import Worker
from app.domains import service as domains
from app.queues import control, throttles

HEARTBEAT_SECONDS = 5.0
_WAKE_LIMIT = 10_000
_WAKE_ROUNDS = 10
# Three missed beats: one late beat is no dead worker.
_ALIVE = func.make_interval(0, 0, 0, 0, 0, 0, 3 * HEARTBEAT_SECONDS)


@dataclass(frozen=True, slots=True)
class Overview:
    """The queue and the workers that are alive."""

    queued: int
    due: int
    oldest_due_seconds: float
    workers: tuple[Worker, ...]


async def overview(session: AsyncSession) -> Overview:
    """How the queue and the workers do."""
    queued, due, oldest = await queries.queue_overview(session)
    alive = await session.scalars(select(Worker).where(Worker.seen_at > func.now() - _ALIVE).order_by(Worker.id))
    return Overview(queued, due, oldest, tuple(alive))


async def sweep(database: Database) -> bool:
    """The regular upkeep of small things; whether mail is due, expired leases included, so that the caller rings."""
    for _ in range(_WAKE_ROUNDS):
        # Each in a transaction of its own: locks of a tenth of a second, and nothing is lost when one fails.
        async with database.transaction() as session:
            if await control.wake(session, _WAKE_LIMIT) < _WAKE_LIMIT:
                break
    async with database.transaction() as session:
        await idempotency.forget_old(session)
        await queries.forget_lost_workers(session)
        await throttles.forget_ended(session)
        await domains.wipe_deleted_keys(session)
        # What was woken is due.
        return await queries.is_due(session)


async def upkeep_partitions(database: Database, settings: Settings) -> None:
    """Make coming partitions, drop those past retention."""
    await partitions.upkeep(database.engine, now=datetime.now(UTC), retention_days=settings.retention_days)
