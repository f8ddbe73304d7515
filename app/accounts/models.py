"""Tables of organizations, their users, what users log in and prove themselves with, and API keys."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.accounts.scopes import Role, Scope
from app.core.db import Base
from app.core.ids import new_id


def _quoted(values: type[Role] | type[Scope]) -> str:
    return ", ".join(f"'{value}'" for value in values)


class Organization(Base):
    """A tenant. While it is suspended, with a reason that its people are told, it reads and does not send."""

    __tablename__ = "organizations"
    __table_args__ = (
        CheckConstraint("(suspended_at IS NULL) = (suspension_reason IS NULL)", name="suspension"),
        # The claim asks for these every time: few rows, found without reading all organizations.
        Index("ix_organizations_suspended", "id", postgresql_where=text("suspended_at IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    suspended_at: Mapped[datetime | None]
    suspension_reason: Mapped[str | None]


class User(Base):
    """A person of one organization. `email` is in lower case and unique over all organizations."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint(f"role IN ({_quoted(Role)})", name="role"),
        CheckConstraint("token_epoch >= 0", name="token_epoch"),
        Index("ix_users_operators", "org_id", postgresql_where=text("is_operator")),
    )

    org_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    password_hash: Mapped[str]
    role: Mapped[str]
    is_operator: Mapped[bool] = mapped_column(server_default=text("false"))
    email_verified_at: Mapped[datetime | None]
    # Access tokens carry the epoch they were made in; raising it makes all of them void.
    token_epoch: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_login_at: Mapped[datetime | None]


class Session(Base):
    """One refresh token. Those that descend from one log-in by rotation share a `family_id`."""

    __tablename__ = "sessions"
    __table_args__ = (
        ForeignKeyConstraint(["org_id", "user_id"], ["users.org_id", "users.id"], ondelete="CASCADE"),
        CheckConstraint("octet_length(token_hash) = 32", name="token_hash"),
        Index(None, "org_id", "user_id"),
        Index(None, "org_id", "family_id"),
    )

    org_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID]
    family_id: Mapped[UUID]
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class OneTimeToken(Base):
    """A token that was mailed to a user, of which only the SHA-256 is kept; good once, for one purpose, for a while."""

    __tablename__ = "one_time_tokens"
    __table_args__ = (
        ForeignKeyConstraint(["org_id", "user_id"], ["users.org_id", "users.id"], ondelete="CASCADE"),
        CheckConstraint("purpose IN ('verify_email', 'reset_password')", name="purpose"),
        CheckConstraint("octet_length(token_hash) = 32", name="token_hash"),
        Index(None, "org_id", "user_id"),
    )

    org_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID]
    purpose: Mapped[str]
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Invitation(Base):
    """Someone was asked by mail to join an organization; gone once accepted or withdrawn, or when its maker goes."""

    __tablename__ = "invitations"
    __table_args__ = (
        ForeignKeyConstraint(["org_id", "invited_by"], ["users.org_id", "users.id"], ondelete="CASCADE"),
        CheckConstraint(f"role IN ({_quoted(Role)})", name="role"),
        CheckConstraint("octet_length(token_hash) = 32", name="token_hash"),
        Index("uq_invitations_email", "org_id", "email", unique=True),
        Index(None, "org_id", "invited_by"),
    )

    org_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    email: Mapped[str]
    name: Mapped[str | None]
    role: Mapped[str]
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    invited_by: Mapped[UUID | None]
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class KnownAddress(Base):
    """A network address from which a user has logged in, as a keyed hash: guessing elsewhere does not lock it out."""

    __tablename__ = "known_addresses"
    __table_args__ = (
        ForeignKeyConstraint(["org_id", "user_id"], ["users.org_id", "users.id"], ondelete="CASCADE"),
        CheckConstraint("octet_length(address_hash) = 32", name="address_hash"),
    )

    org_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    address_hash: Mapped[bytes] = mapped_column(primary_key=True)
    last_seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Base):
    """An API key, of which only the prefix and the SHA-256 are kept. NULL restrictions restrict nothing.

    Keys belong to the organization: they outlive the user who made them. After a rotation the secret before it is
    good until `previous_expires_at`.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        ForeignKeyConstraint(["org_id", "created_by"], ["users.org_id", "users.id"], ondelete="SET NULL (created_by)"),
        CheckConstraint(
            f"cardinality(scopes) > 0 AND scopes <@ ARRAY[{_quoted(Scope)}]::text[]",
            name="scopes",
        ),
        CheckConstraint("cardinality(domains) > 0", name="domains"),
        CheckConstraint("cardinality(source_addresses) > 0", name="source_addresses"),
        CheckConstraint("octet_length(secret_hash) = 32", name="secret_hash"),
        CheckConstraint(
            "num_nulls(previous_prefix, previous_secret_hash, previous_expires_at) IN (0, 3)", name="previous"
        ),
        Index(None, "org_id", "created_by"),
        Index(None, "prefix"),
        Index(None, "previous_prefix", postgresql_where=text("previous_prefix IS NOT NULL")),
    )

    org_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    # Shown and searched by. Two keys may by chance share one: the hash decides.
    prefix: Mapped[str]
    secret_hash: Mapped[bytes]
    previous_prefix: Mapped[str | None]
    previous_secret_hash: Mapped[bytes | None]
    previous_expires_at: Mapped[datetime | None]
    is_test: Mapped[bool] = mapped_column(server_default=text("false"))
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    domains: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    source_addresses: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    created_by: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    @property
    def is_restricted(self) -> bool:
        """Whether it is bound to domains, source addresses, a last day or to test mode."""
        return self.is_test or any(
            bound is not None for bound in (self.domains, self.source_addresses, self.expires_at)
        )
