"""`python -m tests.bench.fairness`: does a tarpit, or a host that defers everything, delay the mail of other domains?

Twenty domains, each with a mail host of its own name, get mail at a steady rate. Eighteen of them behave; their p95
from handing a mail in to its arrival is taken three times: alone; with the two others getting their share of the same
tenant's mail besides; and with another tenant's. One of those two, the tarpit, accepts connections and takes half a
minute for each answer; the other says 451 to every recipient, and is tried again every few seconds. Two worker
processes. The three turns are taken in each round, each with a new worker and an empty queue. A table goes to stderr,
all figures as JSON to stdout.
"""

import argparse
import asyncio
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import uvloop

from tests.bench import load, mails
from tests.bench.load import Exchange, Task
from tests.dnsd import DnsServer
from tests.domains import helpers as domains
from tests.faults.house import House, Process, free_port
from tests.smtpd import SmtpServer, late

GOOD = tuple(f"good{number:02d}.fair.test" for number in range(18))
TARPIT, STORM = "tarpit.fair.test", "storm.fair.test"
HOSTS = {"good": "127.0.0.2", TARPIT: "127.0.0.3", STORM: "127.0.0.4"}
SENDERS = ("bench-one.test", "bench-two.test")
WORKER_PROCESSES = 2
CONNECTIONS = 8
TEXT = mails.text(2000)
TARPIT_SECONDS = 30.0
SETTLE_SECONDS = 60
LIMIT = 1.10
SETTINGS = {
    "RATE_LIMIT_KEY_PER_MINUTE": "10000000",
    "RATE_LIMIT_ORGANIZATION_PER_MINUTE": "10000000",
    # Far more often than usual, so that the storm is one.
    "RETRY_FIRST_SECONDS": "5",
    "RETRY_MAX_SECONDS": "5",
}
# What a turn is called, and which tenant sends to the two that misbehave.
TURNS: dict[str, int | None] = {"alone": None, "same tenant": 0, "another tenant": 1}


@dataclass(slots=True)
class World:
    """The house, both tenants' keys, and the hosts; when each mail was handed in and when it arrived, by recipient."""

    house: House
    keys: list[str]
    hosts: dict[str, SmtpServer]
    began: dict[str, float] = field(default_factory=dict)
    arrived: dict[str, float] = field(default_factory=dict)
    refusals: int = 0

    def note(self, recipient: str) -> None:
        """A host has the whole mail."""
        self.arrived.setdefault(recipient, time.monotonic())


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn came to, in milliseconds, and how busy the two that misbehave were kept."""

    p50: float
    p95: float
    tarpit_connections: int
    storm_refusals: int


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[World]:
    """Everything but the worker, until the block ends."""
    async with AsyncExitStack() as stack:
        zone = await stack.enter_async_context(DnsServer(ttl_seconds=300))
        for name in (*GOOD, TARPIT, STORM):
            zone.add(name, "MX", f"10 mx.{name}.")
            zone.add(f"mx.{name}", "A", HOSTS.get(name, HOSTS["good"]))
        port = free_port(tuple(HOSTS.values()))
        hosts = {name: SmtpServer(address, port, count_only=True) for name, address in HOSTS.items()}
        for host in hosts.values():
            await stack.enter_async_context(host)
        house = House(directory, SETTINGS | {"DNS_NAMESERVERS": zone.setting, "OUTBOUND_SMTP_PORT": str(port)})
        stack.callback(house.close)
        house.migrate()
        await house.start_api()
        world = World(house, [await _tenant(house, zone, sender) for sender in SENDERS], hosts)
        _script(world)
        yield world


def _script(world: World) -> None:
    world.hosts["good"].replies.on_end_of_data = world.note
    slow = world.hosts[TARPIT].replies
    for phase in ("on_connect", "on_ehlo", "on_mail", "on_rcpt", "on_data"):
        setattr(slow, phase, lambda _: late("250 2.0.0 so slow", wait_seconds=TARPIT_SECONDS))
    slow.on_connect = lambda _: late("220 tarpit ESMTP", wait_seconds=TARPIT_SECONDS)

    def refuse(_: str) -> str:
        world.refusals += 1
        return "451 4.3.2 Not now"

    world.hosts[STORM].replies.on_rcpt = refuse


async def _tenant(house: House, zone: DnsServer, sender: str) -> str:
    async with httpx.AsyncClient(base_url=house.base_url, trust_env=False, timeout=30) as client:
        tenant = await domains.register(client)
        created = await tenant.create(sender)
        domains.publish(zone, created)
        assert (await tenant.verify(created["id"]))["verified"]
        return (await domains.with_key(tenant)).headers["X-API-Key"]


class Client:
    """Hands in single mails of one tenant over a few connections."""

    def __init__(self, world: World, tenant: int) -> None:
        self._world = world
        self._sender = SENDERS[tenant]
        port = int(world.house.base_url.rpartition(":")[2])
        path = "/api/v1/messages/send"
        self._task = Task("http", "127.0.0.1", port, 0, CONNECTIONS, "", path=path, key=world.keys[tenant])
        self._free: asyncio.Queue[Exchange] = asyncio.Queue()

    async def open(self, stack: AsyncExitStack) -> "Client":
        for _ in range(CONNECTIONS):
            self._free.put_nowait(await stack.enter_async_context(load.session(self._task)))
        return self

    async def send(self, recipient: str) -> None:
        body = {
            "from": f"Bench <hello@{self._sender}>",
            "to": [recipient],
            "subject": f"For {recipient}",
            "text": TEXT,
        }
        octets = json.dumps(body).encode()
        exchange = await self._free.get()
        try:
            self._world.began[recipient] = time.monotonic()
            await exchange.send(octets)
        finally:
            self._free.put_nowait(exchange)


async def send(client: Client, recipients: Sequence[str], per_second: float) -> None:
    """Hand them in one after the other, at an even pace that does not wait for answers."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number, recipient in enumerate(recipients):
            await asyncio.sleep(began + number / per_second - time.monotonic())
            tasks.create_task(client.send(recipient))


async def take_turn(world: World, bad_tenant: int | None, count: int, per_second: float, label: str) -> Turn:
    """The good domains' latencies over `count` of their mails, sent at `per_second`."""
    await world.house.query("DELETE FROM delivery_queue RETURNING 1")
    worker = await world.house.worker(processes=WORKER_PROCESSES)
    tarpit = world.hosts[TARPIT]
    before = tarpit.connection_count, world.refusals
    async with AsyncExitStack() as stack:
        # Connections to the hosts are opened, routes found.
        warming = await Client(world, 0).open(stack)
        await send(warming, [f"{label}-warm{number}@{GOOD[number % len(GOOD)]}" for number in range(200)], per_second)
        bad: asyncio.Task[None] | None = None
        if bad_tenant is not None:
            share = len(GOOD) / 2
            bad_client = await Client(world, bad_tenant).open(stack)
            misused = [f"{label}{number}@{(TARPIT, STORM)[number % 2]}" for number in range(int(count / share) * 2)]
            # A head start, so that they are in everybody's way from the beginning.
            head = len(misused) // 2
            await send(bad_client, misused[:head], per_second)
            bad = asyncio.create_task(send(bad_client, misused[head:], per_second / share))
        await asyncio.sleep(3)
        measured = [f"{label}{number}@{GOOD[number % len(GOOD)]}" for number in range(count)]
        # Connections of its own: the API has closed those that were idle meanwhile.
        good = await Client(world, 0).open(stack)
        await send(good, measured, per_second)
        await _arrived(world, measured)
        if bad is not None:
            await bad
    connections, refusals = tarpit.connection_count - before[0], world.refusals - before[1]
    await _stop(world, worker)
    milliseconds = [1000 * (world.arrived[one] - world.began[one]) for one in measured]
    quantiles = statistics.quantiles(milliseconds, n=100, method="inclusive")
    return Turn(quantiles[49], quantiles[94], connections, refusals)


async def _arrived(world: World, recipients: Sequence[str]) -> None:
    async with asyncio.timeout(SETTLE_SECONDS):
        while not all(one in world.arrived for one in recipients):
            await asyncio.sleep(0.1)


async def _stop(world: World, worker: Process) -> None:
    """Without waiting for the tarpit: what it has is given up with its connections."""
    for session in list(world.hosts[TARPIT].connections):
        session.cut()
    worker.send_all(signal.SIGTERM)
    await asyncio.to_thread(worker.wait, SETTLE_SECONDS)


async def run(options: argparse.Namespace) -> dict[str, list[Turn]]:
    """All rounds; the turns by name."""
    found: dict[str, list[Turn]] = {name: [] for name in TURNS}
    directory = Path(tempfile.mkdtemp(prefix="postroad-fairness-"))
    try:
        async with running(directory) as world:
            for number in range(options.rounds):
                # In another order each time: what happens on the machine meanwhile should fall upon all of them.
                turns = list(TURNS.items())
                for position, (name, tenant) in enumerate(turns[number % 3 :] + turns[: number % 3]):
                    label = f"r{number}t{position}m"
                    turn = await take_turn(world, tenant, options.messages, options.per_second, label)
                    found[name].append(turn)
                    sys.stderr.write(
                        f"round {number + 1}, {name}: p50 {turn.p50:.1f} ms, p95 {turn.p95:.1f} ms "
                        f"(tarpit: {turn.tarpit_connections} connections, storm: {turn.storm_refusals} refusals)\n"
                    )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return found


def report(found: dict[str, list[Turn]]) -> dict[str, object]:
    """Medians of the p95s, and how often that of the turn alone each other one is: at most LIMIT is wanted."""
    p95 = {name: statistics.median(turn.p95 for turn in turns) for name, turns in found.items()}
    alone = p95["alone"]
    ratios = {name: value / alone for name, value in p95.items() if name != "alone"}
    for name, ratio in ratios.items():
        verdict = "as" if ratio <= LIMIT else "MORE than"
        sys.stderr.write(
            f"{name:<16} p95 {p95[name]:.1f} ms against {alone:.1f} ms alone: {ratio:.3f}, {verdict} wanted\n"
        )
    rounds = {name: [{"p50": one.p50, "p95": one.p95} for one in turns] for name, turns in found.items()}
    return {"p95_milliseconds": p95, "ratio": ratios, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fairness", description="Do slow hosts delay others?")
    parser.add_argument("--messages", type=int, default=2000, help="mails to the good domains each turn (2000)")
    parser.add_argument("--per-second", type=float, default=60.0, help="how fast they are handed in (60)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of three turns (3)")
    print(json.dumps(report(uvloop.run(run(parser.parse_args()))), indent=2))


if __name__ == "__main__":
    main()
