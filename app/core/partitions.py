"""Time partitions: large tables are cut by week of their UUIDv7 key, so retention drops partitions, not rows.

A message and everything that refers to it lies in the same week of every table, as their keys carry the message's
time. Each step is a transaction of its own that waits a second at most for its locks: mail queues behind whoever
waits for a table, so a step that does not get its lock is left to the next round, an hour later.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.core import ids

# Children first: a partition may be dropped only after those whose foreign keys point into it.
TABLES = ("webhook_deliveries", "events", "attachments", "message_bodies", "deliveries", "messages")
_WEEK = timedelta(weeks=1)
_WEEKS_AHEAD = 4
_LOCK = 0x706F7374  # "post": one upkeep at a time
_STORAGE = {
    # A delivery is written once more when it is settled; room on its page keeps that from touching the indexes.
    "deliveries": "WITH (fillfactor = 75)",
    # A packed body of a usual mail fits on a page: cut up into a TOAST table it would cost five times as much.
    "message_bodies": "WITH (toast_tuple_target = 8160)",
}

log = structlog.get_logger(__name__)


async def upkeep(engine: AsyncEngine, *, now: datetime, retention_days: int) -> None:
    """Make the partitions of the weeks to come and drop the weeks that lie wholly before the retention.

    Idempotent. A week with mail that is still queued is kept. Raises DBAPIError when a coming partition is missing.
    """
    async with engine.connect() as plain:
        # No transaction around the steps: DETACH … CONCURRENTLY allows none, and locks are held for one step only.
        connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
        if not await connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _LOCK}):
            return
        try:
            async with _timeouts(connection):
                await _make_coming(connection, _monday(now))
                await _drop_old(connection, horizon=_monday(now - timedelta(days=retention_days)))
        finally:
            await connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})


@asynccontextmanager
async def _timeouts(connection: AsyncConnection) -> AsyncIterator[None]:
    await connection.execute(text("SET lock_timeout = '1s'"))
    await connection.execute(text("SET statement_timeout = 0"))
    try:
        yield
    finally:
        await connection.execute(text("RESET lock_timeout"))
        await connection.execute(text("RESET statement_timeout"))


async def _make_coming(connection: AsyncConnection, monday: datetime) -> None:
    for week in range(-1, _WEEKS_AHEAD + 1):
        start = monday + week * _WEEK
        for table in reversed(TABLES):
            name = _name(table, start)
            if await connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is not None:
                continue
            bounds = f"FROM ('{ids.floor(start)}') TO ('{ids.floor(start + _WEEK)}')"
            statement = f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES {bounds} {_STORAGE.get(table, '')}"
            try:
                await connection.execute(text(statement))
            except DBAPIError as error:
                # Weeks ahead there is time to try again; without this or the next week's, mail will stand still.
                if week <= 1:
                    raise
                log.warning("partition_not_made", partition=name, error=str(error.orig)[:200])


async def _drop_old(connection: AsyncConnection, *, horizon: datetime) -> None:
    # inhdetachpending is null for a table that was detached and then not dropped.
    found = await connection.execute(
        text(
            "SELECT c.relname, i.inhdetachpending FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid "
            "WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace AND c.relname ~ :pattern"
        ),
        {"pattern": rf"^({'|'.join(TABLES)})_p\d{{4}}w\d{{2}}$"},
    )
    weeks: dict[datetime, list[tuple[str, str, bool | None]]] = {}
    for child, is_detaching in found:
        if (week := _week_of(child)) < horizon:
            weeks.setdefault(week, []).append((child, child.rpartition("_p")[0], is_detaching))
    for week in sorted(weeks):
        if await _still_queued(connection, week):
            continue
        try:
            await _drop_week(connection, sorted(weeks[week], key=lambda row: TABLES.index(row[1])))
        except DBAPIError as error:
            log.warning("week_not_dropped", week=week.date().isoformat(), error=str(error.orig)[:200])


async def _drop_week(connection: AsyncConnection, partitions: list[tuple[str, str, bool | None]]) -> None:
    for child, table, is_detaching in partitions:
        if is_detaching is not None:
            # CONCURRENTLY: checking that nothing refers to the partition takes its time, and mail must not wait for it.
            how = "FINALIZE" if is_detaching else "CONCURRENTLY"
            await connection.execute(text(f"ALTER TABLE {table} DETACH PARTITION {child} {how}"))
        await connection.execute(text(f"DROP TABLE {child}"))


async def _still_queued(connection: AsyncConnection, week: datetime) -> bool:
    statement = "SELECT EXISTS (SELECT FROM delivery_queue WHERE delivery_id >= :first AND delivery_id < :end)"
    bounds = {"first": ids.floor(week), "end": ids.floor(week + _WEEK)}
    return bool(await connection.scalar(text(statement), bounds))


def _name(table: str, monday: datetime) -> str:
    year, week, _ = monday.isocalendar()
    return f"{table}_p{year}w{week:02d}"


def _monday(moment: datetime) -> datetime:
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day - timedelta(days=day.weekday())


def _week_of(child: str) -> datetime:
    year, week = child.rsplit("_p", 1)[1].split("w")
    return datetime.fromisocalendar(int(year), int(week), 1).replace(tzinfo=UTC)
