"""kill -9 of the process that delivers webhooks, again and again: `python -m tests.faults.webhooks`.

Every event must arrive, under one webhook-id and with one payload; twice only what had been posted and was not yet
written down when the process was killed.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx

from app.core.ids import new_id
from tests.dnsd import DnsServer
from tests.domains import helpers as domains
from tests.faults.house import House, eventually
from tests.webhooks.receiver import Receiver

MESSAGES = 100
COLUMNS = ("org_id", "id", "message_id", "delivery_id", "type", "recipient", "occurred_at", "data")
# What was posted longer than this before a kill had been written down. The receiver may read it after the kill.
UNSETTLED_SECONDS = 1.0


@dataclass(slots=True)
class Verdict:
    """What came of it."""

    events: int
    arrivals: int
    repeated: int
    kills: int
    seconds: float
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.events} events, {self.kills} kills, {self.arrivals} arrivals, {self.repeated} events twice, "
            f"{self.seconds:.1f} s; {self.wrong or 'nothing wrong'}"
        )


class Campaign:
    """A tenant with one webhook, and messages of which events are made up."""

    def __init__(self, house: House, receiver: Receiver) -> None:
        self._house = house
        self._receiver = receiver
        self._copies: Sequence[Any] = ()
        self._kills: list[float] = []

    async def prepare(self, zone: DnsServer) -> None:
        """Make the tenant, the webhook, and the messages."""
        async with httpx.AsyncClient(base_url=self._house.base_url, trust_env=False, timeout=30) as client:
            tenant = await domains.register(client)
            name = f"sender-{new_id().hex}.test"
            created = await tenant.create(name)
            domains.publish(zone, created)
            assert (await tenant.verify(created["id"]))["verified"]
            made = await client.post(
                "/api/v1/webhooks", json={"url": self._receiver.url("/hook")}, headers=tenant.headers
            )
            assert made.status_code == 201, made.text
            mail = {"from": f"a@{name}", "to": ["b@site.test"], "subject": "s", "text": "t", "tags": ["a"]}
            sent = await client.post(
                "/api/v1/messages/batch", json={"messages": [mail] * MESSAGES}, headers=tenant.headers
            )
            assert sent.status_code == 202, sent.text
        self._copies = await self._house.query(
            "SELECT org_id, message_id, id, recipient FROM deliveries WHERE org_id = :id", id=tenant.org_id
        )

    async def run(self, events: int, kills: int, **settings: str) -> Verdict:
        """Let that many events happen while the process is killed that often, and wait for all to arrive."""
        began = time.monotonic()
        connection = await asyncpg.connect(self._house.postgres.url().replace("+asyncpg", ""))
        try:
            share = events // (kills + 1)
            for _ in range(kills):
                process = self._house.start("webhooks", **settings)
                await self._happen(connection, share)
                await eventually(partial(_has_said, process, "webhooks_ready"), timeout_seconds=30)
                await asyncio.sleep(random.uniform(0.02, 0.4))
                process.kill()
                self._kills.append(asyncio.get_running_loop().time())
            await self._happen(connection, events - kills * share)
            process = self._house.start("webhooks", **settings)
            expected = {
                str(row[0]) for row in await connection.fetch("SELECT id FROM events WHERE org_id = $1", self._org_id)
            }
            await eventually(lambda: self._have_arrived(expected), timeout_seconds=120)
            await eventually(lambda: self._are_settled(connection), timeout_seconds=30)
            process.kill()
        finally:
            await connection.close()
        return self._judge(expected, time.monotonic() - began)

    @property
    def _org_id(self) -> UUID:
        found: UUID = self._copies[0][0]
        return found

    async def _happen(self, connection: asyncpg.Connection, count: int) -> None:
        drawn = [random.choice(self._copies) for _ in range(count)]
        rows = [
            (
                org_id,
                new_id(),
                message_id,
                copy_id,
                "opened",
                recipient,
                datetime.now(UTC),
                json.dumps({"is_bot": False}),
            )
            for org_id, message_id, copy_id, recipient in drawn
        ]
        # Some dozen transactions, as in life.
        for first in range(0, count, 50):
            await connection.copy_records_to_table("events", records=rows[first : first + 50], columns=COLUMNS)

    async def _have_arrived(self, expected: set[str]) -> bool:
        return expected <= {one.webhook_id for one in self._receiver.received}

    async def _are_settled(self, connection: asyncpg.Connection) -> bool:
        statement = "SELECT count(*) FROM webhook_deliveries WHERE org_id = $1 AND status <> 'delivered'"
        return not await connection.fetchval(statement, self._org_id)

    def _judge(self, expected: set[str], seconds: float) -> Verdict:
        received = self._receiver.received
        counts = Counter(one.webhook_id for one in received)
        repeated = {webhook_id for webhook_id, count in counts.items() if count > 1}
        verdict = Verdict(len(expected), len(received), len(repeated), len(self._kills), seconds)
        if strangers := counts.keys() - expected:
            verdict.wrong.append(f"{len(strangers)} events that nobody knows")
        bodies, firsts = defaultdict(set), dict[str, float]()
        for one in received:
            bodies[one.webhook_id].add(one.body)
            firsts.setdefault(one.webhook_id, one.at)
        if any(len(found) > 1 for found in bodies.values()):
            verdict.wrong.append("an event came with two payloads")
        settled = [
            one for one in repeated if not any(abs(kill - firsts[one]) < UNSETTLED_SECONDS for kill in self._kills)
        ]
        if settled:
            verdict.wrong.append(f"{len(settled)} events came twice that were not under way at a kill")
        numbers = defaultdict(list)
        for body, *_ in map(list, bodies.values()):
            data = json.loads(body)["data"]
            numbers[data["message_id"]].append(data["sequence"])
        if any(sorted(found) != list(range(1, len(found) + 1)) for found in numbers.values()):
            verdict.wrong.append("a message's sequence has gaps or repeats")
        return verdict


async def _has_said(process: Any, words: str) -> bool:
    assert process.is_running, process.said
    return words in process.said


async def _run(options: argparse.Namespace) -> int:
    directory = Path(tempfile.mkdtemp(prefix="postroad-faults-"))
    async with DnsServer() as zone, Receiver() as receiver:
        house = await asyncio.to_thread(House, directory, {"DNS_NAMESERVERS": zone.setting})
        try:
            await asyncio.to_thread(house.migrate)
            await house.start_api()
            campaign = Campaign(house, receiver)
            await campaign.prepare(zone)
            verdict = await campaign.run(options.events, options.kills, LEASE_SECONDS=str(options.lease_seconds))
        finally:
            await asyncio.to_thread(house.close)
            shutil.rmtree(directory, ignore_errors=True)
    print(verdict, flush=True)
    return 1 if verdict.wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.webhooks", description=__doc__)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--lease-seconds", type=float, default=3.0)
    return parser


if __name__ == "__main__":
    sys.exit(asyncio.run(_run(_parser().parse_args())))
