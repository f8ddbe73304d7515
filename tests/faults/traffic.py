"""Mail through the HTTP API to scripted hosts, and the accounts that are made of it afterwards."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from email import message_from_bytes
from typing import Any

import httpx

from app.core.ids import new_id
from tests.dnsd import DnsServer
from tests.domains import helpers as domains
from tests.faults.house import House, eventually
from tests.smtp_script import Act, ReceivedMail
from tests.smtpd import SmtpServer, late

CONCURRENCY = 16


@dataclass(slots=True)
class Traffic:
    """A tenant that sends, the sites that its recipients live at, and what the API answered to each send."""

    house: House
    client: httpx.AsyncClient
    headers: dict[str, str]
    sender: str
    sites: list[str]
    hosts: list[SmtpServer]
    accepted: dict[str, str] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    @classmethod
    async def make(cls, house: House, client: httpx.AsyncClient, zone: DnsServer, hosts: list[SmtpServer]) -> "Traffic":
        """Register, verify a domain, get a key; a site for each host."""
        tenant = await domains.register(client)
        name = f"sender-{new_id().hex}.test"
        created = await tenant.create(name)
        domains.publish(zone, created)
        assert (await tenant.verify(created["id"]))["verified"]
        key = await domains.with_key(tenant)
        sites = []
        for host in hosts:
            site = f"site-{new_id().hex}.test"
            zone.add(site, "MX", f"10 mx.{site}.")
            zone.add(f"mx.{site}", "A", host.host)
            sites.append(site)
        return cls(house, client, key.headers, f"hello@{name}", sites, hosts)

    async def send(self, count: int) -> None:
        """Send that many mails, a recipient each, spread over the sites; the answers go to `accepted` and `refused`."""
        numbers = iter(range(count))

        async def one_after_the_other() -> None:
            for number in numbers:
                await self._send(f"{new_id().hex}@{self.sites[number % len(self.sites)]}")

        await asyncio.gather(*(one_after_the_other() for _ in range(CONCURRENCY)))

    async def _send(self, recipient: str) -> None:
        body = {"from": self.sender, "to": [recipient], "subject": "A fault is near", "text": "Will it arrive?\n" * 50}
        try:
            response = await self.client.post("/api/v1/messages/send", json=body, headers=self.headers)
        except httpx.TransportError:
            self.refused[recipient] = 0
            return
        if response.status_code == 202:
            self.accepted[recipient] = response.json()["data"]["message"]["id"]
        else:
            self.refused[recipient] = response.status_code

    def be_slow(self, seconds: float) -> None:
        """Each host takes half of this before the content and half after it, so that faults strike in both."""
        for host in self.hosts:
            host.replies.on_data = lambda _: late("354 go ahead", wait_seconds=seconds / 2)
            host.replies.on_end_of_data = lambda _: late("250 2.0.0 taken", wait_seconds=seconds / 2)

    def be_quick(self) -> None:
        for host in self.hosts:
            host.replies.on_data = host.replies.on_end_of_data = _usual

    @property
    def arrivals(self) -> int:
        return len(self._mails())

    def _mails(self) -> list[ReceivedMail]:
        """What arrived for our own sites; what an earlier test has left may arrive meanwhile."""
        mails = (mail for host in self.hosts for mail in host.mails)
        return [mail for mail in mails if mail.rcpt_to.rpartition("@")[2] in self.sites]

    async def arrivals_reach(self, count: int, *, timeout_seconds: float = 30) -> None:
        """Wait until the hosts together have taken this many mails."""

        async def enough() -> bool:
            return self.arrivals >= count

        await eventually(enough, timeout_seconds=timeout_seconds)

    def received(self) -> Counter[str]:
        """How often each recipient's mail was taken; every copy of one carries the same Message-ID."""
        found = Counter[str]()
        identities: dict[str, str] = {}
        for mail in self._mails():
            identity = str(message_from_bytes(mail.content)["Message-ID"])
            assert identities.setdefault(mail.rcpt_to, identity) == identity
            found[mail.rcpt_to] += 1
        assert len(set(identities.values())) == len(identities)
        return found

    async def settled(self, *, timeout_seconds: float = 30) -> None:
        """Wait until nothing is queued any more."""

        async def empty() -> bool:
            return not await self.unsettled()

        await eventually(empty, timeout_seconds=timeout_seconds)

    async def unsettled(self) -> set[str]:
        """The recipients whose deliveries are still queued, leased or not."""
        mine = "SELECT recipient FROM delivery_queue WHERE domain = ANY(:sites)"
        return {recipient for (recipient,) in await self.house.query(mine, sites=self.sites)}

    async def leases(self) -> int:
        """How many deliveries are leased, to living workers or dead ones."""
        leased = "SELECT count(*) FROM delivery_queue WHERE lease_token IS NOT NULL AND domain = ANY(:sites)"
        ((count,),) = await self.house.query(leased, sites=self.sites)
        return int(count)

    async def assert_history_is_true(self) -> None:
        """Each accepted mail is delivered, and its events say so once, in order, as does the API."""
        rows = await self.house.query(
            "SELECT d.recipient, d.status, (SELECT array_agg(e.type ORDER BY e.occurred_at, e.id) FROM events e"
            " WHERE e.org_id = d.org_id AND e.delivery_id = d.id) FROM deliveries d WHERE d.recipient = ANY(:accepted)",
            accepted=list(self.accepted),
        )
        assert len(rows) == len(self.accepted)
        for recipient, status, types in rows:
            assert status == "delivered", recipient
            retries = types[1:-2]
            assert (types[0], types[-2:]) == ("queued", ["sent", "delivered"]), (recipient, types)
            assert set(retries) <= {"deferred", "sent"}, (recipient, types)
        for message_id in list(self.accepted.values())[:3]:
            shown = await self._get(f"/api/v1/messages/{message_id}")
            assert shown["message"]["status"] == "delivered"
            events = (await self._get(f"/api/v1/messages/{message_id}/events"))["events"]
            assert [event["type"] for event in events][-1] == "delivered"

    async def _get(self, path: str) -> Any:
        response = await self.client.get(path, headers=self.headers)
        assert response.status_code == 200, response.text
        return response.json()["data"]


def _usual(_: str) -> Act | None:
    return None
