"""Messages, their bodies and attachments; deliveries (one per recipient); and the hot queue.

Rows that one statement writes with one org_id have no foreign keys among each other: the checks would cost as much as
the rows, and a key of the domain would lock its row for every mail. What has been tried is told by events.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, LargeBinary, PrimaryKeyConstraint, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base

_BY_ID = {"postgresql_partition_by": "RANGE (id)"}
_BY_MESSAGE = {"postgresql_partition_by": "RANGE (message_id)"}


class Message(Base):
    """What a customer asked to be sent; never changed after it was accepted. Partitioned by week of `id`."""

    __tablename__ = "messages"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "id"),
        Index(None, "org_id", "batch_id", postgresql_where=text("batch_id IS NOT NULL")),
        _BY_ID,
    )

    org_id: Mapped[UUID]
    id: Mapped[UUID]
    domain_id: Mapped[UUID]
    api_key_id: Mapped[UUID | None]
    # {"email", "name"} each, as they stand in the header fields; bcc is known only to the deliveries.
    sender: Mapped[dict[str, Any]]
    to: Mapped[list[dict[str, Any]]]
    cc: Mapped[list[dict[str, Any]]] = mapped_column(server_default="[]")
    reply_to: Mapped[list[dict[str, Any]]] = mapped_column(server_default="[]")
    subject: Mapped[str]
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    # "metadata" is SQLAlchemy's own name on a model.
    custom: Mapped[dict[str, Any]] = mapped_column("metadata", server_default="{}")
    batch_id: Mapped[str | None]
    track_opens: Mapped[bool]
    track_clicks: Mapped[bool]
    # Links in the plain text too.
    track_text: Mapped[bool] = mapped_column(server_default="false")
    # The vMTA or pool that the sender asked for.
    vmta: Mapped[str | None]
    # Nothing of it leaves: how it ends was told beforehand, by a test key's address or by simulate-delivery.
    simulated: Mapped[bool] = mapped_column(server_default="false")
    # One of Postroad's own, to a user of its.
    notice: Mapped[bool] = mapped_column(server_default="false")
    scheduled_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    size_bytes: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class MessageBody(Base):
    """The text, HTML and custom header fields of a message, packed. Partitioned by week of `message_id`."""

    __tablename__ = "message_bodies"
    __table_args__ = (PrimaryKeyConstraint("org_id", "message_id"), _BY_MESSAGE)

    org_id: Mapped[UUID]
    message_id: Mapped[UUID]
    # Made and read by app.messages.body.
    content: Mapped[bytes] = mapped_column(LargeBinary)


class Attachment(Base):
    """One attached or inline file of a message. Partitioned by week of `message_id`."""

    __tablename__ = "attachments"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "message_id", "position"),
        ForeignKeyConstraint(["org_id", "message_id"], ["messages.org_id", "messages.id"]),
        _BY_MESSAGE,
    )

    org_id: Mapped[UUID]
    message_id: Mapped[UUID]
    position: Mapped[int]
    filename: Mapped[str]
    content_type: Mapped[str]
    content_id: Mapped[str | None]
    content: Mapped[bytes] = mapped_column(LargeBinary)


class Delivery(Base):
    """One recipient's copy of a message and what became of it. Partitioned by week of `id`."""

    __tablename__ = "deliveries"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "id"),
        CheckConstraint("kind IN ('to', 'cc', 'bcc')", name="kind"),
        # Not by organization first: while a partition is empty, an index that begins so looks to the planner as good as
        # the primary key does, and its plan would be kept until the partition is analyzed.
        Index(None, "message_id", "org_id"),
        _BY_ID,
    )

    org_id: Mapped[UUID]
    id: Mapped[UUID]
    message_id: Mapped[UUID]
    kind: Mapped[str]
    recipient: Mapped[str]
    status: Mapped[str]
    attempts: Mapped[int] = mapped_column(server_default="0")
    # The last answer in one line, or why there was none.
    last_response: Mapped[str | None]
    # What the last answer means: one of app.mail.diagnosis.Category.
    category: Mapped[str | None]
    # The vMTA that the last attempt left from.
    vmta_id: Mapped[UUID | None]
    settled_at: Mapped[datetime | None]


class QueuedDelivery(Base):
    """A delivery that still has to be transmitted: the hot table, which finished deliveries leave.

    A claim moves `next_attempt_at` to the end of its lease, so an expired lease is nothing but due mail: one index
    serves waiting, retrying and crashed deliveries alike. One that is held is due at infinity.
    """

    __tablename__ = "delivery_queue"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "delivery_id"),
        Index(None, "org_id", "next_attempt_at"),
        Index("ix_delivery_queue_urgent", "org_id", "next_attempt_at", postgresql_where=text("urgent")),
        Index("ix_delivery_queue_vmta", "org_id", "vmta_id", postgresql_where=text("vmta_id IS NOT NULL")),
        # What is held is looked through by skipping from group to group, so the way out must be comparable.
        Index(
            "ix_delivery_queue_held",
            "org_id",
            text("coalesce(vmta_id, '00000000-0000-0000-0000-000000000000'::uuid)"),
            "domain",
            postgresql_where=text("next_attempt_at = 'infinity'"),
        ),
        # Held mail expires too.
        Index(
            "ix_delivery_queue_held_until",
            text("least(give_up_at, expires_at)"),
            postgresql_where=text("next_attempt_at = 'infinity'"),
        ),
        # Rows come and go all day: vacuum early, and leave room for updates on the page.
        {
            "postgresql_with": {
                "fillfactor": "70",
                "autovacuum_vacuum_scale_factor": "0.02",
                "autovacuum_analyze_scale_factor": "0.02",
                "autovacuum_vacuum_threshold": "1000",
            }
        },
    )

    org_id: Mapped[UUID]
    delivery_id: Mapped[UUID]
    message_id: Mapped[UUID]
    recipient: Mapped[str]
    # Where it goes: the recipient's domain.
    domain: Mapped[str]
    # The way out that was drawn for it; None: the platform's own. Others of its pool may stand in.
    vmta_id: Mapped[UUID | None]
    # It expires soon, so it goes before the others.
    urgent: Mapped[bool] = mapped_column(server_default="false")
    # How it is to end without being transmitted: a status.
    simulated: Mapped[str | None]
    size_bytes: Mapped[int]
    attempt: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime]
    lease_token: Mapped[UUID | None]
    # Retries end here; an `expires_at` of the sender's own brings it forward.
    give_up_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
