"""For whom mail is taken, and that it is kept before anybody hears of it."""

import asyncio
import base64
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiosmtplib
import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from app.core.config import Settings
from app.core.db import Database
from app.inbound import keeper
from app.inbound.listener import ListenError
from app.inbound.process import Inbound
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender
from tests.inbound.house import PLATFORM, Copy, copies, counts, mail_of
from tests.inbound.wire import connected, greeted, hand_in

CONTENT = b"Subject: hello\r\n\r\nfirst\r\n.\r\n..dots\r\n\r\n"


def stranger() -> Copy:
    """A copy that never was; its return path is ours all the same."""
    return Copy(uuid4(), uuid4(), uuid4(), "a@example.net")


async def answers(port: int, *recipients: str) -> list[str]:
    """What is said to these recipients."""
    async with greeted(port) as wire:
        await wire.ask("MAIL FROM:<>")
        return await wire.ask(*(f"RCPT TO:<{recipient}>" for recipient in recipients))


async def test_it_says_who_it_is_and_offers_what_it_does(port: int) -> None:
    async with connected(port) as wire:
        assert await wire.reply() == "220 mta.postroad.test ESMTP"
        (offered,) = await wire.ask("EHLO client.example")
        assert offered == ("250-mta.postroad.test 250-PIPELINING 250-SIZE 10485760 250-8BITMIME 250 SMTPUTF8")
        commands = ("AUTH PLAIN AGEAYg==", "BDAT 5 LAST", "VRFY postmaster", "EXPN all", "HELP", "STARTTLS", "TURN")
        assert await wire.code(*commands) == [502, 502, 502, 502, 502, 454, 502]


async def test_who_has_said_nothing_yet_is_asked_to(port: int) -> None:
    async with connected(port) as wire:
        await wire.reply()
        assert await wire.code("MAIL FROM:<>", "RCPT TO:<a@b>", "DATA", "HELO client.example") == [503, 503, 503, 250]
        assert await wire.code("RCPT TO:<postmaster>", "DATA", "MAIL FROM:<a@b>", "DATA", "RSET", "NOOP", "QUIT") == [
            *(503, 503, 250, 503, 250, 250, 221)
        ]


async def test_a_mail_is_kept_as_it_came_before_it_is_acknowledged(port: int, database: Database) -> None:
    copy = stranger()
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, local_hostname="client.example") as client:
        for mail_from in ("", "Bouncer+1@example.net", "grüße@example.net"):
            await client.mail(mail_from, options=["SMTPUTF8", f"SIZE={len(CONTENT)}"], encoding="utf-8")
            await client.rcpt(copy.return_path)
            await client.rcpt(f"FBL@{PLATFORM.upper()}")
            reply = await client.data(CONTENT)
            row = await mail_of(database, f"{reply.code} {reply.message}")
            assert keeper.unpack(row["content"]) == CONTENT
            assert (row["mail_from"], row["helo"], row["client_address"]) == (mail_from, "client.example", "127.0.0.1")
            assert row["recipients"] == [copy.return_path, f"FBL@{PLATFORM.upper()}"]


async def test_an_empty_mail_is_a_mail(port: int, database: Database) -> None:
    row = await mail_of(database, await hand_in(port, "postmaster", b""))
    assert keeper.unpack(row["content"]) == b""


@pytest.mark.parametrize(
    "recipient",
    [
        *("postmaster", "Postmaster", f"postmaster@{PLATFORM}", f"abuse@{PLATFORM}", f"fbl@{PLATFORM}"),
        *(f"complaints@{PLATFORM}", f"ABUSE@{PLATFORM}.", f"@relay.example,@other.example:abuse@{PLATFORM}"),
    ],
)
async def test_report_addresses_are_taken(port: int, recipient: str) -> None:
    (reply,) = await answers(port, recipient)
    assert reply.startswith("250 2.1.5 ")


async def test_return_paths_that_we_have_signed_are_taken_in_any_case(
    port: int, client: httpx.AsyncClient, dns: DnsServer, database: Database
) -> None:
    sender = await make_sender(client, dns)
    (copy,) = await copies(database, sender)
    own = f"bounces.{sender.domain}"
    recipients = [f"{copy.local}@{PLATFORM}", f"{copy.local}@{own}", f"{copy.local.upper()}@{own.upper()}"]
    assert {reply[:9] for reply in await answers(port, *recipients)} == {"250 2.1.5"}
    # Bounces come late: the domain may be gone by then.
    await sender.client.delete(f"/api/v1/domains/{sender.domain_id}", headers=sender.user)
    assert {reply[:9] for reply in await answers(port, *recipients)} == {"250 2.1.5"}


async def test_nothing_else_is_taken_and_all_is_counted(
    port: int, inbound: Inbound, sender: Sender, database: Database, client: httpx.AsyncClient, dns: DnsServer
) -> None:
    (copy,) = await copies(database, sender)
    other = await make_sender(client, dns)
    altered = copy.local[:-1] + ("a" if copy.local[-1] != "a" else "b")
    # Signed, but of another organization: their tag does not hold with our number in front of it.
    swapped = (
        "b" + base64.b32encode(other.org_id.bytes + base64.b32decode(copy.local[1:].upper() + "===")[16:]).decode()
    )
    forged = [
        f"{altered}@{PLATFORM}",
        f"{altered}@bounces.{sender.domain}",
        f"{swapped.rstrip('=').lower()}@{PLATFORM}",
    ]
    unknown = [
        *(f"{copy.local}@{sender.domain}", f"{copy.local}@bounces.{other.domain}", f"{copy.local}@example.com"),
        *(f"hello@{PLATFORM}", f"hello@{sender.domain}", "a@example.com", f"abuse@{sender.domain}", "abuse"),
        *(
            f"fbl@bounces.{sender.domain}",
            f"abuse%example.com@{PLATFORM}",
            f"a!b@{PLATFORM}",
            f"{copy.local}x@{PLATFORM}",
        ),
        *(f'"{copy.local}"@{PLATFORM}', f"bounces.{sender.domain}", "@", f"@{PLATFORM}", ""),
    ]
    before = await counts(database)
    for recipients in (forged, unknown[:8], unknown[8:]):
        assert {reply[:9] for reply in await answers(port, *recipients)} == {"550 5.1.1"}
    await inbound.stop()
    after = await counts(database)
    gained = {key: number - before.get(key, 0) for key, number in after.items() if number != before.get(key, 0)}
    assert gained == {("refused", "forged_return_path"): len(forged), ("refused", "unknown_recipient"): len(unknown)}


@pytest.mark.parametrize("path", ["a@b", "<a@b", "a@b>", "<a@b> x", "<a b@c>", "< >", "<<>>", "", "<a@b>SIZE=1"])
async def test_what_is_no_path_is_refused(port: int, path: str) -> None:
    async with greeted(port) as wire:
        assert (await wire.code(f"MAIL FROM:{path}"))[0] in {501, 553, 555}
        assert await wire.code("MAIL FROM:<>") == [250]
        assert (await wire.code(f"RCPT TO:{path}"))[0] in {501, 553, 555}


async def test_while_the_database_is_away_mail_is_put_off_and_comes_again(
    any_port: Settings, database: Database, sender: Sender, tmp_path: Path
) -> None:
    (copy,) = await copies(database, sender)
    url = make_url(any_port.database_url or "")
    there = url.set(query={"host": str(tmp_path)}).render_as_string(hide_password=False)
    inbound = Inbound(any_port.model_copy(update={"database_url": there}))
    await inbound.start()
    try:
        assert (await hand_in(inbound.port, copy.return_path, CONTENT)).startswith("451 4.3.0 ")
        assert (await answers(inbound.port, f"{copy.local}@bounces.{sender.domain}"))[0].startswith("451 4.3.0 ")
        for socket in Path(str(url.query["host"])).glob(".s.PGSQL.*"):
            (tmp_path / socket.name).symlink_to(socket)
        row = await mail_of(database, await hand_in(inbound.port, copy.return_path, CONTENT))
        assert keeper.unpack(row["content"]) == CONTENT
        assert (await answers(inbound.port, f"{copy.local}@bounces.{sender.domain}"))[0].startswith("250 ")
    finally:
        await inbound.stop()
    async with database.transaction() as session:
        statement = text("SELECT count(*) FROM inbound_mails WHERE recipients = ARRAY[:recipient]")
        assert await session.scalar(statement, {"recipient": copy.return_path}) == 1


async def test_while_redis_is_away_mail_is_taken(any_port: Settings) -> None:
    inbound = Inbound(any_port.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    await inbound.start()
    assert (await hand_in(inbound.port, "postmaster", CONTENT)).startswith("250 ")
    await inbound.stop()


async def test_a_policy_may_refuse_what_would_be_taken(any_port: Settings, database: Database) -> None:
    asked = []

    async def greylist(client_address: str, mail_from: str, recipient: str) -> str | None:
        asked.append((client_address, mail_from, recipient))
        return "451 4.7.1 Greylisted, try again later" if len(asked) == 1 else None

    before = (await counts(database)).get(("refused", "policy"), 0)
    inbound = Inbound(any_port, policy=greylist)
    await inbound.start()
    async with greeted(inbound.port) as wire:
        await wire.ask("MAIL FROM:<>")
        assert await wire.ask("RCPT TO:<postmaster>") == ["451 4.7.1 Greylisted, try again later"]
        assert await wire.code(f"RCPT TO:<nobody@{PLATFORM}>", "RCPT TO:<postmaster>", "RSET") == [550, 250, 250]
        assert await wire.code("MAIL FROM:<a@example.net>", f"RCPT TO:<fbl@{PLATFORM}>") == [250, 250]
    await inbound.stop()
    assert asked == [
        *[("127.0.0.1", "", "postmaster")] * 2,
        ("127.0.0.1", "a@example.net", f"fbl@{PLATFORM}"),
    ]
    assert (await counts(database))[("refused", "policy")] == before + 1


async def test_mails_of_one_moment_share_transactions(port: int, database: Database) -> None:
    replies = await asyncio.gather(*(hand_in(port, "postmaster", CONTENT) for _ in range(40)))
    rows = [await mail_of(database, reply) for reply in replies]
    assert len({row["received_at"] for row in rows}) < len(rows) == 40


async def test_a_taken_port_and_a_bad_certificate_are_told(any_port: Settings, port: int, tmp_path: Path) -> None:
    async def sentence(**changes: Any) -> str:
        inbound = Inbound(any_port.model_copy(update=changes))
        with pytest.raises(ListenError) as raised:
            await inbound.start()
        await inbound.stop()
        return str(raised.value)

    assert "INBOUND_SMTP_PORT" in await sentence(inbound_smtp_port=port)
    (tmp_path / "file.pem").write_text("nothing")
    files = {"inbound_tls_certificate_file": tmp_path / "file.pem", "inbound_tls_key_file": tmp_path / "file.pem"}
    assert "INBOUND_TLS_CERTIFICATE_FILE" in await sentence(**files)
    assert "No such file" in await sentence(**dict.fromkeys(files, tmp_path / "none.pem"))
    assert "go together" in await sentence(inbound_tls_key_file=tmp_path / "file.pem")
