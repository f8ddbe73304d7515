"""Mails that came back to us, as they were taken: written down before the 250, read afterwards."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, LargeBinary, PrimaryKeyConstraint, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base


class InboundMail(Base):
    """One mail that the listener has taken. Whose it is shows only when it is read, so it has no org_id of its own.

    A claim moves `next_attempt_at` to the end of its lease, as in the delivery queue; null: it has been read.
    """

    __tablename__ = "inbound_mails"
    __table_args__ = (
        Index("ix_inbound_mails_due", "next_attempt_at", postgresql_where=text("next_attempt_at IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    received_at: Mapped[datetime] = mapped_column(server_default=func.now())
    client_address: Mapped[str]
    helo: Mapped[str]
    mail_from: Mapped[str]
    recipients: Mapped[list[str]] = mapped_column(ARRAY(Text))
    # Zstandard. Emptied when it has been read, if it is large.
    content: Mapped[bytes] = mapped_column(LargeBinary)
    attempt: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    lease_token: Mapped[UUID | None]
    # What it was taken for (app.mail.report.Kind), and what followed from it.
    kind: Mapped[str | None]
    verdict: Mapped[str | None]


class InboundCount(Base):
    """How many mails of a kind met with a verdict, since the beginning; refused ones too."""

    __tablename__ = "inbound_counts"
    __table_args__ = (PrimaryKeyConstraint("kind", "verdict"),)

    kind: Mapped[str]
    verdict: Mapped[str]
    count: Mapped[int] = mapped_column(server_default="0")
