"""What one client, and all together, may ask of the listener."""

import asyncio
import socket
import time

import pytest

from app.core.config import Settings
from app.core.db import Database
from app.inbound import keeper, limits, session
from app.inbound.limits import Limits
from app.inbound.process import Inbound
from tests.inbound.house import PLATFORM, counts, mail_of
from tests.inbound.wire import Wire, connected, greeted, hand_in, offer

LINE = b"x" * 76 + b"\r\n"


def of_size(octets: int) -> bytes:
    """Lines of this size together, the last one longer than the others."""
    lines, rest = divmod(octets, len(LINE))
    return LINE * (lines - 1) + b"x" * (len(LINE) + rest - 2) + b"\r\n"


async def pour(wire: Wire, octets: int) -> None:
    for _ in range(octets // 2**20):
        wire.writer.write(b"x" * 2**20)
        await wire.writer.drain()


async def test_the_largest_mail_is_taken_and_a_larger_one_is_not(port: int, database: Database) -> None:
    largest = of_size(session.CONTENT_BYTES_MAX - 2)
    row = await mail_of(database, await hand_in(port, "postmaster", largest))
    assert keeper.unpack(row["content"]) == largest
    async with greeted(port) as wire:
        assert await wire.code(f"MAIL FROM:<> SIZE={session.CONTENT_BYTES_MAX + 1}") == [552]
        await offer(wire, "postmaster")
        assert (await wire.say(largest + LINE + b".\r\n")).startswith("552 5.3.4 ")
        # It was heard to its end, and the session goes on.
        await offer(wire, "postmaster")
        assert (await wire.say(b"small\r\n.\r\n")).startswith("250 ")


async def test_what_has_no_end_is_cut_off(port: int) -> None:
    async with greeted(port) as wire:
        await offer(wire, "postmaster")
        with pytest.raises(ConnectionError):
            await pour(wire, 2 * session._OVERRUN_BYTES_MAX)


async def test_ten_million_line_ends_are_read_in_a_moment(port: int, database: Database) -> None:
    content = b"\r\n" * (session.CONTENT_BYTES_MAX // 2 - 1)
    started = time.process_time()
    row = await mail_of(database, await hand_in(port, "postmaster", content))
    assert keeper.unpack(row["content"]) == content
    assert time.process_time() - started < 10


async def test_long_lines(port: int, database: Database) -> None:
    longest = b"x" * (session.LINE_BYTES_MAX - 2) + b"\r\n"
    for content in (longest * 3, LINE + longest + LINE, longest):
        await mail_of(database, await hand_in(port, "postmaster", content))
    for content in (b"x" + longest, longest + b"x" + longest + LINE, LINE * 500 + b"x" * 50_000 + b"\r\n"):
        assert (await hand_in(port, "postmaster", content)).startswith("550 5.6.0 ")
    async with greeted(port) as wire:
        assert await wire.code("NOOP " + "x" * 1019, "NOOP " + "x" * 1020, "NOOP \x01", "NOOP") == [250, 500, 500, 250]
        assert await wire.say(b"NOOP " + b"x" * 200_000 + b"\r\n") == "500 5.5.2 Line too long"
        assert await wire.is_closed()


async def test_recipients_of_one_mail(port: int) -> None:
    async with greeted(port) as wire:
        await wire.ask("MAIL FROM:<>")
        recipients = [f"RCPT TO:<fbl@{PLATFORM}>"] * (session.RECIPIENTS_MAX + 1)
        assert await wire.code(*recipients) == [250] * session.RECIPIENTS_MAX + [452]
        assert await wire.code("DATA") == [354]


async def test_mails_of_one_connection(port: int) -> None:
    async with greeted(port) as wire:
        replies = await wire.ask(*["MAIL FROM:<>", "RSET"] * session.TRANSACTIONS_MAX)
        assert {reply[:3] for reply in replies} == {"250"}
        assert (await wire.ask("MAIL FROM:<>"))[0].startswith("421 4.7.0 ")
        assert await wire.is_closed()


async def test_commands_of_one_connection(port: int) -> None:
    async with greeted(port) as wire:
        wire.writer.write(b"NOOP\r\n" * session.COMMANDS_MAX)
        replies = [await wire.reply() for _ in range(session.COMMANDS_MAX)]
        assert [reply[:3] for reply in replies] == ["250"] * (session.COMMANDS_MAX - 1) + ["421"]
        assert await wire.is_closed()


async def test_errors_of_one_connection(inbound: Inbound, database: Database) -> None:
    before = (await counts(database)).get(("refused", "too_many_errors"), 0)
    async with greeted(inbound.port) as wire:
        await wire.ask("MAIL FROM:<>")
        replies = await wire.code(*[f"RCPT TO:<nobody@{PLATFORM}>"] * session.ERRORS_MAX)
        assert replies == [550] * session.ERRORS_MAX
        assert (await wire.reply()).startswith("421 4.7.0 ")
        assert await wire.is_closed()
    await inbound.stop()
    assert (await counts(database))[("refused", "too_many_errors")] == before + 1


@pytest.mark.parametrize("names", [("CLIENT_CONNECTIONS_MAX",), ("CONNECTIONS_MAX",)])
async def test_connections_at_a_time(inbound: Inbound, monkeypatch: pytest.MonkeyPatch, names: tuple[str]) -> None:
    monkeypatch.setattr(limits, names[0], 2)
    async with greeted(inbound.port) as first, greeted(inbound.port):
        async with connected(inbound.port) as third:
            assert (await third.reply()).startswith("421 4.7.0 ")
            assert await third.is_closed()
        async with connected(inbound.port, source="127.0.0.9") as other:
            assert (await other.reply())[:3] == ("220" if names[0].startswith("CLIENT") else "421")
        await first.ask("QUIT")
        assert await first.is_closed()
        async with greeted(inbound.port) as again:
            assert await again.code("NOOP") == [250]


async def test_connections_and_mails_in_a_minute(inbound: Inbound, monkeypatch: pytest.MonkeyPatch) -> None:
    # Just before the minute's end two minutes would be counted.
    if time.time() % 60 > 58:
        await asyncio.sleep(2)
    monkeypatch.setattr(limits, "CLIENT_CONNECTIONS_PER_MINUTE", 2)
    monkeypatch.setattr(limits, "CLIENT_MAILS_PER_MINUTE", 3)
    source = "127.0.7.1"
    async with greeted(inbound.port, source=source) as wire:
        assert await wire.code(*["MAIL FROM:<>", "RSET"] * 3, "MAIL FROM:<>") == [250] * 6 + [451]
    async with greeted(inbound.port, source=source):
        pass
    async with connected(inbound.port, source=source) as wire:
        assert (await wire.reply()).startswith("421 4.7.0 Too many connections in a minute")
        assert await wire.is_closed()
    async with greeted(inbound.port, source="127.0.7.2") as wire:
        assert await wire.code("MAIL FROM:<>") == [250]


async def test_who_says_nothing_is_parted_with(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "COMMAND_SECONDS", 0.3)
    async with greeted(port) as wire:
        assert await wire.is_closed()
    monkeypatch.setattr(session, "COMMAND_SECONDS", 30)
    monkeypatch.setattr(session, "DATA_SECONDS", 0.3)
    async with greeted(port) as wire:
        await offer(wire, "postmaster")
        for _ in range(10):
            wire.writer.write(b"drop by drop\r\n")
            await asyncio.sleep(0.05)
        assert await wire.is_closed()


async def test_where_connections_are_scarce_patience_ends_sooner(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(session, "CROWDED_SECONDS", 0.3)
    async with greeted(port) as wire:
        assert await wire.is_closed()


async def test_who_reads_nothing_does_not_stay(inbound: Inbound, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "COMMANDS_MAX", 10**9)
    monkeypatch.setattr(session, "COMMAND_SECONDS", 1)
    assert inbound._server is not None
    inbound._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, ("127.0.0.1", inbound.port))
        await loop.sock_recv(deaf, 100)
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(loop.sock_sendall(deaf, b"NOOP\r\n" * 2_000_000), 10)
    async with asyncio.timeout(5):
        while inbound._limits._in_all:
            await asyncio.sleep(0.05)


async def test_memory_for_content_is_bounded_and_given_back(inbound: Inbound, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTENT_BYTES_MAX", 300_000)
    async with greeted(inbound.port) as first, greeted(inbound.port) as second:
        await offer(first, "postmaster")
        first.writer.write(LINE * 2500)
        async with asyncio.timeout(5):
            while inbound._limits._content_bytes < 100_000:
                await asyncio.sleep(0.01)
        await offer(second, "postmaster")
        assert (await second.say(LINE * 3000 + b".\r\n")).startswith("452 4.3.1 ")
        assert (await first.say(b".\r\n")).startswith("250 ")
        await offer(second, "postmaster")
        assert (await second.say(LINE * 3000 + b".\r\n")).startswith("250 ")
        await offer(first, "postmaster")
        first.writer.write(LINE * 2000)
    async with asyncio.timeout(5):
        while inbound._limits._content_bytes or inbound._limits._in_all:
            await asyncio.sleep(0.01)


async def test_who_goes_away_in_the_middle_leaves_nothing_behind(inbound: Inbound) -> None:
    for octets in (b"", b"EHLO a", b"EHLO a\r\n", b"EHLO a\r\nMAIL FROM:<>\r\n"):
        async with connected(inbound.port) as wire:
            await wire.reply()
            wire.writer.write(octets)
    async with greeted(inbound.port) as wire:
        await offer(wire, "postmaster")
        wire.writer.write(b"half a mail\r\n")
        wire.writer.write_eof()
        assert await wire.is_closed()
    async with asyncio.timeout(5):
        while inbound._limits._in_all:
            await asyncio.sleep(0.01)


def test_an_ipv6_subscriber_is_one_client(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_CONNECTIONS_MAX", 2)
    counted = Limits(None)  # type: ignore[arg-type]  # nothing here asks Redis
    assert [counted.enter(f"2001:db8:1:2::{number}") for number in range(3)] == [True, True, False]
    assert counted.enter("2001:db8:1:3::1")
    counted.leave("2001:db8:1:2::7")
    assert counted.enter("2001:db8:1:2::8")
