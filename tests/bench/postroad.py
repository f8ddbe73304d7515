"""Our side: API, worker, embedded Postgres and Redis, each its own process, and a tenant who may send."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.bench import sink as sinks
from tests.dnsd import DnsServer
from tests.domains import helpers as domains
from tests.faults.house import House

DOMAIN = "bench.test"
SITE = "recipients.test"
WORKER_PROCESSES = 2
# Together as many connections to the sink as Postfix has.
SETTINGS = {"SITE_CONNECTIONS": str(20 // WORKER_PROCESSES)}


@dataclass(frozen=True, slots=True)
class Postroad:
    """Where to send, with which key, and the processes to look at."""

    port: int
    key: str
    processes: dict[str, int]


@asynccontextmanager
async def running(directory: Path, sink: sinks.Sink) -> AsyncIterator[Postroad]:
    """Everything started and ready, until the block ends. `directory` is theirs alone."""
    async with DnsServer(ttl_seconds=300) as zone:
        zone.add(SITE, "MX", f"10 mx.{SITE}.")
        zone.add(f"mx.{SITE}", "A", sinks.HOST)
        settings = SETTINGS | {"DNS_NAMESERVERS": zone.setting, "OUTBOUND_SMTP_PORT": str(sink.port)}
        house = House(directory, settings)
        try:
            house.migrate()
            api = await house.start_api()
            worker = await house.worker(processes=WORKER_PROCESSES)
            async with httpx.AsyncClient(base_url=house.base_url, trust_env=False, timeout=30) as client:
                tenant = await domains.register(client)
                created = await tenant.create(DOMAIN)
                domains.publish(zone, created)
                assert (await tenant.verify(created["id"]))["verified"]
                key = (await domains.with_key(tenant)).headers["X-API-Key"]
            processes = {"api": api.pid, "worker": worker.pid, **house.server_pids()}
            yield Postroad(int(house.base_url.rpartition(":")[2]), key, processes)
        finally:
            house.close()
