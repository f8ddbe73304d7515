"""What the tests of mail that comes back share: copies that were delivered, reports of them, what became of these."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from app.core import crypto
from app.core.db import Database
from app.mail import returnpath
from tests.factories.senders import Sender, new_domain

PLATFORM = "bounces.postroad.test"
_BOUNDARY = "=_report"


@dataclass(frozen=True, slots=True)
class Copy:
    """One recipient's copy of a message."""

    org_id: UUID
    message_id: UUID
    id: UUID
    recipient: str

    @property
    def local(self) -> str:
        """Its return path, without a domain."""
        return returnpath.encode(self.org_id, self.id, key=crypto.derive_key("return-path"))

    @property
    def return_path(self) -> str:
        """Its return path at the platform's domain."""
        return f"{self.local}@{PLATFORM}"


async def copies(database: Database, sender: Sender, number: int = 1, *, status: str = "delivered") -> list[Copy]:
    """The copies of one message to addresses that no other has, all in this state and out of the queue."""
    site = new_domain("site")
    message_id = await sender.send([f"Person{at}@{site}" for at in range(number)])
    values = {"org": sender.org_id, "message": message_id, "status": status}
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :org"), values)
        await session.execute(
            text("UPDATE deliveries SET status = :status WHERE org_id = :org AND message_id = :message"), values
        )
        statement = "SELECT id, recipient FROM deliveries WHERE org_id = :org AND message_id = :message ORDER BY id"
        rows = (await session.execute(text(statement), values)).all()
    return [Copy(sender.org_id, UUID(message_id), row.id, row.recipient) for row in rows]


def dsn(
    recipient: str,
    *,
    action: str = "failed",
    status: str = "5.1.1",
    said: str = "550 5.1.1 No such user here",
    original: Mapping[str, str] | None = None,
    more: bytes = b"",
) -> bytes:
    """A delivery status notification in Postfix's manner; `more`: further groups of recipients."""
    machine = (
        f"Reporting-MTA: dns; mx.example.net\n\nFinal-Recipient: rfc822; {recipient}\nAction: {action}\n"
        f"Status: {status}\nRemote-MTA: dns; mail.example.net\nDiagnostic-Code: smtp; {said}\n"
    ).encode() + more
    return _report("delivery-status", "message/delivery-status", machine, original or {})


def arf(*, feedback_type: str = "abuse", original: Mapping[str, str] | None = None, recipient: str = "") -> bytes:
    """A complaint (RFC 5965) about a mail with these fields."""
    machine = f"Feedback-Type: {feedback_type}\nUser-Agent: SomeLoop/1.0\nVersion: 1\n"
    if recipient:
        machine += f"Original-Rcpt-To: <{recipient}>\n"
    return _report("feedback-report", "message/feedback-report", machine.encode(), original or {})


def _report(kind: str, content_type: str, machine: bytes, original: Mapping[str, str]) -> bytes:
    header = "".join(f"{name}: {value}\n" for name, value in {"Subject": "A mail", **original}.items())
    text = b"""From: Mail Delivery System <MAILER-DAEMON@mx.example.net>
To: somebody@example.org
Subject: Report
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=%b; boundary="%b"

--%b
Content-Type: text/plain

This is a report.

--%b
Content-Type: %b

%b
--%b
Content-Type: text/rfc822-headers

%b
--%b--
""" % (
        kind.encode(),
        *[_BOUNDARY.encode()] * 3,
        content_type.encode(),
        machine,
        _BOUNDARY.encode(),
        header.encode(),
        _BOUNDARY.encode(),
    )
    return text.replace(b"\n", b"\r\n")


async def mail_of(database: Database, reply: str) -> Any:
    """The row of the mail that was taken with this reply."""
    assert reply.startswith("250 2.0.0 Kept as "), reply
    async with database.transaction() as session:
        found = text("SELECT * FROM inbound_mails WHERE id = :id")
        return (await session.execute(found, {"id": reply.rsplit(maxsplit=1)[-1]})).mappings().one()


async def read(database: Database, reply: str, *, seconds: float = 10) -> tuple[str, str]:
    """(kind, verdict) of the mail that was taken with this reply, once it was read."""
    async with asyncio.timeout(seconds):
        while (row := await mail_of(database, reply))["next_attempt_at"] is not None:
            await asyncio.sleep(0.02)
    return row["kind"], row["verdict"]


async def counts(database: Database) -> dict[tuple[str, str], int]:
    """All that was counted by now."""
    async with database.transaction() as session:
        rows = await session.execute(text("SELECT kind, verdict, count FROM inbound_counts"))
        return {(kind, verdict): count for kind, verdict, count in rows}


async def state(database: Database, copy: Copy) -> tuple[str, list[str]]:
    """A copy's status, and the types of what its events tell but for `queued`."""
    async with database.transaction() as session:
        values = {"org": copy.org_id, "id": copy.id}
        status = await session.scalar(text("SELECT status FROM deliveries WHERE org_id = :org AND id = :id"), values)
        statement = "SELECT type FROM events WHERE org_id = :org AND delivery_id = :id AND type <> 'queued' ORDER BY id"
        return str(status), list(await session.scalars(text(statement), values))


async def event(database: Database, copy: Copy) -> dict[str, Any]:
    """The data of the last that was told of a copy."""
    async with database.transaction() as session:
        statement = "SELECT data FROM events WHERE org_id = :org AND delivery_id = :id ORDER BY id DESC LIMIT 1"
        found: dict[str, Any] = await session.scalar(text(statement), {"org": copy.org_id, "id": copy.id})
        return found


async def reason(database: Database, copy: Copy) -> str | None:
    """Why a copy's recipient is spared from now on; None: it is not."""
    async with database.transaction() as session:
        statement = (
            "SELECT reason FROM suppressions WHERE org_id = :org AND address = :address AND message_id = :message"
        )
        values = {"org": copy.org_id, "address": copy.recipient.lower(), "message": copy.message_id}
        found: str | None = await session.scalar(text(statement), values)
        return found
