"""What one worker owes to all: nobody's large mail, slow host or bad row may hold up anybody else's."""

import asyncio
from datetime import UTC, datetime

import httpx
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.delivery.engine import Engine
from app.delivery.lease import ByteBudget, Held, Lease
from app.delivery.outcome import Claimed, Outcome
from app.delivery.settle import Settler
from app.messages.status import Status
from tests.certificates import self_signed
from tests.delivery.conftest import QUICK, settled
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender, new_domain
from tests.smtpd import SmtpServer, drop, hang, late


def _tarpits(dns: DnsServer, count: int, host: str) -> list[str]:
    names = [new_domain("tarpit") for _ in range(count)]
    for name in names:
        dns.add(name, "MX", f"10 mx.{name}.")
        dns.add(f"mx.{name}", "A", host)
    return names


async def test_a_delivery_claimed_again_by_its_own_worker_goes_on_under_the_new_claim(
    sender: Sender, mx: SmtpServer, site: str, settings: Settings, database: Database
) -> None:
    """As when the database was away for longer than a lease: one copy, settled, and the worker lives on."""
    mx.replies.on_rcpt = lambda _: late("250 2.1.5 OK", wait_seconds=1.5)
    engine = Engine(settings.model_copy(update={"lease_seconds": 60}), timeouts=QUICK)
    running = asyncio.create_task(engine.run())
    message_id = await sender.send(f"ada@{site}")
    while mx.connection_count == 0:
        await asyncio.sleep(0.01)
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE delivery_queue SET next_attempt_at = now() WHERE message_id = :id"), {"id": message_id}
        )
    message = await settled(sender, message_id, "delivered")
    assert (len(mx.mails), message["recipients"][0]["attempts"]) == (1, 2)
    mx.replies.on_rcpt = lambda _: None
    await settled(sender, await sender.send(f"grace@{site}"), "delivered")
    engine.stop()
    await running


async def test_large_mails_and_small_ones_do_not_wait_for_each_other(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str, dns: DnsServer, settings: Settings
) -> None:
    tarpit = _tarpits(dns, 1, "127.0.0.3")[0]
    large = "x" * 9_000_000
    async with SmtpServer("127.0.0.3", settings.outbound_smtp_port) as slow:
        slow.replies.on_rcpt = lambda _: late("250 2.1.5 OK", wait_seconds=1.9)
        stuck = await sender.send(f"ada@{tarpit}", text=large)
        while slow.connection_count == 0:
            await asyncio.sleep(0.01)
        waiting = await sender.send(f"grace@{site}", text=large)
        small = await sender.send(f"joan@{site}")
        await settled(sender, small, "delivered", timeout_seconds=1.5)
        assert (await sender.message(stuck))["status"] == "sending"
        await settled(sender, stuck, "delivered")
    await settled(sender, waiting, "delivered")


async def test_one_tenants_tarpits_leave_room_for_the_others(
    sender: Sender, client: httpx.AsyncClient, dns: DnsServer, settings: Settings, mx: SmtpServer, site: str
) -> None:
    other = await make_sender(client, dns)
    for name in _tarpits(dns, 80, "127.0.0.3"):
        await sender.send(f"ada@{name}")
    async with SmtpServer("127.0.0.3", settings.outbound_smtp_port) as slow:
        slow.replies.on_connect = lambda _: hang()
        engine = Engine(settings.model_copy(update={"delivery_concurrency": 60}), timeouts=QUICK)
        running = asyncio.create_task(engine.run())
        try:
            while slow.connection_count < 25:
                await asyncio.sleep(0.01)
            message_id = await other.send(f"grace@{site}")
            await settled(other, message_id, "delivered", timeout_seconds=1.8)
            assert [mail.rcpt_to for mail in mx.mails] == [f"grace@{site}"]
        finally:
            engine.stop()
            await slow.stop()
            await running


async def test_a_host_that_hangs_up_on_starttls_gets_its_mail_in_the_clear(
    sender: Sender, engine: Engine, site: str, settings: Settings
) -> None:
    async with SmtpServer("127.0.0.2", settings.outbound_smtp_port, tls=self_signed("mx.example")) as host:
        host.replies.on_starttls = lambda _: drop()
        message = await settled(sender, await sender.send(f"ada@{site}"), "delivered")
        assert [mail.tls for mail in host.mails] == [False]
    assert message["recipients"][0]["attempts"] == 1


async def test_a_row_that_the_database_refuses_holds_up_no_other(
    sender: Sender, settings: Settings, database: Database, dns: DnsServer
) -> None:
    message_ids = [await sender.send(f"user{number}@{new_domain('unused')}") for number in range(3)]
    done: list[Held] = []
    settler = Settler(settings, database, done.append)
    helds = [await _claimed(database, message_id) for message_id in message_ids]
    now = datetime.now(UTC)
    for number, held in enumerate(helds):
        # NUL is what PostgreSQL takes in no text.
        category = "\x00" if number == 1 else "other"
        settler.add(held, Outcome(Status.HARD_BOUNCED, "refused", "no", now, now, category=category))
    running = asyncio.create_task(settler.run())
    await asyncio.wait_for(settler.drained(), 5)
    running.cancel()
    statuses = [(await sender.message(message_id))["status"] for message_id in message_ids]
    assert statuses == ["hard_bounced"] * 3
    reasons = [(await sender.events(message_id))[-1]["reason"] for message_id in message_ids]
    assert reasons == ["refused", "not_storable", "refused"]
    assert len(done) == 3


async def _claimed(database: Database, message_id: str) -> Held:
    async with database.transaction() as session:
        row = (
            await session.execute(
                text(
                    "UPDATE delivery_queue SET lease_token = gen_random_uuid(), attempt = attempt + 1, "
                    "next_attempt_at = now() + interval '1 minute' WHERE message_id = :id "
                    "RETURNING org_id, delivery_id, message_id, recipient, domain, vmta_id, urgent, simulated, "
                    "size_bytes, attempt, give_up_at, expires_at, lease_token"
                ),
                {"id": message_id},
            )
        ).one()
    return Held(Claimed(*row), Lease(60, 1e12))


def test_the_budget_lets_many_small_ones_and_one_large_one_in() -> None:
    budget = ByteBudget(100)
    assert [budget.try_take(20) for _ in range(6)] == [True] * 5 + [False]
    assert [budget.try_take(90), budget.try_take(200)] == [True, False]
    budget.give_back(90)
    budget.give_back(20)
    assert [budget.try_take(200), budget.try_take(20), budget.try_take(20)] == [True, True, False]
