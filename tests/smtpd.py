"""The tests' SMTP hosts: a small real server on asyncio whose every answer, pause and mishap can be scripted.

    async with SmtpServer("127.0.0.2") as mx:
        mx.answer_once("a@x.test", "451 4.7.1 later")
        mx.replies.on_mail = lambda address: drop()

`python -m tests.smtpd --host 127.0.0.2 --port 2525 --count-only` runs it alone as a sink: it prints the
number of mails at SIGTERM and answers it to the SMTP command XCOUNT.
"""

import argparse
import asyncio
import collections
import signal
import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Self, cast

import uvloop

from tests.certificates import Certificate
from tests.smtp_script import (
    Act,
    Answer,
    Hook,
    ReceivedMail,
    Replies,
    drop,
    hang,
    late,
    raw,
    slow,
)
from tests.smtp_session import Session

__all__ = ["Act", "Answer", "ReceivedMail", "Replies", "SmtpServer", "drop", "hang", "late", "raw", "slow"]

MAX_COMMANDS_LOGGED = 10_000
DEFAULT_EXTENSIONS = ("PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")


class SmtpServer:
    """An SMTP host on one address; the mails it took are in `mails`, every command line it saw in `commands`.

    With tls given STARTTLS is offered. `mails_expected` waits for a number of mails.
    """

    def __init__(
        self,
        host: str = "127.0.0.2",
        port: int = 0,
        *,
        tls: Certificate | None = None,
        extensions: Sequence[str] = DEFAULT_EXTENSIONS,
        greeting: Answer = "220 mx.test ESMTP",
        count_only: bool = False,
    ) -> None:
        self.host = host
        self.port = port
        self.tls_context: ssl.SSLContext | None = tls.server_context() if tls else None
        self.extensions = tuple(extensions)
        self.greeting = greeting
        self.replies = Replies()
        self.mails: list[ReceivedMail] = []
        self.mail_count = 0
        self.commands: collections.deque[tuple[int, str]] = collections.deque(maxlen=MAX_COMMANDS_LOGGED)
        self.violations: list[str] = []
        self.connections: set[Session] = set()
        self.connection_count = 0
        self.max_connections_seen = 0
        self.count_only = count_only
        self._once: dict[tuple[str, str], collections.deque[Answer]] = {}
        self._more = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Session(self), self.host, self.port, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection; start() listens again on the same port."""
        if self._server is None:
            return
        self._server.close()
        for session in list(self.connections):
            session.cut()
        await self._server.wait_closed()
        self._server = None
        await asyncio.sleep(0)

    def answer_once(self, recipient: str, *answers: Answer, phase: str = "rcpt") -> None:
        """Queue answers for this recipient's next transactions; phase is rcpt, data or end_of_data."""
        self._once.setdefault((recipient, phase), collections.deque()).extend(answers)

    def mails_to(self, recipient: str) -> list[ReceivedMail]:
        return [mail for mail in self.mails if mail.rcpt_to == recipient]

    def verbs(self) -> list[str]:
        """The verbs of all commands seen, in order of arrival."""
        return [line.split(" ", 1)[0].upper() for _, line in self.commands]

    async def mails_expected(self, count: int, *, timeout_seconds: float = 10.0) -> list[ReceivedMail]:
        """Wait until this many mails have come; raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            while self.mail_count < count:
                self._more.clear()
                await self._more.wait()
        return self.mails

    def scripted(self, phase: str, argument: str) -> Answer | None:
        """The scripted answer for a phase, if any."""
        queue = self._once.get((argument, phase))
        if queue:
            return queue.popleft()
        return cast(Hook, getattr(self.replies, "on_" + phase))(argument)

    def took(self, count: int, mails: list[ReceivedMail]) -> None:
        self.mails.extend(mails)
        self.mail_count += count
        self._more.set()


async def _run_sink(host: str, port: int, count_only: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with SmtpServer(host, port, count_only=count_only) as server:
        print(f"listening {server.host} {server.port}", flush=True)
        await stop.wait()
        print(server.mail_count, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="An SMTP sink for benchmarks.")
    parser.add_argument("--host", default="127.0.0.2")
    parser.add_argument("--port", type=int, default=2525)
    parser.add_argument("--count-only", action="store_true", help="keep no mail, only count")
    options = parser.parse_args()
    uvloop.run(_run_sink(options.host, options.port, options.count_only))


if __name__ == "__main__":
    main()
