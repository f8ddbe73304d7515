"""The tests' web hosts: a small real HTTP server on loopback, with TLS, that says exactly what it is told to say."""

import asyncio
from types import TracebackType
from typing import Self

from tests.certificates import Certificate

MAX_HEAD_BYTES = 64 * 1024


def answer(
    content: bytes, media_type: str = "text/plain", *, status: str = "200 OK", headers: dict[str, str] | None = None
) -> bytes:
    """A whole HTTP/1.1 answer."""
    fields = {"Content-Type": media_type, "Content-Length": str(len(content)), "Connection": "close", **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + content


class HttpServer:
    """Answers each path with the bytes in `answers`, anything else with 404; `requests` are the heads that it saw.

    With `pause_seconds` it waits that long before every byte.
    """

    def __init__(self, tls: Certificate | None = None, *, host: str = "127.0.0.1") -> None:
        self.answers: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.connections = 0
        self.pause_seconds = 0.0
        self.port = 0
        self._host = host
        self._tls = tls.server_context() if tls else None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._serve,
            self._host,
            0,
            ssl=self._tls,
            limit=MAX_HEAD_BYTES,
            ssl_shutdown_timeout=0.1 if self._tls else None,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def put(self, path: str, content: bytes, media_type: str) -> None:
        """Serve a file."""
        self.answers[path] = answer(content, media_type)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.requests.append(head)
            path = head.split(" ")[1]
            await self._say(writer, self.answers.get(path, answer(b"", status="404 Not Found")))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _say(self, writer: asyncio.StreamWriter, said: bytes) -> None:
        if not self.pause_seconds:
            writer.write(said)
            await writer.drain()
            return
        for octet in said:
            await asyncio.sleep(self.pause_seconds)
            writer.write(bytes([octet]))
            await writer.drain()
