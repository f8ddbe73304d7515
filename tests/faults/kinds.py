"""The faults, each at a moment of chance: what is killed, stopped or emptied, and then started as by a supervisor."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.faults.house import House, Process
from tests.faults.load import Load

# Before a supervisor starts again what has died.
_RESTART_MAX_SECONDS = 2.0
# What had left a process when it died still arrives, and is read by hosts that live in a busy process.
_ARRIVES_SECONDS = 0.5
# Engines that could not settle try again each second.
_SETTLE_RETRY_SECONDS = 1.0
_RACE_SECONDS = 1.5
_RACERS = 60


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault. Unix times.

    `ended_at`: when what it took away was started again, or at once. `blamed_until`: content that had come whole
    by then, on connections of `services`, and was not settled at `began_at`, was in flight: it may come twice.
    `is_stop`: a process stood still from `began_at` until `ended_at`.
    """

    began_at: float
    ended_at: float
    blamed_until: float = 0.0
    services: frozenset[str] = frozenset()
    is_stop: bool = False


@dataclass(slots=True)
class Service:
    """A worker with several processes; its hosts know it by its EHLO name."""

    ehlo: str
    processes: int
    worker: Process


@dataclass(slots=True)
class Scene:
    """What there is to be hurt."""

    house: House
    lease_seconds: float
    outage_seconds: float
    services: list[Service] = field(default_factory=list)
    # Of the first outage of Redis, if it is to be a long one.
    long_outage_seconds: float = 0.0

    async def start(self) -> None:
        """Two worker services, which race for the same mail throughout."""
        for name, processes in (("a", 2), ("b", 1)):
            ehlo = f"mta-{name}.postroad.test"
            worker = await self.house.worker(processes=processes, EHLO_HOSTNAME=ehlo, **self._settings)
            self.services.append(Service(ehlo, processes, worker))

    @property
    def _settings(self) -> dict[str, str]:
        return {"LEASE_SECONDS": str(self.lease_seconds), "POLL_SECONDS": "0.3", "SITE_CONNECTIONS": "8"}

    @property
    def all_services(self) -> frozenset[str]:
        return frozenset(service.ehlo for service in self.services)

    def start_worker(self, service: Service) -> None:
        processes = str(service.processes)
        service.worker = self.house.start(
            "worker", WORKER_PROCESSES=processes, EHLO_HOSTNAME=service.ehlo, **self._settings
        )

    async def children(self) -> list[tuple[Service, int]]:
        """Every process with an engine, once there is one."""
        while True:
            found = [(service, pid) for service in self.services for pid in service.worker.children()]
            if found:
                return found
            await asyncio.sleep(0.1)


Inflict = Callable[[Scene, Load, int], Awaitable[list[Strike]]]


async def _chance(longest_seconds: float) -> None:
    await asyncio.sleep(random.uniform(0, longest_seconds))


async def kill_child(scene: Scene, _: Load, count: int) -> list[Strike]:
    """kill -9 of single processes; Celery starts others in their place."""
    strikes = []
    for _number in range(count):
        await _chance(1.5)
        service, pid = random.choice(await scene.children())
        now = time.time()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        strikes.append(Strike(now, now, now + _ARRIVES_SECONDS, frozenset({service.ehlo})))
    return strikes


async def kill_worker(scene: Scene, _: Load, count: int) -> list[Strike]:
    """kill -9 of whole services, or of their main processes alone, whose children have to end by themselves then."""
    strikes = []
    for _number in range(count):
        await _chance(1.5)
        service = random.choice(scene.services)
        began_at = time.time()
        if random.random() < 0.75:
            service.worker.kill()
        else:
            service.worker.send(signal.SIGKILL)
        await _chance(_RESTART_MAX_SECONDS)
        strikes.append(Strike(began_at, time.time(), began_at + _ARRIVES_SECONDS, frozenset({service.ehlo})))
        scene.start_worker(service)
    return strikes


async def kill_api(scene: Scene, _: Load, count: int) -> list[Strike]:
    """kill -9 of the API; what was answered 202 is stored, so no copy comes twice."""
    strikes = []
    for _number in range(count):
        await _chance(2.0)
        began_at = time.time()
        scene.house.kill_api()
        await _chance(_RESTART_MAX_SECONDS)
        strikes.append(Strike(began_at, time.time()))
        await scene.house.start_api()
    return strikes


async def kill_postgres(scene: Scene, _: Load, count: int) -> list[Strike]:
    """kill -9 of the postmaster, mostly with its backends."""
    return await _postgres_away(scene, count, lambda: scene.house.kill_postgres(whole=random.random() < 0.75))


async def restart_postgres(scene: Scene, _: Load, count: int) -> list[Strike]:
    """A fast shutdown and a start."""
    return await _postgres_away(scene, count, scene.house.stop_postgres)


async def _postgres_away(scene: Scene, count: int, end: Callable[[], None]) -> list[Strike]:
    strikes = []
    for _number in range(count):
        await _chance(1.5)
        began_at = time.time()
        await asyncio.to_thread(end)
        await _chance(_RESTART_MAX_SECONDS)
        ended_at = time.time()
        await asyncio.to_thread(scene.house.start_postgres)
        # What was handed over meanwhile could not be settled.
        blamed_until = time.time() + _SETTLE_RETRY_SECONDS + _ARRIVES_SECONDS
        strikes.append(Strike(began_at, ended_at, blamed_until, scene.all_services))
    return strikes


async def flush_redis(scene: Scene, _: Load, count: int) -> list[Strike]:
    """FLUSHALL."""
    strikes = []
    for _number in range(count):
        await _chance(1.5)
        now = time.time()
        await asyncio.to_thread(scene.house.flush_redis)
        strikes.append(Strike(now, now))
    return strikes


async def redis_away(scene: Scene, _: Load, count: int) -> list[Strike]:
    """Redis is stopped or killed, and started again later."""
    strikes = []
    for _number in range(count):
        await _chance(1.5)
        seconds = scene.long_outage_seconds or random.uniform(0.5, scene.outage_seconds)
        scene.long_outage_seconds = 0.0
        began_at = time.time()
        await asyncio.to_thread(random.choice((scene.house.stop_redis, scene.house.kill_redis)))
        await asyncio.sleep(seconds)
        strikes.append(Strike(began_at, time.time()))
        await asyncio.to_thread(scene.house.start_redis)
    return strikes


async def stop_past_lease(scene: Scene, _: Load, count: int) -> list[Strike]:
    """SIGSTOP of processes, all but one of them at the most, for longer than their leases; then SIGCONT."""
    children = await scene.children()
    chosen = random.sample(children, min(count, len(children) - 1))

    async def stop(service: Service, pid: int) -> Strike:
        await _chance(1.0)
        began_at = time.time()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(scene.lease_seconds + random.uniform(1.0, 2.0))
        ended_at = time.time()
        os.kill(pid, signal.SIGCONT)
        return Strike(began_at, ended_at, began_at + _ARRIVES_SECONDS, frozenset({service.ehlo}), is_stop=True)

    return list(await asyncio.gather(*(stop(service, pid) for service, pid in chosen)))


async def race(_: Scene, load: Load, count: int) -> list[Strike]:
    """Nothing is hurt: much mail comes due in one moment, and all processes of both services want it."""
    strikes = []
    for _number in range(count):
        due_at = datetime.now(UTC) + timedelta(seconds=_RACE_SECONDS)
        await load.race(_RACERS, due_at)
        await asyncio.sleep(max(0.0, (due_at - datetime.now(UTC)).total_seconds()))
        strikes.append(Strike(due_at.timestamp(), due_at.timestamp()))
    return strikes


KINDS: Mapping[str, Inflict] = {
    "worker-child": kill_child,
    "worker": kill_worker,
    "api": kill_api,
    "postgres": kill_postgres,
    "postgres-restart": restart_postgres,
    "redis-flushall": flush_redis,
    "redis-outage": redis_away,
    "sigstop": stop_past_lease,
    "race": race,
}
