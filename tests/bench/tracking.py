"""`python -m tests.bench.tracking`: how many opens and clicks a second one API process takes, and keeps.

Some thousand mails are accepted; then their pixels, and then their links, are asked for over 64 connections that stay
open. Every answer is waited for, so each tells that its event is stored, and at the end they are counted in Postgres:
as many as there were requests, none twice. Figures as JSON to stdout.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from app.core.config import get_settings
from app.tracking import tokens
from tests.bench import load, mails, postroad, sink, usage
from tests.bench.load import Task
from tests.faults.house import SETTINGS

MAILS = 2000
CONNECTIONS = 64
WARM_UP_REQUESTS = 1000
TARGET = "https://shop.example/items/1042?utm_source=mail&utm_medium=email&utm_campaign=spring"


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds on one house; the figures by kind, in the order of the rounds."""
    os.environ.update(POSTROAD_MODE="local", SECRET_KEY=SETTINGS["SECRET_KEY"])
    get_settings.cache_clear()
    directory = Path(tempfile.mkdtemp(prefix="postroad-bench-"))
    try:
        async with sink.running() as target, postroad.running(directory, target) as ours:
            await load.in_process(mails.batches(ours, MAILS, 4).task)
            copies = await ours.house.query("SELECT org_id, id FROM deliveries")
            paths = {
                "opened": [tokens.Links("", *copy).open() for copy in copies],
                "clicked": [tokens.Links("", *copy).click(TARGET) for copy in copies],
            }
            figures: dict[str, list[Any]] = {kind: [] for kind in paths}
            for _ in range(options.rounds):
                for kind, found in figures.items():
                    found.append(await _measure(ours, kind, "\n".join(paths[kind]), options.requests))
                    sys.stderr.write(f"{kind}: {json.dumps(found[-1])}\n")
            return figures
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _measure(ours: postroad.Postroad, kind: str, content: str, requests: int) -> dict[str, Any]:
    task = Task("get", "127.0.0.1", ours.port, requests, CONNECTIONS, content)
    processes = {"api": ours.api_pid, **ours.house.server_pids()}
    before = await _count(ours, kind)
    await load.in_process(dataclasses.replace(task, count=WARM_UP_REQUESTS))
    used = {name: usage.of(pid).cpu_seconds for name, pid in processes.items()}
    result = await load.in_process(task)
    costs = {name: usage.of(pid).cpu_seconds - used[name] for name, pid in processes.items()}
    events = [now - then for now, then in zip(await _count(ours, kind), before, strict=True)]
    assert events == [requests + WARM_UP_REQUESTS] * 2, f"{events} events of {requests + WARM_UP_REQUESTS} requests"
    latencies = statistics.quantiles(result.latencies, n=100, method="inclusive")
    return {
        "requests_per_second": requests / (result.ended_at - result.began_at),
        "p50_milliseconds": latencies[49],
        "p95_milliseconds": latencies[94],
        "events_kept": events[0] - WARM_UP_REQUESTS,
        "cpu_microseconds_per_request": {
            name: 1e6 * spent / requests for name, spent in (costs | {"load": result.cpu_seconds}).items()
        },
    }


async def _count(ours: postroad.Postroad, kind: str) -> list[int]:
    """How many events of the kind there are, and how many different ones."""
    ((events, different),) = await ours.house.query(
        "SELECT count(*), count(DISTINCT id) FROM events WHERE type = :kind", kind=kind
    )
    return [events, different]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tracking", description="Opens and clicks a second.")
    parser.add_argument("--requests", type=int, default=20_000, help="requests of each kind a round (20000)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds (2)")
    print(json.dumps(asyncio.run(run(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
