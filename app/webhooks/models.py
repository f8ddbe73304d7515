"""Webhook endpoints, how far each organization's events have been handed to them, and what was sent to each."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, LargeBinary, PrimaryKeyConstraint, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base


class Webhook(Base):
    """One endpoint of a customer's. `event_types`, as payloads name them; none: it gets all of them."""

    __tablename__ = "webhooks"
    __table_args__ = (PrimaryKeyConstraint("org_id", "id"),)
    # What the database says is read back with the statement that wrote it.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - SQLAlchemy's own name and shape

    org_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"))
    id: Mapped[UUID]
    url: Mapped[str]
    description: Mapped[str] = mapped_column(server_default="")
    event_types: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    # Events of lower transactions than this are not for it: they were before it was made, or while it was off.
    since_tx: Mapped[int]
    # Sealed; while it is rotated, the one before signs too, until its time is over.
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    previous_secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    previous_expires_at: Mapped[datetime | None]
    # Why and since when nothing is sent to it; null while it is on.
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]
    # The first failure since the last success.
    failing_since: Mapped[datetime | None]
    last_success_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())


class WebhookCursor(Base):
    """The last event of an organization that was handed to its webhooks, in the order of `events.models.Event`."""

    __tablename__ = "webhook_cursors"

    org_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    tx: Mapped[int]
    event_id: Mapped[UUID]


class WebhookDelivery(Base):
    """One event for one endpoint, waiting or done. Partitioned by week of `id`.

    A claim moves `next_attempt_at` to the end of its lease; null: it has come to its end. Whoever fans out may write it
    claimed already.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "id"),
        Index(None, "org_id", "webhook_id", "id"),
        Index(
            "ix_webhook_deliveries_due",
            "org_id",
            "webhook_id",
            "next_attempt_at",
            postgresql_where=text("next_attempt_at IS NOT NULL"),
        ),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    org_id: Mapped[UUID]
    id: Mapped[UUID]
    webhook_id: Mapped[UUID]
    # The `webhook-id` header: the same whenever the same event is sent again, replays included.
    event_id: Mapped[UUID]
    event_type: Mapped[str]
    message_id: Mapped[UUID | None]
    # The very octets that are signed and sent.
    payload: Mapped[str]
    # pending, delivered, failed or cancelled.
    status: Mapped[str] = mapped_column(server_default="pending")
    attempt: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime | None]
    lease_token: Mapped[UUID | None]
    # {"number", "started_at", "status_code", "latency_ms", "response", "error"} each, in order.
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(server_default="[]")
    is_replay: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    settled_at: Mapped[datetime | None]


class WebhookCount(Base):
    """How many attempts have ended with an outcome (delivered, deferred or failed), ever."""

    __tablename__ = "webhook_counts"

    outcome: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(server_default="0")
