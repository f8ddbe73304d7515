"""Fault after fault under continuous load, and the verdict on each kind."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from app.core.db import DATABASE_ERRORS
from app.core.ids import floor, new_id
from tests.dnsd import DnsServer
from tests.domains import helpers as domains
from tests.faults import verdict as verdicts
from tests.faults.hosts import Host, Manner
from tests.faults.house import House
from tests.faults.kinds import KINDS, Scene, Strike
from tests.faults.load import Load
from tests.faults.verdict import RESUME_SECONDS, Verdict

HOSTS = {
    "127.0.0.2": Manner(),
    "127.0.0.3": Manner(chunking=True),
    "127.0.0.4": Manner(slowest_seconds=0.2),
    "127.0.0.5": Manner(slowest_seconds=0.2, chunking=True),
    "127.0.0.6": Manner(slowest_seconds=0.05, later_share=0.15, chunking=True),
}
# Faults of one kind that strike shortly after each other, before all is waited for.
_VOLLEY = 2
_WARM_UP_SECONDS = 1.0


@dataclass(slots=True)
class Campaign:
    """A tenant that sends from a verified domain to one site for each host, and everything that may be hurt."""

    scene: Scene
    client: httpx.AsyncClient
    sender: str
    headers: dict[str, str]
    sites: list[str]
    hosts: Sequence[Host]

    async def run(self, kind: str, kills: int) -> Verdict:
        """Inflict one kind of fault that many times. Raises AssertionError when mail stays stuck for good."""
        house, lease_seconds = self.scene.house, self.scene.lease_seconds
        label = f"{kind}-{new_id().hex[-8:]}"
        load = Load(house.base_url, self.headers, self.sender, self.sites, label)
        fenced = house.said_by_all("outcome_fenced")
        strikes: list[Strike] = []
        load.start()
        try:
            await asyncio.sleep(_WARM_UP_SECONDS)
            while len(strikes) < kills:
                strikes += await KINDS[kind](self.scene, load, min(_VOLLEY, kills - len(strikes)))
                # Longer than is allowed: the verdict says that it took too long, and the others are still judged.
                await self._settled(2 * (lease_seconds + RESUME_SECONDS))
        finally:
            await load.stop()
        stuck = await self._settled(2 * (lease_seconds + RESUME_SECONDS))
        fenced = house.said_by_all("outcome_fenced") - fenced
        account = await verdicts.gather(house, self.client, self.hosts, label, load.answers, strikes)
        found = verdicts.judge(kind, account, lease_seconds, fenced)
        found.blame("still queued", stuck)
        for host in self.hosts:
            host.transactions.clear()
        return found

    async def _settled(self, timeout_seconds: float) -> list[str]:
        """Wait until whatever was accepted by now has come to its end; what has not."""
        before = floor(datetime.now(UTC))
        deadline = time.monotonic() + timeout_seconds
        waiting = ["?"]
        while waiting and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            try:
                rows = await self.scene.house.query(
                    "SELECT recipient FROM delivery_queue WHERE delivery_id < :before AND domain = ANY(:sites)",
                    before=before,
                    sites=self.sites,
                )
            except DATABASE_ERRORS:
                continue
            waiting = [recipient for (recipient,) in rows]
        return waiting


@asynccontextmanager
async def campaign(house: House, zone: DnsServer, smtp_port: int, scene: Scene) -> AsyncIterator[Campaign]:
    """Hosts, a tenant and two worker services; afterwards no worker is left."""
    hosts = [Host(address, smtp_port, manner) for address, manner in HOSTS.items()]
    async with httpx.AsyncClient(base_url=house.base_url, trust_env=False, timeout=30) as client:
        try:
            for host in hosts:
                await host.start()
            tenant = await domains.register(client)
            name = f"sender-{new_id().hex}.test"
            created = await tenant.create(name)
            domains.publish(zone, created)
            assert (await tenant.verify(created["id"]))["verified"]
            key = await domains.with_key(tenant)
            client.headers.update(key.headers)
            sites = []
            for host in hosts:
                site = f"site-{new_id().hex}.test"
                zone.add(site, "MX", f"10 mx.{site}.")
                zone.add(f"mx.{site}", "A", host.address)
                sites.append(site)
            await scene.start()
            yield Campaign(scene, client, f"hello@{name}", key.headers, sites, hosts)
        finally:
            house.kill_workers()
            for host in hosts:
                await host.stop()
