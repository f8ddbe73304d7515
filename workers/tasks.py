"""Celery tasks: each a few lines that call app. All may be lost or repeated without harm."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.core.db import Database
from app.core.queue import RECHECK_TASK, RING_TASK, SWEEP_TASK, UPKEEP_TASK
from app.delivery import service
from app.delivery.engine import Engine
from app.domains import service as domains
from app.inbound import service as inbound
from app.mail.dns import Resolver
from app.messages.notices import SystemMailer
from workers import app as worker

ResultT = TypeVar("ResultT")


@worker.celery.task(name=RING_TASK)  # type: ignore[untyped-decorator]
def ring() -> None:
    """Mail is due: wake this process's engine."""
    if worker.engine is not None:
        worker.engine.call(Engine.ring)


@worker.celery.task(name=SWEEP_TASK)  # type: ignore[untyped-decorator]
def sweep() -> None:
    """Upkeep of small things; rings if any mail is due, expired leases included."""
    if _run(service.sweep):
        ring()


@worker.celery.task(name=UPKEEP_TASK)  # type: ignore[untyped-decorator]
def upkeep() -> None:
    """Make the partitions to come and drop those past retention; forget mails that came back long ago."""

    async def keep_up(database: Database) -> None:
        await service.upkeep_partitions(database, worker.settings)
        await inbound.upkeep(database)

    _run(keep_up)


@worker.celery.task(name=RECHECK_TASK)  # type: ignore[untyped-decorator]
def recheck_domains() -> None:
    """Look at the DNS records of the domains that are due."""
    settings = worker.settings

    async def recheck(database: Database) -> int:
        resolver = Resolver(settings.nameservers, timeout_seconds=settings.dns_timeout_seconds)
        return await domains.recheck_due(database, resolver, SystemMailer(settings, ring), settings)

    _run(recheck, pool_size=4)


def _run(work: Callable[[Database], Awaitable[ResultT]], *, pool_size: int = 1) -> ResultT:
    async def with_database() -> ResultT:
        database = Database(worker.settings, pool_size=pool_size)
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(with_database())
