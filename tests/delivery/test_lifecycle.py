"""Mail that is simulated, that expires, is urgent or cancelled, and batches: the whole way."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from app.core.config import Settings
from app.core.db import Database
from app.delivery.engine import Engine
from app.messages.simulator import DOMAIN
from tests.accounts import helpers
from tests.delivery.conftest import settled
from tests.delivery.owner import Owner, engines, eventually
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, new_domain
from tests.smtpd import SmtpServer, late

# How a simulated copy ends, and what its events tell.
SIMULATED = {
    "delivered": ("delivered", ["queued", "sent", "delivered"]),
    "deferred": ("delivered", ["queued", "deferred", "sent", "delivered"]),
    "hard_bounced": ("hard_bounced", ["queued", "hard_bounced"]),
    "complained": ("complained", ["queued", "sent", "delivered", "complained"]),
    "suppressed": ("suppressed", ["queued", "suppressed"]),
    "failed": ("failed", ["queued", "failed"]),
}


@pytest.fixture
async def owner(sender: Sender, database: Database) -> AsyncIterator[Owner]:
    found = Owner(sender, database)
    yield found
    await found.sql("DELETE FROM queue_holds WHERE org_id = :org_id")


def within(**time: float) -> str:
    return (datetime.now(UTC) + timedelta(**time)).isoformat()


class TestSimulated:
    @pytest.mark.parametrize("outcome", SIMULATED)
    async def test_each_outcome(self, owner: Owner, engine: Engine, mx: SmtpServer, site: str, outcome: str) -> None:
        body = {"message": owner.sender.mail(f"ada@{site}", tags=["try"]), "outcome": outcome}
        message_id = (await owner.call("POST", "/messages/simulate-delivery", body))["message"]["id"]
        status, types = SIMULATED[outcome]
        message = await settled(owner.sender, message_id, status)
        assert message["simulated"] is True
        events = await owner.sender.events(message_id)
        assert [event["type"] for event in events] == types
        assert all(event["tags"] == ["try"] for event in events)
        attempted = [event for event in events[1:] if event["type"] != "complained"]
        assert {event["mx"] for event in attempted} == {"simulator"}
        assert mx.connection_count == 0

    async def test_soft_bounces_go_on_until_the_time_is_up(self, owner: Owner, engine: Engine) -> None:
        body = {"message": owner.sender.mail("ada@to.example"), "outcome": "soft_bounced"}
        message_id = (await owner.call("POST", "/messages/simulate-delivery", body))["message"]["id"]
        await settled(owner.sender, message_id, "soft_bounced")
        await owner.sql("UPDATE delivery_queue SET give_up_at = now() WHERE org_id = :org_id")
        message = await settled(owner.sender, message_id, "failed")
        types = await owner.sender.event_types(message_id)
        assert types == ["queued", "soft_bounced", "failed"]
        assert message["recipients"][0]["attempts"] == 2  # type: ignore[index]
        assert (await owner.sender.events(message_id))[-1]["reason"] == "retries_exhausted"

    async def test_what_a_test_key_sends(self, owner: Owner, engine: Engine, mx: SmtpServer, site: str) -> None:
        _, secret = await helpers.mint(owner.sender.client, owner.sender.user, test=True)
        sender = owner.sender
        key = Sender(sender.client, sender.org_id, sender.domain, sender.domain_id, sender.user, {"X-API-Key": secret})
        magic = [name for name in SIMULATED if name != "failed"]
        message_id = await key.send([*(f"{name}+x@{DOMAIN}" for name in magic), f"ada@{site}"])
        expected = {f"{name}+x@{DOMAIN}": SIMULATED[name] for name in magic} | {f"ada@{site}": SIMULATED["delivered"]}
        await eventually(lambda: _settled_all(key, message_id))
        message = await key.message(message_id)
        assert {one["email"]: one["status"] for one in message["recipients"]} == {
            email: status for email, (status, _) in expected.items()
        }
        told: dict[str, list[str]] = {}
        for event in await key.events(message_id):
            told.setdefault(event["recipient"], []).append(event["type"])
        assert told == {email: types for email, (_, types) in expected.items()}
        assert mx.connection_count == 0

    async def test_a_copy_to_the_simulator_beside_one_that_leaves(
        self, owner: Owner, engine: Engine, mx: SmtpServer, site: str
    ) -> None:
        message_id = await owner.sender.send([f"ada@{site}", f"hard_bounced@{DOMAIN}"])
        message = await settled(owner.sender, message_id, "hard_bounced")
        assert [one["status"] for one in message["recipients"]] == ["delivered", "hard_bounced"]  # type: ignore[attr-defined]
        assert [mail.rcpt_to for mail in mx.mails] == [f"ada@{site}"]


async def _settled_all(sender: Sender, message_id: str) -> bool:
    return all(one["settled_at"] for one in (await sender.message(message_id))["recipients"])


class TestExpiry:
    async def test_while_it_is_queued(self, owner: Owner, mx: SmtpServer, site: str, settings: Settings) -> None:
        message_id = await owner.sender.send(f"ada@{site}", expires_at=within(seconds=0.5))
        await asyncio.sleep(0.6)
        async with engines(settings):
            await self._is_told(owner, message_id, mx)

    async def test_while_its_queue_is_held(self, owner: Owner, mx: SmtpServer, site: str, settings: Settings) -> None:
        await owner.queue_act(f"default@{site}", "hold")
        async with engines(settings):
            message_id = await owner.sender.send(f"ada@{site}", expires_at=within(seconds=1))
            await settled(owner.sender, message_id, "held")
            await asyncio.sleep(1)
            await owner.sweep()
            await self._is_told(owner, message_id, mx)

    async def test_while_its_vmta_is_paused(self, owner: Owner, mx: SmtpServer, site: str, settings: Settings) -> None:
        vmta = await owner.vmta()
        await owner.act(vmta, "pause")
        async with engines(settings):
            message_id = await owner.sender.send(f"ada@{site}", vmta=vmta["id"], expires_at=within(seconds=1))
            await settled(owner.sender, message_id, "held")
            await asyncio.sleep(1)
            await owner.sweep()
            await self._is_told(owner, message_id, mx)

    async def test_while_it_is_deferred(self, owner: Owner, mx: SmtpServer, site: str, settings: Settings) -> None:
        mx.replies.on_rcpt = lambda _: "451 4.3.2 Not now"
        async with engines(settings, retry_first_seconds=3600):
            message_id = await owner.sender.send(f"ada@{site}", expires_at=within(seconds=1))
            await settled(owner.sender, message_id, "deferred")
            mx.replies.on_rcpt = lambda _: None
            # Not after the hour of the next attempt: at once when its time is over.
            await self._is_told(owner, message_id, mx)

    async def test_while_a_warm_up_keeps_it_back(
        self, owner: Owner, mx: SmtpServer, site: str, settings: Settings
    ) -> None:
        warmup = {"enabled": True, "daily_start": 1, "growth": 2, "daily_limit": 10}
        vmta = await owner.vmta(warmup=warmup)
        async with engines(settings):
            first = await owner.sender.send(f"ada@{site}", vmta=vmta["id"])
            await settled(owner.sender, first, "delivered")
            message_id = await owner.sender.send(f"grace@{site}", vmta=vmta["id"], expires_at=within(seconds=1))
            await self._is_told(owner, message_id, mx, mails=1)

    async def test_while_it_waits_for_a_slow_host(
        self, owner: Owner, mx: SmtpServer, site: str, settings: Settings
    ) -> None:
        mx.replies.on_rcpt = lambda _: late("250 2.1.5 OK", wait_seconds=1.5)
        async with engines(settings, site_connections=1):
            first = await owner.sender.send(f"ada@{site}")
            await eventually(lambda: _connected(mx))
            message_id = await owner.sender.send(f"grace@{site}", expires_at=within(seconds=1))
            await self._is_told(owner, message_id, mx, mails=1)
            await settled(owner.sender, first, "delivered")

    async def test_what_is_held_for_all_its_time_has_failed(
        self, owner: Owner, mx: SmtpServer, site: str, settings: Settings
    ) -> None:
        await owner.queue_act(f"default@{site}", "hold")
        async with engines(settings):
            message_id = await owner.sender.send(f"ada@{site}")
            await settled(owner.sender, message_id, "held")
            await owner.sql("UPDATE delivery_queue SET give_up_at = now() WHERE org_id = :org_id")
            await owner.sweep()
            await settled(owner.sender, message_id, "failed")
        assert (await owner.sender.events(message_id))[-1]["reason"] == "retries_exhausted"
        assert mx.connection_count == 0

    async def _is_told(self, owner: Owner, message_id: str, mx: SmtpServer, *, mails: int = 0) -> None:
        message = await settled(owner.sender, message_id, "failed", timeout_seconds=6)
        events = await owner.sender.events(message_id)
        assert (events[-1]["type"], events[-1]["reason"]) == ("failed", "expired")
        # No attempt was made but those that were deferred.
        attempts = [event["type"] for event in events].count("deferred")
        assert message["recipients"][0]["attempts"] == attempts  # type: ignore[index]
        assert mx.mail_count == mails


async def _connected(mx: SmtpServer) -> bool:
    return mx.connection_count > 0


@pytest.mark.parametrize("others", ["of its own site", "of other sites"])
async def test_urgent_mail_overtakes_a_backlog(
    owner: Owner, mx: SmtpServer, site: str, dns: DnsServer, settings: Settings, others: str
) -> None:
    """500 mails before it, of the same tenant, more than a worker holds; nobody rings, nobody else's hand helps."""
    sites, seconds = [site], 0.1
    if others == "of other sites":
        seconds = 0.4
        sites = [new_domain("backlog") for _ in range(10)]
        for name in sites:
            dns.add(name, "MX", f"10 mx.{name}.")
            dns.add(f"mx.{name}", "A", "127.0.0.2")
    mx.replies.on_end_of_data = lambda _: late("250 2.0.0 taken", wait_seconds=seconds)
    await owner.batch([f"user{number}@{sites[number % len(sites)]}" for number in range(500)])
    # The poll of the settings, but half as often.
    async with engines(settings, site_connections=2, delivery_concurrency=100, poll_seconds=0.4):
        await mx.mails_expected(20)
        before, began_at = mx.mail_count, time.monotonic()
        await owner.sender.send(f"urgent@{site}", expires_at=within(minutes=10))
        while not mx.mails_to(f"urgent@{site}"):
            assert time.monotonic() - began_at < 5, f"{mx.mail_count - before} others went before it"
            await asyncio.sleep(0.01)
        before_it = mx.mail_count - before
        mx.replies.on_end_of_data = lambda _: None
    # What was with the host already, and what went meanwhile: three looks for urgent mail at most.
    assert before_it < 60, before_it


async def test_a_cancelled_mail_never_leaves(owner: Owner, mx: SmtpServer, site: str, settings: Settings) -> None:
    kept, cancelled = await owner.sender.send(f"ada@{site}"), await owner.sender.send(f"grace@{site}")
    await owner.call("POST", f"/messages/{cancelled}/cancel")
    mx.replies.on_rcpt = lambda address: "451 4.3.2 Not now" if address.startswith("later") else None
    async with engines(settings, retry_first_seconds=0.8):
        await settled(owner.sender, kept, "delivered")
        later = await owner.sender.send(f"later@{site}")
        await settled(owner.sender, later, "deferred")
        await owner.call("POST", f"/messages/{later}/cancel")
        mx.replies.on_rcpt = lambda _: None
        await asyncio.sleep(1.5)
    assert [mail.rcpt_to for mail in mx.mails] == [f"ada@{site}"]
    assert await owner.sender.event_types(cancelled) == ["queued", "cancelled"]
    assert await owner.sender.event_types(later) == ["queued", "deferred", "cancelled"]


async def test_a_batch_reaches_its_hosts(owner: Owner, dns: DnsServer, settings: Settings, mx: SmtpServer) -> None:
    names = [new_domain("batch") for _ in range(4)]
    hosts = [mx, *(SmtpServer(f"127.0.0.{number}", settings.outbound_smtp_port) for number in (3, 4, 5))]
    for host, name in zip(hosts, names, strict=True):
        dns.add(name, "MX", f"10 mx.{name}.")
        dns.add(f"mx.{name}", "A", host.host)
    for host in hosts[1:]:
        await host.start()
    try:
        mails = [owner.sender.mail(f"user{number}@{names[number % 4]}", subject=f"S{number}") for number in range(99)]
        mails.insert(50, owner.sender.mail("no address"))
        body = {"messages": mails, "mode": "permissive", "batch_id": "tonight"}
        data = await owner.call("POST", "/messages/batch", body)
        assert (data["accepted"], data["rejected"]) == (99, 1)
        async with engines(settings, 2):
            for number, host in enumerate(hosts):
                await host.mails_expected(len(range(number, 99, 4)))
            await eventually(lambda: _delivered(owner, 99))
    finally:
        for host in hosts[1:]:
            await host.stop()
    found = Counter(mail.rcpt_to for host in hosts for mail in host.mails)
    assert found == Counter(f"user{number}@{names[number % 4]}" for number in range(99))
    for host, name in zip(hosts, names, strict=True):
        assert {mail.rcpt_to.partition("@")[2] for mail in host.mails} == {name}
    one = data["results"][98]["message"]
    assert await owner.sender.event_types(one["id"]) == ["queued", "sent", "delivered"]
    assert b"Subject: S97\r\n" in next(
        mail.content for mail in hosts[97 % 4].mails if mail.rcpt_to == f"user97@{names[97 % 4]}"
    )


async def _delivered(owner: Owner, count: int) -> bool:
    listed = "/messages?batch_id=tonight&status=delivered&limit=100"
    return len((await owner.call("GET", listed))["messages"]) == count
