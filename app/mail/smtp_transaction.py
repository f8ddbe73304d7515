"""One SMTP transaction on an open connection: MAIL, RCPT, DATA, the content, the final dot."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.mail.reply import Phase, Reply, parse
from app.mail.smtp_wire import BLOCK_OCTETS, ConnectionLost, ProtocolViolation, SmtpError, Wire

Command = tuple[Phase, bytes]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait in each phase; the defaults are those of RFC 5321 §4.5.3.2.

    command is for EHLO, STARTTLS and the TLS handshake; block for each block of content to be taken; final
    for the reply to the final dot.
    """

    connect_seconds: float = 30
    greeting_seconds: float = 300
    command_seconds: float = 300
    mail_seconds: float = 300
    rcpt_seconds: float = 300
    data_seconds: float = 120
    block_seconds: float = 180
    final_seconds: float = 600
    quit_seconds: float = 5


@dataclass(frozen=True, slots=True)
class Transmission:
    """The outcome of one transaction.

    phase: where it ended, CONTENT with a positive reply when the mail was accepted. reply: what decided,
    None when aborted. content_sent_at: Unix time at which the final dot went out, None if it never did.
    aborted: before_content said no, the peer got no final dot, and the connection is closed.
    """

    phase: Phase
    reply: Reply | None
    content_sent_at: float | None
    finished_at: float
    aborted: bool = False

    @property
    def accepted(self) -> bool:
        return self.phase is Phase.CONTENT and self.reply is not None and self.reply.positive


class Transaction:
    """Runs one transaction. content_sent_at: Unix time of the final dot, None before it."""

    def __init__(self, wire: Wire, timeouts: Timeouts) -> None:
        self._wire = wire
        self._timeouts = timeouts
        self.content_sent_at: float | None = None

    async def run(
        self,
        commands: Sequence[Command],
        content: bytes,
        before_content: Callable[[], bool],
        *,
        pipelining: bool,
    ) -> Transmission:
        """Send the commands (the last one is DATA) and the content. Raises SmtpError; close the wire
        after it.
        """
        ended = await (self._send_group(commands) if pipelining else self._send_each(commands))
        return ended or await self._send_content(content, before_content)

    async def run_at_once(
        self, commands: Sequence[Command], content: bytes, before_content: Callable[[], bool]
    ) -> Transmission:
        """Send the commands (without DATA) and the whole content by BDAT (RFC 3030) in one write: one round trip.

        For a peer that has CHUNKING and PIPELINING; before_content is asked once, as nothing can be held back later.
        A recipient that is refused costs the content's octets. Raises SmtpError; close the wire after it.
        """
        ended = self._unasked(commands[0][0])
        if ended is not None:
            return ended
        if not before_content():
            return self._aborted(Phase.DATA)
        head = b"".join([command for _, command in commands])
        self._wire.write(b"%bBDAT %d LAST\r\n%b" % (head, len(content), content), commands[0][0])
        self.content_sent_at = time.time()
        for phase, command in (*commands, (Phase.CONTENT, b"")):
            try:
                reply = await self._read(phase)
                agreed = _agrees(command, phase, reply)
            except SmtpError:
                if ended is None:
                    raise
                # The mail was refused already; that the peer then broke off does not change it.
                self._wire.abort()
                return ended
            if not agreed and ended is None:
                # What was refused before its content was not sent, though its octets were.
                sent_at = self.content_sent_at if phase is Phase.CONTENT else None
                ended = Transmission(phase, reply, sent_at, time.time())
                if reply.code == 421:
                    self._wire.close()
                    return ended
        if ended is None:
            return self._ended(Phase.CONTENT, reply)
        if agreed:
            # Content was taken for a transaction that has no sender or no recipient.
            self._wire.abort()
        return ended

    async def _send_each(self, commands: Sequence[Command]) -> Transmission | None:
        for phase, command in commands:
            ended = self._unasked(phase)
            if ended is not None:
                return ended
            self._wire.write(command, phase)
            reply = await self._read(phase)
            if not _agrees(command, phase, reply):
                return self._ended(phase, reply)
        return None

    async def _send_group(self, commands: Sequence[Command]) -> Transmission | None:
        """All commands in one write; their replies come in order (RFC 2920 §3.1)."""
        ended = self._unasked(commands[0][0])
        if ended is not None:
            return ended
        self._wire.write(b"".join(command for _, command in commands), commands[0][0])
        agreed = False
        for phase, command in commands:
            try:
                reply = await self._read(phase)
                agreed = _agrees(command, phase, reply)
            except SmtpError:
                if ended is None:
                    raise
                # The mail was refused already; that the peer then broke off does not change it.
                self._wire.abort()
                return ended
            if not agreed:
                ended = ended or self._ended(phase, reply)
                if reply.code == 421:
                    self._wire.close()
                    return ended
        if ended is not None and agreed:
            # The peer wants content for a transaction that has lost its sender or recipient: it shall get
            # none.
            self._wire.abort()
        return ended

    async def _send_content(self, content: bytes, before_content: Callable[[], bool]) -> Transmission:
        ended = self._unasked(Phase.CONTENT)
        if ended is not None:
            return ended
        if not before_content():
            return self._aborted(Phase.DATA)
        stuffed = dot_stuffed(content)
        if len(stuffed) > BLOCK_OCTETS:
            try:
                await self._wire.write_blocks(stuffed, Phase.CONTENT, self._timeouts.block_seconds)
            except ConnectionLost:
                # A peer that refuses the content early says why and closes.
                if not self._wire.has_input:
                    raise
            ended = self._unasked(Phase.CONTENT)
            if ended is not None:
                return ended
            stuffed = b""
        if not before_content():
            return self._aborted(Phase.CONTENT)
        self._wire.write(stuffed + b".\r\n", Phase.CONTENT)
        self.content_sent_at = time.time()
        reply = await self._read(Phase.CONTENT)
        if 300 <= reply.code < 400:
            raise ProtocolViolation("unexpected reply", phase=Phase.CONTENT, reply=reply)
        return self._ended(Phase.CONTENT, reply)

    async def _read(self, phase: Phase) -> Reply:
        timeouts = self._timeouts
        seconds = {
            Phase.MAIL: timeouts.mail_seconds,
            Phase.RCPT: timeouts.rcpt_seconds,
            Phase.DATA: timeouts.data_seconds,
            Phase.CONTENT: timeouts.final_seconds,
        }[phase]
        return parse(await self._wire.read_reply(phase, seconds))

    def _unasked(self, phase: Phase) -> Transmission | None:
        """What the peer said before its turn: that it closes (421) or refuses the content; else it is no
        SMTP.
        """
        if not self._wire.has_input:
            return None
        lines = self._wire.waiting_reply()
        reply = parse(lines) if lines else None
        if reply is not None and (reply.code == 421 or (phase is Phase.CONTENT and not reply.positive)):
            self._wire.abort()
            return self._ended(phase, reply)
        raise ProtocolViolation("a reply that nothing asked for", phase=phase, reply=reply)

    def _ended(self, phase: Phase, reply: Reply) -> Transmission:
        return Transmission(phase, reply, self.content_sent_at, time.time())

    def _aborted(self, phase: Phase) -> Transmission:
        self._wire.abort()
        return Transmission(phase, None, None, time.time(), aborted=True)


def _agrees(command: bytes, phase: Phase, reply: Reply) -> bool:
    """Whether the reply lets the transaction go on. Raises ProtocolViolation when it answers something
    else.
    """
    if not reply.positive:
        if command == b"RSET\r\n" and reply.code != 421:
            raise ProtocolViolation("RSET refused", phase=phase, reply=reply)
        return False
    if (reply.code >= 300) != (phase is Phase.DATA):
        raise ProtocolViolation("unexpected reply", phase=phase, reply=reply)
    return True


def dot_stuffed(content: bytes) -> bytes:
    """The content with a second dot before each line's first, and ended by CRLF (RFC 5321 §4.5.2)."""
    if content.startswith(b"."):
        content = b"." + content
    if b"\r\n." in content:
        content = content.replace(b"\r\n.", b"\r\n..")
    return content if not content or content.endswith(b"\r\n") else content + b"\r\n"
