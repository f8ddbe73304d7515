"""The delivery engine of one worker process: claim due mail, prepare it, let it leave, settle it.

One event loop, made after any fork. Postgres is the queue: a ring only shortens the wait until the next poll.
"""

import asyncio
import os
import random
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from app.core import ids
from app.core.config import Settings
from app.core.db import DATABASE_ERRORS, Database
from app.core.redis import connect
from app.delivery import queries, simulator
from app.delivery.content import Loader, Prepared
from app.delivery.egress import Egress, Wait, Way
from app.delivery.lanes import Ends, Lanes, expired, internal_error
from app.delivery.lease import ByteBudget, Gate, Held, Lease
from app.delivery.limits import SharedLimits
from app.delivery.outcome import Claimed, Outcome
from app.delivery.queries import Key
from app.delivery.routing import Route, Router, Unreachable
from app.delivery.security import Policies
from app.delivery.service import HEARTBEAT_SECONDS
from app.delivery.settle import Settler
from app.delivery.shaping import load as load_shaping
from app.delivery.tally import Taken
from app.delivery.transmit import unreached
from app.mail.dns import Resolver
from app.mail.smtp import Timeouts
from app.messages.status import Status
from app.queues import control

_BATCH = 100
# Small claims cost as much as large ones: let this much room gather first.
_ROOM_MIN = 25
_CHUNK_BYTES = 4 * 2**20
_MEMORY_BYTES = 96 * 2**20
# A content exists as stored, as composed and as written to the socket.
_COPIES = 4
_OVERHEAD_BYTES = 4096
# Loads may not crowd settling and renewing out of the connection pool.
_LOADS_MAX = 2
_BACKOFF_SECONDS = 1.0
_DRAIN_SECONDS = 20.0
_CLAIM_INTERVAL_SECONDS = 0.01
_ANY_SIZE_BYTES = 2**62
# Claimed mail that a site may have waiting: so many times its connections, or what it has lately taken in a second.
# More would let one slow site fill the worker, less would let a quick one wait for claims.
_SITE_BACKLOG = 3
_BACKLOG_SECONDS = 1.0
# Nor may one tenant, however many slow sites it names, fill a worker: it gets no more mail claimed once it holds half,
# and never more than a quarter at once.
_TENANT_SHARE = 0.5
_TENANT_BATCH = 0.25
# Mail that expires soon finds room in a worker that is full of other mail.
_URGENT_SHARE = 0.1
_URGENT_TIMES = 2
# Mail for an address that other hosts have is left to them for this long.
_FOREIGN_SECONDS = 30.0
# Held back together, let go one by one.
_SPREAD_SECONDS = 5.0
# What a warm-up does not let go is tried again after this: at midnight, or when its owner lets it go.
_ALLOWANCE_SECONDS = 3600.0
_SECOND = 1.0
_SLOT_SECONDS = 15.0
_DESTINATIONS_MAX = 50_000

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
        self._loader = Loader(self._database, settings.return_path_domain)
        self._settler = Settler(settings, self._database, self._let_go)
        ends = Ends(self._settler.add, self._park_soon, self._give_back_soon, self._reroute)
        self._lanes = Lanes(self._router, self._egress, self._limits, ends)
        self._budget = ByteBudget(_MEMORY_BYTES)
        self._loads = asyncio.Semaphore(_LOADS_MAX)
        self._held: dict[Key, Held] = {}
        self._of_tenant: Counter[UUID] = Counter()
        self._of_domain: Counter[str] = Counter()
        self._gates: dict[str, Gate] = {}
        self._pace: Counter[str] = Counter()
        self._pace_before: Counter[str] = Counter()
        self._ready: list[Held] = []
        self._destinations: dict[str, tuple[str, str]] = {}
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
        busy_domains, busy_tenants = self._busy_domains(times), self._busy_tenants(times)
        size_max_bytes = self._claimable_bytes()
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
            await asyncio.sleep(_BACKOFF_SECONDS)
            return False
        for claimed in claims:
            self._take(claimed, asked_at)
        self._start_ready()
        if not urgent:
            # Fewer than asked for need not be all: each tenant had only its share, and the busy ones were left out.
            self._more_due = bool(claims) or size_max_bytes < _ANY_SIZE_BYTES
            self._left_out = frozenset([*busy_domains, *busy_tenants])
        return bool(claims)

    def _busy_tenants(self, times: int) -> list[UUID]:
        share = self._settings.delivery_concurrency * _TENANT_SHARE * times
        return [org_id for org_id, count in self._of_tenant.items() if count >= share]

    def _busy_domains(self, times: int) -> list[str]:
        """The domains that this worker holds so many times enough mail for, by themselves or together with others of
        their site.
        """
        busy = set()
        for domain, count in self._of_domain.items():
            route = self._router.known(domain)
            connections = route.rule.connections if route is not None else self._settings.site_connections
            if self._is_enough(count / times, connections, [domain]):
                busy.add(domain)
        for gate in self._gates.values():
            if self._is_enough(gate.held / times, gate.connections, gate.domains):
                busy.update(gate.domains)
        return list(busy)

    def _is_enough(self, count: float, connections: int, domains: Iterable[str]) -> bool:
        if count < _SITE_BACKLOG * connections:
            return False
        lately = sum(max(self._pace[domain], self._pace_before[domain]) for domain in domains)
        return count >= lately * _BACKLOG_SECONDS

    def _claimable_bytes(self) -> int:
        """The largest mail to claim now: large ones wait their turn in the queue, not here."""
        if self._budget.has_large or any(self._budget.is_large(_memory_bytes(held.claimed)) for held in self._ready):
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
        self._of_tenant[claimed.org_id] += 1
        self._of_domain[claimed.domain] += 1
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
                self._start(self._dispatch(chunk))
                chunk, chunk_bytes = [], 0
        if chunk:
            self._start(self._dispatch(chunk))
        self._ready = waiting

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dispatch(self, chunk: Sequence[Held]) -> None:
        """Load the chunk's messages, then let each delivery go its way."""
        prepared = await self._load(chunk)
        if prepared is None:
            return
        by_domain: defaultdict[str, list[Held]] = defaultdict(list)
        now = datetime.now(UTC)
        for held in chunk:
            claimed = held.claimed
            held.prepared = prepared.get((claimed.org_id, claimed.message_id))
            if held.is_expired:
                self._settler.add(held, expired(now))
            elif claimed.simulated is not None:
                self._settler.add(held, _simulated(claimed.simulated, claimed.attempt, now))
            elif held.prepared is None:
                detail = "the domain has no usable DKIM key"
                self._settler.add(held, Outcome(Status.DEFERRED, "no_signing_key", detail, now, now))
            else:
                by_domain[claimed.domain].append(held)
        for domain, mails in by_domain.items():
            route = self._router.known(domain)
            if route is not None:
                await self._let_leave(mails, route)
            else:
                # A slow DNS must not keep the others of this chunk waiting.
                self._start(self._find_route(domain, mails))

    async def _load(self, chunk: Sequence[Held]) -> dict[Key, Prepared] | None:
        """The chunk's messages; None when they could not be had, and what follows from that has been done."""
        # What is simulated is never composed.
        keys = {(held.claimed.org_id, held.claimed.message_id) for held in chunk if held.claimed.simulated is None}
        try:
            async with self._loads:
                return await self._loader.load(keys) if keys else {}
        except DATABASE_ERRORS as error:
            _warn("load_failed", error)
            # The leases end by themselves and another attempt is made then: nothing is lost, nothing was sent.
            for held in chunk:
                self._let_go(held)
        except Exception as error:
            if len(chunk) > 1:
                # One message that trips us must not take the others with it.
                for held in chunk:
                    self._start(self._dispatch([held]))
                return None
            log.exception("prepare_failed", delivery_id=str(chunk[0].claimed.delivery_id))
            self._settler.add(chunk[0], internal_error(error))
        return None

    async def _find_route(self, domain: str, mails: Sequence[Held]) -> None:
        started_at = datetime.now(UTC)
        try:
            route = await self._router.find(domain)
        except Exception as error:
            self._trip("route_failed", mails, error)
            return
        if isinstance(route, Unreachable):
            for held in mails:
                self._settler.add(held, unreached(route, None, started_at))
            return
        if len(self._destinations) < _DESTINATIONS_MAX:
            self._destinations[domain] = (route.site, route.provider)
        await self._let_leave(mails, route)

    async def _let_leave(self, mails: Sequence[Held], route: Route) -> None:
        """Choose each mail's way out and put it into its lane."""
        going = []
        for held in mails:
            if held.is_expired:
                self._settler.add(held, expired(datetime.now(UTC)))
            else:
                going.append(held)
        try:
            chosen = await self._egress.choose_all([held.claimed for held in going], route)
        except DATABASE_ERRORS as error:
            _warn("egress_refresh_failed", error)
            self._park_soon([(held, datetime.now(UTC)) for held in going])
            return
        except Exception as error:
            # Else nobody would have these mails, and their leases would be renewed for ever.
            self._trip("choice_failed", going, error)
            return
        ways: defaultdict[Way, list[Held]] = defaultdict(list)
        kept: list[tuple[Held, datetime | None]] = []
        for held, way in zip(going, chosen, strict=True):
            if isinstance(way, Wait):
                kept.append((held, _spread(way.until)))
            else:
                ways[way].append(held)
        self._keep_back(kept)
        for way, leaving in ways.items():
            granted = len(leaving)
            if way.vmta is not None and way.vmta.warmup is not None:
                granted = await self._warm_up(way, route, leaving)
            for held in leaving[:granted]:
                self._enter(held, way, route)

    async def _warm_up(self, way: Way, route: Route, leaving: Sequence[Held]) -> int:
        """How many may leave by a way that is warming up; the others take one that is warm, or wait."""
        try:
            granted = await self._egress.take(way, route.provider, len(leaving))
        except DATABASE_ERRORS as error:
            _warn("warmup_failed", error)
            self._park_soon([(held, datetime.now(UTC)) for held in leaving])
            return 0
        except Exception as error:
            self._trip("warmup_failed", leaving, error)
            return 0
        if way.vmta is not None:
            taken = Taken(way.vmta, route.provider, datetime.now(UTC))
            for held in leaving[:granted]:
                held.taken = taken
        kept: list[tuple[Held, datetime | None]] = []
        for held in leaving[granted:]:
            warm = self._egress.warm_stand_in(held.claimed, way, route)
            if warm is not None:
                self._enter(held, warm, route)
            else:
                kept.append((held, _next_allowance()))
        self._keep_back(kept)
        return granted

    def _trip(self, event: str, mails: Sequence[Held], error: Exception) -> None:
        """Something of ours failed: the mails wait like any that are deferred."""
        log.error(event, domains=sorted({held.claimed.domain for held in mails})[:10], exc_info=error)
        for held in mails:
            self._settler.add(held, internal_error(error))

    def _reroute(self, held: Held, route: Route) -> None:
        self._leave_way(held)
        # The lane's route may be that of another domain with the same hosts.
        domain = held.claimed.domain
        route = self._router.known(domain) or replace(route, domain=domain)
        self._start(self._let_leave([held], route))

    def _keep_back(self, kept: Sequence[tuple[Held, datetime | None]]) -> None:
        """Park mails that have no way out before a moment each; those whose time is over have waited long enough."""
        now = datetime.now(UTC)
        detail = "its time was over before it had a way out"
        waiting = []
        for held, until in kept:
            if held.claimed.give_up_at <= now:
                self._settler.add(held, Outcome(Status.DEFERRED, "no_way_out", detail, now, now, was_begun=False))
            else:
                waiting.append((held, until))
        if waiting:
            self._park_soon(waiting)

    def _enter(self, held: Held, way: Way, route: Route) -> None:
        key = way.key(route.site)
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = Gate(key, route.rule.connections)
        gate.held += 1
        gate.note(route.domain)
        held.gate = gate
        self._lanes.add(held, way, route)

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
        del self._held[claimed.org_id, claimed.delivery_id]
        _count_down(self._of_tenant, claimed.org_id)
        _count_down(self._of_domain, claimed.domain)
        self._pace[claimed.domain] += 1
        self._leave_way(held)
        if held.taken_bytes:
            self._budget.give_back(held.taken_bytes)
        if self._ready:
            self._start_ready()
        # A slow host's backlog must not have us ask anew for each mail of the others.
        if self._more_due or claimed.domain in self._left_out or claimed.org_id in self._left_out:
            self._wake.set()

    def _leave_way(self, held: Held) -> None:
        gate, held.gate = held.gate, None
        if gate is not None:
            gate.held -= 1
            if not gate.held:
                self._gates.pop(gate.key, None)
        taken, held.taken = held.taken, None
        if taken is not None:
            self._egress.tally.give_back(taken)

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
            self._pace_before, self._pace = self._pace, Counter()
            found, self._destinations = self._destinations, {}
            try:
                if found:
                    async with self._database.transaction() as session:
                        rows = [(domain, site, provider) for domain, (site, provider) in found.items()]
                        await control.upsert_destinations(session, rows)
            except DATABASE_ERRORS as error:
                _warn("destinations_failed", error)
                self._destinations = found | self._destinations

    async def _drain(self) -> None:
        """Give back what was not begun, wait for what was, write all of it down."""
        unbegun, self._ready = self._ready, []
        if unbegun:
            self._give_back_soon(unbegun)
        self._lanes.stop()
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._lanes.stopped()
                while self._tasks:
                    await asyncio.wait(self._tasks)
                    await self._lanes.stopped()
                await self._settler.drained()
        except TimeoutError:
            log.warning("drain_timed_out", in_flight=len(self._held), hint="retried when their leases end")
            self._lanes.abandon()
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


def _simulated(wanted: str, attempt: int, now: datetime) -> Outcome:
    try:
        return simulator.outcomes(wanted, attempt, now)
    except ValueError as error:
        # Perhaps a newer version's: its own worker knows it.
        return internal_error(error)


def _count_down(counter: Counter[Any], key: Any) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _spread(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment + timedelta(seconds=random.uniform(0, _SPREAD_SECONDS))  # noqa: S311


def _next_allowance() -> datetime:
    """When to ask a warm-up again: after midnight (UTC), or within the hour, as its settings may change. Spread."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    until = min(midnight, now + timedelta(seconds=_ALLOWANCE_SECONDS))
    return until + timedelta(seconds=random.uniform(0, _ALLOWANCE_SECONDS / 6))  # noqa: S311


def _warn(event: str, error: BaseException) -> None:
    log.warning(event, error=f"{type(error).__name__}: {error}"[:300])


def _memory_bytes(claimed: Claimed) -> int:
    return claimed.size_bytes * _COPIES + _OVERHEAD_BYTES
