"""Virtual MTAs, the addresses that organizations may send from, and what each vMTA has sent."""

from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, PrimaryKeyConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base


class Vmta(Base):
    """A way out for mail: a source address, the name it greets with, its share of a pool and its limits.

    Deleted ones are kept, as attempts tell of them; nothing is sent from them any more.
    """

    __tablename__ = "vmtas"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "id"),
        CheckConstraint("weight BETWEEN 0 AND 1000", name="weight"),
        Index("uq_vmtas_name", "org_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    )
    # What the database says is read back with the statement that wrote it.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - SQLAlchemy's own name and shape

    org_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"))
    id: Mapped[UUID]
    # In lower case, as is the pool's.
    name: Mapped[str]
    # None: whichever address the host's routing chooses.
    ip_address: Mapped[str | None]
    # What it says in EHLO; None: the platform's own name.
    hostname: Mapped[str | None]
    # Members of a pool stand in for one another; one without a pool stands alone.
    pool: Mapped[str | None]
    # Its share of the pool's mail; 0 means only in place of others.
    weight: Mapped[int] = mapped_column(server_default="1")
    # To one site, all workers together; None: as the shaping file says.
    max_connections: Mapped[int | None]
    # Mails a minute to one site, all workers together; None: as the shaping file says.
    max_rate: Mapped[int | None]
    paused_at: Mapped[datetime | None]
    # The ramp's settings, None when it sends at full rate from the start.
    warmup: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    warmup_started_at: Mapped[datetime | None]
    # When its ramp was seen to have ended for every provider.
    warmup_finished_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # Engines ask for what has changed: by the wall clock, so that it is hardly older than its commit.
    updated_at: Mapped[datetime] = mapped_column(
        server_default=func.clock_timestamp(), onupdate=func.clock_timestamp(), index=True
    )
    deleted_at: Mapped[datetime | None]


class VmtaUsage(Base):
    """What one vMTA did in one day (UTC) for one mailbox provider. `taken` counts against its warmup ramp."""

    __tablename__ = "vmta_usage"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "vmta_id", "day", "provider"),
        ForeignKeyConstraint(["org_id", "vmta_id"], ["vmtas.org_id", "vmtas.id"]),
    )

    org_id: Mapped[UUID]
    vmta_id: Mapped[UUID]
    day: Mapped[date]
    provider: Mapped[str]
    taken: Mapped[int] = mapped_column(server_default="0")
    delivered: Mapped[int] = mapped_column(server_default="0")
    deferred: Mapped[int] = mapped_column(server_default="0")
    hard_bounced: Mapped[int] = mapped_column(server_default="0")
    complained: Mapped[int] = mapped_column(server_default="0")


class EgressAddress(Base):
    """A source address that the operator has given to an organization, or to all of them (`org_id` None)."""

    __tablename__ = "egress_addresses"

    ip_address: Mapped[str] = mapped_column(primary_key=True)
    org_id: Mapped[UUID | None] = mapped_column(ForeignKey("organizations.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
