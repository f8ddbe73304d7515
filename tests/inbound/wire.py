"""An SMTP client that says exactly what it is told to: over a plain socket, byte for byte."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SECONDS = 10.0


class Wire:
    """One connection. What is read are whole replies, as one text; "" at the connection's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def reply(self) -> str:
        """The next reply, its lines joined by blanks."""
        lines = []
        async with asyncio.timeout(SECONDS):
            while line := await self._reader.readline():
                lines.append(line.decode().rstrip("\r\n"))
                if lines[-1][3:4] != "-":
                    break
        return " ".join(lines)

    async def say(self, octets: bytes) -> str:
        """Send these octets; the reply."""
        self.writer.write(octets)
        return await self.reply()

    async def ask(self, *commands: str) -> list[str]:
        """Send these commands, each when the one before it is answered; their replies."""
        return [await self.say(command.encode() + b"\r\n") for command in commands]

    async def code(self, *commands: str) -> list[int]:
        """The codes of the replies to these commands."""
        return [int(reply[:3] or 0) for reply in await self.ask(*commands)]

    async def is_closed(self) -> bool:
        """Whether the other side says no more and closes."""
        return await self.rest() == b""

    async def rest(self) -> bytes:
        """All that comes until the other side closes."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Go over to TLS."""
        async with asyncio.timeout(SECONDS):
            await self.writer.start_tls(context, server_hostname=name)


@asynccontextmanager
async def connected(port: int, *, host: str = "127.0.0.1", source: str | None = None) -> AsyncIterator[Wire]:
    """A connection that was greeted with nothing read yet."""
    local = (source, 0) if source else None
    reader, writer = await asyncio.open_connection(host, port, local_addr=local)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def greeted(port: int, *, source: str | None = None) -> AsyncIterator[Wire]:
    """A connection with the greeting read, and EHLO said."""
    async with connected(port, source=source) as wire:
        assert (await wire.reply()).startswith("220 ")
        assert await wire.code("EHLO client.example") == [250]
        yield wire


async def offer(wire: Wire, recipient: str, sender: str = "") -> None:
    """Lead a transaction to where the content is waited for."""
    assert await wire.code(f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>", "DATA") == [250, 250, 354]


async def hand_in(port: int, recipient: str, content: bytes, *, sender: str = "") -> str:
    """Send a mail whose lines end with CR LF; the reply to it."""
    async with greeted(port) as wire:
        await offer(wire, recipient, sender)
        reply = await wire.say(content.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        await wire.ask("QUIT")
        return reply
