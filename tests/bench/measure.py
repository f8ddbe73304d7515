"""One load on one side: how fast, how late, at what cost."""

import asyncio
import dataclasses
import random
import statistics
import time
from dataclasses import dataclass

from tests.bench import load, usage
from tests.bench.load import Task
from tests.bench.sink import Sink

WARM_UP_MAILS = 200
IDLE_MAILS = 50
ARRIVAL_TIMEOUT_SECONDS = 600
# Not of the side that is measured, yet on the same processors.
BESIDE = ("sink", "load")


@dataclass(frozen=True, slots=True)
class Load:
    """A task whose requests carry `mails` mails each; with `idle` set, the latency of single ones is measured too."""

    task: Task
    mails: int
    idle: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """What one side did in one round. The latencies of accepting are of whole requests."""

    accepted_per_second: float
    end_to_end_per_second: float
    accept_p50_milliseconds: float
    accept_p95_milliseconds: float
    cpu_milliseconds_per_mail: float
    beside_cpu_milliseconds_per_mail: float
    idle_p50_milliseconds: float | None
    idle_p95_milliseconds: float | None
    cpu_by_process: dict[str, float]
    memory_megabytes: dict[str, float]
    # From the last mail's arrival to that of the last event at the webhook's endpoint, where there is one.
    events_behind_seconds: float | None = None


async def measure(work: Load, sink: Sink, processes: dict[str, int]) -> Figures:
    """Warm up, send all at full speed, then some one by one."""
    warm_up = max(work.task.connections, WARM_UP_MAILS // work.mails)
    await _send(dataclasses.replace(work, task=dataclasses.replace(work.task, count=warm_up)), sink)
    looked_at = processes | {"sink": sink.pid}
    before = {name: usage.of(pid) for name, pid in looked_at.items()}
    result, arrived_at = await _send(work, sink)
    after = {name: usage.of(pid) for name, pid in looked_at.items()}
    mails = work.task.count * work.mails
    seconds = {name: after[name].cpu_seconds - before[name].cpu_seconds for name in looked_at}
    cpu = {name: 1000 * spent / mails for name, spent in (seconds | {"load": result.cpu_seconds}).items()}
    idle = [await _idle_latency(work.task, sink) for _ in range(IDLE_MAILS if work.idle else 0)]
    return Figures(
        accepted_per_second=mails / (result.ended_at - result.began_at),
        end_to_end_per_second=mails / (arrived_at - result.began_at),
        accept_p50_milliseconds=_quantile(result.latencies, 50),
        accept_p95_milliseconds=_quantile(result.latencies, 95),
        cpu_milliseconds_per_mail=sum(cpu[name] for name in processes),
        beside_cpu_milliseconds_per_mail=sum(cpu[name] for name in BESIDE),
        idle_p50_milliseconds=_quantile(idle, 50) if idle else None,
        idle_p95_milliseconds=_quantile(idle, 95) if idle else None,
        cpu_by_process=cpu,
        memory_megabytes={name: used.resident_megabytes for name, used in after.items()},
    )


async def _send(work: Load, sink: Sink) -> tuple[load.Result, float]:
    wanted = await sink.count() + work.task.count * work.mails
    arriving = asyncio.create_task(sink.reach(wanted, timeout_seconds=ARRIVAL_TIMEOUT_SECONDS))
    try:
        result = await load.in_process(work.task)
        return result, await arriving
    finally:
        arriving.cancel()


async def _idle_latency(task: Task, sink: Sink) -> float:
    """Milliseconds from handing in one mail to its arrival, on a connection that is open already."""
    wanted = await sink.count() + 1
    async with load.session(task) as exchange:
        arriving = asyncio.create_task(sink.reach(wanted, timeout_seconds=30))
        # Out of step with any timer.
        await asyncio.sleep(random.uniform(0.05, 0.15))
        began_at = time.time()
        await exchange.send(task.content.encode())
        return 1000 * (await arriving - began_at)


def _quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
