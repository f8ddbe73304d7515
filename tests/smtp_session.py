"""The server's side of one SMTP connection, for tests/smtpd.py."""

import asyncio
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from tests.smtp_script import Act, Answer, ReceivedMail, reply_octets

if TYPE_CHECKING:
    from tests.smtpd import SmtpServer

MAX_LINE_OCTETS = 4096
MAX_CONTENT_OCTETS = 60 * 1024 * 1024
PATH = re.compile(r"^(?:FROM|TO):\s*<([^>]*)>((?: .*)?)$", re.IGNORECASE)


@dataclass(slots=True)
class _Transaction:
    mail_from: str
    parameters: dict[str, str]
    recipients: list[str] = field(default_factory=list)


class Session(asyncio.Protocol):
    """One connection. Input is handled as it arrives; `_busy` holds it back while an Act takes its time."""

    def __init__(self, server: "SmtpServer") -> None:
        self._server = server
        self._buffer = bytearray()
        self._busy = False
        self._in_data = False
        self._searched = 0
        self._ehlo = ""
        self._esmtp = False
        self._secure = False
        self._tls_is_next = False
        self._tls_version: str | None = None
        self._transaction: _Transaction | None = None
        self._out: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport
        self._peer = ("", 0)
        self._id = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        server = self._server
        server.connection_count += 1
        self._id = server.connection_count
        server.connections.add(self)
        server.max_connections_seen = max(server.max_connections_seen, len(server.connections))
        peer = transport.get_extra_info("peername")
        self._peer = (peer[0], peer[1])
        self._answer("connect", self._peer[0], server.greeting)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def interject(self, octets: bytes, *, close: bool = False) -> None:
        """Say something that nothing asked for."""
        self._transport.write(octets)
        if close:
            self._transport.close()

    def cut(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._proceed()

    def _proceed(self) -> None:
        while self._buffer and not self._busy and not self._transport.is_closing():
            if not (self._read_content() if self._in_data else self._read_command()):
                break
        self._flush()

    def _read_command(self) -> bool:
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > MAX_LINE_OCTETS:
                self._say("500 5.5.2 line too long")
                self._flush()
                self._transport.close()
            return False
        line = self._buffer[: end + 1].decode("utf-8", "replace").rstrip("\r\n")
        if self._buffer[end - 1 : end] != b"\r":
            self._server.violations.append(f"bare LF after {line!r}")
        del self._buffer[: end + 1]
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        if not self._server.count_only:
            self._server.commands.append((self._id, line))
        if self._buffer and "PIPELINING" not in self._server.extensions and verb != "DATA":
            self._server.violations.append(f"pipelined after {line!r}")
        handler = _COMMANDS.get(verb)
        if handler is None:
            self._say("502 5.5.1 what?")
        else:
            handler(self, argument)
        return True

    def _read_content(self) -> bool:
        buffer = self._buffer
        if buffer.startswith(b".\r\n"):
            content, used = b"", 3
        else:
            end = buffer.find(b"\r\n.\r\n", self._searched)
            if end < 0:
                self._searched = max(0, len(buffer) - 4)
                if len(buffer) > MAX_CONTENT_OCTETS:
                    self._transport.abort()
                return False
            content, used = bytes(memoryview(buffer)[: end + 2]), end + 5
        del buffer[:used]
        self._in_data = False
        self._searched = 0
        self._end_of_data(content)
        return True

    def _end_of_data(self, content: bytes) -> None:
        server, transaction = self._server, self._transaction
        self._transaction = None
        recipients = transaction.recipients if transaction else []
        if transaction is None or not recipients:
            self._say("554 5.5.1 no valid recipients")
            return
        answer = server.scripted("end_of_data", recipients[0]) or "250 2.0.0 taken"
        kept = answer.keep_mail or answer.say[:1] in ("2", b"2") if isinstance(answer, Act) else answer[0] == "2"
        if kept:
            mails = [] if server.count_only else [self._mail(transaction, to, content) for to in recipients]
            server.took(len(recipients), mails)
        self._perform(answer)

    def _mail(self, transaction: _Transaction, rcpt_to: str, content: bytes) -> ReceivedMail:
        if content.startswith(b"."):
            content = content[1:]
        return ReceivedMail(
            mail_from=transaction.mail_from,
            rcpt_to=rcpt_to,
            content=content.replace(b"\r\n.", b"\r\n"),
            tls=self._secure,
            tls_version=self._tls_version,
            ehlo=self._ehlo,
            mail_parameters=transaction.parameters,
            peer=self._peer,
            connection_id=self._id,
        )

    def _answer(self, phase: str, argument: str, usual: Answer) -> str:
        """Give the scripted or the usual answer and return the first digit of its code."""
        return self._perform(self._server.scripted(phase, argument) or usual)

    def _perform(self, answer: Answer) -> str:
        if isinstance(answer, str):
            self._say(answer)
            return answer[0]
        said = reply_octets(answer.say) if isinstance(answer.say, str) else answer.say
        self._busy = True
        self._flush()
        self._task = asyncio.get_running_loop().create_task(self._act(answer, said))
        return said[:1].decode("ascii", "replace")

    async def _act(self, act: Act, said: bytes) -> None:
        await asyncio.sleep(act.wait_seconds)
        if act.hang:
            self._transport.pause_reading()
        if act.byte_interval_seconds:
            for octet in said:
                self._transport.write(bytes((octet,)))
                await asyncio.sleep(act.byte_interval_seconds)
        else:
            self._transport.write(said)
        if act.abort:
            self._transport.abort()
        elif act.close:
            self._transport.close()
        elif self._tls_is_next and self._server.tls_context and not act.hang:
            self._begin_tls(self._server.tls_context)
        elif not act.hang:
            self._busy = False
            self._task = None
            self._proceed()

    def _say(self, reply: str) -> None:
        self._out.append(reply_octets(reply))

    def _flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def _offered(self) -> tuple[str, ...]:
        offered = self._server.extensions
        if self._server.tls_context is not None and not self._secure:
            offered = (*offered, "STARTTLS")
        return offered

    def on_ehlo(self, name: str) -> None:
        self._transaction = None
        if self._answer("ehlo", name, "250 " + "\n".join(("mx.test greets you", *self._offered()))) == "2":
            self._ehlo, self._esmtp = name, True

    def on_helo(self, name: str) -> None:
        self._transaction = None
        if self._answer("helo", name, "250 mx.test") == "2":
            self._ehlo, self._esmtp = name, False

    def on_starttls(self, _argument: str) -> None:
        if self._server.tls_context is None or self._secure:
            self._say("502 5.5.1 STARTTLS not offered")
        elif self._answer("starttls", "", "220 2.0.0 go") == "2":
            self._tls_is_next = True
            if not self._busy:
                self._begin_tls(self._server.tls_context)

    def _begin_tls(self, context: ssl.SSLContext) -> None:
        self._flush()
        if self._buffer:
            self._server.violations.append("data after STARTTLS before TLS")
            self._buffer.clear()
        self._transport.pause_reading()
        self._busy, self._tls_is_next = True, False
        self._task = asyncio.get_running_loop().create_task(self._start_tls(context))

    async def _start_tls(self, context: ssl.SSLContext) -> None:
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self._transport, self, context, server_side=True, ssl_handshake_timeout=30
            )
        except (OSError, EOFError):
            self._transport.abort()
            return
        ssl_object = transport.get_extra_info("ssl_object") if transport is not None else None
        if ssl_object is None:
            # The client has left right after the handshake.
            self._transport.abort()
            return
        self._transport = transport
        self._tls_version = ssl_object.version()
        self._secure, self._ehlo, self._busy, self._task = True, "", False, None
        self._proceed()

    def on_mail(self, argument: str) -> None:
        found = PATH.match(argument)
        if not self._ehlo:
            self._say("503 5.5.1 EHLO first")
        elif self._transaction is not None:
            self._say("503 5.5.1 nested MAIL")
        elif found is None:
            self._say("501 5.5.4 bad path")
        else:
            address = found[1]
            parameters = _parameters(found[2])
            refusal = self._parameters_refused(address, parameters)
            if refusal:
                self._say(refusal)
            elif self._answer("mail", address, "250 2.1.0 ok") == "2":
                self._transaction = _Transaction(address, parameters)

    def _parameters_refused(self, address: str, parameters: dict[str, str]) -> str | None:
        offered = {extension.split(" ")[0]: extension for extension in self._server.extensions}
        names = {"BODY": "8BITMIME", "SIZE": "SIZE", "SMTPUTF8": "SMTPUTF8"}
        for name in parameters:
            if not self._esmtp or names.get(name) not in offered:
                return f"555 5.5.4 {name} not offered"
        if not address.isascii() and "SMTPUTF8" not in parameters:
            return "553 5.6.7 SMTPUTF8 needed"
        limit = int(offered.get("SIZE", "").partition(" ")[2] or "0")
        if limit and int(parameters.get("SIZE", "0")) > limit:
            return "552 5.3.4 too big"
        return None

    def on_rcpt(self, argument: str) -> None:
        found = PATH.match(argument)
        if self._transaction is None:
            self._say("503 5.5.1 MAIL first")
        elif found is None:
            self._say("501 5.5.4 bad path")
        elif self._answer("rcpt", found[1], "250 2.1.5 ok") == "2":
            self._transaction.recipients.append(found[1])

    def on_data(self, _argument: str) -> None:
        if self._transaction is None:
            self._say("503 5.5.1 MAIL first")
        else:
            recipients = self._transaction.recipients
            usual = "354 go ahead" if recipients else "554 5.5.1 no valid recipients"
            self._in_data = self._answer("data", recipients[0] if recipients else "", usual) == "3"

    def on_rset(self, _argument: str) -> None:
        self._transaction = None
        self._answer("rset", "", "250 2.0.0 ok")

    def on_noop(self, _argument: str) -> None:
        self._answer("noop", "", "250 2.0.0 ok")

    def on_quit(self, _argument: str) -> None:
        self._answer("quit", "", Act("221 2.0.0 bye", close=True))

    def on_xcount(self, _argument: str) -> None:
        self._say(f"250 {self._server.mail_count}")


_COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "EHLO": Session.on_ehlo,
    "HELO": Session.on_helo,
    "STARTTLS": Session.on_starttls,
    "MAIL": Session.on_mail,
    "RCPT": Session.on_rcpt,
    "DATA": Session.on_data,
    "RSET": Session.on_rset,
    "NOOP": Session.on_noop,
    "QUIT": Session.on_quit,
    "XCOUNT": Session.on_xcount,
}


def _parameters(text: str) -> dict[str, str]:
    pairs = (word.partition("=") for word in text.split())
    return {name.upper(): value for name, _, value in pairs}
