"""vMTAs, queues that are held or slowed down, simulated and urgent mail, what a reply and a TLS session meant."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "engine"
down_revision: str | None = "accounts_complete"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "destinations",
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("domain", name=op.f("pk_destinations")),
    )
    op.create_index(op.f("ix_destinations_site"), "destinations", ["site"], unique=False)
    op.create_table(
        "queue_throttles",
        sa.Column("vmta_id", sa.Uuid(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("strikes", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('suspended', 'slowed')", name=op.f("ck_queue_throttles_kind")),
        sa.PrimaryKeyConstraint("vmta_id", "site", name=op.f("pk_queue_throttles")),
    )
    op.create_table(
        "egress_addresses",
        sa.Column("ip_address", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_egress_addresses_org_id")),
        sa.PrimaryKeyConstraint("ip_address", name=op.f("pk_egress_addresses")),
    )
    op.create_index(op.f("ix_egress_addresses_org_id"), "egress_addresses", ["org_id"], unique=False)
    op.create_table(
        "queue_holds",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("vmta_id", sa.Uuid(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_queue_holds_org_id")),
        sa.PrimaryKeyConstraint("org_id", "vmta_id", "site", name=op.f("pk_queue_holds")),
    )
    op.create_table(
        "vmtas",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ip_address", sa.Text(), nullable=True),
        sa.Column("hostname", sa.Text(), nullable=True),
        sa.Column("pool", sa.Text(), nullable=True),
        sa.Column("weight", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("max_connections", sa.BigInteger(), nullable=True),
        sa.Column("max_rate", sa.BigInteger(), nullable=True),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("warmup", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("warmup_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("warmup_finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("weight BETWEEN 0 AND 1000", name=op.f("ck_vmtas_weight")),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_vmtas_org_id")),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("pk_vmtas")),
    )
    op.create_index(op.f("ix_vmtas_updated_at"), "vmtas", ["updated_at"], unique=False)
    op.create_index(
        "uq_vmtas_name", "vmtas", ["org_id", "name"], unique=True, postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.create_table(
        "vmta_usage",
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("vmta_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("taken", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("delivered", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("deferred", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("hard_bounced", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("complained", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["org_id", "vmta_id"], ["vmtas.org_id", "vmtas.id"], name=op.f("fk_vmta_usage_org_id_vmta_id")
        ),
        sa.PrimaryKeyConstraint("org_id", "vmta_id", "day", "provider", name=op.f("pk_vmta_usage")),
    )
    op.add_column("deliveries", sa.Column("category", sa.Text(), nullable=True))
    op.add_column("deliveries", sa.Column("vmta_id", sa.Uuid(), nullable=True))
    op.alter_column("delivery_queue", "site", new_column_name="domain")
    op.add_column("delivery_queue", sa.Column("vmta_id", sa.Uuid(), nullable=True))
    op.add_column("delivery_queue", sa.Column("urgent", sa.Boolean(), server_default="false", nullable=False))
    op.add_column("delivery_queue", sa.Column("simulated", sa.Text(), nullable=True))
    op.create_index(
        "ix_delivery_queue_held",
        "delivery_queue",
        ["org_id", sa.text("coalesce(vmta_id, '00000000-0000-0000-0000-000000000000'::uuid)"), "domain"],
        unique=False,
        postgresql_where=sa.text("next_attempt_at = 'infinity'"),
    )
    op.create_index(
        "ix_delivery_queue_held_until",
        "delivery_queue",
        [sa.text("least(give_up_at, expires_at)")],
        unique=False,
        postgresql_where=sa.text("next_attempt_at = 'infinity'"),
    )
    op.create_index(
        "ix_delivery_queue_urgent",
        "delivery_queue",
        ["org_id", "next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("urgent"),
    )
    op.create_index(
        "ix_delivery_queue_vmta",
        "delivery_queue",
        ["org_id", "vmta_id"],
        unique=False,
        postgresql_where=sa.text("vmta_id IS NOT NULL"),
    )
    op.add_column("messages", sa.Column("vmta", sa.Text(), nullable=True))
    op.add_column("messages", sa.Column("simulated", sa.Boolean(), server_default="false", nullable=False))


def downgrade() -> None:
    op.drop_column("messages", "simulated")
    op.drop_column("messages", "vmta")
    op.drop_index(
        "ix_delivery_queue_vmta", table_name="delivery_queue", postgresql_where=sa.text("vmta_id IS NOT NULL")
    )
    op.drop_index("ix_delivery_queue_urgent", table_name="delivery_queue", postgresql_where=sa.text("urgent"))
    op.drop_index(
        "ix_delivery_queue_held_until",
        table_name="delivery_queue",
        postgresql_where=sa.text("next_attempt_at = 'infinity'"),
    )
    op.drop_index(
        "ix_delivery_queue_held", table_name="delivery_queue", postgresql_where=sa.text("next_attempt_at = 'infinity'")
    )
    op.drop_column("delivery_queue", "simulated")
    op.drop_column("delivery_queue", "urgent")
    op.drop_column("delivery_queue", "vmta_id")
    op.alter_column("delivery_queue", "domain", new_column_name="site")
    op.drop_column("deliveries", "vmta_id")
    op.drop_column("deliveries", "category")
    op.drop_table("vmta_usage")
    op.drop_index(op.f("ix_vmtas_updated_at"), table_name="vmtas")
    op.drop_index("uq_vmtas_name", table_name="vmtas", postgresql_where=sa.text("deleted_at IS NULL"))
    op.drop_table("vmtas")
    op.drop_table("queue_holds")
    op.drop_index(op.f("ix_egress_addresses_org_id"), table_name="egress_addresses")
    op.drop_table("egress_addresses")
    op.drop_table("queue_throttles")
    op.drop_index(op.f("ix_destinations_site"), table_name="destinations")
    op.drop_table("destinations")
