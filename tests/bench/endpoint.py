"""A customer's endpoint for webhooks that only counts: `python -m tests.bench.endpoint`, a process of its own.

It prints the port on which it listens. Each POST is counted and answered with 200, on a connection that stays open; a
GET is answered with the count and the Unix time of the last POST. It reads no more of a request than where it ends.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import httpx
import uvloop

HOST = "127.0.0.3"
END_OF_HEAD = b"\r\n\r\n"
TAKEN = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
PAUSE_SECONDS = 0.05


class Counted:
    """What has come to this endpoint."""

    def __init__(self) -> None:
        self.posts = 0
        self.last_at = 0.0

    def answer(self) -> bytes:
        text = f"{self.posts} {self.last_at!r}".encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text


class Exchanges(asyncio.Protocol):
    """One connection's requests, one after the other."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._transport: asyncio.Transport
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (end := self._end_of_request()) is not None:
            is_post, self._rest = self._rest.startswith(b"POST "), self._rest[end:]
            if is_post:
                self._counted.posts += 1
                self._counted.last_at = time.time()
            self._transport.write(TAKEN if is_post else self._counted.answer())

    def _end_of_request(self) -> int | None:
        head, found, _ = self._rest.partition(END_OF_HEAD)
        if not found:
            return None
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        end = len(head) + len(END_OF_HEAD) + int(length or b"0")
        return end if len(self._rest) >= end else None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running endpoint: where events are posted to, its process."""

    url: str
    pid: int

    async def count(self) -> int:
        """How many events have come."""
        return (await self._ask())[0]

    async def reach(self, count: int, *, timeout_seconds: float) -> float:
        """The Unix time of the last POST, once there were this many. Raises TimeoutError with how far it came."""
        posts = 0
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    posts, last_at = await self._ask()
                    if posts >= count:
                        return last_at
                    await asyncio.sleep(PAUSE_SECONDS)
        except TimeoutError:
            raise TimeoutError(f"only {posts} of {count} events came within {timeout_seconds} s") from None

    async def _ask(self) -> tuple[int, float]:
        async with httpx.AsyncClient(trust_env=False) as client:
            posts, last_at = (await client.get(self.url)).text.split()
        return int(posts), float(last_at)


@asynccontextmanager
async def running() -> AsyncIterator[Endpoint]:
    """An endpoint in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.endpoint"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    try:
        yield Endpoint(f"http://{HOST}:{port}/hook", process.pid)
    finally:
        process.terminate()
        await process.wait()


async def serve() -> None:
    """Run until killed."""
    counted = Counted()
    server = await asyncio.get_running_loop().create_server(lambda: Exchanges(counted), HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
