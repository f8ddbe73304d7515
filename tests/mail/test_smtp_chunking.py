"""A mail in one write, for hosts with CHUNKING and PIPELINING (RFC 3030, RFC 2920)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from app.mail.reply import Phase
from app.mail.smtp import MAX_AT_ONCE_OCTETS, Connection, ConnectionLost, Envelope, ProtocolViolation, Transmission
from tests.mail.smtp_helpers import CONTENT, ENVELOPE, PATIENT, yes

ACCEPTED = "250 2.0.0 ok"
DOTTED = b"Subject: dots\r\n\r\n.\r\n..\r\n.x\r\n"


@dataclass(slots=True)
class ChunkingHost:
    """Takes BDAT. `answers` overrules the usual reply of a verb; None: it hangs up instead."""

    port: int = 0
    answers: dict[str, str | None] = field(default_factory=dict)
    verbs: list[str] = field(default_factory=list)
    mails: list[bytes] = field(default_factory=list)
    extensions: tuple[str, ...] = ("PIPELINING", "CHUNKING", "SIZE 10000000")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 host.test\r\n")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while line := await reader.readline():
                verb = line.split()[0].decode().upper()
                self.verbs.append(verb)
                content = await self._content(verb, line, reader, writer)
                said = self.answers.get(verb, self._usual(verb))
                if said is None:
                    break
                writer.write(said.encode() + b"\r\n")
                if said.startswith("2") and content is not None:
                    self.mails.append(content)
        writer.close()

    async def _content(
        self, verb: str, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | None:
        if verb == "BDAT":
            assert line.split()[2] == b"LAST"
            return await reader.readexactly(int(line.split()[1]))
        if verb == "DATA":
            writer.write(b"354 go\r\n")
            stuffed = await reader.readuntil(b"\r\n.\r\n")
            return stuffed[:-3]
        return None

    def _usual(self, verb: str) -> str:
        if verb == "EHLO":
            lines = ("host.test", *self.extensions)
            return "\r\n".join(f"250{'-' if one != lines[-1] else ' '}{one}" for one in lines)
        return ACCEPTED


@pytest.fixture
async def host() -> AsyncIterator[ChunkingHost]:
    found = ChunkingHost()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0, limit=2**20)
    found.port = server.sockets[0].getsockname()[1]
    yield found
    server.close()


@contextlib.asynccontextmanager
async def connected(host: ChunkingHost) -> AsyncIterator[Connection]:
    connection = await Connection.open("host.test", "127.0.0.1", host.port, ehlo_name="out.test", timeouts=PATIENT)
    try:
        yield connection
    finally:
        connection.abort()


async def send(
    connection: Connection, content: bytes = CONTENT, envelope: Envelope = ENVELOPE, before: Callable[[], bool] = yes
) -> Transmission:
    return await connection.transmit(envelope, content, before_content=before)


async def test_the_first_mail_goes_by_data_and_the_next_ones_in_one_write(host: ChunkingHost) -> None:
    asked: list[int] = []

    def before() -> bool:
        asked.append(1)
        return True

    async with connected(host) as connection:
        for content in (DOTTED, DOTTED, CONTENT):
            sent = await send(connection, content, before=before)
            assert (sent.phase, sent.accepted, sent.content_sent_at is not None) == (Phase.CONTENT, True, True)
    usual = ["EHLO", "MAIL", "RCPT", "DATA"]
    assert host.verbs == [*usual, "MAIL", "RCPT", "BDAT", "MAIL", "RCPT", "BDAT"]
    # Octet for octet, where DATA stuffs dots.
    assert host.mails == [DOTTED.replace(b"\r\n.", b"\r\n.."), DOTTED, CONTENT]
    assert len(asked) == 2 + 1 + 1


@pytest.mark.parametrize("missing", ["PIPELINING", "CHUNKING"])
async def test_a_host_that_lacks_either_gets_data(host: ChunkingHost, missing: str) -> None:
    host.extensions = tuple(one for one in host.extensions if one != missing)
    async with connected(host) as connection:
        assert all([(await send(connection)).accepted for _ in range(3)])
    assert "BDAT" not in host.verbs


async def test_a_large_mail_goes_by_data(host: ChunkingHost) -> None:
    large = b"Subject: large\r\n\r\n" + (b"x" * 76 + b"\r\n") * (MAX_AT_ONCE_OCTETS // 76)
    async with connected(host) as connection:
        assert (await send(connection)).accepted
        assert (await send(connection, large)).accepted
    assert "BDAT" not in host.verbs


@pytest.mark.parametrize(
    ("answers", "phase", "was_sent"),
    [
        ({"MAIL": "451 4.7.1 later", "RCPT": "503 5.5.1 no", "BDAT": "503 5.5.1 no"}, Phase.MAIL, False),
        ({"RCPT": "550 5.1.1 nobody", "BDAT": "554 5.5.1 no recipient"}, Phase.RCPT, False),
        ({"BDAT": "452 4.3.1 full"}, Phase.CONTENT, True),
        ({"BDAT": "554 5.7.1 spam"}, Phase.CONTENT, True),
    ],
)
async def test_a_refusal_is_a_value_and_the_next_mail_goes_by_data_after_a_reset(
    host: ChunkingHost, answers: dict[str, str | None], phase: Phase, was_sent: bool
) -> None:
    async with connected(host) as connection:
        await send(connection)
        host.answers = answers
        sent = await send(connection)
        assert (sent.phase, str(sent.reply)) == (phase, answers[{"content": "BDAT"}.get(phase, phase.upper())])
        assert (sent.content_sent_at is not None) is was_sent
        assert connection.is_usable
        host.answers = {}
        assert (await send(connection)).accepted
    assert host.verbs[7:] == ["RSET", "MAIL", "RCPT", "DATA"]
    assert len(host.mails) == 2


async def test_a_host_that_takes_content_for_nobody_is_left(host: ChunkingHost) -> None:
    async with connected(host) as connection:
        await send(connection)
        host.answers = {"RCPT": "550 5.1.1 nobody"}
        sent = await send(connection)
        assert (sent.phase, sent.accepted) == (Phase.RCPT, False)
        assert not connection.is_usable


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "BDAT"])
async def test_a_host_that_hangs_up_may_have_the_mail(host: ChunkingHost, verb: str) -> None:
    async with connected(host) as connection:
        await send(connection)
        host.answers = {verb: None}
        with pytest.raises(ConnectionLost) as lost:
            await send(connection)
        assert lost.value.content_sent
        assert not connection.is_usable


async def test_a_refusal_stands_though_the_host_hangs_up_after_it(host: ChunkingHost) -> None:
    async with connected(host) as connection:
        await send(connection)
        host.answers = {"RCPT": "550 5.1.1 nobody", "BDAT": None}
        sent = await send(connection)
        assert (sent.phase, str(sent.reply)) == (Phase.RCPT, "550 5.1.1 nobody")
        assert not connection.is_usable


async def test_421_is_the_reply_and_the_end(host: ChunkingHost) -> None:
    async with connected(host) as connection:
        await send(connection)
        host.answers = {"MAIL": "421 4.3.2 closing"}
        sent = await send(connection)
        assert (sent.phase, str(sent.reply), sent.content_sent_at) == (Phase.MAIL, "421 4.3.2 closing", None)
        assert not connection.is_usable


async def test_a_go_ahead_that_nothing_asked_for_is_no_smtp(host: ChunkingHost) -> None:
    async with connected(host) as connection:
        await send(connection)
        host.answers = {"BDAT": "354 go on"}
        with pytest.raises(ProtocolViolation):
            await send(connection)
        assert not connection.is_usable


async def test_a_fence_that_says_no_lets_nothing_out(host: ChunkingHost) -> None:
    async with connected(host) as connection:
        await send(connection)
        sent = await send(connection, before=lambda: False)
        assert (sent.aborted, sent.content_sent_at) == (True, None)
        assert not connection.is_usable
    assert "BDAT" not in host.verbs
    assert len(host.mails) == 1
