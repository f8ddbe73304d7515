"""SMTP hosts that keep account of every transaction: what came, when it was whole, and what was answered."""

import asyncio
import random
import re
import time
from dataclasses import dataclass
from typing import Final

_EXTENSIONS: Final = ("PIPELINING", "SIZE 52428800", "8BITMIME", "ENHANCEDSTATUSCODES")
_MAX_LINE_OCTETS = 4096
_MAX_CONTENT_OCTETS = 2**20
_MESSAGE_ID = re.compile(rb"^Message-ID:\s*(<[^>]+>)", re.MULTILINE | re.IGNORECASE)
# The last words of each mail's text.
MARK: Final = "This is its last line."
_LATER = "451 4.3.0 not now"


@dataclass(slots=True)
class Transaction:
    """One recipient's transaction. `whole_at`: when the final dot, or all of the last BDAT, had come; None: never.

    `answer` is what the host decided upon then: with 250 the mail is the host's, whether or not the client was still
    there to hear it. Times are Unix times.
    """

    recipient: str
    ehlo: str
    begun_at: float
    whole_at: float | None = None
    answer: str = ""
    message_id: str = ""
    is_intact: bool = False
    was_heard: bool = False

    @property
    def was_taken(self) -> bool:
        """Whether the host has the mail."""
        return self.answer.startswith("250")


@dataclass(frozen=True, slots=True)
class Manner:
    """How a host behaves: the longest wait before it wants a content and before it answers one, how often it says
    451, and whether it offers CHUNKING.
    """

    slowest_seconds: float = 0.0
    later_share: float = 0.0
    chunking: bool = False

    def wait_seconds(self) -> float:
        """Between a quarter of the longest wait and all of it."""
        return random.uniform(self.slowest_seconds / 4, self.slowest_seconds)


class Host:
    """An SMTP host on one address."""

    def __init__(self, address: str, port: int, manner: Manner) -> None:
        self.address = address
        self.manner = manner
        self.transactions: list[Transaction] = []
        self._port = port
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._converse, self.address, self._port, limit=_MAX_CONTENT_OCTETS)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await asyncio.sleep(0)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _Conversation(self, reader, writer).run()
        except (asyncio.IncompleteReadError, OSError):
            # The client has gone, or was killed: what had not come whole stays so.
            pass
        finally:
            writer.close()


class _Conversation:
    """One connection."""

    def __init__(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = host
        self._reader = reader
        self._writer = writer
        self._ehlo = ""
        self._current: Transaction | None = None

    async def run(self) -> None:
        self._say("220 host.test ESMTP")
        while True:
            line = (await self._reader.readuntil(b"\r\n")).decode()
            assert len(line) <= _MAX_LINE_OCTETS
            verb, _, argument = line.strip().partition(" ")
            match verb.upper():
                case "EHLO":
                    self._greet(argument)
                case "RCPT":
                    self._recipient(argument)
                case "DATA":
                    await self._data()
                case "BDAT":
                    await self._chunk(argument)
                case "QUIT":
                    self._say("221 2.0.0 bye")
                    return
                case "MAIL" | "RSET" | "NOOP":
                    self._current = None
                    self._say("250 2.0.0 ok")
                case _:
                    self._say("502 5.5.1 what?")

    def _say(self, reply: str) -> None:
        self._writer.write(reply.encode() + b"\r\n")

    def _greet(self, name: str) -> None:
        self._ehlo = name
        offered = [*_EXTENSIONS, "CHUNKING"] if self._host.manner.chunking else [*_EXTENSIONS]
        lines = ["host.test", *offered]
        for number, line in enumerate(lines, 1):
            self._say(f"250{'-' if number < len(lines) else ' '}{line}")

    def _recipient(self, argument: str) -> None:
        if random.random() < self._host.manner.later_share / 2:
            self._say(_LATER)
            return
        recipient = argument.partition("<")[2].partition(">")[0]
        self._current = Transaction(recipient, self._ehlo, time.time())
        self._host.transactions.append(self._current)
        self._say("250 2.1.5 ok")

    async def _data(self) -> None:
        if self._current is None:
            self._say("554 5.5.1 no valid recipients")
            return
        await asyncio.sleep(self._host.manner.wait_seconds())
        self._say("354 go ahead")
        await self._judge((await self._reader.readuntil(b"\r\n.\r\n")).removesuffix(b".\r\n"))

    async def _chunk(self, argument: str) -> None:
        size, _, last = argument.partition(" ")
        assert last.upper() == "LAST"
        content = await self._reader.readexactly(int(size))
        if self._current is None:
            self._say("554 5.5.1 no valid recipients")
        else:
            await self._judge(content)

    async def _judge(self, content: bytes) -> None:
        found, self._current = self._current, None
        assert found is not None
        found.whole_at = time.time()
        named = _MESSAGE_ID.search(content)
        found.message_id = named[1].decode() if named else ""
        found.is_intact = MARK.encode() in content
        found.answer = _LATER if random.random() < self._host.manner.later_share / 2 else "250 2.0.0 taken"
        await asyncio.sleep(self._host.manner.wait_seconds())
        found.was_heard = not self._reader.at_eof()
        self._say(found.answer)
