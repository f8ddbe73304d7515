"""A customer's web host: a real HTTP server on loopback that keeps what it is sent, and answers as it is told to."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.certificates import Certificate

MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Received:
    """One request. Names of header fields in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]


def reply(status: str = "200 OK", content: bytes = b"", **fields: str) -> bytes:
    """A whole answer after which the connection stays open."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


Manner = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


async def hang(writer: asyncio.StreamWriter) -> None:
    """Say nothing, for as long as the client stays."""
    while not writer.is_closing():
        await asyncio.sleep(0.05)


def drip(said: bytes, *, pause_seconds: float = 0.2) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    """Say it an octet at a time."""

    async def say(writer: asyncio.StreamWriter) -> None:
        for octet in said:
            writer.write(bytes([octet]))
            await writer.drain()
            await asyncio.sleep(pause_seconds)

    return say


@dataclass(slots=True)
class Flood:
    """Answers 200 with a gigabyte; counts what the client took."""

    taken: int = 0

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        for _ in range(1024):
            writer.write(b"x" * 2**20)
            await writer.drain()
            self.taken += 2**20


@dataclass(slots=True)
class Receiver:
    """Answers by path: the manners of `manners` one after the other, the last of them for ever; 200 without any."""

    tls: Certificate | None = None
    host: str = "127.0.0.1"
    manners: dict[str, list[Manner]] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    at_once: int = 0
    most_at_once: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        tls = self.tls.server_context() if self.tls else None
        self._server = await asyncio.start_server(
            self._serve, self.host, 0, ssl=tls, limit=MAX_HEAD_BYTES, ssl_shutdown_timeout=0.1 if tls else None
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, path: str = "/", host: str | None = None) -> str:
        return f"http{'s' if self.tls else ''}://{host or self.host}:{self.port}{path}"

    def at(self, path: str) -> list[Received]:
        """What came to a path."""
        return [one for one in self.received if one.path == path]

    async def reach(self, count: int, path: str | None = None, *, timeout_seconds: float = 15) -> list[Received]:
        """Wait for so many requests."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while len(found := self.received if path is None else self.at(path)) < count:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{len(found)} of {count} requests came") from None
        return list(found)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            while True:
                await self._exchange(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # The client has gone, or the test has ended.
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path = first.split(" ")[1]
        self.received.append(Received(path, headers, body, asyncio.get_running_loop().time()))
        waiting = self.manners.get(path, [reply()])
        manner = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if isinstance(manner, bytes):
                writer.write(manner)
                await writer.drain()
                if not manner.startswith(b"HTTP/1.1 ") or b"connection: close" in manner.lower():
                    raise ConnectionResetError
            else:
                with suppress(ConnectionError):
                    await manner(writer)
                raise ConnectionResetError
        finally:
            self.at_once -= 1
