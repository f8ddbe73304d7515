"""By which vMTA mail leaves, seen by the hosts that it reaches."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import event

from app.core.config import Settings
from app.core.db import Database
from app.delivery import engine as engine_module
from app.vmtas import choice
from tests.accounts import helpers
from tests.delivery.conftest import settled
from tests.delivery.owner import Owner, engines, eventually
from tests.factories.senders import Sender
from tests.smtpd import SmtpServer, late

WARMING = {"enabled": True, "daily_start": 10, "growth": 2, "daily_limit": 1000}
# No host of the tests has it (RFC 5737).
ELSEWHERE = "192.0.2.77"


@pytest.fixture
def owner(sender: Sender, database: Database) -> Owner:
    return Owner(sender, database)


def users(site: str, count: int) -> list[str]:
    return [f"user{number}@{site}" for number in range(count)]


def sources(mx: SmtpServer) -> Counter[str]:
    return Counter(mail.peer[0] for mail in mx.mails)


async def test_its_address_and_its_name(
    owner: Owner, sender: Sender, mx: SmtpServer, site: str, settings: Settings
) -> None:
    async with engines(settings):
        # The engine has looked around already, and knows nothing of what is made now.
        await asyncio.sleep(0.3)
        vmta = await owner.vmta()
        message_id = await sender.send(f"ada@{site}", vmta=vmta["name"].upper())
        message = await settled(sender, message_id, "delivered")
    (mail,) = mx.mails
    assert (mail.peer[0], mail.ehlo) == (vmta["ip_address"], vmta["hostname"])
    assert message["recipients"][0]["vmta_id"] == vmta["id"]  # type: ignore[index]
    told = (await sender.events(message_id))[-1]
    assert (told["vmta_id"], told["source_address"]) == (vmta["id"], vmta["ip_address"])
    assert (told["tls"], told["tls_policy"]) == (False, "opportunistic")


async def test_without_vmtas_the_platforms_own(sender: Sender, mx: SmtpServer, site: str, settings: Settings) -> None:
    async with engines(settings):
        message = await settled(sender, await sender.send(f"ada@{site}"), "delivered")
    assert mx.mails[0].ehlo == "mta.postroad.test"
    assert message["recipients"][0]["vmta_id"] is None  # type: ignore[index]


async def test_what_is_remembered_costs_no_question(owner: Owner, sender: Sender, site: str) -> None:
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    await sender.send(f"ada@{site}")
    engine = owner.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        await sender.send(f"ada@{site}")
        remembered = sum("vmtas" in one for one in statements)
        choice.forget(sender.org_id)
        await sender.send(f"ada@{site}")
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert (remembered, sum("vmtas" in one for one in statements)) == (0, 1)


async def test_each_copy_is_drawn_for_by_weight(owner: Owner, mx: SmtpServer, site: str, settings: Settings) -> None:
    heavy, light = await owner.vmta(pool="default", weight=3), await owner.vmta(pool="default")
    spare, apart = await owner.vmta(pool="default", weight=0), await owner.vmta()
    choice.forget(owner.sender.org_id)
    together = await owner.sender.send(users(site, 40))
    await owner.batch([f"b{number}@{site}" for number in range(160)])
    async with engines(settings):
        await settled(owner.sender, together, "delivered")
        await mx.mails_expected(200)
    found = sources(mx)
    assert set(found) == {heavy["ip_address"], light["ip_address"]}, (spare, apart)
    # 150 of 200 by weight, six standard deviations to either side.
    assert 113 <= found[heavy["ip_address"]] <= 187
    of_one = Counter(mail.peer[0] for mail in mx.mails if mail.rcpt_to.startswith("user"))
    assert len(of_one) == 2


async def test_a_name_that_is_wrong(owner: Owner, sender: Sender, site: str) -> None:
    vmta = await owner.vmta(pool="bulk")
    mail = sender.mail(f"ada@{site}", vmta="bulk")
    assert (await sender.post(mail)).status_code == 202
    refused = await sender.post({**mail, "vmta": "bulky"})
    helpers.assert_problem(refused, 422, "vmta_not_found")
    assert [flaw["pointer"] for flaw in refused.json()["errors"]] == ["/vmta"]
    body = {"messages": [mail, {**mail, "vmta": "bulky"}, {**mail, "vmta": vmta["id"]}], "mode": "permissive"}
    first, second, third = (await owner.call("POST", "/messages/batch", body))["results"]
    assert (first["status"], third["status"]) == ("accepted", "accepted")
    assert (second["error"]["code"], second["error"]["errors"][0]["pointer"]) == ("vmta_not_found", "/vmta")
    strict = await sender.client.post("/api/v1/messages/batch", json={**body, "mode": "strict"}, headers=sender.key)
    helpers.assert_problem(strict, 422, "vmta_not_found")
    assert strict.json()["errors"][0]["pointer"] == "/messages/1/vmta"


async def test_others_of_its_pool_stand_in_while_it_is_paused(
    owner: Owner, mx: SmtpServer, site: str, settings: Settings
) -> None:
    first, second = await owner.vmta(pool="pair"), await owner.vmta(pool="pair")
    message_id = await owner.sender.send(f"ada@{site}", vmta=first["name"])
    await owner.act(first, "pause")
    async with engines(settings):
        message = await settled(owner.sender, message_id, "delivered")
    assert sources(mx) == {second["ip_address"]: 1}
    assert message["recipients"][0]["vmta_id"] == second["id"]  # type: ignore[index]


async def test_what_nobody_can_take_is_held_until_it_resumes(
    owner: Owner, mx: SmtpServer, site: str, settings: Settings
) -> None:
    vmta = await owner.vmta()
    await owner.act(vmta, "pause")
    async with engines(settings):
        message_id = await owner.sender.send(f"ada@{site}", vmta=vmta["id"])
        await settled(owner.sender, message_id, "held")
        await owner.sweep()
        await asyncio.sleep(0.5)
        assert (await owner.sender.message(message_id))["status"] == "held"
        assert (await owner.queue(f"{vmta['id']}@mx.{site}"))["state"] == "paused"
        await owner.act(vmta, "resume")
        await owner.sweep()
        message = await settled(owner.sender, message_id, "delivered")
    assert sources(mx) == {vmta["ip_address"]: 1}
    # Waiting was no attempt.
    assert message["recipients"][0]["attempts"] == 1  # type: ignore[index]


async def test_a_pause_stops_what_waits_at_once(owner: Owner, mx: SmtpServer, site: str, settings: Settings) -> None:
    vmta = await owner.vmta(max_connections=2)
    mx.replies.on_end_of_data = lambda _: late("250 2.0.0 taken", wait_seconds=0.1)
    await owner.batch(users(site, 60), vmta=vmta["name"])
    async with engines(settings):
        await mx.mails_expected(6)
        await owner.act(vmta, "pause")
        await asyncio.sleep(1)
        at_pause = mx.mail_count
        assert at_pause < 40
        await asyncio.sleep(1)
        assert mx.mail_count == at_pause
        await eventually(lambda: _held(owner, 60 - at_pause))
        mx.replies.on_end_of_data = lambda _: None
        await owner.act(vmta, "resume")
        await owner.sweep()
        await mx.mails_expected(60)
    assert sorted(mail.rcpt_to for mail in mx.mails) == sorted(users(site, 60))
    assert mx.max_connections_seen <= 2


async def test_a_pause_while_it_is_connecting(owner: Owner, mx: SmtpServer, site: str, settings: Settings) -> None:
    vmta = await owner.vmta()
    mx.replies.on_connect = lambda _: late("220 mx.test ESMTP", wait_seconds=1.5)
    async with engines(settings):
        message_id = await owner.sender.send(f"ada@{site}", vmta=vmta["name"])
        await eventually(lambda: _connected(mx))
        await owner.act(vmta, "pause")
        await settled(owner.sender, message_id, "held")
    assert (mx.mail_count, "MAIL" in mx.verbs()) == (0, False)


async def _connected(mx: SmtpServer) -> bool:
    return mx.connection_count > 0


async def _held(owner: Owner, count: int) -> bool:
    statement = "SELECT count(*) FROM delivery_queue WHERE org_id = :org_id AND next_attempt_at = 'infinity'"
    return bool((await owner.sql(statement))[0][0] == count)


async def test_an_address_that_this_host_does_not_have(
    owner: Owner, mx: SmtpServer, site: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_FOREIGN_SECONDS", 1.0)
    away, here = await owner.vmta(ip_address=ELSEWHERE, pool="pair"), await owner.vmta(pool="pair")
    alone = await owner.vmta(ip_address=ELSEWHERE)
    together, by_itself = (
        await owner.sender.send(f"ada@{site}", vmta=away["name"]),
        await owner.sender.send(f"grace@{site}", vmta=alone["name"]),
    )
    async with engines(settings):
        await asyncio.sleep(0.5)
        assert mx.mail_count == 0, "left to hosts that have the address"
        await settled(owner.sender, together, "delivered")
        await asyncio.sleep(0.5)
        # It is never sent from another address, and nothing is said to its owner but that it waits.
        assert (await owner.sender.message(by_itself))["status"] == "queued"
    assert sources(mx) == {here["ip_address"]: 1}


async def test_a_vmta_that_is_gone(owner: Owner, mx: SmtpServer, site: str, settings: Settings) -> None:
    """Deleted in the moment in which it was drawn: the platform's own way out, or another of the organization's."""
    vmta = await owner.vmta()
    first = await owner.sender.send(f"ada@{site}", vmta=vmta["name"])
    await owner.sql("UPDATE vmtas SET deleted_at = now(), updated_at = clock_timestamp() WHERE org_id = :org_id")
    async with engines(settings):
        await settled(owner.sender, first, "delivered")
    other = await owner.vmta()
    second = await owner.sender.send(f"grace@{site}", vmta=other["name"])
    await owner.sql("UPDATE delivery_queue SET vmta_id = CAST(:id AS uuid) WHERE org_id = :org_id", id=vmta["id"])
    async with engines(settings):
        await settled(owner.sender, second, "delivered")
    assert [mail.ehlo for mail in mx.mails] == ["mta.postroad.test", other["hostname"]]


class TestWarmUp:
    async def test_two_engines_keep_to_one_cap(
        self, owner: Owner, mx: SmtpServer, site: str, settings: Settings
    ) -> None:
        vmta = await owner.vmta(warmup=WARMING)
        await owner.batch(users(site, 35), vmta=vmta["name"])
        async with engines(settings, 2):
            await mx.mails_expected(10)
            await asyncio.sleep(1)
            assert mx.mail_count == 10
            await eventually(lambda: _usage(owner, vmta))
        assert await owner.used(vmta) == 10
        assert await owner.usage(vmta) == [("generic", 10, 0, 0)]
        later = await owner.sql(
            "SELECT min(next_attempt_at) > now() + interval '50 seconds', max(attempt) FROM delivery_queue "
            "WHERE org_id = :org_id"
        )
        assert [tuple(row) for row in later] == [(True, 0)]

    async def test_what_is_over_goes_to_warm_members(
        self, owner: Owner, mx: SmtpServer, site: str, settings: Settings
    ) -> None:
        warming, warm = await owner.vmta(pool="pair", warmup=WARMING), await owner.vmta(pool="pair")
        await owner.batch(users(site, 35), vmta=warming["name"])
        async with engines(settings, 2):
            await mx.mails_expected(35)
        assert sources(mx) == {warming["ip_address"]: 10, warm["ip_address"]: 25}

    async def test_what_was_not_transmitted_is_given_back(self, owner: Owner, site: str, settings: Settings) -> None:
        vmta = await owner.vmta(warmup=WARMING)
        # Nobody listens.
        message_ids = await owner.batch(users(site, 5), vmta=vmta["name"])
        async with engines(settings, retry_first_seconds=3600):
            for message_id in message_ids:
                await settled(owner.sender, message_id, "deferred")
        assert await owner.used(vmta) == 0
        assert await owner.usage(vmta) == [("generic", 0, 0, 0)], "a host that is not there judges nobody"

    async def test_how_mail_was_met_is_counted(
        self, owner: Owner, mx: SmtpServer, site: str, settings: Settings
    ) -> None:
        vmta = await owner.vmta(warmup=WARMING)
        answers = {
            "later": "451 4.3.2 Not now",
            "grey": "451 4.7.1 Greylisted, try again later",
            "nobody": "550 5.1.1 No such user",
            "full": "452 4.2.2 Mailbox full",
        }
        mx.replies.on_rcpt = lambda address: answers.get(address.partition("@")[0])
        await owner.batch([f"{name}@{site}" for name in (*answers, "ada", "grace")], vmta=vmta["name"])
        async with engines(settings, retry_first_seconds=3600):
            await mx.mails_expected(2)
            await eventually(lambda: _no_more_leases(owner))
        # Ending, an engine writes down what it has not written yet.
        assert await owner.usage(vmta) == [("generic", 2, 1, 1)]
        assert await owner.used(vmta) == 6


async def _usage(owner: Owner, vmta: dict[str, Any]) -> bool:
    return bool(sum(row[1] for row in await owner.usage(vmta)) >= 10)


async def _no_more_leases(owner: Owner) -> bool:
    statement = """
        SELECT NOT EXISTS (SELECT FROM delivery_queue WHERE org_id = :org_id
                           AND (next_attempt_at <= now() OR lease_token IS NOT NULL))
    """
    return bool((await owner.sql(statement))[0][0])


async def test_usage_costs_nothing_without_vmtas(owner: Owner, mx: SmtpServer, site: str, settings: Settings) -> None:
    async with engines(settings):
        await owner.batch(users(site, 3))
        await mx.mails_expected(3)
    assert await owner.sql("SELECT 1 FROM vmta_usage WHERE org_id = :org_id") == []


async def test_new_choice_of_limits_reaches_the_host(
    owner: Owner, mx: SmtpServer, site: str, settings: Settings
) -> None:
    vmta = await owner.vmta(max_rate=120)
    await owner.batch(users(site, 30), vmta=vmta["name"])
    async with engines(settings):
        await asyncio.sleep(3)
        # Two a second, and the few that may go at once.
        assert 4 <= mx.mail_count <= 14
