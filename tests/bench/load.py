"""The load generator, in a process of its own: `python -m tests.bench.load` reads its task and prints what it measured.

Both are JSON. The task names the protocol, `http`, `smtp` or `get`, where to send, how many requests, over how many
connections, and the content: a mail's octets for SMTP, a request's body for HTTP, either with `@COUNT@` where each
differs. It is as wide as the number in its place, so that nothing is built anew while the time runs. For `get` it is
paths, one a line, that are asked for in turn.
"""

import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvloop

PLACE = b"@COUNT@"
HTTP_HEAD = (
    "POST {path} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {key}\r\n"
    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
)
GET = "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nAccept: */*\r\n\r\n"
# As the proxy of a large provider asks.
AGENT = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"


@dataclass(frozen=True, slots=True)
class Task:
    """What to send: `count` requests or SMTP transactions. Path and API key are for HTTP, the addresses for SMTP."""

    protocol: str
    host: str
    port: int
    count: int
    connections: int
    content: str
    path: str = ""
    key: str = ""
    mail_from: str = ""
    rcpt_to: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """When the first request was begun and the last one accepted (Unix time), each one's latency in milliseconds,
    and the processor time that the load generator took for it all.
    """

    began_at: float
    ended_at: float
    latencies: list[float]
    cpu_seconds: float


async def run(task: Task) -> Result:
    """Send it all. Raises AssertionError when something is not accepted."""
    numbers = iter(range(task.count))
    latencies: list[float] = []
    opened = [session(task) for _ in range(task.connections)]
    entered = await asyncio.gather(*(one.__aenter__() for one in opened))
    contents = task.content.encode().splitlines() if task.protocol == "get" else [task.content.encode()]
    cpu_before, began_at = time.process_time(), time.time()
    await asyncio.gather(*(_send_all(exchange, numbers, contents, latencies) for exchange in entered))
    ended_at, cpu_seconds = time.time(), time.process_time() - cpu_before
    await asyncio.gather(*(one.__aexit__(None, None, None) for one in opened))
    return Result(began_at, ended_at, latencies, cpu_seconds)


async def _send_all(
    exchange: "Exchange", numbers: Iterator[int], contents: list[bytes], latencies: list[float]
) -> None:
    for number in numbers:
        octets = contents[number % len(contents)].replace(PLACE, b"%07d" % number)
        began = time.perf_counter()
        await exchange.send(octets)
        latencies.append(1000 * (time.perf_counter() - began))


@dataclass(slots=True)
class Exchange:
    """One open connection over which mails are handed in."""

    task: Task
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, octets: bytes) -> None:
        ways = {"http": self._post, "get": self._get, "smtp": self._transact}
        await ways[self.task.protocol](octets)

    async def _post(self, body: bytes) -> None:
        task = self.task
        head = HTTP_HEAD.format(path=task.path, host=task.host, key=task.key, length=len(body))
        self.writer.write(head.encode() + body)
        await self._answered(b"202")

    async def _get(self, path: bytes) -> None:
        self.writer.write(GET.format(path=path.decode(), host=self.task.host, agent=AGENT).encode())
        await self._answered(b"200", b"302")

    async def _answered(self, *expected: bytes) -> None:
        answer = await self.reader.readuntil(b"\r\n\r\n")
        length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        rest = await self.reader.readexactly(int(length))
        assert answer[9:12] in expected, answer + rest

    async def _transact(self, content: bytes) -> None:
        commands = f"MAIL FROM:<{self.task.mail_from}>\r\nRCPT TO:<{self.task.rcpt_to}>\r\nDATA\r\n"
        self.writer.write(commands.encode())
        for expected in (b"250", b"250", b"354"):
            await self.reply(expected)
        self.writer.write(content + b".\r\n")
        await self.reply(b"250")

    async def reply(self, expected: bytes) -> None:
        while (line := await self.reader.readline())[3:4] == b"-":
            pass
        assert line.startswith(expected), line


@asynccontextmanager
async def session(task: Task) -> AsyncIterator[Exchange]:
    """A connection that is ready for mail."""
    exchange = Exchange(task, *await asyncio.open_connection(task.host, task.port))
    if task.protocol == "smtp":
        await exchange.reply(b"220")
        exchange.writer.write(b"EHLO load.bench.test\r\n")
        await exchange.reply(b"250")
    try:
        yield exchange
    finally:
        exchange.writer.close()


async def in_process(task: Task) -> Result:
    """Run the task in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.load"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate(json.dumps(dataclasses.asdict(task)).encode())
    assert process.returncode == 0, "the load generator failed; its reason is above"
    return Result(**json.loads(said))


if __name__ == "__main__":
    measured = dataclasses.asdict(uvloop.run(run(Task(**json.load(sys.stdin)))))
    # Under PYTHONUNBUFFERED print loses what a pipe does not take at once.
    with open(sys.stdout.fileno(), "w", closefd=False) as said:
        json.dump(measured, said)
