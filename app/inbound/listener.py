"""The SMTP server for what comes back: bounces, complaints and other reports (RFC 5321)."""

import asyncio
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog
from aiosmtpd.smtp import Envelope
from aiosmtpd.smtp import Session as SmtpSession

from app.core.config import Settings
from app.core.db import DATABASE_ERRORS
from app.inbound.keeper import Keeper
from app.inbound.limits import Limits
from app.inbound.recipients import Recipients
from app.inbound.session import CONTENT_BYTES_MAX, RECIPIENTS_MAX, Session

_BACKLOG = 1024

Policy = Callable[[str, str, str], Awaitable[str | None]]
"""Asked of each (client address, envelope sender, recipient) that would be taken: the reply to refuse it with, or None.

An envelope sender is empty for a bounce. Greylisting is one such policy.
"""

log = structlog.get_logger(__name__)


class ListenError(Exception):
    """The listener cannot start; the message is one clear sentence for the terminal."""


async def take_all(client_address: str, mail_from: str, recipient: str) -> None:
    """The policy without any."""


class Hooks:
    """aiosmtpd's hooks: what is offered, from whom and for whom mail is taken, and where it is kept."""

    def __init__(self, limits: Limits, recipients: Recipients, keeper: Keeper, policy: Policy) -> None:
        self._limits = limits
        self._recipients = recipients
        self._keeper = keeper
        self._policy = policy

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's names, here and below
        self, server: Session, session: SmtpSession, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """Offer what we do, and no more: aiosmtpd would offer AUTH and HELP too."""
        session.host_name = hostname
        offers = ["PIPELINING", f"SIZE {CONTENT_BYTES_MAX}", "8BITMIME", "SMTPUTF8"]
        if server.tls_context is not None and not server.has_tls:
            offers.append("STARTTLS")
        lines = [server.hostname, *offers]
        return [*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}"]

    async def handle_MAIL(  # noqa: N802
        self, server: Session, session: SmtpSession, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Any sender, so many mails in a minute."""
        if not await self._limits.may_send(server.client_address):
            return server.refuse("rate_limited", "451 4.7.1 Too many mails in a minute, try again later")
        envelope.mail_from = address
        return "250 2.1.0 Sender OK"

    async def handle_RCPT(  # noqa: N802
        self, server: Session, session: SmtpSession, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Return paths and report addresses of ours, unless the policy has something against it."""
        if len(envelope.rcpt_tos) >= RECIPIENTS_MAX:
            return server.refuse("too_many_recipients", "452 4.5.3 Too many recipients")
        try:
            flaw = await self._recipients.flaw(address)
        except DATABASE_ERRORS as error:
            return _unavailable(server, error)
        if flaw is not None:
            return server.refuse(flaw, "550 5.1.1 No such mailbox here")
        sender = _without_null(envelope.mail_from)
        if reply := await self._policy(server.client_address, sender, address):
            return server.refuse("policy", reply)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Recipient OK"

    async def handle_DATA(self, server: Session, session: SmtpSession, envelope: Envelope) -> str:  # noqa: N802
        """Keep the mail: it is committed when the client hears of it."""
        assert isinstance(envelope.content, bytes)  # noqa: S101 - the session gives nothing else
        try:
            mail_id = await self._keeper.keep(
                envelope.content,
                client_address=server.client_address,
                helo=session.host_name or "",
                mail_from=_without_null(envelope.mail_from),
                recipients=envelope.rcpt_tos,
            )
        except DATABASE_ERRORS as error:
            return _unavailable(server, error)
        return f"250 2.0.0 Kept as {mail_id}"


async def listen(settings: Settings, hooks: Hooks, limits: Limits, refused: Counter[str]) -> asyncio.Server:
    """Take mail at INBOUND_SMTP_HOST and INBOUND_SMTP_PORT; `refused` counts what is not taken. Raises ListenError."""
    tls = _tls_context(settings)
    host, port = settings.inbound_smtp_host, settings.inbound_smtp_port
    try:
        return await asyncio.get_running_loop().create_server(
            lambda: Session(hooks, limits, refused, hostname=settings.ehlo_hostname, tls=tls),
            host,
            port,
            backlog=_BACKLOG,
        )
    except OSError as error:
        raise ListenError(f"INBOUND_SMTP_HOST {host}, INBOUND_SMTP_PORT {port}: {error.strerror}.") from error


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    certificate, key = settings.inbound_tls_certificate_file, settings.inbound_tls_key_file
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ListenError("INBOUND_TLS_CERTIFICATE_FILE and INBOUND_TLS_KEY_FILE go together; only one of them is set.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        sentence = f"INBOUND_TLS_CERTIFICATE_FILE {certificate}, INBOUND_TLS_KEY_FILE {key}: {error.strerror or error}."
        raise ListenError(sentence) from error
    return context


def _without_null(path: str | None) -> str:
    """An envelope sender as it is kept: aiosmtpd has `<>` for the null path."""
    return "" if path in (None, "<>") else str(path)


def _unavailable(server: Session, error: BaseException) -> str:
    log.warning("inbound_database_away", error=f"{type(error).__name__}: {error}"[:300])
    return server.refuse("unavailable", "451 4.3.0 Cannot be kept now, try again later")
