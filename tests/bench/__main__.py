"""`make bench`: Postroad and Postfix + OpenDKIM on this machine, one after the other, delivering to the same sink.

Mails of 10 KB, signed RSA-2048, handed in one by one over 32 connections. `accepted` is how fast they were taken
durably; `end to end` is from the first mail handed in to the last one at the sink; the idle latency is that of mails
sent one at a time, from handing in to their arrival. The processor time is that of all processes of a side, load
generator and sink left out: a busy machine makes the rates worse, but hardly that. A table goes to stderr, all figures
as JSON to stdout.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import load, postfix, postroad, sink, usage
from tests.bench.load import Task

BODY_BYTES = 10_000
CONNECTIONS = 32
WARM_UP = 200
IDLE_MAILS = 50
ARRIVAL_TIMEOUT_SECONDS = 300
POSTROAD = "Postroad"
POSTFIX = "Postfix + OpenDKIM"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one side did in one round."""

    accepted_per_second: float
    end_to_end_per_second: float
    accept_p50_milliseconds: float
    accept_p95_milliseconds: float
    idle_p50_milliseconds: float
    idle_p95_milliseconds: float
    cpu_milliseconds_per_mail: float
    cpu_by_process: dict[str, float]
    memory_megabytes: dict[str, float]


async def measure(task: Task, target: sink.Sink, processes: dict[str, int]) -> Figures:
    """Warm up, send `task.count` mails at full speed, then some one by one."""
    await _send(dataclasses.replace(task, count=WARM_UP), target)
    before = {name: usage.of(pid) for name, pid in processes.items()}
    result, arrived_at = await _send(task, target)
    after = {name: usage.of(pid) for name, pid in processes.items()}
    cpu = {name: 1000 * (after[name].cpu_seconds - before[name].cpu_seconds) / task.count for name in processes}
    idle = [await _idle_latency(task, target) for _ in range(IDLE_MAILS)]
    return Figures(
        task.count / (result.ended_at - result.began_at),
        task.count / (arrived_at - result.began_at),
        _quantile(result.latencies, 50),
        _quantile(result.latencies, 95),
        _quantile(idle, 50),
        _quantile(idle, 95),
        sum(cpu.values()),
        cpu,
        {name: used.resident_megabytes for name, used in after.items()},
    )


async def _send(task: Task, target: sink.Sink) -> tuple[load.Result, float]:
    before = await target.count()
    arriving = asyncio.create_task(target.reach(before + task.count, timeout_seconds=ARRIVAL_TIMEOUT_SECONDS))
    result = await load.in_process(task)
    return result, await arriving


async def _idle_latency(task: Task, target: sink.Sink) -> float:
    """Milliseconds from handing in one mail to its arrival, on a connection that is open already."""
    before = await target.count()
    async with load.session(task) as exchange:
        # Out of step with any timer.
        await asyncio.sleep(random.uniform(0.05, 0.15))
        began = time.perf_counter()
        handing_in = asyncio.create_task(exchange.send(task.content.encode()))
        await target.reach(before + 1, timeout_seconds=30, poll_seconds=0.001)
        arrived = time.perf_counter()
        await handing_in
    return 1000 * (arrived - began)


def _quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _text() -> str:
    """A text of 10 KB that does not compress into nothing, in lines as people write them."""
    words = random.Random(7)
    lines: list[str] = []
    while sum(map(len, lines)) < BODY_BYTES:
        lines.append(" ".join("".join(words.choices("etaoinshrdlu", k=words.randint(2, 9))) for _ in range(10)) + "\n")
    return "".join(lines)[:BODY_BYTES]


async def _measure_postroad(count: int, target: sink.Sink) -> Figures:
    async with _directory() as directory, postroad.running(directory, target) as ours:
        body = {
            "from": f"Bench <hello@{postroad.DOMAIN}>",
            "to": [f"somebody@{postroad.SITE}"],
            "subject": f"Mail {load.PLACE.decode()}",
            "text": _text(),
        }
        task = Task("http", "127.0.0.1", ours.port, count, CONNECTIONS, json.dumps(body), key=ours.key)
        return await measure(task, target, ours.processes)


async def _measure_postfix(count: int, target: sink.Sink) -> Figures:
    async with _directory() as directory, postfix.running(directory, target) as peer:
        head = (
            f"From: Bench <hello@{postfix.DOMAIN}>\nTo: somebody@{postroad.SITE}\nSubject: Mail {load.PLACE.decode()}\n"
            f"Date: Sat, 21 Nov 2026 12:00:00 +0000\nMessage-ID: <{load.PLACE.decode()}@{postfix.DOMAIN}>\n"
            "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n"
        )
        mail = (head + _text()).replace("\n", "\r\n") + "\r\n"
        addresses = {"mail_from": f"hello@{postfix.DOMAIN}", "rcpt_to": f"somebody@{postroad.SITE}"}
        task = Task("smtp", "127.0.0.1", peer.port, count, CONNECTIONS, mail, **addresses)
        return await measure(task, target, peer.processes)


@asynccontextmanager
async def _directory() -> AsyncIterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="postroad-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


async def run(count: int, rounds: int, with_postfix: bool) -> dict[str, Any]:
    """All rounds, turn by turn; the figures by side."""
    sides: dict[str, Callable[[int, sink.Sink], Awaitable[Figures]]] = {POSTROAD: _measure_postroad}
    if with_postfix:
        sides[POSTFIX] = _measure_postfix
    figures: dict[str, list[Figures]] = {side: [] for side in sides}
    async with sink.running() as target:
        for number in range(rounds):
            for side, measured in sides.items():
                found = await measured(count, target)
                figures[side].append(found)
                sys.stderr.write(f"round {number + 1}, {side}: {found.end_to_end_per_second:.0f} mails/s end to end\n")
    return {side: [dataclasses.asdict(one) for one in found] for side, found in figures.items()}


def report(figures: dict[str, Any]) -> dict[str, Any]:
    """Medians by side, and Postroad's rates as multiples of Postfix's."""
    names = [field.name for field in dataclasses.fields(Figures) if field.type is float]
    medians = {
        side: {name: statistics.median(one[name] for one in found) for name in names} for side, found in figures.items()
    }
    ratios = {}
    if POSTFIX in medians:
        for name in ("accepted_per_second", "end_to_end_per_second"):
            ratios[name] = medians[POSTROAD][name] / medians[POSTFIX][name]
    for name in names:
        cells = "".join(f"{median[name]:>20.1f}" for median in medians.values())
        sys.stderr.write(f"{name:<28}{cells}{f'   × {ratios[name]:.2f}' if name in ratios else ''}\n")
    return {"median": medians, "ratio": ratios, "rounds": figures}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Postroad against Postfix + OpenDKIM.")
    parser.add_argument("--messages", type=int, default=5000, help="mails a round (5000)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, A B A B (2)")
    parser.add_argument("--postroad-only", action="store_true", help="leave out the comparison")
    options = parser.parse_args()
    reason = "No comparison was wanted." if options.postroad_only else postfix.missing()
    if reason is not None:
        sys.stderr.write(f"{reason}\n")
    figures = asyncio.run(run(options.messages, options.rounds, reason is None))
    sys.stderr.write(f"\n{'median of the rounds':<28}{''.join(f'{side:>20}' for side in figures)}\n")
    print(json.dumps(report(figures), indent=2))


if __name__ == "__main__":
    main()
