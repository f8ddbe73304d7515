"""Tables of sending domains and their DKIM keys."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base
from app.mail.dkim import Algorithm

DomainStatus = Literal["pending", "verified"]
KeyStatus = Literal["pending", "active", "retiring", "retired"]


class Domain(Base):
    """A name that an organization wants to send from. Two may claim one name: the DNS decides (see `proof`)."""

    __tablename__ = "domains"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'verified')", name="status"),
        Index("uq_domains_live_name", "org_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
        Index("ix_domains_deleted_at", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
        Index("ix_domains_name", "name", postgresql_where=text("deleted_at IS NULL")),
        Index("ix_domains_next_check_at", "next_check_at", postgresql_where=text("deleted_at IS NULL")),
        CheckConstraint("misses >= 0", name="misses"),
    )

    org_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(doc="Lower-case A-labels (RFC 5890), no trailing dot.")
    dkim_selector: Mapped[str] = mapped_column(doc="What selectors are derived from: that of its first or latest key.")
    status: Mapped[DomainStatus] = mapped_column(Text, server_default="pending")
    verified_at: Mapped[datetime | None]
    checked_at: Mapped[datetime | None]
    checks: Mapped[dict[str, Any]] = mapped_column(
        server_default=text("'{}'"), doc="By record key: what records.Check.stored() gives."
    )
    next_check_at: Mapped[datetime | None] = mapped_column(doc="When to look again by ourselves; null for never.")
    misses: Mapped[int] = mapped_column(
        server_default=text("0"), doc="Definite answers in a row without the record of a key that signs."
    )
    failing_since: Mapped[datetime | None] = mapped_column(doc="The first of those answers, once there were two.")
    told_at: Mapped[datetime | None] = mapped_column(doc="When the owners were told; null once told that all is well.")
    bimi: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True), doc="What bimi.Bimi.stored() gives; null without BIMI."
    )
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]


class DkimKey(Base):
    """One DKIM key pair of a domain. Only `active` keys sign (see `rotation`)."""

    __tablename__ = "dkim_keys"
    __table_args__ = (
        ForeignKeyConstraint(["org_id", "domain_id"], ["domains.org_id", "domains.id"]),
        UniqueConstraint("org_id", "domain_id", "selector"),
        CheckConstraint("status IN ('pending', 'active', 'retiring', 'retired')", name="status"),
        CheckConstraint("algorithm IN ('rsa-sha256', 'ed25519-sha256')", name="algorithm"),
        Index("ix_dkim_keys_retire_at", "retire_at", postgresql_where=text("status = 'retiring'")),
    )

    org_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    domain_id: Mapped[UUID]
    algorithm: Mapped[Algorithm] = mapped_column(Text)
    selector: Mapped[str]
    public_key: Mapped[str] = mapped_column(doc="Base64, as in the record's p= tag.")
    private_key: Mapped[bytes | None] = mapped_column(
        deferred=True, doc="PKCS #8 DER, sealed; null once wiped. Loaded only where it is asked for."
    )
    status: Mapped[KeyStatus] = mapped_column(Text, server_default="pending")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    activated_at: Mapped[datetime | None]
    retire_at: Mapped[datetime | None] = mapped_column(
        doc="Until when the record of a replaced key must stay published."
    )
