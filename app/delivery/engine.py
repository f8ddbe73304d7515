"""The delivery engine of one worker process: claim due mail, prepare it, transmit it, settle it.

One event loop, made after any fork. Postgres is the queue: a ring only shortens the wait until the next poll.
"""

import asyncio
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.core import ids
from app.core.config import Settings
from app.core.db import Database
from app.delivery import content, queries
from app.delivery.content import Prepared
from app.delivery.lease import ByteBudget, Held, Lease
from app.delivery.outcome import Claimed, Outcome
from app.delivery.queries import Key
from app.delivery.service import HEARTBEAT_SECONDS
from app.delivery.settle import Settler
from app.delivery.sites import Sites
from app.delivery.transmit import attempt
from app.mail.dns import Resolver
from app.mail.smtp import Timeouts
from app.messages.status import Status

_BATCH = 100
# Small claims cost as much as large ones: let this much room gather first.
_ROOM_MIN = 25
_CHUNK_BYTES = 4 * 2**20
_MEMORY_BYTES = 96 * 2**20
# A content exists as stored, as composed and as written to the socket.
_COPIES = 4
_OVERHEAD_BYTES = 4096
# Loads may not crowd settling and renewing out of the connection pool.
_LOADS_MAX = 3
_BACKOFF_SECONDS = 1.0
_DRAIN_SECONDS = 20.0
_CLAIM_INTERVAL_SECONDS = 0.01
_ANY_SIZE_BYTES = 2**62
# A site may hold this many times its connections in claimed mail; more would let one slow site fill the worker.
_SITE_BACKLOG = 3
# Nor may one tenant, however many slow sites it names, fill a worker: it gets no more mail claimed once it holds half,
# and never more than a quarter at once.
_TENANT_SHARE = 0.5
_TENANT_BATCH = 0.25

_AWAY = (SQLAlchemyError, OSError, TimeoutError)

log = structlog.get_logger(__name__)


class Engine:
    """Delivers mail until stopped. `ring` and `stop` are to be called in its event loop."""

    def __init__(self, settings: Settings, *, timeouts: Timeouts | None = None) -> None:
        self._settings = settings
        self._database = Database(settings, pool_size=8)
        resolver = Resolver(settings.nameservers, timeout_seconds=settings.dns_timeout_seconds)
        self._sites = Sites(settings, resolver, timeouts or Timeouts())
        self._settler = Settler(settings, self._database, self._let_go)
        self._budget = ByteBudget(_MEMORY_BYTES)
        self._loads = asyncio.Semaphore(_LOADS_MAX)
        self._held: dict[Key, Held] = {}
        self._ready: list[Held] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._more_due = False
        self._stopping = False
        self._worker_id = ids.new_id()

    def ring(self) -> None:
        """There may be due mail."""
        self._wake.set()

    def stop(self) -> None:
        """Claim no more; `run` returns once what is being transmitted has ended, or after 20 seconds."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Deliver until `stop`. Raises what a part of it did not foresee, after ending what was under way."""
        claiming = asyncio.create_task(self._claim())
        background = [
            asyncio.create_task(self._settler.run()),
            asyncio.create_task(self._renew_leases()),
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._sites.reap()),
        ]
        try:
            # Without one of its parts it would hold mail for ever, or lose its leases.
            ended, _ = await asyncio.wait([claiming, *background], return_when=asyncio.FIRST_COMPLETED)
            self.stop()
            await asyncio.wait([claiming])
            await self._drain()
        finally:
            for task in (claiming, *background):
                task.cancel()
            await asyncio.gather(claiming, *background, return_exceptions=True)
            await self._forget()
            await self._database.close()
        for task in ended:
            task.result()

    async def _claim(self) -> None:
        while not self._stopping:
            began_at = time.monotonic()
            if not await self._claim_once():
                await self._rest()
            # Mail that trickles in is claimed by the handful: a claim of one costs nearly as much as one of many.
            await asyncio.sleep(max(0.0, began_at + _CLAIM_INTERVAL_SECONDS - time.monotonic()))

    async def _rest(self) -> None:
        """Wait for a ring, for room, or for the next poll; polls of many workers are spread."""
        try:
            async with asyncio.timeout(self._settings.poll_seconds * random.uniform(0.7, 1.3)):  # noqa: S311
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _claim_once(self) -> bool:
        """Claim what there is room for; whether more may be due right now."""
        concurrency = self._settings.delivery_concurrency
        room = concurrency - len(self._held)
        if room < min(_ROOM_MIN, concurrency // 8 + 1):
            return False
        batch = min(_BATCH, room)
        busy_sites = self._sites.busy(self._settings.site_connections * _SITE_BACKLOG)
        busy_tenants = self._busy_tenants()
        size_max_bytes = self._claimable_bytes()
        asked_at = time.monotonic()
        try:
            async with self._database.transaction() as session:
                claims = await queries.claim(
                    session,
                    batch=batch,
                    tenant_batch=max(1, int(concurrency * _TENANT_BATCH)),
                    busy_domains=busy_sites,
                    busy_tenants=busy_tenants,
                    size_max_bytes=size_max_bytes,
                    lease_token=ids.new_id(),
                    lease_seconds=self._settings.lease_seconds,
                )
        except _AWAY as error:
            _warn("claim_failed", error)
            await asyncio.sleep(_BACKOFF_SECONDS)
            return False
        for claimed in claims:
            self._take(claimed, asked_at)
        self._start_ready()
        # Fewer than asked for need not be all: each tenant had only its share, and the busy ones were left out.
        self._more_due = bool(claims or busy_sites or busy_tenants) or size_max_bytes < _ANY_SIZE_BYTES
        return bool(claims)

    def _busy_tenants(self) -> list[str]:
        counts = Counter(org_id for org_id, _ in self._held)
        share = self._settings.delivery_concurrency * _TENANT_SHARE
        return [str(org_id) for org_id, count in counts.items() if count >= share]

    def _claimable_bytes(self) -> int:
        """The largest mail to claim now: large ones wait their turn in the queue, not here."""
        if any(self._budget.is_large(_memory_bytes(held.claimed)) for held in self._held.values()):
            return (_MEMORY_BYTES // 4 - _OVERHEAD_BYTES) // _COPIES
        return _ANY_SIZE_BYTES

    def _take(self, claimed: Claimed, asked_at: float) -> None:
        key = (claimed.org_id, claimed.delivery_id)
        if (known := self._held.get(key)) is not None:
            # Its lease had ended, during an outage of the database perhaps, while the attempt goes on here.
            known.claimed = claimed
            known.lease.renew(asked_at)
            return
        held = self._held[key] = Held(claimed, Lease.asked_at(asked_at, self._settings.lease_seconds))
        self._sites.enter(claimed.domain)
        self._ready.append(held)

    def _start_ready(self) -> None:
        """Start as much of the claimed mail as memory allows, in chunks that are loaded together."""
        waiting: list[Held] = []
        chunk: list[Held] = []
        chunk_bytes = 0
        for held in self._ready:
            needed = _memory_bytes(held.claimed)
            if not self._budget.try_take(needed):
                waiting.append(held)
                continue
            held.taken_bytes = needed
            chunk.append(held)
            chunk_bytes += needed
            if chunk_bytes >= _CHUNK_BYTES:
                self._start(self._deliver_chunk(chunk))
                chunk, chunk_bytes = [], 0
        if chunk:
            self._start(self._deliver_chunk(chunk))
        self._ready = waiting

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver_chunk(self, chunk: Sequence[Held]) -> None:
        """Load the chunk's messages, then transmit each delivery on its own."""
        started_at = datetime.now(UTC)
        keys = {(held.claimed.org_id, held.claimed.message_id) for held in chunk}
        try:
            async with self._loads, self._database.transaction() as session:
                prepared = await content.prepare(session, keys, self._settings.return_path_domain)
        except _AWAY as error:
            _warn("load_failed", error)
            # The leases end by themselves and another attempt is made then: nothing is lost, nothing was sent.
            for held in chunk:
                self._let_go(held)
            return
        except Exception as error:
            if len(chunk) > 1:
                # One message that trips us must not take the others with it.
                for held in chunk:
                    self._start(self._deliver_chunk([held]))
                return
            log.exception("prepare_failed", delivery_id=str(chunk[0].claimed.delivery_id))
            self._settler.add(chunk[0], _internal_error(error, started_at))
            return
        # Each delivery keeps its own message alive, and no other, for as long as it takes.
        for held in chunk:
            self._start(self._deliver(held, prepared.get((held.claimed.org_id, held.claimed.message_id))))

    async def _deliver(self, held: Held, prepared: Prepared | None) -> None:
        started_at = datetime.now(UTC)
        try:
            outcome = await self._attempt(held, prepared, started_at)
        except Exception as error:
            # One mail that trips us must neither stop the others nor be lost: it waits like any deferred mail.
            log.exception("attempt_failed", delivery_id=str(held.claimed.delivery_id))
            outcome = _internal_error(error, started_at)
        if outcome is None:
            await self._give_back([held])
        else:
            self._settler.add(held, outcome)

    async def _attempt(self, held: Held, prepared: Prepared | None, started_at: datetime) -> Outcome | None:
        """The outcome of an attempt; None when it was not begun because the worker stops."""
        claimed = held.claimed
        if claimed.expires_at is not None and claimed.expires_at <= started_at:
            detail = "expires_at passed before it could be delivered"
            return Outcome(Status.FAILED, "expired", detail, started_at, started_at)
        if prepared is None:
            detail = "the domain has no usable DKIM key"
            return Outcome(Status.DEFERRED, "no_signing_key", detail, started_at, started_at)

        def may_send() -> bool:
            expired = claimed.expires_at is not None and claimed.expires_at <= datetime.now(UTC)
            return held.lease.is_held and not expired

        site = self._sites.get(claimed.domain)
        async with site.slots:
            if self._stopping:
                return None
            return await attempt(self._sites, site, claimed, prepared, may_send)

    async def _give_back(self, unbegun: Sequence[Held]) -> None:
        try:
            async with self._database.transaction() as session:
                await queries.release(session, [held.claimed for held in unbegun])
        except _AWAY as error:
            _warn("release_failed", error)
        for held in unbegun:
            self._let_go(held)

    def _let_go(self, held: Held) -> None:
        """The delivery is no longer ours: make room for others."""
        del self._held[held.claimed.org_id, held.claimed.delivery_id]
        self._sites.leave(held.claimed.domain)
        if held.taken_bytes:
            self._budget.give_back(held.taken_bytes)
        self._start_ready()
        if self._more_due:
            self._wake.set()

    async def _renew_leases(self) -> None:
        """Prolong what is held at a third of its lease, so that two renewals may fail before one is lost."""
        seconds = self._settings.lease_seconds
        while True:
            await asyncio.sleep(seconds / 3)
            holding = [(held, held.claimed) for held in self._held.values()]
            if not holding:
                continue
            asked_at = time.monotonic()
            try:
                async with self._database.transaction() as session:
                    kept = await queries.renew(session, [claimed for _, claimed in holding], lease_seconds=seconds)
            except _AWAY as error:
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
                    await queries.heartbeat(
                        session,
                        self._worker_id,
                        host=host,
                        pid=pid,
                        in_flight=len(self._held),
                        outcomes=dict(self._settler.counts),
                    )
            except _AWAY as error:
                _warn("heartbeat_failed", error)
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _drain(self) -> None:
        """Give back what was not begun, wait for what was, write all of it down."""
        unbegun, self._ready = self._ready, []
        self._sites.dismiss()
        await self._give_back(unbegun)
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while self._tasks:
                    await asyncio.wait(self._tasks)
                await self._settler.drained()
        except TimeoutError:
            log.warning("drain_timed_out", in_flight=len(self._held), hint="retried when their leases end")
            for task in self._tasks:
                task.cancel()

    async def _forget(self) -> None:
        try:
            async with self._database.transaction() as session:
                await queries.forget_worker(session, self._worker_id)
        except _AWAY as error:
            _warn("farewell_failed", error)


def _warn(event: str, error: BaseException) -> None:
    log.warning(event, error=f"{type(error).__name__}: {error}"[:300])


def _internal_error(error: Exception, started_at: datetime) -> Outcome:
    detail = f"internal error ({type(error).__name__})"
    return Outcome(Status.DEFERRED, "internal_error", detail, started_at, datetime.now(UTC))


def _memory_bytes(claimed: Claimed) -> int:
    return claimed.size_bytes * _COPIES + _OVERHEAD_BYTES
