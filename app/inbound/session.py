"""One client's SMTP session: aiosmtpd's, made strict about line ends and order, and bounded in every way.

A mail ends at CR LF "." CR LF and nowhere else, and one with a CR or LF of its own is refused: hosts that disagree on
where a mail ends can be made to see a second one in it (SMTP smuggling, CVE-2023-51764 to 51766). For the same reason
nothing may come behind a command that has to be waited for (RFC 2920 section 3.1), and what comes before TLS is up is
forgotten (RFC 3207 section 6). BDAT is not offered: one way in is enough to keep in order.
"""

import asyncio
import contextlib
import re
import ssl
from collections import Counter
from typing import Any, Final

import structlog
from aiosmtpd.smtp import SMTP, Envelope, TLSSetupException

from app.inbound.limits import Limits

CONTENT_BYTES_MAX: Final = 10 * 2**20
COMMAND_BYTES_MAX: Final = 1024
LINE_BYTES_MAX: Final = 16 * 2**10
RECIPIENTS_MAX: Final = 20
TRANSACTIONS_MAX: Final = 100
COMMANDS_MAX: Final = 1000
ERRORS_MAX: Final = 10
# RFC 5321 section 4.5.3.2.7 asks for five minutes; with few connections left, patience ends sooner.
COMMAND_SECONDS: Final = 300.0
CROWDED_SECONDS: Final = 20.0
DATA_SECONDS: Final = 600.0
_PARTING_SECONDS: Final = 5.0
# How much of a mail that is too large is read on, so that its sender can be told.
_OVERRUN_BYTES_MAX: Final = 4 * CONTENT_BYTES_MAX
# What the reader holds at most before whoever reads gets it in pieces.
_PIECE_BYTES: Final = 64 * 2**10

_COMMANDS: Final = frozenset({"HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "STARTTLS"})
_END: Final = b"\r\n.\r\n"
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
# A path (RFC 5321 section 4.1.2), a source route before it being ignored, and what follows it.
_PATH = re.compile(r"<(?:@[^<>\s:]*:)?([^<>\s]*)>(?:\s+(\S.*))?")

log = structlog.get_logger(__name__)


class Parting(Exception):  # noqa: N818 - no error of ours
    """The session ends with this reply; `verdict` is what it is counted as."""

    def __init__(self, verdict: str, reply: str) -> None:
        super().__init__(reply)
        self.verdict = verdict
        self.reply = reply


class Session(SMTP):
    """The protocol of one connection; the handler's hooks say what is taken, and here is how.

    Relies on aiosmtpd for the commands themselves and STARTTLS; reading commands and content is our own.
    """

    # aiosmtpd gives it to the reader, as what it holds at most.
    line_length_limit = _PIECE_BYTES

    def __init__(
        self, handler: Any, limits: Limits, refused: Counter[str], *, hostname: str, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(
            handler,
            data_size_limit=CONTENT_BYTES_MAX,
            enable_SMTPUTF8=True,
            hostname=hostname,
            tls_context=tls,
            timeout=COMMAND_SECONDS,
            loop=asyncio.get_running_loop(),
        )
        self._limits = limits
        self._refused = refused
        self.client_address = ""
        self._entered = False
        self._errors = 0
        self._transactions = 0

    @property
    def has_tls(self) -> bool:
        """Whether TLS is up, or being set up."""
        return self._tls_protocol is not None

    def refuse(self, verdict: str, reply: str) -> str:
        """The reply; it is counted what for."""
        self._refused[verdict] += 1
        return reply

    async def push(self, status: Any) -> None:
        """Send a reply. Raises Parting after too many bad ones."""
        await super().push(status)
        if status[:1] in ("4", "5"):
            self._errors += 1
            if self._errors == ERRORS_MAX:
                raise Parting("too_many_errors", "421 4.7.0 Too many errors")

    async def _handle_client(self) -> None:
        """Greet, then answer one command after another, until the client or a limit ends it."""
        try:
            await self._greet()
            for _ in range(COMMANDS_MAX):
                await self._answer(await self._command())
            raise Parting("too_many_commands", "421 4.7.0 Too many commands")
        except Parting as parting:
            self._refused[parting.verdict] += 1
            self._reset_timeout(_PARTING_SECONDS)
            with contextlib.suppress(ConnectionError):
                await super().push(parting.reply)
        except TLSSetupException as error:
            # Nobody else tells of the end of a connection whose TLS never came up.
            if self._original_transport is not None:
                self._original_transport.close()
            self.connection_lost(error)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away: nothing is owed to it
        finally:
            # Gone already, unless the client has only said that it will say no more.
            if self.transport is not None:
                self.transport.close()

    async def _greet(self) -> None:
        self._entered = self._limits.enter(self.client_address)
        if not self._entered:
            raise Parting("too_many_connections", "421 4.7.0 Too many connections, try again later")
        if not await self._limits.may_connect(self.client_address):
            raise Parting("rate_limited", "421 4.7.0 Too many connections in a minute, try again later")
        if self._is_ahead():
            raise Parting("improper_pipelining", "554 5.5.1 Speak when you are greeted")
        await self.push(f"220 {self.hostname} ESMTP")

    async def _command(self) -> bytes:
        """The next command line, without its end. Raises Parting for one that is not ended as it should be."""
        self._reset_timeout(CROWDED_SECONDS if self._limits.is_crowded() else None)
        try:
            line: bytes = await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            raise Parting("line_too_long", "500 5.5.2 Line too long") from None
        if not line.endswith(b"\r\n"):
            raise Parting("bare_newline", "500 5.5.2 Lines end with CR LF")
        return line[:-2]

    async def _answer(self, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        name = verb.decode("latin-1").upper()
        try:
            argument = rest.strip().decode() or None
        except UnicodeDecodeError:
            argument, name = None, ""
        if len(line) > COMMAND_BYTES_MAX or _CONTROL.search(line) or not name:
            await self.push("500 5.5.2 Syntax error")
        elif name not in _COMMANDS:
            await self.push("502 5.5.1 Command not implemented")
        else:
            await self._obey(name, argument)

    async def _obey(self, name: str, argument: str | None) -> None:
        if name in ("HELO", "EHLO") and self._is_ahead():
            raise Parting("improper_pipelining", "503 5.5.1 Wait for the answer")
        try:
            await self._smtp_methods[name](argument)
        except (Parting, TLSSetupException, ConnectionError):
            raise
        except Exception:
            log.exception("inbound_command_failed", command=name)
            await self.push("451 4.3.0 Local error, try again later")

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd's names, here and below
        """Begin a transaction, up to TRANSACTIONS_MAX. Raises Parting."""
        self._transactions += 1
        if self._transactions > TRANSACTIONS_MAX:
            raise Parting("too_many_commands", "421 4.7.0 Too many transactions, open another connection")
        await super().smtp_MAIL(arg)

    async def smtp_STARTTLS(self, arg: str | None) -> None:  # noqa: N802
        """Set up TLS, once. What was sent before it is up is forgotten. Raises TLSSetupException."""
        if self.has_tls:
            await self.push("503 5.5.1 TLS is up already")
            return
        await super().smtp_STARTTLS(arg)
        # A connection that ends during the handshake looks like a handshake that went well.
        if self.has_tls and (self.session is None or self.session.ssl is None):
            raise TLSSetupException

    async def smtp_DATA(self, arg: str | None) -> None:  # noqa: N802
        """Take the mail's content, and have the handler say what becomes of it. Raises Parting."""
        if await self.check_helo_needed():
            return
        envelope = self.envelope
        assert envelope is not None  # noqa: S101 - one is made with the connection
        if not envelope.rcpt_tos:
            await self.push("503 5.5.1 No valid recipients")
            return
        if arg:
            await self.push("501 5.5.4 Syntax: DATA")
            return
        if self._is_ahead():
            raise Parting("improper_pipelining", "503 5.5.1 Wait for the answer")
        # The end of the command's own line is the beginning of the mark that ends an empty mail.
        self._reader.feed_data(b"\r\n")
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        with self._limits.receiving():
            reply = await self._receive(envelope)
        self.envelope = self._create_envelope()
        await self.push(reply)

    async def _receive(self, envelope: Envelope) -> str:
        self._reset_timeout(DATA_SECONDS)
        content = bytearray()
        try:
            reply = await self._take(content)
            self._reset_timeout()
            if reply is None:
                envelope.content = bytes(memoryview(content.replace(b"\r\n.", b"\r\n"))[2:])
                reply = str(await self._call_handler_hook("DATA"))
            return reply
        finally:
            self._limits.give_room(len(content))

    async def _take(self, content: bytearray) -> str | None:
        """Fill in the content as it comes, behind a CR LF, its dots still doubled; the reply if it is refused.

        For what is in `content` room is taken. Raises Parting.
        """
        refusal, taken, ended = None, 0, False
        while not ended:
            piece, ended = await self._piece()
            taken += len(piece)
            if taken > CONTENT_BYTES_MAX and refusal is None:
                refusal = self.refuse("too_large", "552 5.3.4 The mail is too large")
            elif taken > _OVERRUN_BYTES_MAX:
                raise Parting("too_large", "552 5.3.4 The mail is too large")
            if refusal is None and not self._limits.take_room(len(piece)):
                refusal = self.refuse("no_room", "452 4.3.1 Too busy, try again later")
            if refusal is None:
                content += piece
            elif content:
                self._limits.give_room(len(content))
                content.clear()
        if refusal is not None:
            return refusal
        if not content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n"):
            raise Parting("bare_newline", "550 5.5.2 The mail contains a CR or LF of its own")
        if _has_long_line(content):
            return self.refuse("line_too_long", "550 5.6.0 The mail contains a line that is too long")
        return None

    async def _piece(self) -> tuple[bytes, bool]:
        """The next octets of a mail, and whether they are its last."""
        try:
            return (await self._reader.readuntil(_END))[: -len(b".\r\n")], True
        except asyncio.LimitOverrunError as overrun:
            return await self._reader.readexactly(overrun.consumed), False

    def _is_ahead(self) -> bool:
        """Whether the client has spoken before its turn."""
        return bool(self._reader._buffer)  # type: ignore[attr-defined]

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        """(address, parameters) of what follows `FROM:` or `TO:`; the null path is `<>`; (None, None): no path."""
        found = _PATH.fullmatch(arg)
        return (found[1] or "<>", found[2] or "") if found else (None, None)

    def _timeout_cb(self) -> None:
        """End the connection at once: closed in order, one whose client reads nothing would stay for ever."""
        transport = self._original_transport or self.transport
        if isinstance(transport, asyncio.WriteTransport):
            self._refused["timed_out"] += 1
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's word that the connection stands, and again when TLS is up."""
        if not self.has_tls:
            peer = transport.get_extra_info("peername")
            self.client_address = str(peer[0]) if peer else ""
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's word that the connection has ended."""
        if self._entered:
            self._entered = False
            self._limits.leave(self.client_address)
        super().connection_lost(error)


def _has_long_line(content: bytearray) -> bool:
    """Whether there is a line of more than LINE_BYTES_MAX octets, by jumps from line end to line end."""
    begin = 0
    while len(content) - begin > LINE_BYTES_MAX:
        end = content.rfind(b"\n", begin, begin + LINE_BYTES_MAX)
        if end < 0:
            return True
        begin = end + 1
    return False
