"""What is known of queues beside the mail in them: where domains lead, what is held, what is slowed down.

A queue is a vMTA and a destination site. The platform's own way out, which has no vMTA, is the nil UUID here.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, PrimaryKeyConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base


class Destination(Base):
    """Where a recipient domain's mail went when it was last looked up: the site that its MX set rolls up to."""

    __tablename__ = "destinations"

    domain: Mapped[str] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(index=True)
    # gmail, microsoft, yahoo, apple… as the shaping file names them; generic for all others.
    provider: Mapped[str]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Hold(Base):
    """An organization's queue that sends nothing until it is released."""

    __tablename__ = "queue_holds"
    __table_args__ = (PrimaryKeyConstraint("org_id", "vmta_id", "site"),)

    org_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"))
    vmta_id: Mapped[UUID]
    site: Mapped[str]
    created_by: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Throttle(Base):
    """A way out that a site has told to slow down; all organizations that use it share its fate. Ends by itself."""

    __tablename__ = "queue_throttles"
    __table_args__ = (
        PrimaryKeyConstraint("vmta_id", "site"),
        CheckConstraint("kind IN ('suspended', 'slowed')", name="kind"),
    )

    vmta_id: Mapped[UUID]
    site: Mapped[str]
    kind: Mapped[str]
    # The category of the reply that led to it.
    reason: Mapped[str]
    # How often the site has said so: each time it lasts longer. Mail that gets through after the end forgives them one
    # by one; a row whose time is over stays for what is not forgiven yet.
    strikes: Mapped[int] = mapped_column(server_default="1")
    # When a strike was added or forgiven last.
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    since: Mapped[datetime] = mapped_column(server_default=func.now())
    until: Mapped[datetime]
