"""DKIM rotation under load: mail is sent all the while, and every signature holds, when it comes and later.

ROTATION_MAILS=2000 in the environment sends more.
"""

import asyncio
import os
import re
from uuid import UUID

import dkim
import httpx
from sqlalchemy import func, update

from app.core.db import Database
from app.delivery.engine import Engine
from app.domains import queries, service
from app.domains.models import DkimKey
from tests.dnsd import DnsServer
from tests.factories.senders import Sender
from tests.smtpd import SmtpServer

MAILS = int(os.environ.get("ROTATION_MAILS", "300"))
SENDERS = 8
DEFERRED_SHARE = 10
_SELECTOR = re.compile(rb"; s=([^;]+);")

Zone = dict[str, str]


class World:
    """The domain's keys in the DNS, and what they were when each mail came."""

    def __init__(self, dns: DnsServer, mx: SmtpServer) -> None:
        self._dns = dns
        self._mx = mx
        self._zone: Zone = {}
        self._changes: list[tuple[int, Zone]] = []

    def publish(self, domain: dict) -> Zone:
        """Have exactly the DKIM records that the API lists, but for those that it says may be removed."""
        records = [one for one in domain["dns_records"] if one["purpose"] == "dkim" and one["action"] != "remove"]
        zone = {one["name"]: one["value"] for one in records}
        for name in self._zone.keys() - zone.keys():
            self._dns.remove(name, "TXT")
        for name, value in zone.items():
            self._dns.replace(name, "TXT", value)
        self._zone = zone
        self._changes.append((len(self._mx.mails), zone))
        return zone

    def at(self, position: int) -> Zone:
        """The zone when the mail at this position had just come."""
        return next(zone for first, zone in reversed(self._changes) if first <= position)


def selectors(content: bytes) -> list[str]:
    unfolded = content.partition(b"\r\n\r\n")[0].replace(b"\r\n ", b" ")
    lines = [line for line in unfolded.split(b"\r\n") if line.lower().startswith(b"dkim-signature:")]
    return [_SELECTOR.search(line)[1].decode() for line in lines]


def verifies(content: bytes, zone: Zone, signatures: int) -> bool:
    def txt(name: bytes, timeout: float = 0) -> bytes | None:
        value = zone.get(name.decode().rstrip("."))
        return None if value is None else value.encode()

    return all(dkim.DKIM(content).verify(index, dnsfunc=txt) for index in range(signatures))


async def shown(client: httpx.AsyncClient, sender: Sender, method: str, action: str = "") -> dict:
    response = await client.request(method, f"/api/v1/domains/{sender.domain_id}{action}", headers=sender.user)
    assert response.status_code == 200, response.text
    found: dict = response.json()["data"]["domain"]
    return found


def states(domain: dict) -> dict[str, str]:
    return {key["selector"]: key["status"] for key in domain["dkim_keys"]}


async def test_every_signature_verifies_then_and_later(
    client: httpx.AsyncClient,
    engine: Engine,
    sender: Sender,
    database: Database,
    mx: SmtpServer,
    site: str,
    dns: DnsServer,
):
    world = World(dns, mx)
    world.publish(await shown(client, sender, "GET"))
    # Some are put off once, so that mail accepted before a rotation is signed anew after it.
    for number in range(0, MAILS, DEFERRED_SHARE):
        mx.answer_once(f"u{number}@{site}", "451 4.7.1 later", phase="rcpt")
    numbers = iter(range(MAILS))
    sent = 0
    goes_on = asyncio.Event()

    async def send() -> None:
        nonlocal sent
        for number in numbers:
            if number >= MAILS * 3 // 4:
                await goes_on.wait()
            await sender.send(f"u{number}@{site}")
            sent += 1
            engine.ring()

    async def sent_are(count: int) -> None:
        while sent < count:
            await asyncio.sleep(0.01)

    async with asyncio.timeout(60 + MAILS / 10), asyncio.TaskGroup() as group:
        for _ in range(SENDERS):
            group.create_task(send())
        await sent_are(MAILS // 4)
        rotated = await shown(client, sender, "POST", "/rotate-dkim")
        assert sorted(states(rotated).values()) == ["active", "active", "pending", "pending"]
        # Asked for before they are published: nothing changes.
        assert states(await shown(client, sender, "POST", "/verify")) == states(rotated)
        await sent_are(MAILS // 2)
        world.publish(rotated)
        switched = await shown(client, sender, "POST", "/verify")
        assert sorted(states(switched).values()) == ["active", "active", "retiring", "retiring"]
        assert world.publish(switched) == {
            one["name"]: one["value"] for one in rotated["dns_records"] if one["purpose"] == "dkim"
        }
        # Workers remember how a domain signs for two seconds.
        await asyncio.sleep(2.1)
        goes_on.set()
    mails = list(await mx.mails_expected(MAILS, timeout_seconds=60 + MAILS / 10))
    assert len({mail.rcpt_to for mail in mails}) == MAILS

    later = world.publish(await shown(client, sender, "GET"))
    used: dict[str, int] = {}
    for position, mail in enumerate(mails):
        found = selectors(mail.content)
        assert len(found) == 2
        assert verifies(mail.content, world.at(position), len(found)), (position, found)
        assert verifies(mail.content, later, len(found)), (position, found)
        used[found[0]] = used.get(found[0], 0) + 1
    assert used.keys() == {"pmta", "pmta2"}
    assert min(used.values()) >= MAILS // 8

    # When the overlap is over the old records may go; what is sent from then on does not miss them.
    async with database.transaction() as session:
        old = (DkimKey.domain_id == UUID(sender.domain_id)) & (DkimKey.status == "retiring")
        await session.execute(update(DkimKey).where(old).values(retire_at=func.now()))
    async with database.transaction() as session:
        await queries.retire_keys(session)
        pair = (sender.org_id, UUID(sender.domain_id))
        assert [one.selector for one in (await service.signing_keys(session, [pair]))[pair]] == [
            "pmta2",
            "pmta2-ed25519",
        ]
    final = world.publish(await shown(client, sender, "GET"))
    assert {name.split(".")[0] for name in final} == {"pmta2", "pmta2-ed25519"}
    await sender.send(f"last@{site}")
    engine.ring()
    mail = (await mx.mails_expected(MAILS + 1))[-1]
    assert verifies(mail.content, final, 2)
    assert not verifies(mails[0].content, final, 2)
