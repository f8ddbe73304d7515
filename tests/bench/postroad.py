"""Our side: API, worker, embedded Postgres and Redis, each its own process, and a tenant who may send."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.bench import sink as sinks
from tests.dnsd import DnsServer
from tests.domains import helpers as domains
from tests.faults.house import House, Process, eventually

DOMAIN = "bench.test"
SITE = "recipients.test"
WORKER_PROCESSES = 2
# Addresses that the tenant's mail spares; none of them is sent to.
SUPPRESSIONS = 5000
# What most subscribe to: how each mail ends, and what its reader does.
EVENTS = [
    f"message.{name}"
    for name in ("delivered", "hard_bounced", "failed", "complained", "opened", "clicked", "unsubscribed", "suppressed")
]
SETTINGS = {
    # As many connections to the sink as Postfix has.
    "SITE_CONNECTIONS": "20",
    # One tenant sends all that the machine can do.
    "RATE_LIMIT_KEY_PER_MINUTE": "10000000",
    "RATE_LIMIT_ORGANIZATION_PER_MINUTE": "10000000",
}


@dataclass(frozen=True, slots=True)
class Postroad:
    """A running house without a worker, and the API key of a tenant who may send from DOMAIN."""

    house: House
    key: str
    api_pid: int

    @property
    def port(self) -> int:
        return int(self.house.base_url.rpartition(":")[2])

    async def worker(self) -> Process:
        """Start the worker and wait until its engines run."""
        return await self.house.worker(processes=WORKER_PROCESSES)

    async def watch(self, url: str) -> Process:
        """Have what becomes of mail posted to this URL from now on; the process that does it, once it is ready."""
        async with httpx.AsyncClient(base_url=self.house.base_url, trust_env=False, timeout=30) as client:
            body = {"url": url, "events": EVENTS}
            made = await client.post("/api/v1/webhooks", json=body, headers={"X-API-Key": self.key})
            assert made.status_code == 201, made.text
        process = self.house.start("webhooks")

        async def is_ready() -> bool:
            return "webhooks_ready" in process.said

        await eventually(is_ready, timeout_seconds=30)
        return process

    def processes(self, worker: Process) -> dict[str, int]:
        """The processes to look at, by name."""
        return {"api": self.api_pid, "worker": worker.pid, **self.house.server_pids()}


@asynccontextmanager
async def running(directory: Path, sink: sinks.Sink, sites: Sequence[str] = (SITE,)) -> AsyncIterator[Postroad]:
    """Everything but the worker, until the block ends. `directory` is theirs alone. Each site has an MX of its own."""
    async with DnsServer(ttl_seconds=300) as zone:
        for site in sites:
            zone.add(site, "MX", f"10 mx.{site}.")
            zone.add(f"mx.{site}", "A", sinks.HOST)
        settings = SETTINGS | {"DNS_NAMESERVERS": zone.setting, "OUTBOUND_SMTP_PORT": str(sink.port)}
        house = House(directory, settings)
        try:
            house.migrate()
            api = await house.start_api()
            async with httpx.AsyncClient(base_url=house.base_url, trust_env=False, timeout=30) as client:
                tenant = await domains.register(client)
                created = await tenant.create(DOMAIN)
                domains.publish(zone, created)
                assert (await tenant.verify(created["id"]))["verified"]
                key = (await domains.with_key(tenant)).headers["X-API-Key"]
                await _suppress(client, key)
            yield Postroad(house, key, api.pid)
        finally:
            house.close()


async def _suppress(client: httpx.AsyncClient, key: str) -> None:
    lines = "\n".join(f"spared{number}@{SITE}" for number in range(SUPPRESSIONS))
    headers = {"X-API-Key": key, "Content-Type": "text/csv"}
    added = await client.post("/api/v1/suppressions/import", content=lines, headers=headers)
    assert added.status_code == 200, added.text
