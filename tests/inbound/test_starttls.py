"""STARTTLS (RFC 3207): offered with a certificate, up once, and nothing from before it counts after it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.core.config import Settings
from app.core.db import Database
from app.inbound import keeper, session
from app.inbound.process import Inbound
from tests.certificates import make_authority
from tests.inbound.house import mail_of
from tests.inbound.wire import Wire, connected, greeted, offer

NAME = "mta.postroad.test"
AUTHORITY = make_authority()


@pytest.fixture
async def inbound(any_port: Settings, tmp_path: Path) -> AsyncIterator[Inbound]:
    certificate = AUTHORITY.issue(NAME)
    (tmp_path / "certificate.pem").write_bytes(certificate.pem)
    (tmp_path / "key.pem").write_bytes(certificate.key_pem)
    files = {
        "inbound_tls_certificate_file": tmp_path / "certificate.pem",
        "inbound_tls_key_file": tmp_path / "key.pem",
    }
    found = Inbound(any_port.model_copy(update=files))
    await found.start()
    yield found
    await found.stop()


async def secure(wire: Wire) -> None:
    assert await wire.code("STARTTLS") == [220]
    await wire.start_tls(AUTHORITY.client_context(), NAME)


async def test_a_mail_is_taken_under_tls(port: int, database: Database) -> None:
    async with connected(port) as wire:
        await wire.reply()
        (before,) = await wire.ask("EHLO client.example")
        assert "STARTTLS" in before
        await secure(wire)
        # What was said before is forgotten (section 4.2).
        assert await wire.code("MAIL FROM:<>") == [503]
        (after,) = await wire.ask("EHLO client.example")
        assert "STARTTLS" not in after
        assert "AUTH" not in after
        await offer(wire, "postmaster")
        content = b"x" * 70 + b"\r\n"
        row = await mail_of(database, await wire.say(content * 10_000 + b".\r\n"))
        assert keeper.unpack(row["content"]) == content * 10_000
        assert row["client_address"] == "127.0.0.1"
        assert await wire.code("QUIT") == [221]


async def test_what_was_put_in_before_tls_is_dropped(port: int, database: Database) -> None:
    async with greeted(port) as wire:
        injected = b"EHLO attacker.example\r\nMAIL FROM:<attacker@example.net>\r\nRCPT TO:<postmaster>\r\n"
        assert (await wire.say(b"STARTTLS\r\n" + injected)).startswith("220 ")
        await wire.start_tls(AUTHORITY.client_context(), NAME)
        # Each answer is to what was asked, and nobody has begun a mail.
        assert await wire.ask("NOOP") == ["250 OK"]
        assert await wire.code("DATA", "EHLO client.example", "DATA") == [503, 250, 503]
        await offer(wire, "postmaster", "honest@example.net")
        row = await mail_of(database, await wire.say(b"Subject: mine\r\n.\r\n"))
        assert (row["mail_from"], row["helo"]) == ("honest@example.net", "client.example")


async def test_tls_is_started_once_and_without_arguments(port: int) -> None:
    async with greeted(port) as wire:
        assert await wire.code("STARTTLS now") == [501]
        await secure(wire)
        assert await wire.code("EHLO client.example", "STARTTLS", "NOOP") == [250, 503, 250]


@pytest.mark.parametrize("octets", [b"MAIL FROM:<>\r\n" * 100, b"", b"\x16\x03\x01"], ids=["plain", "none", "part"])
async def test_who_does_not_come_to_tls_is_parted_with(
    inbound: Inbound, octets: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "COMMAND_SECONDS", 0.5)
    async with greeted(inbound.port) as wire:
        assert await wire.code("STARTTLS") == [220]
        wire.writer.write(octets)
        # Whatever is said to the end of it, it is an alert, and no reply to a command.
        assert b"250" not in await wire.rest()
    async with asyncio.timeout(5):
        while inbound._limits._in_all:
            await asyncio.sleep(0.01)


async def test_old_protocols_are_not_spoken(port: int) -> None:
    context = AUTHORITY.client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with greeted(port) as wire:
        assert await wire.code("STARTTLS") == [220]
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await wire.start_tls(context, NAME)
