"""The first real mail, from registration to the recipients' hosts, as issue and contract tell it."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage

from app.core.config import Settings
from app.delivery.engine import Engine
from tests.certificates import self_signed
from tests.delivery.conftest import settled
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, new_domain
from tests.mail import reader
from tests.mail.verifier import verdicts_by_dns
from tests.smtpd import SmtpServer

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

TEXT = "Guten Tag,\n\nschöne Grüße.\n.\nFrom here on.\n"


def _file(name: str, content: bytes, **fields: str) -> dict[str, str]:
    return {"filename": name, "content": base64.b64encode(content).decode(), **fields}


async def test_a_full_mail_reaches_every_recipients_host_once(
    sender: Sender, engine: Engine, dns: DnsServer, settings: Settings
) -> None:
    names = [new_domain("to"), new_domain("cc"), new_domain("bcc")]
    hosts = [
        SmtpServer(f"127.0.0.{number}", settings.outbound_smtp_port, tls=self_signed("mx.example"))
        for number in (2, 3, 4)
    ]
    for host, name in zip(hosts, names, strict=True):
        await host.start()
        dns.add(name, "MX", f"10 mx.{name}.")
        dns.add(f"mx.{name}", "A", host.host)
    to, cc, bcc = (f"ada@{name}" for name in names)
    message_id = await sender.send(
        [f"Ädä Lövelace <{to}>"],
        cc=[{"email": cc, "name": "Grace, Hopper"}],
        bcc=bcc,
        reply_to="support@sender.example",
        subject="Grüße aus Köln 🎉, 日本語",
        text=TEXT,
        html="<p>Schöne <b>Grüße</b> <img src='cid:logo@x'></p>",
        headers={"X-Order": "1042"},
        attachments=[
            _file("Übersicht 2026.pdf", b"%PDF-1.7\x00\xff" * 50, content_type="application/pdf"),
            _file("logo.png", PNG, content_id="logo@x"),
        ],
        tags=["order"],
        metadata={"order": 1042, "vip": True},
    )
    message = await settled(sender, message_id, "delivered")
    for host in hosts:
        await host.stop()

    assert [[mail.rcpt_to for mail in host.mails] for host in hosts] == [[to], [cc], [bcc]]
    contents = {host.mails[0].content.partition(b"\r\nFrom:")[2] for host in hosts}
    assert len(contents) == 1, "every copy is the same mail"
    received = hosts[0].mails[0]
    assert received.tls
    assert received.ehlo == "mta.postroad.test"
    assert received.mail_from.endswith(f"@bounces.{sender.domain}"), "its own return path, as it is verified"
    assert await asyncio.to_thread(verdicts_by_dns, received.content, dns) == [True, True]
    _check_mail(received.content, sender, to=to, cc=cc, bcc=bcc, message_id=message_id)

    assert {(one["email"], one["kind"], one["status"]) for one in message["recipients"]} == {
        (to, "to", "delivered"),
        (cc, "cc", "delivered"),
        (bcc, "bcc", "delivered"),
    }
    events = await sender.events(message_id)
    for recipient in (to, cc, bcc):
        assert [event["type"] for event in events if event["recipient"] == recipient] == ["queued", "sent", "delivered"]
    delivered = [event for event in events if event["type"] == "delivered"]
    assert all(event["tls"] is True and event["mx"].startswith("mx.") and event["code"] == 250 for event in delivered)
    assert all(event["metadata"] == {"order": 1042, "vip": True} and event["tags"] == ["order"] for event in events)
    assert message["delivered_at"] is not None


def _check_mail(content: bytes, sender: Sender, *, to: str, cc: str, bcc: str, message_id: str) -> None:
    """The mail as an independent reader sees it is the one that was handed in."""
    assert bcc.encode() not in content
    assert b"order" not in content.split(b"\r\n\r\n")[0].replace(b"X-Order", b"").replace(b"x-order", b"")
    parsed = message_from_bytes(content, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    assert parsed["subject"] == "Grüße aus Köln 🎉, 日本語"
    assert parsed["from"].addresses[0].addr_spec == f"hello@{sender.domain}"
    assert [(one.display_name, one.addr_spec) for one in parsed["to"].addresses] == [("Ädä Lövelace", to)]
    assert [(one.display_name, one.addr_spec) for one in parsed["cc"].addresses] == [("Grace, Hopper", cc)]
    assert parsed["reply-to"].addresses[0].addr_spec == "support@sender.example"
    assert parsed["message-id"] == f"<{message_id}@{sender.domain}>"
    assert parsed["x-order"] == "1042"
    assert not parsed.defects
    assert reader.body(parsed.get_body(("plain",))) == reader.normalised(TEXT)
    assert reader.body(parsed.get_body(("html",))) == "<p>Schöne <b>Grüße</b> <img src='cid:logo@x'></p>"
    files = {part.get_filename(): part for part in parsed.walk() if part.get_filename()}
    assert files["Übersicht 2026.pdf"].get_content() == b"%PDF-1.7\x00\xff" * 50
    assert files["Übersicht 2026.pdf"].get_content_type() == "application/pdf"
    assert files["logo.png"].get_content() == PNG
    assert files["logo.png"]["content-id"] == "<logo@x>"


async def test_a_scheduled_mail_waits_and_is_dated_when_it_is_sent(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str
) -> None:
    due = datetime.now(UTC) + timedelta(seconds=2.5)
    message_id = await sender.send(f"ada@{site}", scheduled_at=due.isoformat())
    assert (await sender.message(message_id))["status"] == "pending"
    await asyncio.sleep(0.5)
    assert mx.mails == []
    await settled(sender, message_id, "delivered")
    assert datetime.now(UTC) >= due
    dated = message_from_bytes(mx.mails[0].content, policy=policy.default)["date"].datetime
    assert abs((dated - due).total_seconds()) <= 1


async def test_an_address_named_twice_gets_one_copy(sender: Sender, engine: Engine, mx: SmtpServer, site: str) -> None:
    message_id = await sender.send([f"Ada <ada@{site}>", f"ADA@{site}"], cc=f"ada@{site.upper()}", bcc=f"ada@{site}")
    await settled(sender, message_id, "delivered")
    assert len(mx.mails) == 1


async def test_smtputf8_recipients_go_only_to_hosts_that_take_them(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str, settings: Settings, dns: DnsServer
) -> None:
    old = new_domain("old")
    dns.add(old, "MX", f"10 mx.{old}.")
    dns.add(f"mx.{old}", "A", "127.0.0.3")
    async with SmtpServer("127.0.0.3", settings.outbound_smtp_port, extensions=("PIPELINING",)) as old_host:
        taken = await sender.send(f"дарья@{site}")
        refused = await sender.send(f"дарья@{old}")
        await settled(sender, taken, "delivered")
        message = await settled(sender, refused, "hard_bounced")
        assert old_host.mails == []
    assert "SMTPUTF8" in mx.mails[0].mail_parameters
    assert "5.6.7" in message["recipients"][0]["last_response"]


async def test_a_host_that_states_a_smaller_size_is_not_sent_to(
    sender: Sender, engine: Engine, site: str, settings: Settings
) -> None:
    async with SmtpServer("127.0.0.2", settings.outbound_smtp_port, extensions=("SIZE 2000",)) as host:
        message_id = await sender.send(f"ada@{site}", text="x" * 3000)
        message = await settled(sender, message_id, "hard_bounced")
        assert host.mails == []
    assert "5.3.4" in message["recipients"][0]["last_response"]
