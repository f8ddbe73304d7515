"""The append-only log of what happened to each mail: the hinge between sending and everything that watches it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Index, PrimaryKeyConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base


class Event(Base):
    """One thing that happened to one recipient's copy. Partitioned by week of `id`; never updated.

    It has no foreign key: events outlive the bodies and messages that they tell of.
    """

    __tablename__ = "events"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "id"),
        Index(None, "org_id", "message_id"),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    org_id: Mapped[UUID]
    id: Mapped[UUID]
    message_id: Mapped[UUID]
    delivery_id: Mapped[UUID]
    type: Mapped[str]
    recipient: Mapped[str]
    occurred_at: Mapped[datetime]
    data: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
