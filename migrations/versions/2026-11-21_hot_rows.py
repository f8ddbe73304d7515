"""Rows that every mail writes: packed bodies, no foreign keys among them, attempts told by events alone."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "hot_rows"
down_revision: str | None = "engine"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_FOREIGN_KEYS = (
    ("messages", "fk_messages_org_id_domain_id"),
    ("message_bodies", "fk_message_bodies_org_id_message_id"),
    ("deliveries", "fk_deliveries_org_id_message_id"),
    ("delivery_queue", "fk_delivery_queue_org_id_delivery_id"),
)


def upgrade() -> None:
    op.drop_table("attempts")
    for table, name in _FOREIGN_KEYS:
        op.drop_constraint(name, table, type_="foreignkey")
    op.add_column("message_bodies", sa.Column("content", sa.LargeBinary(), nullable=True))
    op.execute(
        "UPDATE message_bodies SET content = "
        "convert_to(json_build_object('text', text, 'html', html, 'headers', headers)::text, 'UTF8')"
    )
    op.alter_column("message_bodies", "content", nullable=False)
    # It is packed already.
    op.execute("ALTER TABLE message_bodies ALTER COLUMN content SET STORAGE EXTERNAL")
    for column in ("text", "html", "headers"):
        op.drop_column("message_bodies", column)
    op.execute(
        """
        DO $$ DECLARE child regclass; BEGIN
            FOR child IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'message_bodies'::regclass LOOP
                EXECUTE format('ALTER TABLE %s SET (toast_tuple_target = 8160)', child);
            END LOOP;
        END $$
        """
    )


def downgrade() -> None:
    raise NotImplementedError("Packed bodies are not unpacked again: restore a backup.")
