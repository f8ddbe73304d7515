"""Tables of organizations, their users, the users' sessions and the organizations' API keys."""

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
    """A tenant."""

    __tablename__ = "organizations"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class User(Base):
    """A person of one organization. `email` is in lower case and unique over all organizations."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint(f"role IN ({_quoted(Role)})", name="role"),
        CheckConstraint("token_epoch >= 0", name="token_epoch"),
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


class ApiKey(Base):
    """An API key, of which only the prefix and the SHA-256 are kept. NULL restrictions restrict nothing.

    Keys belong to the organization: they outlive the user who made them.
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
        Index(None, "org_id", "created_by"),
    )

    org_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    secret_hash: Mapped[bytes]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    domains: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    source_addresses: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    created_by: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
