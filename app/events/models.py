"""The append-only log of what happened to each mail: the hinge between sending and everything that watches it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Index, PrimaryKeyConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import BY_DATABASE, Base


class Event(Base):
    """One thing that happened to one recipient's copy. Partitioned by week of `id`; never updated.

    (tx, id) is the order in which events are handed on, to webhooks and to the feed: `tx` is the transaction that wrote
    it, and once every transaction below a number has ended, nothing can appear below that number any more. Ids alone
    are made before the commit, by many processes, so whoever followed them would miss the late ones.
    It has no foreign key: events outlive the bodies and messages that they tell of.
    """

    __tablename__ = "events"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "tx", "id"),
        Index(None, "org_id", "message_id"),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    org_id: Mapped[UUID]
    id: Mapped[UUID]
    tx: Mapped[int] = mapped_column(server_default=text("(pg_current_xact_id()::text)::bigint"), info=BY_DATABASE)
    message_id: Mapped[UUID]
    delivery_id: Mapped[UUID]
    type: Mapped[str]
    recipient: Mapped[str]
    occurred_at: Mapped[datetime]
    data: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
