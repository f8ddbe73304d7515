"""What the local mailbox sends back, as the world would: late bounces (RFC 3464) and complaints (RFC 5965)."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

import structlog

from app.core.config import Settings
from app.mail.smtp import Connection, Envelope, SmtpError, Timeouts

# Later than what the SMTP session said is written down.
_PAUSE_SECONDS: Final = 2.0
_TRIES: Final = 5
_PENDING_MAX: Final = 1000
_BOUNDARY: Final = "=_postroad_local"

log = structlog.get_logger(__name__)


class Answers:
    """Sends reports to the return paths of mails to some recipients; one a mailbox."""

    def __init__(self, settings: Settings, hostname: str) -> None:
        self._address = (settings.inbound_smtp_host, settings.inbound_smtp_port)
        self._hostname = hostname
        self._pending: set[asyncio.Task[None]] = set()

    def consider(self, return_path: str, recipients: Sequence[str], content: bytes) -> None:
        """Answer a mail that was taken: for `latebounce…@` by a bounce, for `complain…@` by a complaint."""
        for recipient in recipients:
            answer = _answer(self._hostname, return_path, recipient, content)
            if answer is not None and return_path and len(self._pending) < _PENDING_MAX:
                task = asyncio.create_task(self._send(return_path, answer))
                self._pending.add(task)
                task.add_done_callback(self._pending.discard)

    async def _send(self, return_path: str, answer: bytes) -> None:
        host, port = self._address
        for _ in range(_TRIES):
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                connection = await Connection.open(
                    host, host, port, ehlo_name=self._hostname, timeouts=Timeouts(connect_seconds=5)
                )
                ended = await connection.transmit(Envelope("", return_path), answer, before_content=lambda: True)
                await connection.quit()
            except (SmtpError, ValueError) as error:
                log.warning("mailbox_answer_failed", error=str(error)[:300])
                continue
            if not ended.accepted:
                log.warning("mailbox_answer_refused", reply=str(ended.reply)[:300])
            return


def _answer(hostname: str, return_path: str, recipient: str, content: bytes) -> bytes | None:
    if recipient.lower().startswith("latebounce"):
        words = "The mailbox was removed after your message had been accepted."
        kind, machine = "delivery-status", _delivery_status(hostname, recipient)
    elif recipient.lower().startswith("complain"):
        words = "This is a complaint about a message that we have received from you."
        kind, machine = "feedback-report", _feedback(return_path, recipient)
    else:
        return None
    parts = [
        ("text/plain", words),
        (f"message/{kind}", "\n".join(machine)),
        ("text/rfc822-headers", content.partition(b"\r\n\r\n")[0].decode("utf-8", "replace").replace("\r\n", "\n")),
    ]
    lines = [
        f"From: Local mailbox <postmaster@{hostname}>",
        f"To: <{return_path}>",
        f"Date: {format_datetime(datetime.now(UTC))}",
        f"Subject: {words}",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type={kind}; boundary="{_BOUNDARY}"',
    ]
    for content_type, text in parts:
        lines += ["", f"--{_BOUNDARY}", f"Content-Type: {content_type}; charset=utf-8", "", text]
    return "\r\n".join("\n".join([*lines, "", f"--{_BOUNDARY}--", ""]).split("\n")).encode()


def _delivery_status(hostname: str, recipient: str) -> list[str]:
    return [
        f"Reporting-MTA: dns; {hostname}",
        "",
        f"Final-Recipient: rfc822; {recipient}",
        "Action: failed",
        "Status: 5.1.1",
        "Diagnostic-Code: smtp; 550 5.1.1 No such mailbox here (recipients that begin with latebounce bounce late)",
    ]


def _feedback(return_path: str, recipient: str) -> list[str]:
    return [
        "Feedback-Type: abuse",
        "User-Agent: Postroad local mailbox",
        "Version: 1",
        f"Original-Mail-From: <{return_path}>",
        f"Original-Rcpt-To: <{recipient}>",
    ]
