"""What hosts and the DNS answer, and what becomes of the mail."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text

from app.core.config import Settings
from app.core.db import Database
from app.delivery.engine import Engine
from app.messages.models import QueuedDelivery
from tests.certificates import self_signed
from tests.delivery.conftest import QUICK, settled
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, new_domain
from tests.smtpd import SmtpServer, drop, hang, late


async def test_a_deferral_is_tried_again_and_delivered(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str, database: Database
) -> None:
    mx.answer_once(f"ada@{site}", "451 4.7.1 Try again later")
    message_id = await sender.send(f"ada@{site}")
    waiting = await settled(sender, message_id, "deferred")
    assert waiting["recipients"][0]["last_response"] == "451 4.7.1 Try again later"
    assert waiting["recipients"][0]["next_attempt_at"] is not None
    message = await settled(sender, message_id, "delivered")
    assert message["recipients"][0]["attempts"] == 2
    assert await sender.event_types(message_id) == ["queued", "deferred", "sent", "delivered"]
    deferred = (await sender.events(message_id))[1]
    assert (deferred["code"], deferred["enhanced_code"], deferred["phase"]) == (451, "4.7.1", "rcpt")
    told = [
        (event["attempt"], event["type"], event["code"]) for event in await sender.events(message_id) if "code" in event
    ]
    assert told == [(1, "deferred", 451), (2, "delivered", 250)]
    assert len(mx.mails) == 1
    async with database.transaction() as session:
        left = (await session.scalars(select(QueuedDelivery).where(QueuedDelivery.org_id == sender.org_id))).all()
    assert left == [], "a finished delivery leaves the hot queue"


@pytest.mark.parametrize(
    ("phase", "answer", "status", "code"),
    [
        ("rcpt", "550 5.1.1 No such user", "hard_bounced", 550),
        ("data", "554 5.7.1 Not welcome", "hard_bounced", 554),
        ("end_of_data", "552 5.2.3 Too large for the mailbox", "hard_bounced", 552),
        ("rcpt", "452 4.2.2 Mailbox full", "soft_bounced", 452),
        ("end_of_data", "451 4.3.0 Later", "deferred", 451),
    ],
)
async def test_refusals(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str, phase: str, answer: str, status: str, code: int
) -> None:
    mx.answer_once(f"ada@{site}", answer, phase=phase)
    message_id = await sender.send(f"ada@{site}")
    message = await settled(sender, message_id, status)
    assert message["recipients"][0]["last_response"] == answer
    event = next(event for event in await sender.events(message_id) if event["type"] == status)
    assert (event["code"], event["enhanced_code"], event["reason"]) == (code, answer.split()[1], "refused")


async def test_one_recipient_refused_harms_no_other(sender: Sender, engine: Engine, mx: SmtpServer, site: str) -> None:
    mx.answer_once(f"nobody@{site}", "550 5.1.1 No such user")
    message_id = await sender.send([f"ada@{site}", f"nobody@{site}", f"grace@{site}"])
    message = await settled(sender, message_id, "hard_bounced")
    assert [one["status"] for one in message["recipients"]] == ["delivered", "hard_bounced", "delivered"]
    assert sorted(mail.rcpt_to for mail in mx.mails) == [f"ada@{site}", f"grace@{site}"]


async def test_domains_that_take_no_mail(sender: Sender, engine: Engine, dns: DnsServer) -> None:
    null, empty, absent = new_domain("null"), new_domain("empty"), new_domain("absent")
    dns.add(null, "MX", "0 .")
    dns.add(empty, "TXT", "nothing here")
    expected = {null: "null_mx", empty: "no_mail_host", absent: "no_such_domain"}
    for name, reason in expected.items():
        message_id = await sender.send(f"ada@{name}")
        message = await settled(sender, message_id, "hard_bounced")
        event = (await sender.events(message_id))[-1]
        assert (event["type"], event["reason"]) == ("hard_bounced", reason)
        assert name in message["recipients"][0]["last_response"]


async def test_a_failing_dns_defers_until_it_heals(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str, dns: DnsServer
) -> None:
    dns.fail(site, "SERVFAIL")
    message_id = await sender.send(f"ada@{site}")
    await settled(sender, message_id, "deferred")
    assert (await sender.events(message_id))[-1]["reason"] == "dns_failure"
    dns.heal(site)
    await settled(sender, message_id, "delivered")
    assert len(mx.mails) == 1


async def test_a_domain_without_mx_is_its_own_host(
    sender: Sender, engine: Engine, mx: SmtpServer, dns: DnsServer
) -> None:
    name = new_domain("plain")
    dns.add(name, "A", "127.0.0.2")
    await settled(sender, await sender.send(f"ada@{name}"), "delivered")
    assert [mail.rcpt_to for mail in mx.mails] == [f"ada@{name}"]


async def test_hosts_are_tried_in_order_of_preference(
    sender: Sender, engine: Engine, settings: Settings, dns: DnsServer
) -> None:
    name = new_domain("many")
    for preference, host in ((30, "127.0.0.5"), (10, "127.0.0.3"), (20, "127.0.0.4")):
        dns.add(name, "MX", f"{preference} mx{preference}.{name}.")
        dns.add(f"mx{preference}.{name}", "A", host)
    port = settings.outbound_smtp_port
    # The best is not there, the second refuses to talk: the third takes it.
    async with SmtpServer("127.0.0.4", port, greeting="421 4.3.2 Busy") as busy, SmtpServer("127.0.0.5", port) as last:
        message_id = await sender.send(f"ada@{name}")
        await settled(sender, message_id, "delivered")
        assert busy.connection_count >= 1
        assert len(last.mails) == 1
    async with SmtpServer("127.0.0.3", port) as first, SmtpServer("127.0.0.5", port) as last:
        await settled(sender, await sender.send(f"ada@{name}"), "delivered")
        assert (len(first.mails), len(last.mails)) == (1, 0)


async def test_no_host_that_answers_is_a_deferral(sender: Sender, engine: Engine, site: str) -> None:
    message_id = await sender.send(f"ada@{site}")
    await settled(sender, message_id, "deferred")
    event = next(event for event in await sender.events(message_id) if event["type"] == "deferred")
    assert (event["reason"], event["mx"], event["mx_address"]) == ("connect_failed", f"mx.{site}", "127.0.0.2")


async def test_broken_tls_falls_back_to_plaintext(
    sender: Sender, engine: Engine, site: str, settings: Settings
) -> None:
    async with SmtpServer("127.0.0.2", settings.outbound_smtp_port, tls=self_signed("mx.example")) as host:
        host.replies.on_starttls = lambda _: "454 4.7.0 TLS not available"
        message_id = await sender.send(f"ada@{site}")
        await settled(sender, message_id, "delivered")
        assert [mail.tls for mail in host.mails] == [False]
    assert (await sender.events(message_id))[-1]["tls"] is False


@pytest.mark.parametrize("act", [drop(), hang()])
async def test_a_session_that_breaks_before_the_final_dot_costs_an_attempt_and_no_duplicate(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str, act: object
) -> None:
    mx.answer_once(f"ada@{site}", act, phase="data")
    message_id = await sender.send(f"ada@{site}")
    await settled(sender, message_id, "delivered")
    assert len(mx.mails) == 1
    assert (await sender.message(message_id))["recipients"][0]["attempts"] == 2


async def test_a_kept_connection_that_was_closed_costs_no_attempt(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str
) -> None:
    await settled(sender, await sender.send(f"ada@{site}"), "delivered")
    mx.replies.on_mail = lambda _: "421 4.4.2 Idle too long" if mx.connection_count == 1 else None
    message_id = await sender.send(f"ada@{site}")
    message = await settled(sender, message_id, "delivered")
    assert message["recipients"][0]["attempts"] == 1
    assert mx.connection_count == 2


async def test_mail_to_one_site_shares_its_connections(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str, settings: Settings
) -> None:
    message_ids = [await sender.send([f"user{number}-{batch}@{site}" for number in range(20)]) for batch in range(3)]
    for message_id in message_ids:
        await settled(sender, message_id, "delivered")
    assert len(mx.mails) == 60
    assert mx.max_connections_seen <= settings.site_connections
    assert mx.connection_count < 60


async def test_retries_end_in_failure(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str, database: Database
) -> None:
    mx.replies.on_rcpt = lambda _: "451 4.7.1 Never"
    message_id = await sender.send(f"ada@{site}")
    await settled(sender, message_id, "deferred")
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE delivery_queue SET give_up_at = now() WHERE message_id = :id"), {"id": message_id}
        )
    message = await settled(sender, message_id, "failed")
    event = (await sender.events(message_id))[-1]
    assert (event["type"], event["reason"]) == ("failed", "retries_exhausted")
    assert message["recipients"][0]["last_response"] == "451 4.7.1 Never"


async def test_a_mail_that_expires_is_never_sent_late(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str
) -> None:
    mx.replies.on_rcpt = lambda _: "451 4.7.1 Later"
    expires_at = datetime.now(UTC) + timedelta(seconds=1.5)
    message_id = await sender.send(f"ada@{site}", expires_at=expires_at.isoformat())
    await settled(sender, message_id, "deferred")
    await settled(sender, message_id, "failed")
    mx.replies.on_rcpt = lambda _: None
    event = (await sender.events(message_id))[-1]
    assert event["reason"] == "expired"
    assert datetime.fromisoformat(event["timestamp"]) - expires_at < timedelta(seconds=2)
    await asyncio.sleep(1.5)
    assert mx.mails == []


async def test_a_deleted_domains_accepted_mail_is_still_signed_and_sent(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str
) -> None:
    mx.answer_once(f"ada@{site}", "451 4.7.1 Later")
    message_id = await sender.send(f"ada@{site}")
    await settled(sender, message_id, "deferred")
    deleted = await sender.client.delete(f"/api/v1/domains/{sender.domain_id}", headers=sender.user)
    assert deleted.status_code == 204
    await settled(sender, message_id, "delivered")
    assert b"DKIM-Signature" in mx.mails[0].content


async def test_a_stale_worker_hands_nothing_over_and_writes_nothing_down(
    sender: Sender, mx: SmtpServer, site: str, settings: Settings, database: Database
) -> None:
    # Time enough for somebody else to claim the mail while this worker waits for the host's greeting.
    mx.replies.on_connect = lambda _: late("220 mx.test ESMTP", wait_seconds=1.5)
    message_id = await sender.send(f"ada@{site}")
    engine = Engine(settings.model_copy(update={"lease_seconds": 1.2}), timeouts=QUICK)
    running = asyncio.create_task(engine.run())
    while mx.connection_count == 0:
        await asyncio.sleep(0.01)
    async with database.transaction() as session:
        await session.execute(
            text(
                "UPDATE delivery_queue SET lease_token = gen_random_uuid(), "
                "next_attempt_at = now() + interval '1 hour' WHERE message_id = :id"
            ),
            {"id": message_id},
        )
    await asyncio.sleep(2)
    engine.stop()
    await running
    assert "DATA" in mx.verbs(), "it went as far as asking to hand over"
    assert mx.mails == []
    assert await sender.event_types(message_id) == ["queued"]
    assert (await sender.message(message_id))["status"] == "sending"
