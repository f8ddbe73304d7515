"""Accounts: suspension, mailed tokens, invitations, known addresses, rotated and test keys."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "accounts_complete"
down_revision: str | None = "domains_complete"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "invitations",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("invited_by", sa.Uuid(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "role IN ('owner', 'admin', 'developer', 'analyst', 'billing')", name=op.f("ck_invitations_role")
        ),
        sa.CheckConstraint("octet_length(token_hash) = 32", name=op.f("ck_invitations_token_hash")),
        sa.ForeignKeyConstraint(
            ["org_id", "invited_by"],
            ["users.org_id", "users.id"],
            name=op.f("fk_invitations_org_id_invited_by"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_invitations_org_id")),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("pk_invitations")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_invitations_token_hash")),
    )
    op.create_index(op.f("ix_invitations_org_id_invited_by"), "invitations", ["org_id", "invited_by"], unique=False)
    op.create_index("uq_invitations_email", "invitations", ["org_id", "email"], unique=True)
    op.create_table(
        "known_addresses",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("address_hash", sa.LargeBinary(), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("octet_length(address_hash) = 32", name=op.f("ck_known_addresses_address_hash")),
        sa.ForeignKeyConstraint(
            ["org_id", "user_id"],
            ["users.org_id", "users.id"],
            name=op.f("fk_known_addresses_org_id_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("org_id", "user_id", "address_hash", name=op.f("pk_known_addresses")),
    )
    op.create_table(
        "one_time_tokens",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("purpose IN ('verify_email', 'reset_password')", name=op.f("ck_one_time_tokens_purpose")),
        sa.CheckConstraint("octet_length(token_hash) = 32", name=op.f("ck_one_time_tokens_token_hash")),
        sa.ForeignKeyConstraint(
            ["org_id", "user_id"],
            ["users.org_id", "users.id"],
            name=op.f("fk_one_time_tokens_org_id_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("pk_one_time_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_one_time_tokens_token_hash")),
    )
    op.create_index(op.f("ix_one_time_tokens_org_id_user_id"), "one_time_tokens", ["org_id", "user_id"], unique=False)
    op.add_column("api_keys", sa.Column("previous_prefix", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("previous_secret_hash", sa.LargeBinary(), nullable=True))
    op.add_column("api_keys", sa.Column("previous_expires_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("is_test", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_check_constraint(
        op.f("ck_api_keys_previous"),
        "api_keys",
        "num_nulls(previous_prefix, previous_secret_hash, previous_expires_at) IN (0, 3)",
    )
    op.drop_constraint(op.f("uq_api_keys_prefix"), "api_keys", type_="unique")
    op.create_index(op.f("ix_api_keys_prefix"), "api_keys", ["prefix"], unique=False)
    op.create_index(
        op.f("ix_api_keys_previous_prefix"),
        "api_keys",
        ["previous_prefix"],
        unique=False,
        postgresql_where=sa.text("previous_prefix IS NOT NULL"),
    )
    op.add_column("organizations", sa.Column("suspended_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("organizations", sa.Column("suspension_reason", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_organizations_suspension"),
        "organizations",
        "(suspended_at IS NULL) = (suspension_reason IS NULL)",
    )
    op.create_index(
        "ix_organizations_suspended",
        "organizations",
        ["id"],
        unique=False,
        postgresql_where=sa.text("suspended_at IS NOT NULL"),
    )
    op.create_index("ix_users_operators", "users", ["org_id"], unique=False, postgresql_where=sa.text("is_operator"))


def downgrade() -> None:
    op.drop_index("ix_users_operators", table_name="users", postgresql_where=sa.text("is_operator"))
    op.drop_index(
        "ix_organizations_suspended", table_name="organizations", postgresql_where=sa.text("suspended_at IS NOT NULL")
    )
    op.drop_constraint(op.f("ck_organizations_suspension"), "organizations")
    op.drop_column("organizations", "suspension_reason")
    op.drop_column("organizations", "suspended_at")
    op.drop_index(
        op.f("ix_api_keys_previous_prefix"),
        table_name="api_keys",
        postgresql_where=sa.text("previous_prefix IS NOT NULL"),
    )
    op.drop_index(op.f("ix_api_keys_prefix"), table_name="api_keys")
    op.create_unique_constraint(op.f("uq_api_keys_prefix"), "api_keys", ["prefix"])
    op.drop_constraint(op.f("ck_api_keys_previous"), "api_keys")
    op.drop_column("api_keys", "is_test")
    op.drop_column("api_keys", "previous_expires_at")
    op.drop_column("api_keys", "previous_secret_hash")
    op.drop_column("api_keys", "previous_prefix")
    op.drop_index(op.f("ix_one_time_tokens_org_id_user_id"), table_name="one_time_tokens")
    op.drop_table("one_time_tokens")
    op.drop_table("known_addresses")
    op.drop_index("uq_invitations_email", table_name="invitations")
    op.drop_index(op.f("ix_invitations_org_id_invited_by"), table_name="invitations")
    op.drop_table("invitations")
