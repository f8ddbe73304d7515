"""The delivery engine of one worker process: claim due mail, prepare it, let it leave, settle it.

One event loop, made after any fork. Postgres is the queue: a ring only shortens the wait until the next poll.
"""

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from app.core import ids
from app.core.config import Settings
from app.core.db import DATABASE_ERRORS, Database
from app.core.redis import connect
from app.delivery import queries
from app.delivery.content import Loader
from app.delivery.dispatch import Dispatcher, Fates
from app.delivery.egress import Egress
from app.delivery.holdings import Holdings
from app.delivery.lease import Held
from app.delivery.limits import SharedLimits
from app.delivery.routing import Router
from app.delivery.security import Policies
from app.delivery.service import HEARTBEAT_SECONDS
from app.delivery.settle import RETRY_SECONDS, Settler
from app.delivery.shaping import load as load_shaping
from app.mail.dns import Resolver
from app.mail.smtp import Timeouts
from app.queues import control

_BATCH = 100
# Small claims cost as much as large ones: let this much room gather first.
_ROOM_MIN = 25
# So much of a worker one tenant's claim may fill at most.
_TENANT_BATCH = 0.25
# Mail that expires soon finds room in a worker that is full of other mail: so much more, and so many times the share.
_URGENT_SHARE = 0.1
_URGENT_TIMES = 2
# Mail for an address that other hosts have is left to them for this long.
_FOREIGN_SECONDS = 30.0
_CLAIM_INTERVAL_SECONDS = 0.01
_BACKOFF_SECONDS = 1.0
_DRAIN_SECONDS = 20.0
_SECOND = 1.0
_SLOT_SECONDS = 15.0

log = structlog.get_logger(__name__)


class Engine:
    """Delivers mail until stopped. `ring` and `stop` are to be called in its event loop."""

    def __init__(self, settings: Settings, *, timeouts: Timeouts | None = None) -> None:
        self._settings = settings
        self._database = Database(settings, pool_size=4)
        self._redis = connect(settings)
        # The connections of a worker that has died are free no later than its mail.
        self._limits = SharedLimits(self._redis, ttl_seconds=min(_SLOT_SECONDS, settings.lease_seconds))
        resolver = Resolver(settings.nameservers, timeout_seconds=settings.dns_timeout_seconds)
        shaping = load_shaping(settings.shaping_file, site_connections=settings.site_connections)
        self._policies = Policies(settings, resolver)
        self._router = Router(settings, resolver, shaping, self._policies, timeouts or Timeouts())
        self._egress = Egress(settings, self._database)
        self._settler = Settler(settings, self._database, self._let_go)
        self._held = Holdings(settings, self._router.connections)
        fates = Fates(self._settler.add, self._park_soon, self._give_back_soon, self._let_go)
        loader = Loader(self._database, settings)
        self._dispatcher = Dispatcher(
            self._database, loader, self._router, self._egress, self._limits, self._held, fates, self._start
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._wake_urgent = asyncio.Event()
        self._more_due = False
        self._left_out: frozenset[str | UUID] = frozenset()
        self._stopping = False
        self._worker_id = ids.new_id()

    def ring(self) -> None:
        """There may be due mail."""
        self._wake.set()
        self._wake_urgent.set()

    def stop(self) -> None:
        """Claim no more; `run` returns once what is being transmitted has ended, or after 20 seconds."""
        self._stopping = True
        self.ring()

    async def run(self) -> None:
        """Deliver until `stop`. Raises what a part of it did not foresee, after ending what was under way."""
        claiming = [asyncio.create_task(self._claim(urgent=urgent)) for urgent in (False, True)]
        background = [
            asyncio.create_task(work)
            for work in (
                self._settler.run(),
                self._renew_leases(),
                self._beat(),
                self._limits.run(),
                self._egress.run(),
                self._policies.refresh(),
                self._each_second(),
            )
        ]
        try:
            # Without one of its parts it would hold mail for ever, or lose its leases.
            ended, _ = await asyncio.wait([*claiming, *background], return_when=asyncio.FIRST_COMPLETED)
            self.stop()
            await asyncio.wait(claiming)
            await self._drain()
        finally:
            await _end([*claiming, *background])
            await self._forget()
            await self._redis.aclose()
            await self._database.close()
        for task in ended:
            task.result()

    async def _claim(self, *, urgent: bool) -> None:
        wake = self._wake_urgent if urgent else self._wake
        if not await self._first_picture():
            return
        while not self._stopping:
            began_at = time.monotonic()
            if not await self._claim_once(urgent=urgent):
                await self._rest(wake)
            # Mail that trickles in is claimed by the handful: a claim of one costs nearly as much as one of many.
            await asyncio.sleep(max(0.0, began_at + _CLAIM_INTERVAL_SECONDS - time.monotonic()))

    async def _first_picture(self) -> bool:
        """Know what is paused or held before anything is sent; False when the engine is stopped first."""
        while not self._stopping:
            try:
                await self._egress.refresh()
                return True
            except DATABASE_ERRORS as error:
                _warn("egress_refresh_failed", error)
                await asyncio.sleep(_BACKOFF_SECONDS)
        return False

    async def _let_settle(self) -> None:
        """Wait until the database is back, and until all workers have settled what they could not meanwhile.

        Leases may have ended, and whoever claimed before that would send again what was delivered.
        """
        while not self._stopping:
            await asyncio.sleep(_BACKOFF_SECONDS)
            try:
                async with self._database.bare() as connection:
                    await connection.execute("SELECT 1")
            except DATABASE_ERRORS:
                continue
            await asyncio.sleep(2 * RETRY_SECONDS)
            return

    async def _rest(self, wake: asyncio.Event) -> None:
        """Wait for a ring, for room, or for the next poll; polls of many workers are spread."""
        try:
            async with asyncio.timeout(self._settings.poll_seconds * random.uniform(0.7, 1.3)):  # noqa: S311
                await wake.wait()
        except TimeoutError:
            pass
        wake.clear()

    async def _claim_once(self, *, urgent: bool = False) -> bool:
        """Claim what there is room for; whether more may be due right now."""
        concurrency = self._settings.delivery_concurrency
        room = concurrency - len(self._held)
        if urgent:
            room += max(1, int(concurrency * _URGENT_SHARE))
        if room < (1 if urgent else min(_ROOM_MIN, concurrency // 8 + 1)):
            return False
        # As much again of urgent mail, beside that of which there is enough.
        times = _URGENT_TIMES if urgent else 1
        busy_domains, busy_tenants = self._held.busy_domains(times), self._held.busy_tenants(times)
        size_max_bytes = self._held.claimable_bytes()
        asked_at = time.monotonic()
        try:
            async with self._database.bare() as connection:
                claims = await queries.claim(
                    connection,
                    batch=min(_BATCH, room),
                    tenant_batch=max(1, int(concurrency * _TENANT_BATCH)),
                    busy_domains=busy_domains,
                    busy_tenants=busy_tenants,
                    size_max_bytes=size_max_bytes,
                    lease_token=ids.new_id(),
                    lease_seconds=self._settings.lease_seconds,
                    foreign_vmtas=self._egress.foreign(),
                    foreign_seconds=_FOREIGN_SECONDS,
                    urgent=urgent,
                )
        except DATABASE_ERRORS as error:
            _warn("claim_failed", error)
            await self._let_settle()
            return False
        for claimed in claims:
            self._held.take(claimed, asked_at)
        self._start_ready()
        if not urgent:
            # Fewer than asked for need not be all: each tenant had only its share, and the busy ones were left out.
            self._more_due = bool(claims) or not self._held.is_any_size(size_max_bytes)
            self._left_out = frozenset([*busy_domains, *busy_tenants])
        return bool(claims)

    def _start_ready(self) -> None:
        for chunk in self._held.next_chunks():
            self._start(self._dispatcher.dispatch(chunk))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _park_soon(self, parked: Sequence[tuple[Held, datetime | None]]) -> None:
        async def park() -> None:
            claims = [held.claimed for held, _ in parked]
            # What expires meanwhile is told then.
            moments = [moment and min(moment, held.claimed.expires_at or moment) for held, moment in parked]
            await self._write_back("park_failed", lambda db: queries.park(db, claims, moments))
            for held, _ in parked:
                self._let_go(held)

        self._start(park())

    def _give_back_soon(self, unbegun: Sequence[Held]) -> None:
        async def give_back() -> None:
            claims = [held.claimed for held in unbegun]
            await self._write_back("release_failed", lambda db: queries.release(db, claims))
            for held in unbegun:
                self._let_go(held)

        self._start(give_back())

    async def _write_back(self, failure: str, write: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        try:
            async with self._database.bare() as connection:
                await write(connection)
        except DATABASE_ERRORS as error:
            # Then the lease ends by itself.
            _warn(failure, error)

    def _let_go(self, held: Held) -> None:
        """The delivery is no longer ours: make room for others."""
        claimed = held.claimed
        taken = self._held.leave_way(held)
        if taken is not None:
            self._egress.tally.give_back(taken)
        self._held.let_go(held)
        if self._held.has_ready:
            self._start_ready()
        # A slow host's backlog must not have us ask anew for each mail of the others.
        if self._more_due or claimed.domain in self._left_out or claimed.org_id in self._left_out:
            self._wake.set()

    async def _renew_leases(self) -> None:
        """Prolong what is held at a third of its lease, so that two renewals may fail before one is lost."""
        seconds = self._settings.lease_seconds
        while True:
            await asyncio.sleep(seconds / 3)
            holding = [(held, held.claimed) for held in self._held]
            if not holding:
                continue
            asked_at = time.monotonic()
            try:
                async with self._database.bare() as connection:
                    kept = await queries.renew(connection, [claimed for _, claimed in holding], lease_seconds=seconds)
            except DATABASE_ERRORS as error:
                _warn("renew_failed", error)
                continue
            for held, claimed in holding:
                if (claimed.org_id, claimed.delivery_id) in kept:
                    held.lease.renew(asked_at)
                elif held.claimed is claimed:
                    held.lease.lose()

    async def _beat(self) -> None:
        host, pid = socket.gethostname(), os.getpid()
        while True:
            try:
                async with self._database.transaction() as session:
                    self._limits.workers_alive = await queries.heartbeat(
                        session,
                        self._worker_id,
                        host=host,
                        pid=pid,
                        in_flight=len(self._held),
                        outcomes=dict(self._settler.counts),
                    )
            except DATABASE_ERRORS as error:
                _warn("heartbeat_failed", error)
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _each_second(self) -> None:
        """Tell the queues where domains lead, and see how quickly they take mail."""
        while True:
            await asyncio.sleep(_SECOND)
            self._held.tick()
            found, self._dispatcher.destinations = self._dispatcher.destinations, {}
            try:
                if found:
                    async with self._database.transaction() as session:
                        rows = [(domain, site, provider) for domain, (site, provider) in found.items()]
                        await control.upsert_destinations(session, rows)
            except DATABASE_ERRORS as error:
                _warn("destinations_failed", error)
                self._dispatcher.destinations = found | self._dispatcher.destinations

    async def _drain(self) -> None:
        """Give back what was not begun, wait for what was, write all of it down."""
        unbegun = self._held.take_back_ready()
        if unbegun:
            self._give_back_soon(unbegun)
        self._dispatcher.lanes.stop()
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._dispatcher.lanes.stopped()
                while self._tasks:
                    await asyncio.wait(self._tasks)
                    await self._dispatcher.lanes.stopped()
                await self._settler.drained()
        except TimeoutError:
            log.warning("drain_timed_out", in_flight=len(self._held), hint="retried when their leases end")
            self._dispatcher.lanes.abandon()
            for task in self._tasks:
                task.cancel()

    async def _forget(self) -> None:
        try:
            async with self._database.transaction() as session:
                await queries.forget_worker(session, self._worker_id)
        except DATABASE_ERRORS as error:
            _warn("farewell_failed", error)


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks, again if need be: a client library on the way may swallow what it takes for its own time-out."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)


def _warn(event: str, error: BaseException) -> None:
    log.warning(event, error=f"{type(error).__name__}: {error}"[:300])
