"""Holding, releasing and flushing queues, and queues that slow down by themselves, while engines run."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.core.config import Settings
from app.core.db import Database
from tests.delivery.conftest import settled
from tests.delivery.owner import Owner, engines, eventually
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, new_domain
from tests.smtpd import SmtpServer, late

RATE_LIMITED = (
    "421 4.7.28 Our system has detected an unusual rate of unsolicited mail originating from your IP address. To "
    "protect our users from spam, mail sent from your IP address has been temporarily rate limited."
)
TOO_MANY = "421 4.7.0 Too many connections from your host"
LISTED = "554 5.7.1 Service unavailable; client host [127.0.0.1] blocked using zen.spamhaus.org"


@pytest.fixture
async def owner(sender: Sender, database: Database) -> AsyncIterator[Owner]:
    found = Owner(sender, database)
    yield found
    for table in ("queue_throttles", "queue_holds"):
        await found.sql(f"DELETE FROM {table}")


async def pass_time(owner: Owner, queue_id: str, seconds: float) -> None:
    """As if so much time had passed for the queue: for its throttle, and for what waits in it."""
    way, _, site = queue_id.partition("@")
    assert way == "default"
    await owner.sql(
        "UPDATE queue_throttles SET until = until - make_interval(secs => :seconds), since = since - make_interval"
        "(secs => :seconds), changed_at = changed_at - make_interval(secs => :seconds) WHERE site = :site",
        seconds=seconds,
        site=site,
    )
    # Engines remember for half a second what they will not be told anew when only the clock goes on.
    await asyncio.sleep(0.7)
    await owner.sql(
        "UPDATE delivery_queue SET next_attempt_at = next_attempt_at - make_interval(secs => :seconds) "
        "WHERE org_id = :org_id AND next_attempt_at > now() AND lease_token IS NULL",
        seconds=seconds,
    )


async def count(owner: Owner, condition: str) -> int:
    rows = await owner.sql(f"SELECT count(*) FROM delivery_queue WHERE org_id = :org_id AND {condition}")
    return int(rows[0][0])


async def test_a_queue_held_in_advance_sends_nothing_until_it_is_released(
    owner: Owner, sender: Sender, mx: SmtpServer, site: str, settings: Settings
) -> None:
    await owner.queue_act(f"default@{site}", "hold")
    async with engines(settings, 2):
        message_id = await sender.send(f"ada@{site}")
        await settled(sender, message_id, "held")
        await owner.sweep()
        await asyncio.sleep(0.5)
        assert (await sender.message(message_id))["status"] == "held"
        assert mx.connection_count == 0
        queue = await owner.queue(f"default@{site}")
        assert (queue["state"], queue["counts"]["held"]) == ("held", 1)
        # No sweep is needed, though engines look only twice a second what is held.
        await owner.queue_act(f"default@{site}", "release")
        message = await settled(sender, message_id, "delivered", timeout_seconds=3)
    assert message["recipients"][0]["attempts"] == 1  # type: ignore[index]
    assert await sender.event_types(message_id) == ["queued", "sent", "delivered"]


async def test_a_hold_stops_what_workers_have_already(
    owner: Owner, sender: Sender, mx: SmtpServer, site: str, settings: Settings
) -> None:
    mx.replies.on_end_of_data = lambda _: late("250 2.0.0 taken", wait_seconds=0.2)
    recipients = [f"user{number}@{site}" for number in range(60)]
    await owner.batch(recipients)
    queue_id = f"default@mx.{site}"
    async with engines(settings, 2, site_connections=2):
        await mx.mails_expected(4)
        await eventually(lambda: _leads(owner, site))
        await owner.queue_act(queue_id, "hold")
        await asyncio.sleep(1)
        at_hold = mx.mail_count
        await asyncio.sleep(0.7)
        assert mx.mail_count == at_hold < 40
        queue = await owner.queue(queue_id)
        assert (queue["state"], queue["counts"]["held"]) == ("held", 60 - at_hold)
        mx.replies.on_end_of_data = lambda _: None
        await owner.queue_act(queue_id, "release")
        await mx.mails_expected(60)
    assert sorted(mail.rcpt_to for mail in mx.mails) == sorted(recipients)


async def _leads(owner: Owner, site: str) -> bool:
    return bool(await owner.sql("SELECT 1 FROM destinations WHERE domain = :site", site=site))


async def test_a_flush_tries_again_at_once(
    owner: Owner, sender: Sender, mx: SmtpServer, site: str, settings: Settings
) -> None:
    mx.replies.on_rcpt = lambda _: "451 4.3.2 Not now"
    async with engines(settings, retry_first_seconds=3600):
        message_ids = await owner.batch([f"user{number}@{site}" for number in range(5)])
        for message_id in message_ids:
            await settled(sender, message_id, "deferred")
        mx.replies.on_rcpt = lambda _: None
        await eventually(lambda: _leads(owner, site))
        done = await owner.queue_act(f"default@mx.{site}", "flush")
        assert (done["mails"], done["complete"]) == (5, True)
        await mx.mails_expected(5, timeout_seconds=3)
        for message_id in message_ids:
            assert (await settled(sender, message_id, "delivered"))["recipients"][0]["attempts"] == 2  # type: ignore[index]


async def test_too_many_connections_makes_a_queue_use_fewer(
    owner: Owner, sender: Sender, mx: SmtpServer, site: str, settings: Settings
) -> None:
    """A host that takes three and refuses any more at its greeting."""

    def greet(_: str) -> str | None:
        return TOO_MANY if len(mx.connections) > 3 else None

    mx.replies.on_connect = greet
    mx.replies.on_end_of_data = lambda _: late("250 2.0.0 taken", wait_seconds=0.05)
    queue_id = f"default@mx.{site}"
    async with engines(settings, site_connections=8):
        await owner.batch([f"user{number}@{site}" for number in range(150)])
        queue = await eventually(lambda: _state(owner, queue_id, "slowed"))
        assert queue["reason"] == "too_many_connections"
        assert queue["until"] is not None
        await mx.mails_expected(150, timeout_seconds=30)


async def _state(owner: Owner, queue_id: str, *states: str) -> dict[str, Any] | None:
    queue = await owner.queue(queue_id)
    return queue if queue["state"] in states else None


async def test_a_rate_limit_slows_down_then_suspends_and_is_lifted_by_itself(
    owner: Owner, sender: Sender, mx: SmtpServer, site: str, settings: Settings
) -> None:
    mx.replies.on_mail = lambda _: RATE_LIMITED
    queue_id = f"default@mx.{site}"
    async with engines(settings, 2, retry_first_seconds=0.3):
        message_id = await sender.send(f"ada@{site}")
        queue = await eventually(lambda: _state(owner, queue_id, "slowed"))
        assert queue["reason"] == "rate_limited"
        # Where a domain leads is known to the list within a second.
        await eventually(lambda: _listed(owner, queue_id, "slowed"))
        for state in ("slowed", "suspended"):
            # A complaint within half a minute of another is the same one.
            await pass_time(owner, queue_id, 31)
            queue = await eventually(lambda state=state: _struck(owner, queue_id, state))  # type: ignore[misc]
        recipients: Any = (await settled(sender, message_id, "deferred"))["recipients"]
        assert recipients[0]["category"] == "rate_limited"
        mx.replies.on_mail = lambda _: None
        # The other engine knows in half a second.
        await asyncio.sleep(0.7)
        attempts = mx.connection_count
        # Nothing is sent meanwhile, whoever sends.
        second = await sender.send(f"grace@{site}")
        await asyncio.sleep(1)
        assert mx.connection_count == attempts
        assert (await sender.message(second))["status"] == "queued"
        await pass_time(owner, queue_id, 3600)
        await settled(sender, message_id, "delivered")
        await settled(sender, second, "delivered")
        assert (await owner.queue(queue_id))["state"] == "active"


async def _listed(owner: Owner, queue_id: str, state: str) -> bool:
    found = (await owner.call("GET", f"/queues?state={state}"))["queues"]
    return [one["id"] for one in found] == [queue_id]


async def _struck(owner: Owner, queue_id: str, state: str) -> dict[str, Any] | None:
    rows = await owner.sql("SELECT strikes FROM queue_throttles WHERE site = :site", site=queue_id.partition("@")[2])
    wanted = {"slowed": 2, "suspended": 3}[state]
    return await _state(owner, queue_id, state) if rows and rows[0][0] >= wanted else None


async def test_a_blocklist_suspends_at_once_and_others_stand_in(
    owner: Owner, sender: Sender, mx: SmtpServer, site: str, settings: Settings
) -> None:
    listed, clean = await owner.vmta(pool="pair"), await owner.vmta(pool="pair")
    mx.replies.on_connect = lambda peer: LISTED if peer == listed["ip_address"] else None
    queue_id = f"{listed['id']}@mx.{site}"
    async with engines(settings, retry_first_seconds=0.5):
        first = await sender.send(f"ada@{site}", vmta=listed["name"])
        queue = await eventually(lambda: _state(owner, queue_id, "suspended"))
        assert queue["reason"] == "blocklisted"
        # The recipient is not to blame: another member of the pool takes what was refused, and all that comes.
        second = await sender.send(f"grace@{site}", vmta=listed["name"])
        messages = [await settled(sender, one, "delivered") for one in (first, second)]
    assert {mail.peer[0] for mail in mx.mails} == {clean["ip_address"]}
    assert [one["recipients"][0]["vmta_id"] for one in messages] == [clean["id"]] * 2  # type: ignore[index]


async def test_a_host_beside_a_providers_slows_down_nobody_else(
    owner: Owner, sender: Sender, mx: SmtpServer, dns: DnsServer, settings: Settings
) -> None:
    """Whoever puts Gmail's host before his own in his MX set shares its site, but cannot speak for it."""
    name = new_domain("beside")
    dns.add(name, "MX", "10 gmail-smtp-in.l.google.com.")
    dns.add(name, "MX", f"20 mx.{name}.")
    dns.add(f"mx.{name}", "A", "127.0.0.2")
    # Nobody listens at the first.
    dns.replace("gmail-smtp-in.l.google.com", "A", "127.0.0.9")
    mx.replies.on_connect = lambda _: LISTED
    async with engines(settings, retry_first_seconds=3600):
        message_id = await sender.send(f"ada@{name}")
        await settled(sender, message_id, "deferred", "hard_bounced")
        await asyncio.sleep(1.2)
        assert (await owner.queue("default@gmail"))["state"] == "active"
