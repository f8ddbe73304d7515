"""Suppressed after it was accepted, and by what became of it: what the engine sends no more, and whom it suppresses."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.delivery.engine import Engine
from app.delivery.lease import Held, Lease
from app.delivery.outcome import Claimed, Outcome
from app.delivery.settle import Settler
from app.mail.diagnosis import diagnose
from app.mail.reply import Phase, Reply
from app.messages.simulator import DOMAIN
from app.messages.status import Status
from tests.delivery.conftest import settled
from tests.delivery.owner import Owner, engines, eventually
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender, new_domain
from tests.smtpd import SmtpServer

UNKNOWN = "550 5.1.1 No such user"


@pytest.fixture
async def owner(sender: Sender, database: Database) -> AsyncIterator[Owner]:
    found = Owner(sender, database)
    yield found
    await found.sql("DELETE FROM queue_holds WHERE org_id = :org_id")


async def suppress(owner: Owner, address: str, **fields: Any) -> str:
    """The suppression's id."""
    found = await owner.call("POST", "/suppressions", {"address": address, "reason": "complaint", **fields})
    return str(found["suppression"]["id"])


async def suppressed(owner: Owner) -> list[tuple[str, str, str | None]]:
    """(address, reason, detail) of all."""
    found = (await owner.call("GET", "/suppressions"))["suppressions"]
    return [(one["address"], one["reason"], one["detail"]) for one in found]


async def test_suppressed_between_accept_and_transmission(
    owner: Owner, client: httpx.AsyncClient, dns: DnsServer, mx: SmtpServer, site: str, settings: Settings
) -> None:
    sender, other = owner.sender, await make_sender(client, dns)
    message_id = await sender.send([f"Ada@{site}", f"grace@{site}"])
    tagged = await sender.send(f"joan@{site}", tags=["sale", "news"])
    untagged, theirs = await sender.send(f"joan@{site}"), await other.send(f"ada@{site}")
    suppression_id = await suppress(owner, f"ada@{site}")
    await suppress(owner, f"joan@{site}", tag="news", reason="unsubscribe")
    async with engines(settings):
        await settled(sender, message_id, "delivered")
        await settled(sender, tagged, "suppressed")
        await settled(sender, untagged, "delivered")
        await settled(other, theirs, "delivered")
    copies = (await sender.message(message_id))["recipients"]
    assert [(one["status"], one["attempts"]) for one in copies] == [("suppressed", 0), ("delivered", 1)]
    assert copies[0]["last_response"] == "the recipient is suppressed: complaint"
    assert copies[0]["settled_at"] is not None
    events = [event for event in await sender.events(message_id) if event["recipient"] == f"Ada@{site}"]
    assert [event["type"] for event in events] == ["queued", "suppressed"]
    assert (events[1]["reason"], events[1]["suppression_id"]) == ("complaint", suppression_id)
    assert not {"tag", "mx", "tls"} & set(events[1])
    event = (await sender.events(tagged))[-1]
    assert (event["type"], event["reason"], event["tag"]) == ("suppressed", "unsubscribe", "news")
    assert sorted(mail.rcpt_to for mail in mx.mails) == [f"ada@{site}", f"grace@{site}", f"joan@{site}"]
    assert await owner.sql("SELECT 1 FROM delivery_queue WHERE org_id = :org_id") == []


async def test_suppressed_while_it_was_deferred(owner: Owner, engine: Engine, mx: SmtpServer, site: str) -> None:
    mx.replies.on_rcpt = lambda _: "451 4.7.1 Later"
    message_id = await owner.sender.send(f"ada@{site}")
    await settled(owner.sender, message_id, "deferred")
    await suppress(owner, f"ada@{site}")
    mx.replies.on_rcpt = lambda _: None
    message = await settled(owner.sender, message_id, "suppressed")
    assert message["recipients"][0]["attempts"] == 1
    assert await owner.sender.event_types(message_id) == ["queued", "deferred", "suppressed"]
    assert mx.mails == []


async def test_suppressed_while_it_was_scheduled_or_held(
    owner: Owner, mx: SmtpServer, site: str, settings: Settings
) -> None:
    sender = owner.sender
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    scheduled = await sender.send(f"ada@{site}", scheduled_at=soon)
    await owner.queue_act(f"default@{site}", "hold")
    held = await sender.send(f"grace@{site}")
    async with engines(settings):
        await settled(sender, held, "held")
        for name in ("ada", "grace"):
            await suppress(owner, f"{name}@{site}")
        await settled(sender, scheduled, "suppressed")
        await owner.queue_act(f"default@{site}", "release")
        await settled(sender, held, "suppressed")
    assert mx.mails == []


@pytest.mark.parametrize("phase", ["rcpt", "end_of_data"])
async def test_a_hard_bounce_of_the_address_stops_the_next_send(
    owner: Owner, engine: Engine, mx: SmtpServer, site: str, phase: str
) -> None:
    sender = owner.sender
    mx.answer_once(f"Ada@{site}", UNKNOWN, phase=phase)
    first = await sender.send([f"Ada@{site}", f"grace@{site}"])
    await settled(sender, first, "hard_bounced")
    assert await suppressed(owner) == [(f"ada@{site}", "hard_bounce", UNKNOWN)]
    (found,) = (await owner.call("GET", "/suppressions"))["suppressions"]
    assert (found["message_id"], found["tag"]) == (first, None)
    second = await sender.send(f"ada@{site}", tags=["any"])
    assert (await sender.message(second))["status"] == "suppressed"
    (event,) = await sender.events(second)
    assert (event["reason"], event["suppression_id"]) == ("hard_bounce", found["id"])


async def test_nothing_else_suppresses(owner: Owner, engine: Engine, mx: SmtpServer, site: str, dns: DnsServer) -> None:
    sender = owner.sender
    null, absent = new_domain("null"), new_domain("absent")
    dns.add(null, "MX", "0 .")
    answers = {
        "policy": "550 5.7.1 Message rejected due to local policy",
        "spam": "554 5.7.1 This message looks like spam",
        "relay": "550 5.7.1 Relaying denied",
        "size": "552 5.3.4 Message too big",
    }
    for name, answer in answers.items():
        mx.answer_once(f"{name}@{site}", answer)
    recipients = [*(f"{name}@{site}" for name in answers), f"a@{null}", f"a@{absent}", f"hard_bounced@{DOMAIN}"]
    for message_id in [await sender.send(one) for one in recipients]:
        await settled(sender, message_id, "hard_bounced")
    mx.answer_once(f"full@{site}", "452 4.2.2 Mailbox full")
    await settled(sender, await sender.send(f"full@{site}"), "delivered")
    body = {"message": sender.mail(f"ada@{site}"), "outcome": "hard_bounced"}
    simulated = (await owner.call("POST", "/messages/simulate-delivery", body))["message"]["id"]
    await settled(sender, simulated, "hard_bounced")
    assert await suppressed(owner) == []


async def test_a_stale_workers_bounce_suppresses_nobody(
    owner: Owner, settings: Settings, database: Database, site: str
) -> None:
    """It is written with the outcome, or not at all."""
    reply = Reply(550, "5.1.1", "No such user")
    diagnosis = diagnose(reply, Phase.RCPT)
    assert diagnosis.address_level
    done: list[Held] = []
    settler = Settler(settings, database, done.append)
    now = datetime.now(UTC)
    for number, token in enumerate(["gen_random_uuid()", "lease_token"]):
        message_id = await owner.sender.send(f"u{number}@{site}")
        claimed = await _claim(owner, message_id)
        await owner.sql(
            f"UPDATE delivery_queue SET lease_token = {token} WHERE org_id = :org_id AND message_id = :id",
            id=message_id,
        )
        outcome = Outcome(Status.HARD_BOUNCED, "refused", "", now, now, reply=reply, diagnosis=diagnosis)
        settler.add(Held(claimed, Lease(60, 1e12)), outcome)
    running = asyncio.create_task(settler.run())
    await asyncio.wait_for(settler.drained(), 5)
    running.cancel()
    assert len(done) == 2
    assert await suppressed(owner) == [(f"u1@{site}", "hard_bounce", "550 5.1.1 No such user")]


async def _claim(owner: Owner, message_id: str) -> Claimed:
    (row,) = await owner.sql(
        "UPDATE delivery_queue SET lease_token = gen_random_uuid(), attempt = attempt + 1, "
        "next_attempt_at = now() + interval '1 minute' WHERE org_id = :org_id AND message_id = :id "
        "RETURNING org_id, delivery_id, message_id, recipient, domain, vmta_id, urgent, simulated, "
        "size_bytes, attempt, give_up_at, expires_at, lease_token",
        id=message_id,
    )
    return Claimed(*row)


async def test_a_hundred_at_once_bounce_and_are_suppressed_once_each(
    owner: Owner, engine: Engine, mx: SmtpServer, site: str
) -> None:
    mx.replies.on_rcpt = lambda _: UNKNOWN
    # Everybody twice: the second bounce finds the address suppressed, or the copy is not sent at all.
    ids = await owner.batch([f"u{number}@{site}" for number in range(50)] * 2)

    async def all_settled() -> bool:
        rows = await owner.sql("SELECT 1 FROM delivery_queue WHERE org_id = :org_id")
        return not rows

    await eventually(all_settled)
    assert len(ids) == 100
    rows = await owner.sql("SELECT address FROM suppressions WHERE org_id = :org_id")
    assert sorted(row[0] for row in rows) == sorted(f"u{number}@{site}" for number in range(50))


async def test_only_a_bounce_keeps_back_a_notice(
    owner: Owner, database: Database, mx: SmtpServer, site: str, settings: Settings
) -> None:
    """Postroad's own mail, suppressed after it was accepted."""
    sender = owner.sender
    ids = {reason: await sender.send(f"{reason}@{site}") for reason in ("complaint", "unsubscribe", "hard_bounce")}
    async with database.transaction() as session:
        notice = text("UPDATE messages SET notice = true WHERE org_id = :org_id")
        await session.execute(notice, {"org_id": sender.org_id})
    for reason in ids:
        await suppress(owner, f"{reason}@{site}", reason=reason)
    async with engines(settings):
        await settled(sender, ids["complaint"], "delivered")
        await settled(sender, ids["unsubscribe"], "delivered")
        await settled(sender, ids["hard_bounce"], "suppressed")
    assert sorted(mail.rcpt_to for mail in mx.mails) == [f"complaint@{site}", f"unsubscribe@{site}"]
