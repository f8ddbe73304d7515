"""Addresses that an organization's mail is not sent to any more."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, PrimaryKeyConstraint, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base

Reason = Literal["hard_bounce", "complaint", "unsubscribe", "manual"]


class Suppression(Base):
    """One address that an organization, or one kind of its mail, spares.

    `address` is in the form of `mail.address.Address.key`. `tag` empty: it holds for all mail; else for messages that
    carry this tag.
    """

    __tablename__ = "suppressions"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "id"),
        # How accepting and transmitting mail asks; one address is told of once for each tag. Its operators find the
        # beginning of an address too.
        Index(
            "uq_suppressions_address",
            *("org_id", "address", "tag"),
            unique=True,
            postgresql_ops={"address": "text_pattern_ops"},
        ),
        CheckConstraint("reason IN ('hard_bounce', 'complaint', 'unsubscribe', 'manual')", name="reason"),
    )

    org_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"))
    id: Mapped[UUID]
    address: Mapped[str]
    tag: Mapped[str] = mapped_column(server_default="")
    reason: Mapped[Reason] = mapped_column(Text)
    # What it was learnt from: the message, and in a line what was said. Neither for those that were added by hand.
    message_id: Mapped[UUID | None]
    detail: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
