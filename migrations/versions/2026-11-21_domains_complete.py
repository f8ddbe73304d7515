"""Domains: periodic checks and their notices, BIMI, keys that retire."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "domains_complete"
down_revision: str | None = "630ed28730ee"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_LIVE = sa.text("deleted_at IS NULL")


def upgrade() -> None:
    op.add_column("domains", sa.Column("next_check_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("domains", sa.Column("misses", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("domains", sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("domains", sa.Column("told_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("domains", sa.Column("bimi", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.create_check_constraint(op.f("ck_domains_misses"), "domains", "misses >= 0")
    op.create_index("ix_domains_name", "domains", ["name"], postgresql_where=_LIVE)
    op.create_index("ix_domains_next_check_at", "domains", ["next_check_at"], postgresql_where=_LIVE)
    op.add_column("dkim_keys", sa.Column("retire_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_dkim_keys_retire_at", "dkim_keys", ["retire_at"], postgresql_where=sa.text("status = 'retiring'")
    )
    # Spread over the first day, so that not all of them are looked up at once. Those that were verified without ever
    # having been looked up are served by Postroad itself.
    op.execute(
        "UPDATE domains SET next_check_at = now() + random() * interval '1 day' "
        "WHERE deleted_at IS NULL AND (checked_at IS NOT NULL OR status = 'pending') "
        "AND (status = 'verified' OR created_at > now() - interval '72 hours')"
    )


def downgrade() -> None:
    op.drop_index("ix_dkim_keys_retire_at", table_name="dkim_keys")
    op.drop_column("dkim_keys", "retire_at")
    op.drop_index("ix_domains_next_check_at", table_name="domains")
    op.drop_index("ix_domains_name", table_name="domains")
    op.drop_constraint(op.f("ck_domains_misses"), "domains")
    for column in ("bimi", "told_at", "failing_since", "misses", "next_check_at"):
        op.drop_column("domains", column)
