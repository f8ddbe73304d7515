"""The local mailbox's SMTP server, spoken to over real connections."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiosmtplib
import pytest

from app.local import mailbox, mailstore
from app.local.mailstore import Mailstore

MAIL = b"From: a@example.com\r\nTo: b@example.net\r\nSubject: hello\r\n\r\nfirst\r\n.\r\n..dots\r\n"


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    server = await mailbox.start_smtp(tmp_path)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def send(port: int, content: bytes, *rcpt_to: str, mail_from: str = "a@example.com", **options) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, timeout=20, tls_context=context, **options)
    async with client:
        await client.sendmail(mail_from, list(rcpt_to), content, mail_options=["SMTPUTF8"])


async def test_mail_is_kept_as_it_came_with_its_envelope(port: int, tmp_path: Path) -> None:
    await send(port, MAIL, "b@example.net", "ü@example.net", local_hostname="sender.example", start_tls=True)
    (mail,) = mailstore.newest(tmp_path / "new", limit=10)
    assert mail.path.read_bytes() == MAIL
    assert mail.envelope.mail_from == "a@example.com"
    assert mail.envelope.rcpt_to == ("b@example.net", "ü@example.net")
    assert mail.envelope.ehlo == "sender.example"
    assert mail.envelope.peer == "127.0.0.1"
    assert mail.envelope.tls in {"TLSv1.2", "TLSv1.3"}
    assert mail.envelope.received_at.endswith("Z")
    assert [path.suffix for path in sorted((tmp_path / "new").iterdir())] == [".eml", ".json"]


async def test_without_starttls_the_envelope_says_so(port: int, tmp_path: Path) -> None:
    await send(port, MAIL, "b@example.net", mail_from="", start_tls=False)
    (mail,) = mailstore.newest(tmp_path / "new", limit=10)
    assert mail.envelope.tls is None
    assert mail.envelope.mail_from == ""


async def test_the_server_offers_what_the_engine_uses(port: int) -> None:
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) as client:
        await client.ehlo()
        assert client.esmtp_extensions["size"] == str(40 * 2**20)
        assert {"starttls", "8bitmime", "smtputf8"} <= client.esmtp_extensions.keys()


async def test_the_certificate_is_kept_for_its_owner_only(port: int, tmp_path: Path) -> None:
    path = tmp_path / "certificate.pem"
    first = path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    again = await mailbox.start_smtp(tmp_path)
    again.close()
    assert path.read_bytes() == first


async def test_bounce_and_defer_recipients(port: int, tmp_path: Path) -> None:
    with pytest.raises(aiosmtplib.SMTPRecipientsRefused) as refused:
        await send(port, MAIL, "Bounce+1@example.net")
    assert refused.value.recipients[0].code == 550
    assert refused.value.recipients[0].message.startswith("5.1.1 ")
    for mail_from in ("a@example.com", "other@example.com"):
        with pytest.raises(aiosmtplib.SMTPRecipientsRefused) as deferred:
            await send(port, MAIL, "defer@example.net", mail_from=mail_from)
        assert deferred.value.recipients[0].code == 451
        assert deferred.value.recipients[0].message.startswith("4.7.1 ")
    assert mailstore.count(tmp_path / "new") == 0
    await send(port, MAIL, "defer@example.net")
    assert mailstore.count(tmp_path / "new") == 1
    with pytest.raises(aiosmtplib.SMTPRecipientsRefused):
        await send(port, MAIL, "defer@example.net")


async def test_mail_beyond_the_limit_is_refused(port: int, tmp_path: Path) -> None:
    line = b"x" * 76 + b"\r\n"
    small = MAIL + line * (30 * 2**20 // len(line))
    await send(port, small, "b@example.net", start_tls=False)
    assert mailstore.newest(tmp_path / "new", limit=1)[0].size_bytes == len(small)
    with pytest.raises(aiosmtplib.SMTPResponseException) as refused:
        await send(port, small + line * (11 * 2**20 // len(line)), "b@example.net", start_tls=False)
    assert refused.value.code == 552


async def test_parallel_mails_are_all_kept(port: int, tmp_path: Path) -> None:
    await asyncio.gather(*(send(port, MAIL, f"u{number}@example.net") for number in range(30)))
    mails = mailstore.newest(tmp_path / "new", limit=100)
    assert sorted(mail.envelope.rcpt_to[0] for mail in mails) == sorted(f"u{n}@example.net" for n in range(30))


def test_only_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailstore, "MAILS_MAX", 5)
    envelope = mailstore.Envelope("", ("b@example.net",), mailstore.now(), "", "", None)
    store = Mailstore(tmp_path)
    ids = [store.deposit(envelope, b"%d" % number) for number in range(4)]
    (tmp_path / "unfinished.eml.part").write_text("")
    store = Mailstore(tmp_path)  # a restart counts what is there, and clears what was not finished
    ids += [store.deposit(envelope, b"%d" % number) for number in range(4, 8)]
    assert [mail.id for mail in mailstore.newest(tmp_path, limit=10)] == ids[:2:-1]
    assert len(list(tmp_path.iterdir())) == 10
    assert [mail.id for mail in mailstore.newest(tmp_path, limit=2, before=ids[6])] == [ids[5], ids[4]]


def test_bytes_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailstore, "BYTES_MAX", 25)
    envelope = mailstore.Envelope("", ("b@example.net",), mailstore.now(), "", "", None)
    store = Mailstore(tmp_path)
    ids = [store.deposit(envelope, b"0123456789") for _ in range(4)]
    assert [mail.id for mail in mailstore.newest(tmp_path, limit=10)] == [ids[3], ids[2]]


@pytest.mark.parametrize("mail_id", ["../../secret_key", "", "x" * 29, "0" * 20 + "-" + "g" * 8])
def test_only_well_formed_ids_name_files(tmp_path: Path, mail_id: str) -> None:
    (tmp_path / "secret_key.eml").write_text("secret")
    (tmp_path / "secret_key.json").write_text("{}")
    assert mailstore.find(tmp_path / "a" / "b", mail_id) is None
