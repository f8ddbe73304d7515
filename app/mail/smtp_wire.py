"""The octets of an SMTP connection: replies in, commands and content out, every wait with a deadline.

Knows lines and time, not the order of commands; that is smtp.py.
"""

import asyncio
import collections
import re
import ssl
from typing import cast

from app.mail.reply import Phase, Reply

MAX_LINE_OCTETS = 2000
MAX_REPLY_LINES = 100
MAX_WAITING_REPLIES = 16
BLOCK_OCTETS = 128 * 1024

_LINE = re.compile(rb"[2-5][0-9]{2}(?:[ -]|$)")


class SmtpError(Exception):
    """The session could not go on. phase: where; reply: what the peer said last, if that was the reason.

    content_sent: the final dot of a mail had gone out, so that the mail may have been accepted.
    """

    def __init__(self, message: str, *, phase: Phase, reply: Reply | None = None, content_sent: bool = False) -> None:
        super().__init__(message)
        self.phase = phase
        self.reply = reply
        self.content_sent = content_sent

    def __str__(self) -> str:
        said = f": {self.reply}" if self.reply else ""
        return f"{super().__str__()} ({self.phase}){said}"


class ConnectFailed(SmtpError):  # noqa: N818
    """No TCP connection."""


class ConnectionLost(SmtpError):  # noqa: N818
    """The peer closed or reset the connection."""


class TimedOut(SmtpError):  # noqa: N818
    """The peer took longer than the phase's time-out."""


class ProtocolViolation(SmtpError):  # noqa: N818
    """The peer does not speak SMTP: garbage, an over-long reply, replies that nothing asked for."""


class Refused(SmtpError):  # noqa: N818
    """The peer does not want to talk to us: greeting or EHLO/HELO refused."""


class TlsFailed(SmtpError):  # noqa: N818
    """STARTTLS was offered and then refused, or not offered where TLS is required; or the handshake or the
    certificate failed.
    """


class Wire(asyncio.Protocol):
    """One TCP connection that speaks SMTP lines. Used by one task at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._lines: list[bytes] = []
        self._replies: collections.deque[list[bytes]] = collections.deque()
        self._violation: str | None = None
        self._lost: str | None = None
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._use(cast(asyncio.Transport, transport))

    def _use(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        # With no slack, "drained" means that the kernel has taken every octet. (0 confuses asyncio's TLS
        # transport.)
        transport.set_write_buffer_limits(high=1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._lost or (str(exc) if exc else "connection closed by peer")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        if self._violation is not None:
            return
        buffer = self._buffer
        buffer += data
        start = 0
        while self._violation is None and (end := buffer.find(b"\n", start)) >= 0:
            self._take_line(bytes(buffer[start:end]).removesuffix(b"\r"))
            start = end + 1
        if start:
            del buffer[:start]
        if len(buffer) > MAX_LINE_OCTETS:
            self._violate("reply line too long")
        if self._replies or self._violation:
            self._wake()

    def _take_line(self, line: bytes) -> None:
        lines = self._lines
        if len(line) > MAX_LINE_OCTETS:
            self._violate("reply line too long")
        elif not _LINE.match(line):
            self._violate("not an SMTP reply")
        elif len(lines) >= MAX_REPLY_LINES:
            self._violate("reply of too many lines")
        elif len(self._replies) >= MAX_WAITING_REPLIES:
            self._violate("replies that nothing asked for")
        else:
            lines.append(line)
            if line[3:4] != b"-":
                self._replies.append(lines)
                self._lines = []

    def _violate(self, what: str) -> None:
        if self._violation is None:
            self._violation = what
            self._transport.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def is_open(self) -> bool:
        return self._lost is None and self._violation is None and not self._transport.is_closing()

    @property
    def has_input(self) -> bool:
        """Something has arrived that was not read yet, be it a part of a line."""
        return bool(self._replies or self._lines or self._buffer or self._violation)

    def waiting_reply(self) -> list[bytes] | None:
        """The next whole reply that has arrived already."""
        return self._replies.popleft() if self._replies else None

    async def read_reply(self, phase: Phase, timeout_seconds: float) -> list[bytes]:
        """The lines of the next reply, without line ends; the time-out is for all of it.

        Raises TimedOut, ConnectionLost, ProtocolViolation.
        """
        deadline = self._loop.time() + timeout_seconds
        while not self._replies:
            self._check(phase)
            await self._wait(deadline, phase, "no reply")
        return self._replies.popleft()

    def write(self, octets: bytes, phase: Phase) -> None:
        """Hand over what is small: a group of commands, a final dot. Raises ConnectionLost,
        ProtocolViolation.
        """
        self._check(phase)
        if self._transport.is_closing():
            raise ConnectionLost("connection is closing", phase=phase)
        self._transport.write(octets)

    async def write_blocks(self, octets: bytes, phase: Phase, block_timeout_seconds: float) -> None:
        """Hand over octets block by block, each with its time-out; on return the kernel has taken all of
        them.

        Returns early when the peer says something. Raises TimedOut, ConnectionLost, ProtocolViolation.
        """
        view = memoryview(octets)
        for start in range(0, len(view), BLOCK_OCTETS):
            self._check(phase)
            if self._replies:
                return
            self._transport.write(view[start : start + BLOCK_OCTETS])
            # A peer that takes everything at once would never give the loop a turn, not even to see it go
            # away.
            await asyncio.sleep(0)
            deadline = self._loop.time() + block_timeout_seconds
            while self._paused and not self._replies:
                self._check(phase)
                await self._wait(deadline, phase, "peer does not take the content")

    def _check(self, phase: Phase) -> None:
        if self._violation is not None:
            raise ProtocolViolation(self._violation, phase=phase)
        if self._lost is not None:
            raise ConnectionLost(self._lost, phase=phase)

    async def _wait(self, deadline: float, phase: Phase, what: str) -> None:
        self._waiter = self._loop.create_future()
        self._deadline = deadline
        # One timer serves many waits: it is set anew only for an earlier deadline, and looks again when it
        # fires.
        if self._timer is None or self._timer.when() > deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._ring)
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._deadline == 0.0:
            raise TimedOut(what, phase=phase)

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._ring)
            return
        self._deadline = 0.0
        self._wake()

    async def start_tls(self, context: ssl.SSLContext, server_name: str, timeout_seconds: float) -> ssl.SSLObject:
        """Make it a TLS connection. Raises TlsFailed, and TimedOut when the handshake takes too long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                transport = await self._loop.start_tls(self._transport, self, context, server_hostname=server_name)
        except TimeoutError as error:
            self.abort()
            raise TimedOut("TLS handshake", phase=Phase.STARTTLS) from error
        except (OSError, EOFError, ValueError) as error:
            # ssl.SSLError is an OSError; ValueError is a host name that TLS cannot carry.
            self.abort()
            raise TlsFailed(f"TLS handshake: {error}", phase=Phase.STARTTLS) from error
        ssl_object = transport.get_extra_info("ssl_object") if transport is not None else None
        if transport is None or ssl_object is None:
            self.abort()
            raise TlsFailed("TLS handshake: connection closed", phase=Phase.STARTTLS)
        self._use(transport)
        return cast(ssl.SSLObject, ssl_object)

    def close(self) -> None:
        """Close after what was written has gone out."""
        self._lost = self._lost or "closed by us"
        self._transport.close()

    def abort(self) -> None:
        """Close at once; octets not yet taken by the kernel are dropped."""
        self._lost = self._lost or "closed by us"
        self._transport.abort()
