"""The database: one engine a process, one place that commits, jobs rung only after commit."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import asyncpg
import orjson
from fastapi import Depends
from sqlalchemy import BigInteger, DateTime, MetaData, Text, Uuid, event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from starlette.requests import HTTPConnection

from app.core.config import Settings

# Nothing a request does takes longer than this; a stuck query must not hold a connection for ever.
_STATEMENT_TIMEOUT_MILLISECONDS = 15_000
# Enough for work that opens a second transaction beside its first.
_POOL_MIN = 4
_BARE_POOL = 8
_CONNECT_SECONDS = 10
_COMMAND_SECONDS = 60
_SERVER_SETTINGS = {
    "application_name": "postroad",
    "statement_timeout": str(_STATEMENT_TIMEOUT_MILLISECONDS),
    # Small repeated statements: compiling them costs more than it saves.
    "jit": "off",
}

# What a database that is away, overloaded or restarting raises, among others: `is_away` tells. InternalClientError is
# what a statement gets between the server's last word to its connection ("terminating") and the connection's end.
DATABASE_ERRORS = (
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)

# `info` of a column that only the database itself fills.
BY_DATABASE: Final = {"by_database": True}


class Base(DeclarativeBase):
    """Base of all models; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own name and shape
        str: Text,
        int: BigInteger,
        datetime: DateTime(timezone=True),
        UUID: Uuid,
        dict[str, Any]: JSONB,
        list[dict[str, Any]]: JSONB,
    }


def dumps(value: Any) -> str:
    """JSON as PostgreSQL takes it; the driver's own UUIDs, a subclass, are written as their text."""
    return orjson.dumps(value, default=_text).decode()


def _text(value: Any) -> str:
    # PostgreSQL's own way to write octets as text.
    return "\\x" + value.hex() if isinstance(value, bytes) else str(value)


def insert_json(model: type[Base], parameter: str) -> str:
    """SQL that inserts the rows of a JSON array, taken apart by the table's own row type.

    Columns are named, so that a process that is older than the schema leaves the newer ones to their defaults; those
    that only the database fills are left to it.
    `parameter` as the driver has it: `:rows` or `$1`.
    """
    columns = [f'"{column.name}"' for column in model.__table__.columns if column.info != BY_DATABASE]
    return (
        f"INSERT INTO {model.__tablename__} ({', '.join(columns)}) "  # noqa: S608 - names of our own
        f"SELECT {', '.join(f'r.{name}' for name in columns)} "
        f"FROM json_populate_recordset(NULL::{model.__tablename__}, {parameter}) r"
    )


class Database:
    """An engine and the transactions on it. Make it in the process and loop that use it, after any fork."""

    def __init__(self, settings: Settings, *, pool_size: int | None = None) -> None:
        # Opened only when needed, and then kept: what overflows a pool is closed again after each use, and opening a
        # connection costs PostgreSQL more than accepting a mail.
        size = max(pool_size or settings.database_pool_size, _POOL_MIN)
        self.engine: AsyncEngine = create_async_engine(
            asyncpg_url(settings.database_url),
            pool_size=size,
            max_overflow=0,
            pool_timeout=10,
            pool_pre_ping=False,
            json_serializer=dumps,
            json_deserializer=orjson.loads,
            connect_args={
                "timeout": _CONNECT_SECONDS,
                "command_timeout": _COMMAND_SECONDS,
                "server_settings": _SERVER_SETTINGS,
            },
        )
        event.listen(self.engine.sync_engine, "handle_error", _discard_broken)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._bare_url = asyncpg_url(settings.database_url).replace("+asyncpg", "")
        self._bare: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """The one place that commits: a session that commits when the block ends well, rolls back when not.

        What was handed to `after_commit` runs then, and only then.
        """
        async with self._sessions() as session:
            async with session.begin():
                yield session
            for callback in session.info.get("after_commit", ()):
                callback()

    @asynccontextmanager
    async def bare(self) -> AsyncIterator[asyncpg.Connection]:
        """The driver's own connection, for the few statements that every mail passes through.

        The machinery of a session costs as much as they do. Each statement commits by itself, unless the caller opens
        `connection.transaction()`. JSONB is given and taken as Python values. Raises DATABASE_ERRORS.
        """
        async with self._opening:
            if self._bare is None:
                self._bare = await asyncpg.create_pool(
                    self._bare_url,
                    min_size=0,
                    max_size=_BARE_POOL,
                    init=_prepare_bare,
                    reset=_leave_as_it_is,
                    timeout=_CONNECT_SECONDS,
                    command_timeout=_COMMAND_SECONDS,
                    server_settings=_SERVER_SETTINGS,
                )
        async with self._bare.acquire(timeout=_CONNECT_SECONDS) as connection:
            yield connection

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
        if self._bare is not None:
            await self._bare.close()
            self._bare = None


async def plan_anew(connection: asyncpg.Connection) -> None:
    """Have the statements of this transaction planned for the tables as they are now.

    A plan is kept once it was made some times, and one that was made while a table was empty may read all of it for
    each row that is looked up: a burst after an idle hour would be settled so until the table is next analyzed.
    """
    await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")


def after_commit(session: AsyncSession, callback: Callable[[], None]) -> None:
    """Run `callback` (quick, never raising) once the session's transaction has committed."""
    session.info.setdefault("after_commit", []).append(callback)


def asyncpg_url(url: str | None) -> str:
    """DATABASE_URL in the form SQLAlchemy's asyncpg dialect wants. Raises ValueError when there is none."""
    if not url:
        raise ValueError("DATABASE_URL is not set and no embedded server was started")
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+asyncpg://", url)


def is_away(error: BaseException) -> bool:
    """Whether the database is away or overloaded, so that the same statement may well succeed later."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(error, DBAPIError | asyncpg.PostgresError):
        state = str(getattr(getattr(error, "orig", error), "sqlstate", None) or "")
        # Connection trouble, conflicts between transactions, resources, restarts and time limits.
        return not state or state.startswith(("08", "25", "40", "53", "55", "57"))
    return isinstance(error, DATABASE_ERRORS)


async def _prepare_bare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        # The binary form of JSONB is a version number and the text.
        encoder=lambda value: b"\x01" + orjson.dumps(value, default=str),
        decoder=lambda value: orjson.loads(value[1:]),
        format="binary",
    )


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    """Nothing that we do outlives a transaction, so a reset would only be one more round trip."""


def _discard_broken(context: Any) -> None:
    # A restarted server breaks every pooled connection at once: drop the whole pool with the first of them.
    if context.is_disconnect:
        context.invalidate_pool_on_disconnect = True


def database(connection: HTTPConnection) -> Database:
    """FastAPI dependency: the application's database."""
    found: Database = connection.app.state.database
    return found


async def _transaction(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    async with database(connection).transaction() as session:
        yield session


# scope="function": committed before the answer leaves, so no 2xx can precede a failed commit.
Transaction = Annotated[AsyncSession, Depends(_transaction, scope="function")]
