"""What follows from what comes back: real mails through the listener, read by the reader at work."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from app.core.db import Database
from app.delivery.engine import Engine
from app.inbound.process import Inbound
from app.tracking import tokens
from tests.delivery.conftest import engine, mx, settled, site
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender
from tests.inbound.house import PLATFORM, arf, copies, counts, dsn, event, read, reason, state
from tests.inbound.wire import greeted, hand_in
from tests.smtpd import SmtpServer

__all__ = ["engine", "mx", "site"]

FBL = f"fbl@{PLATFORM}"


async def test_from_sending_to_the_bounce_that_came_later(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str, port: int, database: Database
) -> None:
    message_id = await sender.send([f"Gone@{site}"])
    await settled(sender, message_id, "delivered")
    (mail,) = mx.mails
    # The customer's own domain takes its bounces, and an alias on their way names the mailbox by another name.
    assert mail.mail_from.endswith(f"@bounces.{sender.domain}")
    assert await read(database, await hand_in(port, mail.mail_from, dsn(f"gone@{site}"))) == ("failure", "applied")
    message = await sender.message(message_id)
    assert message["status"] == message["recipients"][0]["status"] == "hard_bounced"
    assert message["recipients"][0]["category"] == "bad_mailbox"
    assert await sender.event_types(message_id) == ["queued", "sent", "delivered", "hard_bounced"]
    told = (await sender.events(message_id))[-1]
    expected = {
        "source": "report",
        "reason": "returned",
        "mx": "mail.example.net",
        "category": "bad_mailbox",
        "code": 550,
        "enhanced_code": "5.1.1",
        "response": "550 5.1.1 No such user here",
    }
    assert {name: told[name] for name in expected} == expected
    async with database.transaction() as session:
        found = await session.execute(
            text("SELECT address, reason, message_id, detail FROM suppressions WHERE org_id = :org_id"),
            {"org_id": sender.org_id},
        )
        assert list(found.one()) == [f"gone@{site}", "hard_bounce", UUID(message_id), "550 5.1.1 No such user here"]


async def test_a_replayed_report_has_no_effect_and_is_counted(port: int, sender: Sender, database: Database) -> None:
    (copy,) = await copies(database, sender)
    before = (await counts(database)).get(("failure", "repeated"), 0)
    verdicts = [await read(database, await hand_in(port, copy.return_path, dsn(copy.recipient))) for _ in range(3)]
    assert verdicts == [("failure", "applied"), ("failure", "repeated"), ("failure", "repeated")]
    assert await state(database, copy) == ("hard_bounced", ["hard_bounced"])
    assert (await counts(database))[("failure", "repeated")] == before + 2


async def test_reports_of_one_moment_have_one_effect(port: int, sender: Sender, database: Database) -> None:
    (copy,) = await copies(database, sender)
    mails = [dsn(copy.recipient), arf()] * 10
    replies = await asyncio.gather(*(hand_in(port, copy.return_path, mail) for mail in mails))
    verdicts = [(await read(database, reply))[1] for reply in replies]
    assert verdicts.count("applied") == 1
    assert set(verdicts) <= {"applied", "repeated", "absorbed"}
    assert len((await state(database, copy))[1]) == 1


async def test_complaints_by_any_of_our_tokens(port: int, sender: Sender, database: Database) -> None:
    found = await copies(database, sender, 4)
    link = tokens.Links("https://links.example", found[2].org_id, found[2].id).unsubscribe()
    for copy, recipient, original in (
        (found[0], found[0].return_path, {}),
        (found[1], FBL, {"Return-Path": f"<{found[1].return_path}>"}),
        (found[2], FBL, {"List-Unsubscribe": f"<mailto:leave@example.org>, <{link}>"}),
    ):
        mail = arf(original=original, feedback_type="abuse")
        assert await read(database, await hand_in(port, recipient, mail, sender="loop@example.net")) == (
            "complaint",
            "applied",
        )
        assert await state(database, copy) == ("complained", ["complained"])
        told = await event(database, copy)
        assert told == {
            "source": "report",
            "reason": "feedback",
            "feedback_type": "abuse",
            "user_agent": "SomeLoop/1.0",
        }
    assert await state(database, found[3]) == ("delivered", [])
    assert [await reason(database, copy) for copy in found] == [*["complaint"] * 3, None]


async def test_forged_reports_have_no_effect_and_are_counted(
    port: int, inbound: Inbound, sender: Sender, database: Database, client: httpx.AsyncClient, dns: DnsServer
) -> None:
    (copy,) = await copies(database, sender)
    other = await make_sender(client, dns)
    (theirs,) = await copies(database, other)
    link = tokens.Links("https://links.example", copy.org_id, copy.id).unsubscribe()
    altered = copy.local[:-1] + ("a" if copy.local[-1] != "a" else "b")
    forged = [
        {},
        {"Message-ID": f"<{copy.message_id}@{sender.domain}>", "To": copy.recipient},
        {"Return-Path": f"<{altered}@{PLATFORM}>"},
        {"List-Unsubscribe": f"<{link[:-1]}>"},
        {"List-Unsubscribe": f"<{link[:-1]}{'A' if link[-1] != 'A' else 'B'}>"},
        {"List-Unsubscribe": "<https://links.example/track/unsubscribe/>"},
    ]
    before = await counts(database)
    for original in forged:
        for mail in (arf(original=original, recipient=copy.recipient), dsn(copy.recipient, original=original)):
            assert (await read(database, await hand_in(port, FBL, mail)))[1] == "unproven"
    async with greeted(port) as wire:
        assert await wire.code("MAIL FROM:<>", f"RCPT TO:<{altered}@{PLATFORM}>") == [250, 550]
    # Their own token does not reach our copy, whatever the report says beside it.
    mail = arf(original={"To": copy.recipient, "Message-ID": f"<{copy.message_id}@{sender.domain}>"})
    assert (await read(database, await hand_in(port, theirs.return_path, mail)))[1] == "applied"
    assert (await state(database, theirs))[0] == "complained"
    assert await state(database, copy) == ("delivered", [])
    assert await reason(database, copy) is None
    await inbound.stop()
    after = await counts(database)
    for key, number in (
        (("complaint", "unproven"), 6),
        (("failure", "unproven"), 6),
        (("refused", "forged_return_path"), 1),
    ):
        assert after[key] == before.get(key, 0) + number, key


async def test_a_copy_that_is_gone(port: int, sender: Sender, database: Database) -> None:
    (copy,) = await copies(database, sender)
    gone = replace(copy, id=copy.message_id)
    reply = await hand_in(port, gone.return_path, dsn(copy.recipient))
    assert await read(database, reply) == ("failure", "unknown_delivery")


async def test_delays_are_told_once_and_success_not_at_all(port: int, sender: Sender, database: Database) -> None:
    (copy,) = await copies(database, sender)
    delay = dsn(copy.recipient, action="delayed", status="4.4.1", said="451 4.4.1 Host does not answer")
    verdicts = [await read(database, await hand_in(port, copy.return_path, delay)) for _ in range(2)]
    assert verdicts == [("delay", "applied"), ("delay", "repeated")]
    assert await state(database, copy) == ("delivered", ["deferred"])
    told = await event(database, copy)
    assert (told["source"], told["reason"], told["enhanced_code"]) == ("report", "delayed", "4.4.1")
    success = dsn(copy.recipient, action="delivered", status="2.0.0", said="250 2.0.0 Ok")
    assert await read(database, await hand_in(port, copy.return_path, success)) == ("success", "ignored")
    assert await reason(database, copy) is None
    # In the end it is given up, for a time-out: the copy has bounced, and the address is not to blame.
    late = dsn(copy.recipient, status="4.4.7", said="smtp; delivery time expired")
    assert await read(database, await hand_in(port, copy.return_path, late)) == ("failure", "applied")
    assert await state(database, copy) == ("hard_bounced", ["deferred", "hard_bounced"])
    assert await reason(database, copy) is None


async def test_a_refusal_that_is_not_the_address_fault_suppresses_nobody(
    port: int, sender: Sender, database: Database
) -> None:
    (copy,) = await copies(database, sender)
    spam = dsn(copy.recipient, status="5.7.1", said="550 5.7.1 Message looks like spam")
    assert await read(database, await hand_in(port, copy.return_path, spam)) == ("failure", "applied")
    assert (await state(database, copy))[0] == "hard_bounced"
    assert await reason(database, copy) is None


async def test_of_several_recipients_ours_counts(port: int, sender: Sender, database: Database) -> None:
    first, second, third = await copies(database, sender, 3)
    others = f"\nFinal-Recipient: rfc822; {second.recipient.lower()}\nAction: delivered\nStatus: 2.0.0\n".encode()
    mail = dsn("x@example.net", more=others)
    assert await read(database, await hand_in(port, second.return_path, mail)) == ("failure", "ignored")
    assert await state(database, second) == ("delivered", [])
    # None of them is ours: the mail was led elsewhere, and has failed there. Our address is not known to be bad.
    assert await read(database, await hand_in(port, first.return_path, mail)) == ("failure", "applied")
    assert (await state(database, first))[0] == "hard_bounced"
    mail = dsn(third.recipient, more=others)
    assert await read(database, await hand_in(port, third.return_path, mail)) == ("failure", "applied")
    assert [await reason(database, copy) for copy in (first, second, third)] == [None, None, "hard_bounce"]


async def test_one_mail_to_several_return_paths(port: int, sender: Sender, database: Database) -> None:
    first, second = await copies(database, sender, 2)
    async with greeted(port) as wire:
        commands = (f"RCPT TO:<{address}>" for address in (first.return_path, FBL, second.return_path))
        assert await wire.code("MAIL FROM:<>", *commands, "DATA") == [250, 250, 250, 250, 354]
        assert await read(database, await wire.say(arf() + b".\r\n")) == ("complaint", "applied")
    assert [(await state(database, copy))[0] for copy in (first, second)] == ["complained", "complained"]


async def test_complaints_and_bounces_after_each_other(port: int, sender: Sender, database: Database) -> None:
    first, second = await copies(database, sender, 2)
    for copy, mails in ((first, (dsn(first.recipient), arf())), (second, (arf(), dsn(second.recipient)))):
        verdicts = [(await read(database, await hand_in(port, copy.return_path, mail)))[1] for mail in mails]
        assert verdicts == ["applied", "absorbed"]
    assert [await state(database, copy) for copy in (first, second)] == [
        ("hard_bounced", ["hard_bounced"]),
        ("complained", ["complained"]),
    ]
    assert [await reason(database, copy) for copy in (first, second)] == ["hard_bounce", "complaint"]


async def test_who_takes_a_complaint_back_and_who_writes_to_people(
    port: int, sender: Sender, database: Database
) -> None:
    (copy,) = await copies(database, sender)
    vacation = b"From: a@example.net\r\nAuto-Submitted: auto-replied\r\nSubject: Out of office\r\n\r\nI am away.\r\n"
    letter = b"From: a@example.net\r\nSubject: Hello\r\n\r\nDear sirs.\r\n"
    for mail, kind in ((arf(feedback_type="not-spam"), "other"), (vacation, "auto_reply"), (letter, "other")):
        assert await read(database, await hand_in(port, copy.return_path, mail)) == (kind, "ignored")
    assert await state(database, copy) == ("delivered", [])


@pytest.mark.parametrize("status", ["cancelled", "failed", "suppressed"])
async def test_a_copy_that_was_never_delivered(port: int, sender: Sender, database: Database, status: str) -> None:
    (copy,) = await copies(database, sender, status=status)
    for mail in (dsn(copy.recipient), arf(), dsn(copy.recipient, action="delayed", status="4.0.0", said="later")):
        assert (await read(database, await hand_in(port, copy.return_path, mail)))[1] == "absorbed"
    assert await state(database, copy) == (status, [])


async def test_garbage_is_read_and_put_away(port: int, database: Database) -> None:
    garbage: list[Any] = [b"", b"\x00\xff\xfe\r\n", b"Content-Type: multipart/report\r\n\r\n--\r\n", b"x\r\n" * 1000]
    for content in garbage:
        kind, verdict = await read(database, await hand_in(port, "postmaster", content))
        assert (kind, verdict) == ("other", "ignored")
