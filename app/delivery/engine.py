"""The delivery engine of one worker process: claim due mail, prepare it, transmit it, settle it.

One event loop, made after any fork. Postgres is the queue: a ring only shortens the wait until the next poll.
"""

import asyncio
import os
import random
import socket
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.core import ids
from app.core.config import Settings
from app.core.db import Database
from app.delivery import content, queries
from app.delivery.content import Prepared
from app.delivery.lease import ByteBudget, Lease
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
_CHUNK_BYTES = 4 * 2**20
_MEMORY_BYTES = 96 * 2**20
# A content exists as stored, as composed and as written to the socket.
_COPIES = 4
_OVERHEAD_BYTES = 4096
_BACKOFF_SECONDS = 1.0
_DRAIN_SECONDS = 20.0
# A site may hold this many times its connections in claimed mail; more would let one slow site fill the worker.
_SITE_BACKLOG = 3

log = structlog.get_logger(__name__)


class Engine:
    """Delivers mail until stopped. `ring` and `stop` are to be called in its event loop."""

    def __init__(self, settings: Settings, *, timeouts: Timeouts | None = None) -> None:
        self._settings = settings
        self._database = Database(settings, pool_size=4)
        resolver = Resolver(settings.nameservers, timeout_seconds=settings.dns_timeout_seconds)
        self._sites = Sites(settings, resolver, timeouts or Timeouts())
        self._settler = Settler(settings, self._database, self._on_settled)
        self._budget = ByteBudget(_MEMORY_BYTES)
        self._leases: dict[Key, tuple[Claimed, Lease]] = {}
        self._ready: deque[Claimed] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
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
        """Deliver until `stop`."""
        background = [
            asyncio.create_task(self._settler.run()),
            asyncio.create_task(self._renew_leases()),
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._sites.reap()),
        ]
        try:
            while not self._stopping:
                more = await self._claim_once()
                if not more:
                    await self._rest()
            await self._drain()
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._forget()
            await self._database.close()

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
        room = self._settings.delivery_concurrency - len(self._leases)
        batch = min(_BATCH, room)
        # Small claims cost as much as large ones: let some room gather first.
        if self._ready or (room < _BATCH and room < self._settings.delivery_concurrency // 2):
            return False
        self._wake.clear()
        lease = self._settings.lease_seconds
        busy = self._sites.busy(self._settings.site_connections * _SITE_BACKLOG)
        started = Lease.from_now(lease)
        try:
            async with self._database.transaction() as session:
                claims = await queries.claim(
                    session, batch=batch, busy_sites=busy, lease_token=ids.new_id(), lease_seconds=lease
                )
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("claim_failed", error=f"{type(error).__name__}: {error}"[:300])
            await asyncio.sleep(_BACKOFF_SECONDS)
            return False
        for claimed in claims:
            self._leases[claimed.org_id, claimed.delivery_id] = (claimed, Lease(lease, started.ends_at))
            self._sites.enter(claimed.site)
            self._ready.append(claimed)
        self._start_ready()
        return bool(claims)

    def _start_ready(self) -> None:
        """Start as much of the claimed mail as memory allows, in chunks that are loaded together."""
        while self._ready:
            chunk: list[Claimed] = []
            taken = 0
            while self._ready and taken < _CHUNK_BYTES:
                needed = _memory_bytes(self._ready[0])
                if not self._budget.try_take(needed):
                    break
                taken += needed
                chunk.append(self._ready.popleft())
            if not chunk:
                return
            task = asyncio.create_task(self._deliver_chunk(chunk))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver_chunk(self, chunk: Sequence[Claimed]) -> None:
        """Load the chunk's messages, then transmit each delivery on its own."""
        keys = {(claimed.org_id, claimed.message_id) for claimed in chunk}
        try:
            async with self._database.transaction() as session:
                prepared = await content.prepare(session, keys, self._settings.return_path_domain)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("load_failed", deliveries=len(chunk), error=f"{type(error).__name__}: {error}"[:300])
            # The leases end by themselves and another attempt is made then: nothing is lost, nothing was sent.
            for claimed in chunk:
                self._on_settled(claimed)
            return
        async with asyncio.TaskGroup() as group:
            for claimed in chunk:
                group.create_task(self._deliver(claimed, prepared.get((claimed.org_id, claimed.message_id))))

    async def _deliver(self, claimed: Claimed, prepared: Prepared | None) -> None:
        started_at = datetime.now(UTC)
        try:
            outcome = await self._attempt(claimed, prepared, started_at)
        except Exception as error:
            # One mail that trips us must neither stop the others nor be lost: it waits like any deferred mail.
            log.exception("attempt_failed", delivery_id=str(claimed.delivery_id))
            detail = f"internal error ({type(error).__name__})"
            outcome = Outcome(Status.DEFERRED, "internal_error", detail, started_at, datetime.now(UTC))
        if outcome is None:
            await self._give_back(claimed)
        else:
            self._settler.add(claimed, outcome)

    async def _attempt(self, claimed: Claimed, prepared: Prepared | None, started_at: datetime) -> Outcome | None:
        """The outcome of an attempt; None when it was not begun because the worker stops."""
        if claimed.expires_at is not None and claimed.expires_at <= started_at:
            detail = "expires_at passed before it could be delivered"
            return Outcome(Status.FAILED, "expired", detail, started_at, started_at)
        if prepared is None:
            detail = "the domain has no usable DKIM key"
            return Outcome(Status.DEFERRED, "no_signing_key", detail, started_at, started_at)
        _, lease = self._leases[claimed.org_id, claimed.delivery_id]

        def may_send() -> bool:
            expired = claimed.expires_at is not None and claimed.expires_at <= datetime.now(UTC)
            return lease.is_held and not expired

        site = self._sites.get(claimed.site)
        async with site.slots:
            if self._stopping:
                return None
            return await attempt(self._sites, site, claimed, prepared, may_send)

    async def _give_back(self, claimed: Claimed) -> None:
        try:
            async with self._database.transaction() as session:
                await queries.release(session, [claimed])
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("release_failed", error=f"{type(error).__name__}: {error}"[:300])
        self._on_settled(claimed)

    def _on_settled(self, claimed: Claimed) -> None:
        """The delivery is no longer ours: make room for others."""
        del self._leases[claimed.org_id, claimed.delivery_id]
        self._sites.leave(claimed.site)
        self._budget.give_back(_memory_bytes(claimed))
        self._start_ready()
        self._wake.set()

    async def _renew_leases(self) -> None:
        """Prolong what is held at a third of its lease, so that two renewals may fail before one is lost."""
        seconds = self._settings.lease_seconds
        while True:
            await asyncio.sleep(seconds / 3)
            held = list(self._leases.values())
            if not held:
                continue
            asked_at = time.monotonic()
            try:
                async with self._database.transaction() as session:
                    kept = await queries.renew(session, [claimed for claimed, _ in held], lease_seconds=seconds)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("renew_failed", error=f"{type(error).__name__}: {error}"[:300])
                continue
            for claimed, lease in held:
                if (claimed.org_id, claimed.delivery_id) in kept:
                    lease.renew(asked_at)
                else:
                    lease.lose()

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
                        in_flight=len(self._leases),
                        outcomes=dict(self._settler.counts),
                    )
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("heartbeat_failed", error=f"{type(error).__name__}: {error}"[:300])
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _drain(self) -> None:
        """Give back what was not begun, wait for what was, write all of it down."""
        while self._ready:
            await self._give_back(self._ready.popleft())
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while self._tasks:
                    await asyncio.wait(self._tasks)
                await self._settler.drained()
        except TimeoutError:
            log.warning("drain_timed_out", in_flight=len(self._leases), hint="retried when their leases end")
            for task in self._tasks:
                task.cancel()

    async def _forget(self) -> None:
        try:
            async with self._database.transaction() as session:
                await queries.forget_worker(session, self._worker_id)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("farewell_failed", error=f"{type(error).__name__}: {error}"[:300])


def _memory_bytes(claimed: Claimed) -> int:
    return claimed.size_bytes * _COPIES + _OVERHEAD_BYTES
