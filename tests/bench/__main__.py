"""`make bench`: Postroad and Postfix + OpenDKIM on this machine, one after the other, delivering to the same sink.

Mails of 10 KB, signed RSA-2048. The loads: `single`, one mail a request over 32 connections; `batch`, a hundred
mails a request; `watched`, a hundred mails of HTML with six links a request, once as they are and once with opens and
clicks tracked and every event posted to a webhook; `postfix`, one mail a transaction over 32 connections, to a Postfix
as Debian ships it and to one that we tuned as well as we know. `accepted` is how fast they were taken durably;
`end to end` is from the first request to the last mail at the sink; the idle latency is that of mails sent one at a
time, from handing in to their arrival. The processor time is that of all processes of a side; what the sink and the
load generator took beside them on the same machine is told apart. `--backlog` measures something else: see
tests/bench/backlog.py. A table goes to stderr, all figures as JSON to stdout.
"""

import argparse
import asyncio
import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.bench import backlog, endpoint, mails, postfix, postroad, sink
from tests.bench.measure import Figures, measure

SINGLE, BATCH, TUNED, STOCK = "single", "batch", "Postfix tuned", "Postfix"
HTML, WATCHED = "html", "html watched"
# Ours and its rate, by which rate of the peer it is divided: always how fast its mails arrive.
ENDED = "end_to_end_per_second"
RATIOS = ((SINGLE, "accepted_per_second"), (SINGLE, ENDED), (BATCH, ENDED), (HTML, ENDED), (WATCHED, ENDED))
WATCHED_RATIO_MIN = 0.9
EVENTS_TIMEOUT_SECONDS = 600
NAMES = [field.name for field in dataclasses.fields(Figures) if field.type in (float, float | None)]


async def _measure_postroad(options: argparse.Namespace, target: sink.Sink) -> AsyncIterator[tuple[str, Figures]]:
    async with _directory() as directory, postroad.running(directory, target) as ours:
        processes = ours.processes(await ours.worker())
        if options.only in (None, "single"):
            yield SINGLE, await measure(mails.single(ours, options.messages), target, processes)
        if options.only in (None, "batch"):
            load = mails.batches(ours, options.batch_messages, options.batch_connections)
            yield BATCH, await measure(load, target, processes)


async def _measure_watched(options: argparse.Namespace, target: sink.Sink) -> AsyncIterator[tuple[str, Figures]]:
    """The same mails on two houses, as neither is to be measured with the other's in its tables."""
    if options.only not in (None, "watched"):
        return
    async with _directory() as directory, postroad.running(directory, target) as ours:
        load = mails.html_batches(ours, options.batch_messages, options.batch_connections, tracked=False)
        yield HTML, await measure(load, target, ours.processes(await ours.worker()))
    async with _directory() as directory, postroad.running(directory, target) as ours, endpoint.running() as told:
        load = mails.html_batches(ours, options.batch_messages, options.batch_connections, tracked=True)
        processes = ours.processes(await ours.worker()) | {"webhooks": (await ours.watch(told.url)).pid}
        figures = await measure(load, target, processes)
        yield WATCHED, dataclasses.replace(figures, events_behind_seconds=await _behind(ours, told))


async def _behind(ours: postroad.Postroad, told: endpoint.Endpoint) -> float:
    """Seconds until every event has come; nothing is lost, and nothing repeated."""
    arrived_at = time.time()
    types = [name.removeprefix("message.") for name in postroad.EVENTS]
    ((events,),) = await ours.house.query("SELECT count(*) FROM events WHERE type = ANY(:types)", types=types)
    last_at = await told.reach(events, timeout_seconds=EVENTS_TIMEOUT_SECONDS)
    assert await told.count() == events, "an event came twice"
    return max(0.0, last_at - arrived_at)


async def _measure_postfix(options: argparse.Namespace, target: sink.Sink) -> AsyncIterator[tuple[str, Figures]]:
    for side in (TUNED,) if options.tuned_only else (TUNED, STOCK):
        async with _directory() as directory, postfix.running(directory, target, tuned=side == TUNED) as peer:
            yield side, await measure(mails.smtp(peer, options.messages), target, peer.processes)


@asynccontextmanager
async def _directory() -> AsyncIterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="postroad-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


async def run(options: argparse.Namespace) -> dict[str, list[Figures]]:
    """All rounds, turn by turn; the figures by load."""
    sides = [_measure_postroad, _measure_watched] if options.only != "postfix" else []
    if options.only in (None, "postfix"):
        if (reason := postfix.missing()) is None:
            sides.append(_measure_postfix)
        else:
            sys.stderr.write(f"{reason}\n")
    figures: dict[str, list[Figures]] = {}
    async with sink.running() as target:
        for number in range(options.rounds):
            for side in sides:
                async for name, found in side(options, target):
                    figures.setdefault(name, []).append(found)
                    rate, cpu = found.end_to_end_per_second, found.cpu_by_process
                    costs = ", ".join(f"{process} {spent:.2f}" for process, spent in cpu.items())
                    sys.stderr.write(f"round {number + 1}, {name}: {rate:.0f} mails/s end to end; ms/mail: {costs}\n")
    return figures


def report(figures: dict[str, list[Figures]]) -> dict[str, Any]:
    """Medians by load, and Postroad's rates as multiples of Postfix's."""
    medians = {
        side: {name: statistics.median(getattr(one, name) for one in found) for name in NAMES if _has(found, name)}
        for side, found in figures.items()
    }
    sys.stderr.write(f"\n{'median of the rounds':<34}{''.join(f'{side:>16}' for side in figures)}\n")
    for name in NAMES:
        cells = "".join(f"{median[name]:>16.2f}" if name in median else f"{'':>16}" for median in medians.values())
        sys.stderr.write(f"{name:<34}{cells}\n")
    ratios = {}
    for peer in (TUNED, STOCK):
        for side, name in RATIOS:
            if peer in medians and side in medians:
                ratio = medians[side][name] / medians[peer]["end_to_end_per_second"]
                ratios[f"{side} {name} ÷ {peer} end_to_end_per_second"] = ratio
    if WATCHED in medians:
        ratios[f"{WATCHED} ÷ {HTML}, at least {WATCHED_RATIO_MIN}"] = medians[WATCHED][ENDED] / medians[HTML][ENDED]
    for label, ratio in ratios.items():
        sys.stderr.write(f"{label:<70}{ratio:>8.2f}\n")
    rounds = {side: [dataclasses.asdict(one) for one in found] for side, found in figures.items()}
    return {"median": medians, "ratio": ratios, "rounds": rounds}


def _has(found: list[Figures], name: str) -> bool:
    return all(getattr(one, name) is not None for one in found)


async def run_backlog(options: argparse.Namespace) -> dict[str, Any]:
    """The rate with a long queue against that with a short one."""
    async with sink.running() as target:
        async with _directory() as directory:
            short = await backlog.measure(directory, target, backlog.SHORT, options.rounds)
        async with _directory() as directory:
            long = await backlog.measure(directory, target, options.backlog, options.rounds)
    return backlog.report(short, long)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Postroad against Postfix + OpenDKIM.")
    parser.add_argument("--messages", type=int, default=5000, help="mails a round (5000)")
    parser.add_argument("--batch-messages", type=int, help="mails a round in batches (four times --messages)")
    parser.add_argument("--batch-connections", type=int, default=4, help="connections for batches (4)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, A B A B (2)")
    parser.add_argument(
        "--only", choices=("single", "batch", "watched", "postfix"), help="one load alone, without comparison"
    )
    parser.add_argument("--tuned-only", action="store_true", help="leave out Postfix as Debian ships it")
    parser.add_argument("--backlog", type=int, metavar="N", help="instead: the rate with N deliveries queued")
    options = parser.parse_args()
    options.batch_messages = options.batch_messages or 4 * options.messages
    found = asyncio.run(run_backlog(options)) if options.backlog else report(asyncio.run(run(options)))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
