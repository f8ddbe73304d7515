"""The sink that both sides deliver to: tests/bench/sink_server.py as a process, asked how much it has got."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.2"


@dataclass(frozen=True, slots=True)
class Sink:
    """A running sink: where it takes mail, where it is asked, its process."""

    port: int
    control_port: int
    pid: int

    async def count(self) -> int:
        """How many mails it has taken."""
        return int(await self._ask("count"))

    async def stats(self) -> dict[str, Any]:
        """Mails, connections now, at most at once and ever, and mails by second; see the server."""
        answer: dict[str, Any] = json.loads(await self._ask("stats"))
        return answer

    async def reach(self, count: int, *, timeout_seconds: float) -> float:
        """The Unix time when it had taken this many. Raises TimeoutError with how far it came."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return float(await self._ask(f"reach {count}"))
        except TimeoutError:
            taken = await self.count()
            raise TimeoutError(f"only {taken} of {count} mails arrived within {timeout_seconds} s") from None

    async def _ask(self, question: str) -> str:
        # Each question has its own connection: one that waits for mails holds up no other.
        reader, writer = await asyncio.open_connection(HOST, self.control_port, limit=2**24)
        try:
            writer.write(question.encode() + b"\n")
            return (await reader.readline()).decode()
        finally:
            writer.close()


@asynccontextmanager
async def running() -> AsyncIterator[Sink]:
    """A sink of its own, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.sink_server", "--host", HOST), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    _, _, port, control_port = (await process.stdout.readline()).split()
    try:
        yield Sink(int(port), int(control_port), process.pid)
    finally:
        process.terminate()
        await process.wait()
