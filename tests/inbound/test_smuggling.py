"""Where a mail ends: at one mark and no other, whatever a host between us and the sender takes for one."""

import asyncio
import itertools
import socket

import pytest

from app.core.db import Database
from app.inbound import keeper, session
from app.inbound.process import Inbound
from tests.inbound.house import PLATFORM, counts, mail_of
from tests.inbound.wire import Wire, greeted, offer

_ENDS = (b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\x00", b"\x00\r\n", b"\n\n")
_MARK = b"\r\n.\r\n"
MARKS = [
    mark
    for mark in (before + b"." + after for before, after in itertools.product(_ENDS, _ENDS))
    if _MARK not in mark or b"\r\r" in mark
]
SECOND = f"MAIL FROM:<admin@postroad.test>\r\nRCPT TO:<abuse@{PLATFORM}>\r\nDATA\r\nSmuggled: yes\r\n\r\n.\r\n".encode()


async def transaction(wire: Wire, content: bytes) -> str:
    await offer(wire, f"fbl@{PLATFORM}")
    return await wire.say(content)


@pytest.mark.parametrize("mark", MARKS, ids=[repr(mark)[1:] for mark in MARKS])
async def test_no_other_mark_ends_a_mail(port: int, database: Database, mark: bytes) -> None:
    async with greeted(port) as wire:
        reply = await transaction(wire, b"Subject: first\r\n\r\nfirst" + mark + SECOND)
        if b"\r" in mark.replace(b"\r\n", b"") or b"\n" in mark.replace(b"\r\n", b""):
            assert reply == "550 5.5.2 The mail contains a CR or LF of its own"
            assert await wire.is_closed()
        else:
            # Marks with a NUL in them: one mail, the second one's commands within it.
            content = keeper.unpack((await mail_of(database, reply))["content"])
            assert content.startswith(b"Subject: first\r\n\r\nfirst" + mark.replace(b"\r\n.", b"\r\n") + b"MAIL FROM:")
            assert content.endswith(b"Smuggled: yes\r\n\r\n")
            assert await wire.code("QUIT") == [221]
            assert await wire.is_closed()


@pytest.mark.parametrize("lone", [b"a\nb", b"a\rb", b"\n", b"\r", b"a\r\r\nb", b"\n.\n", b"a\n\r\nb"])
async def test_a_lone_cr_or_lf_anywhere_is_refused(port: int, lone: bytes) -> None:
    for content in (lone + b"\r\nb\r\n", b"Subject: a\r\n\r\n" + lone + b"\r\n", b"Subject: a\r\n\r\n" + lone):
        async with greeted(port) as wire:
            reply = await transaction(wire, content + b"\r\n.\r\n")
            assert reply == "550 5.5.2 The mail contains a CR or LF of its own"
            assert await wire.is_closed()


async def test_what_is_refused_for_its_lines_is_counted(inbound: Inbound, database: Database) -> None:
    before = (await counts(database)).get(("refused", "bare_newline"), 0)
    async with greeted(inbound.port) as wire:
        await transaction(wire, b"a\nb\r\n.\r\n")
    async with greeted(inbound.port) as wire:
        assert await wire.say(b"NOOP\n") == "500 5.5.2 Lines end with CR LF"
        assert await wire.is_closed()
    await inbound.stop()
    assert (await counts(database))[("refused", "bare_newline")] == before + 2


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
async def test_the_mark_is_found_wherever_packets_part(port: int, database: Database, size: int) -> None:
    content = b"..\r\nfirst\r\n...\r\n.\r\n\r\n.x\r\n"
    wired = content.replace(b"\r\n.", b"\r\n..").replace(b"..", b"...", 1) + b".\r\n"
    async with greeted(port) as wire:
        await offer(wire, f"fbl@{PLATFORM}")
        for begin in range(0, len(wired), size):
            wire.writer.write(wired[begin : begin + size])
            await wire.writer.drain()
        row = await mail_of(database, await wire.reply())
        assert keeper.unpack(row["content"]) == content


async def test_the_mark_is_found_at_the_edges_of_what_is_read_at_once(port: int, database: Database) -> None:
    piece = session.Session.line_length_limit
    for length in range(piece - 6, piece + 7):
        line = b"x" * 78 + b"\r\n"
        content = (line * (length // len(line) + 1))[-length:]
        content = content.lstrip(b"\n")
        async with greeted(port) as wire:
            row = await mail_of(database, await transaction(wire, content + b".\r\n"))
            assert keeper.unpack(row["content"]) == content


async def test_the_next_mail_may_come_in_one_piece_with_the_end_of_this_one(port: int, database: Database) -> None:
    async with greeted(port) as wire:
        await offer(wire, f"fbl@{PLATFORM}")
        wire.writer.write(b"first\r\n.\r\nMAIL FROM:<>\r\n" + f"RCPT TO:<fbl@{PLATFORM}>\r\nDATA\r\n".encode())
        replies = [await wire.reply() for _ in range(4)]
        assert [reply[:3] for reply in replies] == ["250", "250", "250", "354"]
        second = await wire.say(b"second\r\n.\r\n")
        assert keeper.unpack((await mail_of(database, replies[0]))["content"]) == b"first\r\n"
        assert keeper.unpack((await mail_of(database, second))["content"]) == b"second\r\n"


@pytest.mark.parametrize(
    "octets",
    [
        f"MAIL FROM:<>\r\nRCPT TO:<fbl@{PLATFORM}>\r\nDATA\r\nSubject: early\r\n".encode(),
        b"EHLO again.example\r\nMAIL FROM:<>\r\n",
        b"HELO again.example\r\nNOOP\r\n",
    ],
    ids=["behind DATA", "behind EHLO", "behind HELO"],
)
async def test_who_does_not_wait_for_an_answer_is_parted_with(port: int, octets: bytes) -> None:
    async with greeted(port) as wire:
        replies = [await wire.say(octets)]
        while replies[-1].startswith("250"):
            replies.append(await wire.reply())
        assert replies[-1] == "503 5.5.1 Wait for the answer"
        assert await wire.is_closed()


async def test_who_speaks_before_the_greeting_is_parted_with(port: int) -> None:
    # Without a turn of the loop in between, what is said is there as soon as the connection.
    with socket.create_connection(("127.0.0.1", port)) as early:
        early.sendall(b"EHLO early.example\r\n")
        reader, writer = await asyncio.open_connection(sock=early)
        wire = Wire(reader, writer)
        assert await wire.reply() == "554 5.5.1 Speak when you are greeted"
        assert await wire.is_closed()
