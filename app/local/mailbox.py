"""The mailbox process of local mode: an SMTP server that keeps all mail, and the nameserver leading to it."""

import asyncio
import ipaddress
import os
import signal
import ssl
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from aiosmtpd.smtp import SMTP, Session
from aiosmtpd.smtp import Envelope as SmtpEnvelope
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.core.config import Settings
from app.core.db import Database
from app.local import mailstore, zone
from app.local.answers import Answers
from app.local.mailstore import Mailstore
from app.local.nameserver import Nameserver

log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
MAIL_BYTES_MAX = 40 * 2**20
RECIPIENTS_MAX = 1000
SESSION_IDLE_SECONDS = 300
DEFERRALS_MAX = 10_000
CERTIFICATE_LIFE = timedelta(days=3650)


class Handler:
    """aiosmtpd's hooks: magic recipients at RCPT, storage and reports at the end of DATA."""

    def __init__(self, store: Mailstore, answers: Answers | None) -> None:
        self._store = store
        self._answers = answers
        self._deferred: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: SmtpEnvelope, address: str, options: list[str]
    ) -> str:
        """Accept, except `bounce…@` (550 5.1.1) and, at the first try of a sender, `defer…@` (451 4.7.1)."""
        local_part = address.lower()
        if len(envelope.rcpt_tos) >= RECIPIENTS_MAX:
            return "452 4.5.3 Too many recipients"
        if local_part.startswith("bounce"):
            return "550 5.1.1 No such mailbox here (recipients that begin with bounce do not exist)"
        if local_part.startswith("defer") and not self._was_deferred(envelope.mail_from or "", address):
            return "451 4.7.1 Try again later (recipients that begin with defer are accepted at the second try)"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Recipient OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: SmtpEnvelope) -> str:  # noqa: N802
        """Store the mail, and answer it if it is to be; 452 when the disk refuses."""
        content = envelope.content
        if not isinstance(content, bytes):
            return "554 5.3.5 The mailbox takes bytes only"
        received = mailstore.Envelope(
            mail_from=(envelope.mail_from or "").removeprefix("<>"),
            rcpt_to=tuple(envelope.rcpt_tos),
            received_at=mailstore.now(),
            peer=str(session.peer[0]) if isinstance(session.peer, tuple) else "",
            ehlo=str(session.host_name or ""),
            tls=_tls_version(server),
        )
        try:
            mail_id = await asyncio.to_thread(self._store.deposit, received, content)
        except OSError as error:
            log.error("mailbox_write_failed", error=str(error))
            return "452 4.3.1 The mailbox cannot be written"
        if self._answers is not None:
            self._answers.consider(received.mail_from, received.rcpt_to, content)
        return f"250 2.0.0 Kept as {mail_id}"

    def _was_deferred(self, mail_from: str, rcpt_to: str) -> bool:
        key = (mail_from, rcpt_to)
        if key in self._deferred:
            del self._deferred[key]
            return True
        self._deferred[key] = None
        if len(self._deferred) > DEFERRALS_MAX:
            self._deferred.popitem(last=False)
        return False


async def start_smtp(directory: Path, port: int = 0, answers: Answers | None = None) -> asyncio.Server:
    """Serve SMTP on loopback, storing into `directory`/new. Raises OSError when the port is taken."""
    handler = Handler(Mailstore(directory / "new"), answers)
    tls = _tls_context(directory)
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: SMTP(
            handler,
            data_size_limit=MAIL_BYTES_MAX,
            enable_SMTPUTF8=True,
            decode_data=False,
            hostname=zone.MAIL_HOST,
            ident="Postroad local mailbox",
            tls_context=tls,
            timeout=SESSION_IDLE_SECONDS,
            loop=loop,
        ),
        host=HOST,
        port=port,
        backlog=1024,
    )


async def run(settings: Settings, *, smtp_port: int, dns_port: int) -> None:
    """The process: serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    database = Database(settings, pool_size=2)
    nameserver = Nameserver(zone.answerer(database))
    smtp = await start_smtp(settings.data_dir / "mailbox", smtp_port, Answers(settings, zone.MAIL_HOST))
    try:
        await nameserver.start(HOST, dns_port)
        log.info("mailbox_listening", smtp_port=smtp.sockets[0].getsockname()[1], dns_port=nameserver.port)
        await stopped.wait()
    finally:
        smtp.close()
        await nameserver.stop()
        await database.close()


def _tls_version(server: SMTP) -> str | None:
    connection = server.transport.get_extra_info("ssl_object") if server.transport else None
    return connection.version() if connection is not None else None


def _tls_context(directory: Path) -> ssl.SSLContext:
    """STARTTLS with a certificate of our own making, kept in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "certificate.pem"
    if not path.exists() or _expires_soon(path):
        _make_certificate(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(path)
    return context


def _expires_soon(path: Path) -> bool:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.not_valid_after_utc < datetime.now(UTC) + timedelta(days=30)


def _make_certificate(path: Path) -> None:
    """Write key and self-signed certificate into one PEM file that only its owner may read."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, zone.MAIL_HOST)])
    names = [
        x509.DNSName(zone.MAIL_HOST),
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address(HOST)),
    ]
    start = datetime.now(UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + CERTIFICATE_LIFE)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    unfinished = path.with_suffix(".part")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(pem + certificate.public_bytes(serialization.Encoding.PEM))
    unfinished.rename(path)
