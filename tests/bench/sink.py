"""The sink that both sides deliver to: `python -m tests.smtpd --count-only`, asked how much it has got."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

HOST = "127.0.0.2"


@dataclass(slots=True)
class Sink:
    """A running sink and our connection for asking it."""

    port: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def count(self) -> int:
        """How many mails it has taken."""
        self.writer.write(b"XCOUNT\r\n")
        return int((await self.reader.readline()).split()[1])

    async def reach(self, count: int, *, timeout_seconds: float, poll_seconds: float = 0.01) -> float:
        """Wait until it has taken this many; the Unix time then. Raises TimeoutError with how far it came."""
        deadline = time.monotonic() + timeout_seconds
        while (taken := await self.count()) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {taken} of {count} mails arrived within {timeout_seconds} s")
            await asyncio.sleep(poll_seconds)
        return time.time()


@asynccontextmanager
async def running() -> AsyncIterator[Sink]:
    """A sink of its own, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.smtpd", "--host", HOST, "--port", "0", "--count-only"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    port = int((await process.stdout.readline()).split()[2])
    reader, writer = await asyncio.open_connection(HOST, port)
    await reader.readline()
    try:
        yield Sink(port, reader, writer)
    finally:
        writer.close()
        process.terminate()
        await process.wait()
