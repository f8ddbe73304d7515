"""`python -m tests.bench.webhooks`: what an event costs until it is delivered to a webhook and settled.

Events of some thousand mails are stored in transactions of 50, at full speed or at a rate, while the process that
delivers them runs; its endpoint is quick and local. Storing them counts with Postgres. Figures as JSON to stdout.
"""

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg

from app.core.ids import new_id
from tests.bench import endpoint, load, mails, postroad, sink, usage
from tests.faults.house import eventually
from tests.faults.webhooks import COLUMNS

MAILS = 2000
WARM_UP_EVENTS = 1000
TOGETHER = 50
TIMEOUT_SECONDS = 120
FACTS = json.dumps({"is_bot": False, "user_agent": "Mozilla/5.0", "ip": "192.0.2.1"})


class Bench:
    """A house with one webhook, and mails that things may happen to."""

    def __init__(self, ours: postroad.Postroad, hook: endpoint.Endpoint, connection: asyncpg.Connection) -> None:
        self._ours = ours
        self._hook = hook
        self._connection = connection
        self._copies: Any = ()
        self._processes: dict[str, int] = {}

    async def prepare(self) -> None:
        """Take the mails, start delivering, and warm up."""
        await load.in_process(mails.batches(self._ours, MAILS, 4).task)
        copies = await self._connection.fetch("SELECT org_id, message_id, id, recipient FROM deliveries")
        self._copies = itertools.cycle(copies)
        process = await self._ours.watch(self._hook.url)
        self._processes = {"webhooks": process.pid, **self._ours.house.server_pids()}
        await self.round(WARM_UP_EVENTS, 0)

    async def round(self, events: int, rate: float) -> dict[str, Any]:
        """Let that many events happen, and wait until all are delivered and settled."""
        wanted = await self._hook.count() + events
        used = {name: usage.of(pid).cpu_seconds for name, pid in self._processes.items()}
        began_at = time.time()
        for first in range(0, events, TOGETHER):
            if rate:
                await asyncio.sleep(began_at + first / rate - time.time())
            await self._happen(min(TOGETHER, events - first))
        stored_at = time.time()
        ended_at = await self._hook.reach(wanted, timeout_seconds=TIMEOUT_SECONDS)
        await eventually(self._are_settled, timeout_seconds=TIMEOUT_SECONDS)
        costs = {
            name: 1000 * (usage.of(pid).cpu_seconds - used[name]) / events for name, pid in self._processes.items()
        }
        return {
            "events_per_second": events / (ended_at - began_at),
            "behind_seconds": ended_at - stored_at,
            "repeated": await self._hook.count() - wanted,
            "cpu_milliseconds_per_event": sum(costs.values()),
            "cpu_by_process": costs,
        }

    async def _happen(self, count: int) -> None:
        now = datetime.now(UTC)
        rows = [
            (org_id, new_id(), message_id, copy_id, "opened", recipient, now, FACTS)
            for org_id, message_id, copy_id, recipient in itertools.islice(self._copies, count)
        ]
        await self._connection.copy_records_to_table("events", records=rows, columns=COLUMNS)

    async def _are_settled(self) -> bool:
        statement = "SELECT NOT EXISTS (SELECT FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL)"
        return bool(await self._connection.fetchval(statement))


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds on one house."""
    directory = Path(tempfile.mkdtemp(prefix="postroad-bench-"))
    try:
        async with sink.running() as target, endpoint.running() as hook, postroad.running(directory, target) as ours:
            connection = await asyncpg.connect(ours.house.postgres.url().replace("+asyncpg", ""))
            bench = Bench(ours, hook, connection)
            await bench.prepare()
            figures = [await bench.round(options.events, options.rate) for _ in range(options.rounds)]
            await connection.close()
            return figures
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.webhooks", description="Events to webhooks.")
    parser.add_argument("--events", type=int, default=10_000, help="events a round (10000)")
    parser.add_argument("--rate", type=float, default=0, help="events stored a second (0: as fast as can be)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds (2)")
    figures = asyncio.run(run(parser.parse_args()))
    sys.stderr.write(f"median: {statistics.median(one['cpu_milliseconds_per_event'] for one in figures):.3f} ms\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
