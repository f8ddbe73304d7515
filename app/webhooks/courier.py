"""`postroad webhooks`: hands events on to webhooks and delivers them, in a process of its own, on one event loop.

Any number of these processes may run. It is nice: when the processors are full, mail goes first.
"""

import asyncio
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from app.core import ids
from app.core.config import Settings
from app.core.crypto import UnsealError
from app.core.db import DATABASE_ERRORS, Database, is_away
from app.core.memory import collect_rarely
from app.core.priority import Processors
from app.core.web import Web
from app.mail.dns import Resolver
from app.messages.notices import SystemMailer
from app.webhooks import due, fanout
from app.webhooks.due import Job
from app.webhooks.endpoint import FIRST_ROOM, Endpoint, Endpoints
from app.webhooks.post import TIMEOUT_SECONDS, Attempt
from app.webhooks.settle import Settler

# Beside mail that takes all there is it gets a fiftieth; whatever mail leaves, it has.
NICENESS = 19

# What one process has in hand, and posts at once; of one organization.
_HELD_MAX = 5000
_AT_ONCE_MAX = 1000
_ORGANIZATION_AT_ONCE_MAX = 100
# Of what is still free an organization gets so much at most, so that there is room for one more, however many take all
# they may: a dynamic threshold, as switches share their buffers by (Choudhury and Hahne, 1998).
_SHARE_OF_FREE = 0.25
_CLAIM_BATCH = 500
_CANCEL_BATCH = 2000
_FAN_OUT_SECONDS = 0.2
# While the processors are full: so few of an organization's events are handed on, so seldom, until they are that old.
_FULL_BATCH = 50
_FULL_SECONDS = 1.0
_LATE = timedelta(minutes=1)
_POLL_SECONDS = 0.5
_CLAIM_INTERVAL_SECONDS = 0.02
_UPKEEP_SECONDS = 1.0
_COUNTS_SECONDS = 5.0
_BACKOFF_SECONDS = 1.0
_DRAIN_SECONDS = TIMEOUT_SECONDS + 5.0

log = structlog.get_logger(__name__)


async def run(settings: Settings) -> None:
    """Deliver until the process is asked to end, then end in order."""
    collect_rarely()
    courier = Courier(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, courier.stop)
    log.info("webhooks_ready")
    await courier.run()


class Courier:
    """Hands on and delivers until stopped. Belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._lease_seconds = settings.lease_seconds
        self._database = Database(settings, pool_size=4)
        resolver = Resolver(settings.nameservers, timeout_seconds=settings.dns_timeout_seconds)
        self._endpoints = Endpoints(Web(settings, resolver.address_list))
        self._settler = Settler(self._database, SystemMailer(settings), self._let_go)
        self._held: dict[UUID, Job] = {}
        # Endpoints that have something to begin, in turn.
        self._turns: dict[Endpoint, None] = {}
        # Those whose organization has as much under way as it may.
        self._crowded: defaultdict[UUID, dict[Endpoint, None]] = defaultdict(dict)
        self._busy: Counter[UUID] = Counter()
        self._processors = Processors()
        self._are_processors_full = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Take nothing more in hand; `run` returns once what is under way has ended, or after 20 seconds."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Deliver until `stop`. Raises what a part of it did not foresee, after ending what was under way."""
        taking = [asyncio.create_task(work) for work in (self._fan_out(), self._claim())]
        background = [
            asyncio.create_task(work)
            for work in (self._settler.run(), self._renew_leases(), self._keep_up(), self._flush_counts())
        ]
        try:
            ended, _ = await asyncio.wait([*taking, *background], return_when=asyncio.FIRST_COMPLETED)
            self.stop()
            await asyncio.wait(taking)
            await self._drain()
        finally:
            for task in (*taking, *background, *self._tasks):
                task.cancel()
            await asyncio.gather(*taking, *background, *self._tasks, return_exceptions=True)
            for endpoint in self._endpoints:
                endpoint.lines.close()
            await self._database.close()
        for task in ended:
            task.result()

    async def _fan_out(self) -> None:
        while not self._stopping.is_set():
            try:
                has_more = await self._fan_out_once()
            except DATABASE_ERRORS as error:
                _warn("fan_out_failed", error)
                await self._rest(_BACKOFF_SECONDS)
                continue
            if self._are_processors_full:
                await self._rest(_FULL_SECONDS)
            elif not has_more:
                await self._rest(_FAN_OUT_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311

    async def _fan_out_once(self) -> bool:
        """Hand on a batch of each organization's events; whether there are more."""
        has_more = False
        enough = Counter(endpoint.key[0] for endpoint in self._endpoints if endpoint.has_enough)
        async with self._database.bare() as connection:
            for org_id, webhooks in await fanout.organizations_with_news(connection):
                if self._stopping.is_set():
                    break
                # Events wait in the log as well as anywhere, and cost nothing there.
                if enough[org_id] >= webhooks:
                    continue
                has_more = await self._hand_on(connection, org_id) or has_more
        return has_more

    async def _hand_on(self, connection: asyncpg.Connection, org_id: UUID) -> bool:
        budget = max(0, int((_HELD_MAX - len(self._held)) * _SHARE_OF_FREE))
        try:
            handed = await fanout.hand_on(
                connection,
                org_id,
                self._endpoints,
                limit=_FULL_BATCH if self._are_processors_full else fanout.BATCH,
                budget=budget,
                lease_seconds=self._lease_seconds,
            )
        except Exception as error:
            if is_away(error):
                raise
            # Whatever it is with this organization's events, the others' go on.
            log.exception("fan_out_refused", org_id=str(org_id))
            return False
        for endpoint, count in handed.left.items():
            endpoint.waiting += count
        if handed.age > _LATE:
            self._are_processors_full = False
        self._take(handed.jobs)
        return handed.has_more

    async def _claim(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                claimed = await self._claim_once()
            except DATABASE_ERRORS as error:
                _warn("webhook_claim_failed", error)
                await self._rest(_BACKOFF_SECONDS)
                continue
            if claimed:
                await asyncio.sleep(_CLAIM_INTERVAL_SECONDS)
                continue
            try:
                async with asyncio.timeout(_POLL_SECONDS * random.uniform(0.7, 1.3)):  # noqa: S311
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _claim_once(self) -> bool:
        """Claim what is due and what there is room for; whether there was any."""
        batch = min(_CLAIM_BATCH, _HELD_MAX - len(self._held))
        if batch <= 0:
            return False
        rooms = self._endpoints.rooms()
        async with self._database.bare() as connection:
            jobs = await due.claim(
                connection,
                rooms,
                room=FIRST_ROOM,
                batch=batch,
                lease_token=ids.new_id(),
                lease_seconds=self._lease_seconds,
                leased_until=time.monotonic() + self._lease_seconds,
            )
            unknown = {(job.org_id, job.webhook_id) for job in jobs}
            unknown = {key for key in unknown if self._endpoints.get(key) is None}
            for row in await due.endpoints(connection, unknown) if unknown else ():
                self._endpoints.know(row)
        # One that was disabled in this moment is not known: the lease ends, and it is cancelled.
        found = [(self._endpoints.get((job.org_id, job.webhook_id)), job) for job in jobs]
        taken = [(endpoint, job) for endpoint, job in found if endpoint is not None]
        counts = Counter(endpoint for endpoint, _ in taken)
        for endpoint in self._endpoints:
            # One that got less than it had room for has nothing more there.
            if counts[endpoint] >= rooms.get(endpoint.key[1], FIRST_ROOM):
                endpoint.waiting = max(1, endpoint.waiting - counts[endpoint])
            elif len(jobs) < batch:
                endpoint.waiting = 0
        self._take(taken)
        return bool(jobs)

    def _take(self, jobs: Sequence[tuple[Endpoint, Job]]) -> None:
        """Take deliveries in hand, and begin what may begin."""
        for endpoint, job in jobs:
            self._held[job.id] = job
            endpoint.fill(job)
            self._turns[endpoint] = None
        self._begin()

    def _begin(self) -> None:
        """Begin attempts, one endpoint after the other, while more may be under way."""
        while self._turns and (free := _AT_ONCE_MAX - self._busy.total()) > 0 and not self._stopping.is_set():
            endpoint = next(iter(self._turns))
            del self._turns[endpoint]
            org_id, _ = endpoint.key
            if not endpoint.may_begin:
                continue
            share = min(int(free * _SHARE_OF_FREE), _ORGANIZATION_AT_ONCE_MAX)
            if self._busy[org_id] >= max(1, share):
                # Something of it is under way then, at whose end it is tried again.
                self._crowded[org_id][endpoint] = None
                continue
            self._busy[org_id] += 1
            self._start(self._attempt(endpoint, endpoint.next_job()))
            self._turns[endpoint] = None

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attempt(self, endpoint: Endpoint, job: Job) -> None:
        attempt: Attempt | None = None
        try:
            # After its lease it may be in other hands.
            if time.monotonic() < job.leased_until:
                attempt = await _post(endpoint, job)
        finally:
            self._leave(job.org_id)
            endpoint.ended(attempt)
            if attempt is None:
                self._let_go(job)
            else:
                self._settler.add(endpoint, job, attempt)
        if endpoint.pause_seconds > 0:
            await self._give_back(endpoint.take_back(), after_seconds=endpoint.pause_seconds)
        self._turns.setdefault(endpoint)
        self._begin()
        if endpoint.wants_more:
            self._wake.set()

    def _leave(self, org_id: UUID) -> None:
        """One attempt of an organization's less is under way."""
        self._busy[org_id] -= 1
        if not self._busy[org_id]:
            del self._busy[org_id]
        self._turns.update(self._crowded.pop(org_id, {}))

    def _let_go(self, job: Job) -> None:
        self._held.pop(job.id, None)

    async def _give_back(self, jobs: Sequence[Job], *, after_seconds: float = 0.0) -> None:
        if not jobs:
            return
        try:
            async with self._database.bare() as connection:
                await due.give_back(connection, jobs, after_seconds=after_seconds)
        except DATABASE_ERRORS as error:
            # Then their leases end by themselves.
            _warn("webhook_give_back_failed", error)
        for job in jobs:
            self._let_go(job)

    async def _renew_leases(self) -> None:
        """Prolong at a third of their time the leases of what is held for long."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            now = time.monotonic()
            jobs = [job for job in self._held.values() if job.leased_until - now < self._lease_seconds * 2 / 3]
            if not jobs:
                continue
            try:
                async with self._database.bare() as connection:
                    kept = await due.renew(connection, jobs, lease_seconds=self._lease_seconds)
            except DATABASE_ERRORS as error:
                _warn("webhook_renew_failed", error)
                continue
            for job in jobs:
                job.leased_until = now + self._lease_seconds if job.id in kept else now

    async def _keep_up(self) -> None:
        """Each second: learn how webhooks are set now, cancel what waits for those that are off, forget the idle."""
        while True:
            await asyncio.sleep(_UPKEEP_SECONDS)
            self._are_processors_full = self._processors.were_full()
            try:
                await self._refresh()
                async with self._database.bare() as connection:
                    while await due.cancel_for_closed(connection, limit=_CANCEL_BATCH) == _CANCEL_BATCH:
                        pass
            except DATABASE_ERRORS as error:
                _warn("webhook_upkeep_failed", error)

    async def _refresh(self) -> None:
        for endpoint in list(self._endpoints):
            if endpoint.is_idle:
                self._endpoints.forget(endpoint)
        known = {endpoint.key: endpoint for endpoint in self._endpoints}
        if not known:
            return
        async with self._database.bare() as connection:
            rows = await due.endpoints(connection, known)
        for row in rows:
            known.pop((row.org_id, row.id)).update(row)
        for endpoint in known.values():
            # Disabled, or deleted.
            self._endpoints.forget(endpoint)
            await self._give_back(endpoint.take_back())

    async def _flush_counts(self) -> None:
        try:
            while True:
                await asyncio.sleep(_COUNTS_SECONDS)
                await self._settler.flush_counts()
        finally:
            await self._settler.flush_counts()

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _drain(self) -> None:
        """Give back what was not begun, wait for what was, write all of it down."""
        await self._give_back([job for endpoint in self._endpoints for job in endpoint.take_back()])
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await _ended(self._tasks)
                await self._settler.drained()
        except TimeoutError:
            log.warning("webhook_drain_timed_out", held=len(self._held), hint="tried again when their leases end")


async def _post(endpoint: Endpoint, job: Job) -> Attempt:
    payload = job.payload.encode()
    try:
        headers = endpoint.headers(job, payload)
    except UnsealError as error:
        log.error("webhook_secret_lost", webhook_id=str(job.webhook_id), error=str(error))
        return Attempt(datetime.now(UTC), error="Its secret cannot be read any more: rotate it.")
    try:
        return await endpoint.lines.post(headers, payload)
    except Exception:
        # What nobody foresaw counts as a failure, so that it comes to an end.
        log.exception("webhook_attempt_failed", webhook_id=str(job.webhook_id), delivery_id=str(job.id))
        return Attempt(datetime.now(UTC), error="The attempt failed on our side.")


async def _ended(tasks: Collection[asyncio.Task[None]]) -> None:
    while tasks:
        await asyncio.wait(tasks)


def _warn(event: str, error: BaseException) -> None:
    log.warning(event, error=f"{type(error).__name__}: {error}"[:300])
