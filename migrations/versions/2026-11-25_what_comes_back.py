"""Suppressions, mail that comes back, webhooks; the order in which events are handed on."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "what_comes_back"
down_revision: str | None = "hot_rows"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "inbound_counts",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("kind", "verdict", name=op.f("pk_inbound_counts")),
    )
    op.create_table(
        "inbound_mails",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("client_address", sa.Text(), nullable=False),
        sa.Column("helo", sa.Text(), nullable=False),
        sa.Column("mail_from", sa.Text(), nullable=False),
        sa.Column("recipients", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=True),
        sa.Column("lease_token", sa.Uuid(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inbound_mails")),
    )
    op.create_index(
        "ix_inbound_mails_due",
        "inbound_mails",
        ["next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("webhook_id", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Uuid(), nullable=True),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_token", sa.Uuid(), nullable=True),
        sa.Column("attempts", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("is_replay", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("pk_webhook_deliveries")),
        postgresql_partition_by="RANGE (id)",
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["org_id", "webhook_id", "next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_webhook_deliveries_org_id_webhook_id_id"),
        "webhook_deliveries",
        ["org_id", "webhook_id", "id"],
        unique=False,
    )
    op.create_table(
        "suppressions",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("tag", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Uuid(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "reason IN ('hard_bounce', 'complaint', 'unsubscribe', 'manual')", name=op.f("ck_suppressions_reason")
        ),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_suppressions_org_id")),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("pk_suppressions")),
    )
    op.create_index(
        "uq_suppressions_address",
        "suppressions",
        ["org_id", "address", "tag"],
        unique=True,
        postgresql_ops={"address": "text_pattern_ops"},
    )
    op.create_table(
        "webhook_counts",
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("outcome", name=op.f("pk_webhook_counts")),
    )
    op.create_table(
        "webhook_cursors",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("tx", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_webhook_cursors_org_id")),
        sa.PrimaryKeyConstraint("org_id", name=op.f("pk_webhook_cursors")),
    )
    op.create_table(
        "webhooks",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("event_types", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("since_tx", sa.BigInteger(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("previous_secret", sa.LargeBinary(), nullable=True),
        sa.Column("previous_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_success_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_webhooks_org_id")),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("pk_webhooks")),
    )
    # Told before there was anybody to tell: they come first, in any order. A constant costs no rewrite of the table.
    op.add_column("events", sa.Column("tx", sa.BigInteger(), server_default="0", nullable=False))
    op.alter_column("events", "tx", server_default=sa.text("(pg_current_xact_id()::text)::bigint"))
    op.drop_constraint("pk_events", "events", type_="primary")
    op.create_primary_key("pk_events", "events", ["org_id", "tx", "id"])
    op.drop_index(op.f("ix_deliveries_org_id_recipient"), table_name="deliveries")
    op.drop_index(op.f("ix_deliveries_org_id_message_id"), table_name="deliveries")
    op.create_index(op.f("ix_deliveries_message_id_org_id"), "deliveries", ["message_id", "org_id"], unique=False)
    op.add_column("messages", sa.Column("track_text", sa.Boolean(), server_default="false", nullable=False))
    op.add_column("messages", sa.Column("notice", sa.Boolean(), server_default="false", nullable=False))


def downgrade() -> None:
    op.drop_index(op.f("ix_deliveries_message_id_org_id"), table_name="deliveries")
    op.create_index(op.f("ix_deliveries_org_id_message_id"), "deliveries", ["org_id", "message_id"], unique=False)
    op.create_index(op.f("ix_deliveries_org_id_recipient"), "deliveries", ["org_id", "recipient"], unique=False)
    op.drop_column("messages", "notice")
    op.drop_column("messages", "track_text")
    op.drop_constraint("pk_events", "events", type_="primary")
    op.drop_column("events", "tx")
    op.create_primary_key("pk_events", "events", ["org_id", "id"])
    for table in (
        "webhooks",
        "webhook_cursors",
        "webhook_counts",
        "suppressions",
        "webhook_deliveries",
        "inbound_mails",
        "inbound_counts",
    ):
        op.drop_table(table)
