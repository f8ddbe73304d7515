"""What would go wrong only when several things come together: shared hosts, few connections, pauses, failures."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import FastAPI

from app.core.config import Settings
from app.core.db import Database
from app.delivery.egress import Egress, Wait, Way
from app.delivery.engine import Engine
from app.delivery.limits import SharedLimits
from app.delivery.outcome import Claimed
from app.delivery.routing import Route
from app.mail.smtp import Timeouts
from tests.delivery.conftest import settled
from tests.delivery.owner import Owner, engines, eventually
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, new_domain
from tests.smtpd import SmtpServer, late


@pytest.fixture
async def owner(sender: Sender, database: Database) -> Any:
    found = Owner(sender, database)
    yield found
    for table in ("queue_throttles", "queue_holds"):
        await found.sql(f"DELETE FROM {table}")


async def test_a_hold_by_a_domains_name_is_that_domains_alone(
    owner: Owner, sender: Sender, mx: SmtpServer, site: str, dns: DnsServer, settings: Settings
) -> None:
    """Two domains with one host share a lane, whose route is that of whichever mail came last."""
    other = new_domain("beside")
    dns.add(other, "MX", f"10 mx.{site}.")
    mx.replies.on_end_of_data = lambda _: late("250 2.0.0 taken", wait_seconds=0.1)
    held = [f"user{number}@{site}" for number in range(20)]
    free = [f"user{number}@{other}" for number in range(20)]
    await owner.queue_act(f"default@{site}", "hold")
    async with engines(settings, site_connections=1):
        for one, two in zip(held, free, strict=True):
            await owner.batch([one, two])
        await mx.mails_expected(20)
        await asyncio.sleep(0.5)
        assert sorted(mail.rcpt_to for mail in mx.mails) == sorted(free)
        rows = await owner.sql(
            "SELECT attempt FROM delivery_queue WHERE org_id = :org_id AND next_attempt_at = 'infinity'"
        )
        assert [row.attempt for row in rows] == [0] * 20


async def test_a_hold_made_under_way_by_a_domains_name_stops_that_domain_alone(
    owner: Owner, sender: Sender, mx: SmtpServer, site: str, dns: DnsServer, settings: Settings
) -> None:
    other = new_domain("beside")
    dns.add(other, "MX", f"10 mx.{site}.")
    mx.replies.on_end_of_data = lambda _: late("250 2.0.0 taken", wait_seconds=0.5)
    held = [f"user{number}@{site}" for number in range(10)]
    free = [f"user{number}@{other}" for number in range(10)]
    async with engines(settings, site_connections=4):
        await owner.batch(held)
        await mx.mails_expected(1)
        # The lane's route is theirs from now on.
        await owner.batch(free)
        await owner.sql(
            "INSERT INTO queue_holds (org_id, vmta_id, site) VALUES (:org_id, "
            "'00000000-0000-0000-0000-000000000000', :site)",
            site=site,
        )
        await eventually(lambda: _count(mx, free, 10), timeout_seconds=8)
    assert sum(mail.rcpt_to in held for mail in mx.mails) < 10


async def _count(mx: SmtpServer, recipients: Sequence[str], wanted: int) -> bool:
    return sum(mail.rcpt_to in recipients for mail in mx.mails) == wanted


async def test_a_connection_that_had_to_be_waited_for_serves_many_mails(
    owner: Owner, app: FastAPI, mx: SmtpServer, site: str, settings: Settings
) -> None:
    other_worker = SharedLimits(app.state.redis)
    running = asyncio.create_task(other_worker.run())
    assert await other_worker.acquire(f"default@mx.{site}", 1)
    async with engines(settings, site_connections=1):
        await owner.batch([f"user{number}@{site}" for number in range(30)])
        await asyncio.sleep(1)
        assert mx.connection_count == 0
        other_worker.release(f"default@mx.{site}")
        await mx.mails_expected(30, timeout_seconds=20)
    running.cancel()
    assert mx.connection_count == 1


async def test_mail_does_not_wait_behind_one_that_takes_long_once_there_is_room_again(
    owner: Owner, mx: SmtpServer, site: str, settings: Settings
) -> None:
    crowded_until = asyncio.get_running_loop().time() + 3

    def greet(_: str) -> str | None:
        is_crowded = asyncio.get_running_loop().time() < crowded_until and len(mx.connections) > 1
        return "421 4.3.2 Busy" if is_crowded else None

    mx.replies.on_connect = greet
    taken = iter([late("250 2.0.0 taken", wait_seconds=12)])
    mx.replies.on_end_of_data = lambda _: next(taken, None)
    engine = Engine(settings.model_copy(update={"site_connections": 4}), timeouts=Timeouts())
    running = asyncio.create_task(engine.run())
    await owner.batch([f"slow@{site}"])
    await eventually(lambda: _connected(mx))
    await asyncio.sleep(0.3)
    await owner.batch([f"user{number}@{site}" for number in range(7)])
    await mx.mails_expected(8, timeout_seconds=9)
    engine.stop()
    await running


async def test_what_is_held_while_a_host_keeps_us_waiting_is_not_sent(
    owner: Owner, sender: Sender, mx: SmtpServer, site: str, settings: Settings
) -> None:
    mx.replies.on_connect = lambda _: late("220 mx.test ESMTP", wait_seconds=1.7)
    async with engines(settings):
        message_id = await sender.send(f"ada@{site}")
        await eventually(lambda: _connected(mx))
        await owner.queue_act(f"default@{site}", "hold")
        await settled(sender, message_id, "held", timeout_seconds=5)
    assert not mx.mails


async def _connected(mx: SmtpServer) -> bool:
    return mx.connection_count > 0


async def test_a_failure_of_our_own_while_a_way_is_chosen_keeps_no_mail(
    sender: Sender, mx: SmtpServer, site: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_all, calls = Egress.choose_all, []

    async def trip_once(self: Egress, claims: Sequence[Claimed], route: Route) -> list[Way | Wait]:
        calls.append(route)
        if len(calls) == 1:
            raise ZeroDivisionError
        return await choose_all(self, claims, route)

    monkeypatch.setattr(Egress, "choose_all", trip_once)
    async with engines(settings):
        message_id = await sender.send(f"ada@{site}")
        await settled(sender, message_id, "delivered")
    assert await sender.event_types(message_id) == ["queued", "deferred", "sent", "delivered"]


async def test_a_failure_of_our_own_in_the_simulator_harms_no_other_mail(
    owner: Owner, sender: Sender, mx: SmtpServer, site: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await owner.batch([f"ada@{site}", "delivered@simulator.postroad.test"])
    await owner.sql("UPDATE delivery_queue SET simulated = 'queued' WHERE org_id = :org_id AND simulated IS NOT NULL")
    async with engines(settings):
        await settled(sender, ids[0], "delivered")
        await settled(sender, ids[1], "deferred")
    assert [mail.rcpt_to for mail in mx.mails] == [f"ada@{site}"]
