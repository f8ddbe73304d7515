"""A database of a test's own, beside the one that all others share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from app import main  # noqa: F401 - brings the models of every noun
from app.core import partitions
from app.core.config import Settings
from app.core.db import Base, asyncpg_url
from app.core.ids import new_id


@asynccontextmanager
async def own_database(settings: Settings, *, now: datetime | None = None) -> AsyncIterator[Settings]:
    """Settings that lead to a new, empty database on the same server, with the partitions of `now`."""
    name = f"test_{new_id().hex}"
    url = make_url(asyncpg_url(settings.database_url))
    admin = create_async_engine(url, isolation_level="AUTOCOMMIT")
    own = url.set(database=name)
    async with admin.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        engine = create_async_engine(own)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await partitions.upkeep(engine, now=now or datetime.now(UTC), retention_days=36_500)
        await engine.dispose()
        yield settings.model_copy(update={"database_url": own.render_as_string(hide_password=False)})
    finally:
        async with admin.connect() as connection:
            await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        await admin.dispose()
