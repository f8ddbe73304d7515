"""What the local mailbox sends back: reports that ours reads as what they are."""

import asyncio
from pathlib import Path

import aiosmtplib
import pytest

from app.core.config import Settings
from app.local import answers, mailbox
from app.local.answers import Answers
from app.mail import report
from app.mail.reported import Kind
from tests.smtpd import SmtpServer

MAIL = (
    b"From: a@example.com\r\nSubject: gr\xc3\xbc\xc3\x9fe\r\nList-Unsubscribe: <https://x.example/u>\r\n\r\nhello\r\n"
)
RETURN_PATH = "b123@bounces.example.com"


async def test_late_bounces_and_complaints(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_PAUSE_SECONDS", 0.05)
    async with SmtpServer("127.0.0.1") as ours:
        there = settings.model_copy(update={"inbound_smtp_host": ours.host, "inbound_smtp_port": ours.port})
        server = await mailbox.start_smtp(tmp_path, 0, Answers(there, "mx.mailbox.test"))
        port = server.sockets[0].getsockname()[1]
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) as client:
            recipients = ["LateBounce+1@example.net", "complain@example.net", "ada@example.net"]
            await client.sendmail(RETURN_PATH, recipients, MAIL, mail_options=["SMTPUTF8"])
            # A bounce is not answered.
            await client.sendmail("", ["latebounce@example.net"], MAIL, mail_options=["SMTPUTF8"])
        mails = await ours.mails_expected(2)
        await asyncio.sleep(0.2)
        server.close()
    assert len(mails) == 2
    assert {(mail.mail_from, mail.rcpt_to) for mail in mails} == {("", RETURN_PATH)}
    bounce, complaint = sorted((report.read(mail.content) for mail in mails), key=lambda one: one.kind, reverse=True)
    assert (bounce.kind, complaint.kind) == (Kind.FAILURE, Kind.COMPLAINT)
    (recipient,) = bounce.recipients
    assert recipient.address == "LateBounce+1@example.net"
    assert recipient.diagnosis is not None
    assert recipient.diagnosis.address_level
    assert complaint.feedback_type == "abuse"
    assert complaint.original_list_unsubscribe == ("https://x.example/u",)


async def test_a_listener_that_is_away_is_tried_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_PAUSE_SECONDS", 0.05)
    async with SmtpServer("127.0.0.1") as ours:
        there = settings.model_copy(update={"inbound_smtp_host": ours.host, "inbound_smtp_port": ours.port})
        await ours.stop()
        Answers(there, "mx.mailbox.test").consider(RETURN_PATH, ["complain@example.net"], MAIL)
        await asyncio.sleep(0.08)
        await ours.start()
        assert len(await ours.mails_expected(1)) == 1
