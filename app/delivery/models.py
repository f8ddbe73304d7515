"""What workers say of themselves."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base


class Worker(Base):
    """One worker process: its heartbeat, and what it has counted since it began.

    In Postgres and not in Redis, so that health and metrics are told truthfully while Redis is away.
    """

    __tablename__ = "workers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    in_flight: Mapped[int] = mapped_column(server_default="0")
    # Deliveries by outcome.
    outcomes: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
