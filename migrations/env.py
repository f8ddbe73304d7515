"""Alembic's environment: all models, the async engine, partitions left out of comparisons."""

import asyncio
import re
from typing import Any

from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

import app.accounts.models
import app.core.idempotency
import app.delivery.models
import app.domains.models
import app.events.models
import app.inbound.models
import app.messages.models
import app.queues.models
import app.suppressions.models
import app.vmtas.models
import app.webhooks.models  # noqa: F401 - imported for their tables
from app.core.config import get_settings
from app.core.db import Base, asyncpg_url

_PARTITION = re.compile(r"_p\d{4}w\d{2}$")


def _include_name(name: str | None, kind: str, _: object) -> bool:
    return kind != "table" or not _PARTITION.search(name or "")


def _include_object(item: Any, _name: str | None, kind: str, is_reflected: bool, _: object) -> bool:
    # PostgreSQL lists a foreign key to a partitioned table once more for each of its partitions.
    if kind == "foreign_key_constraint" and is_reflected:
        return not _PARTITION.search(item.elements[0].target_fullname.split(".")[0])
    return True


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=_include_name,
        include_object=_include_object,
        compare_server_default=False,
    )
    with context.begin_transaction():
        context.run_migrations()


async def _main() -> None:
    engine = create_async_engine(asyncpg_url(get_settings().database_url), poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(_run)
        await connection.commit()
    await engine.dispose()


asyncio.run(_main())
