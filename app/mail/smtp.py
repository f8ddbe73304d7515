"""Our SMTP client: one connection, many transactions of one recipient each (RFC 5321, 2920, 1870, 6152,
6531, 3207).

The content goes out octet for octet as given, apart from dot-stuffing, because it is signed. What a peer
answers to a mail is a value (Transmission); what ends a session is an SmtpError.
"""

import asyncio
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

from app.mail.reply import Phase, Reply, parse
from app.mail.smtp_transaction import Timeouts, Transaction, Transmission
from app.mail.smtp_wire import (
    ConnectFailed,
    ConnectionLost,
    ProtocolViolation,
    Refused,
    SmtpError,
    TimedOut,
    TlsFailed,
    Wire,
)

__all__ = [
    "Authenticated",
    "ConnectFailed",
    "Connection",
    "ConnectionLost",
    "Envelope",
    "ProtocolViolation",
    "Refused",
    "SmtpError",
    "TimedOut",
    "Timeouts",
    "TlsFailed",
    "TlsInfo",
    "Transmission",
    "tls_context",
]

Authenticated = Literal["dane", "mta_sts", "webpki"]

MAX_PATH_OCTETS = 512
MAX_AT_ONCE_OCTETS = 64 * 1024
# Outside of a quoted string these end or split a path, and so would let an address add parameters.
_UNQUOTED_FORBIDDEN = re.compile(r"[\s<>]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class TlsInfo:
    """How a connection is encrypted: version "TLSv1.3", cipher as OpenSSL names it.

    authenticated: what the host's certificate was proven by: its TLSA records (RFC 7672), the web's authorities
    because its domain's policy asks for it (RFC 8461), or because we do. None: nobody looked (RFC 7435).
    """

    version: str
    cipher: str
    authenticated: Authenticated | None

    @property
    def verified(self) -> bool:
        """Whether the host was proven to be the one that was meant."""
        return self.authenticated is not None


@dataclass(frozen=True, slots=True)
class Envelope:
    """One transaction's paths without angle brackets; mail_from "" is the null path of bounces.

    smtputf8: the header fields are UTF-8 (RFC 6532). Raises ValueError for addresses that would break out
    of the command line.
    """

    mail_from: str
    rcpt_to: str
    smtputf8: bool = False

    def __post_init__(self) -> None:
        if not self.rcpt_to:
            raise ValueError("an envelope has a recipient")
        for address in (self.mail_from, self.rcpt_to):
            if _CONTROL.search(address) or len(address.encode()) > MAX_PATH_OCTETS:
                raise ValueError("not an address for an envelope")
            if '"' not in address and _UNQUOTED_FORBIDDEN.search(address):
                raise ValueError("not an address for an envelope")


def tls_context(*, verify: bool = False, ca_file: str | None = None) -> ssl.SSLContext:
    """A client context: verify demands a certificate valid for the host, else any peer will do (RFC 7435)."""
    context = ssl.create_default_context(cafile=ca_file)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class _TlsTerms:
    """What `Connection.open` was told of TLS."""

    context: ssl.SSLContext
    required: bool
    verify: Callable[[ssl.SSLObject], None] | None
    name: str
    proves: Authenticated | None


class Connection:
    """An open SMTP session, made by `open`. Use it from one task at a time.

    extensions: what EHLO offered, upper-case name → parameters. transactions: how many were begun.
    last_used: by time.monotonic().
    """

    def __init__(self, wire: Wire, host: str, address: str, port: int, timeouts: Timeouts) -> None:
        self._wire = wire
        self._timeouts = timeouts
        self._in_transaction = False
        self._needs_reset = False
        self._has_accepted = False
        self.host = host
        self.address = address
        self.port = port
        self.extensions: dict[str, str] = {}
        self.tls: TlsInfo | None = None
        self.transactions = 0
        self.last_used = time.monotonic()

    @classmethod
    async def open(
        cls,
        host: str,
        address: str,
        port: int,
        *,
        ehlo_name: str,
        timeouts: Timeouts,
        source_address: str | None = None,
        tls: ssl.SSLContext | None = None,
        require_tls: bool = False,
        verify: Callable[[ssl.SSLObject], None] | None = None,
        tls_name: str | None = None,
        proves: Authenticated | None = None,
    ) -> Self:
        """Connect to the host's IP address, greet, and start TLS where it is offered and a context is given.

        require_tls: a host that offers no TLS is TlsFailed too, before it hears of any mail. verify looks at the
        session right after the handshake, and raises TlsFailed. tls_name: for SNI and the certificate, where
        it is not the host's name. proves: what context and verify prove together; unless said, "webpki" for
        a context that verifies. After TlsFailed the caller may open again on other terms, if policy allows.
        Raises SmtpError; ValueError when TLS is required without a context.
        """
        if require_tls and tls is None:
            raise ValueError("TLS needs a context")
        if proves is None and tls is not None and tls.verify_mode is ssl.CERT_REQUIRED and tls.check_hostname:
            proves = "webpki"
        terms = _TlsTerms(tls, require_tls, verify, (tls_name or host).rstrip("."), proves) if tls is not None else None
        local = (source_address, 0) if source_address else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeouts.connect_seconds):
                _, wire = await loop.create_connection(Wire, address, port, local_addr=local)
        except TimeoutError as error:
            raise TimedOut("no connection", phase=Phase.CONNECT) from error
        except OSError as error:
            raise ConnectFailed(str(error), phase=Phase.CONNECT) from error
        connection = cls(wire, host, address, port, timeouts)
        try:
            await connection._greet(ehlo_name)
            if terms is not None:
                await connection._secure(ehlo_name, terms)
        except BaseException:
            wire.abort()
            raise
        return connection

    @property
    def is_usable(self) -> bool:
        """Ready for a transaction: open, idle, and the peer has said nothing since the last one."""
        return self._wire.is_open and not self._in_transaction and not self._wire.has_input

    async def _greet(self, ehlo_name: str) -> None:
        greeting = parse(await self._wire.read_reply(Phase.GREETING, self._timeouts.greeting_seconds))
        if not 200 <= greeting.code < 300:
            raise Refused("greeting", phase=Phase.GREETING, reply=greeting)
        await self._hello(ehlo_name)

    async def _secure(self, ehlo_name: str, tls: _TlsTerms) -> None:
        if "STARTTLS" not in self.extensions:
            # Or somebody on the way has cut it out.
            if tls.required:
                raise TlsFailed("STARTTLS is not offered", phase=Phase.STARTTLS)
            return
        try:
            await self._start_tls(tls)
            # What was offered in plaintext may have been forged (RFC 3207 §4.2).
            await self._hello(ehlo_name)
        except (ConnectionLost, TimedOut) as error:
            # Some hosts offer what they cannot do, and show it only by closing or falling silent.
            raise TlsFailed(f"STARTTLS broke: {error}", phase=Phase.STARTTLS, reply=error.reply) from error

    async def _hello(self, name: str) -> None:
        lines = await self._ask(b"EHLO %b\r\n" % name.encode(), Phase.EHLO)
        reply = parse(lines)
        if reply.permanent:
            lines = await self._ask(b"HELO %b\r\n" % name.encode(), Phase.EHLO)
            reply = parse(lines)
            lines = lines[:1]
        if not 200 <= reply.code < 300:
            raise Refused("EHLO", phase=Phase.EHLO, reply=reply)
        offered = (line[4:].decode("ascii", "replace").upper().strip() for line in lines[1:])
        self.extensions = {name: rest.strip() for name, _, rest in (text.partition(" ") for text in offered)}

    async def _start_tls(self, tls: _TlsTerms) -> None:
        reply = parse(await self._ask(b"STARTTLS\r\n", Phase.STARTTLS))
        if reply.code != 220:
            raise TlsFailed("STARTTLS refused", phase=Phase.STARTTLS, reply=reply)
        if self._wire.has_input:
            # Taken for replies given under TLS, it would let a man in the middle speak for the peer.
            raise ProtocolViolation("plaintext after the reply to STARTTLS", phase=Phase.STARTTLS)
        ssl_object = await self._wire.start_tls(tls.context, tls.name, self._timeouts.command_seconds)
        if tls.verify is not None:
            tls.verify(ssl_object)
        cipher = ssl_object.cipher()
        self.tls = TlsInfo(ssl_object.version() or "", cipher[0] if cipher else "", tls.proves)

    async def _ask(self, command: bytes, phase: Phase) -> list[bytes]:
        self._expect_silence(phase)
        self._wire.write(command, phase)
        return await self._wire.read_reply(phase, self._timeouts.command_seconds)

    def _expect_silence(self, phase: Phase) -> None:
        """Replies answer commands in order, so one that comes before its command would be taken for a
        later one.
        """
        if self._wire.has_input:
            lines = self._wire.waiting_reply()
            raise ProtocolViolation(
                "a reply that nothing asked for", phase=phase, reply=parse(lines) if lines else None
            )

    async def transmit(self, envelope: Envelope, content: bytes, *, before_content: Callable[[], bool]) -> Transmission:
        """Try to hand over one mail to one recipient.

        content: the whole message, lines ended by CRLF, not dot-stuffed. before_content is asked when the
        peer is ready for the content and again just before the final dot, or once where all goes in one write
        (RFC 3030); when it says no, the connection is closed and nothing was handed over. A mail that the peer's
        extensions cannot carry is refused by a local reply. Raises SmtpError when the session breaks; its
        content_sent tells whether the mail may have been accepted.
        """
        refusal = self._refusal(envelope, content)
        if refusal is not None:
            return Transmission(Phase.MAIL, refusal, None, time.time())
        transaction = Transaction(self._wire, self._timeouts)
        commands = self._commands(envelope, content)
        is_pipelining = "PIPELINING" in self.extensions
        # A host that has taken a mail will probably take the next; what it refuses is only worth a small content.
        at_once = self._has_accepted and is_pipelining and "CHUNKING" in self.extensions
        self.transactions += 1
        self._in_transaction = True
        try:
            if at_once and len(content) <= MAX_AT_ONCE_OCTETS:
                ended = await transaction.run_at_once(commands[:-1], content, before_content)
            else:
                ended = await transaction.run(commands, content, before_content, pipelining=is_pipelining)
        except SmtpError as error:
            error.content_sent = transaction.content_sent_at is not None
            self._wire.abort()
            raise
        except BaseException:
            self._wire.abort()
            raise
        self._in_transaction = False
        self.last_used = time.monotonic()
        self._needs_reset = not ended.accepted
        self._has_accepted = ended.accepted
        if ended.reply is not None and ended.reply.code == 421:
            self._wire.close()
        return ended

    def _refusal(self, envelope: Envelope, content: bytes) -> Reply | None:
        extensions = self.extensions
        limit = extensions.get("SIZE", "")
        if limit.isdecimal() and 0 < int(limit) < len(content):
            return Reply(552, "5.3.4", f"Message of {len(content)} octets exceeds the host's {limit}", True)
        if _needs_smtputf8(envelope) and "SMTPUTF8" not in extensions:
            return Reply(553, "5.6.7", "Host does not take internationalized mail", True)
        if not content.isascii() and "8BITMIME" not in extensions:
            return Reply(554, "5.6.3", "Host does not take 8-bit content", True)
        breaks = content.count(b"\r\n")
        if content.count(b"\n") != breaks or content.count(b"\r") != breaks:
            # Some hosts take a lone line feed for a line end, and so could be made to see a final dot in it.
            return Reply(554, "5.6.0", "Content has a line end other than CRLF", True)
        return None

    def _commands(self, envelope: Envelope, content: bytes) -> list[tuple[Phase, bytes]]:
        mail = b"MAIL FROM:<%b>" % envelope.mail_from.encode()
        if "SIZE" in self.extensions:
            mail += b" SIZE=%d" % len(content)
        if "8BITMIME" in self.extensions and not content.isascii():
            mail += b" BODY=8BITMIME"
        if _needs_smtputf8(envelope):
            mail += b" SMTPUTF8"
        commands = [
            (Phase.MAIL, mail + b"\r\n"),
            (Phase.RCPT, b"RCPT TO:<%b>\r\n" % envelope.rcpt_to.encode()),
            (Phase.DATA, b"DATA\r\n"),
        ]
        if self._needs_reset:
            commands.insert(0, (Phase.MAIL, b"RSET\r\n"))
        return commands

    async def quit(self) -> None:
        """Say QUIT, wait a little for the answer, and close. Never raises SmtpError."""
        if not self.is_usable:
            self._wire.abort()
            return
        try:
            self._wire.write(b"QUIT\r\n", Phase.QUIT)
            await self._wire.read_reply(Phase.QUIT, self._timeouts.quit_seconds)
        except SmtpError:
            self._wire.abort()
        finally:
            self._wire.close()

    def abort(self) -> None:
        """Close at once."""
        self._wire.abort()


def _needs_smtputf8(envelope: Envelope) -> bool:
    return envelope.smtputf8 or not (envelope.mail_from.isascii() and envelope.rcpt_to.isascii())
