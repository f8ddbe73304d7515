"""Time partitions: large tables are cut by week of their UUIDv7 key, so retention drops partitions, not rows."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core import ids

# Children first: a partition may be dropped only after those whose foreign keys point into it.
TABLES = ("events", "attempts", "attachments", "message_bodies", "deliveries", "messages")
# A delivery is written once more when it is settled; room on its page keeps that from touching the indexes.
_STORAGE = {"deliveries": "WITH (fillfactor = 75)"}
_WEEK = timedelta(weeks=1)
_WEEKS_AHEAD = 4
_LOCK = 0x706F7374  # "post": one upkeep at a time


def _name(table: str, monday: datetime) -> str:
    year, week, _ = monday.isocalendar()
    return f"{table}_p{year}w{week:02d}"


def _monday(moment: datetime) -> datetime:
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day - timedelta(days=day.weekday())


async def upkeep(connection: AsyncConnection, *, now: datetime, retention_days: int) -> None:
    """Make the partitions of the weeks to come and drop those wholly older than the retention.

    Idempotent. A partition that a live queue row still needs is refused by its foreign key and kept.
    """
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    start = _monday(now) - _WEEK
    for table in reversed(TABLES):
        for week in range(_WEEKS_AHEAD + 2):
            monday = start + week * _WEEK
            bounds = f"FROM ('{ids.floor(monday)}') TO ('{ids.floor(monday + _WEEK)}')"
            partition = f"{_name(table, monday)} PARTITION OF {table} FOR VALUES {bounds}"
            await connection.execute(text(f"CREATE TABLE IF NOT EXISTS {partition} {_STORAGE.get(table, '')}"))
    await _drop_old(connection, horizon=_monday(now - timedelta(days=retention_days)))


async def _drop_old(connection: AsyncConnection, *, horizon: datetime) -> None:
    found = await connection.execute(
        text(
            "SELECT c.relname, p.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "JOIN pg_class p ON p.oid = i.inhparent WHERE p.relname = ANY(:tables) AND c.relname LIKE '%\\_p____w__'"
        ),
        {"tables": list(TABLES)},
    )
    old = [(child, table) for child, table in found if _week_of(child) < horizon]
    for child, table in sorted(old, key=lambda pair: TABLES.index(pair[1])):
        if table == "deliveries" and await _still_queued(connection, child):
            return
        await connection.execute(text(f"ALTER TABLE {table} DETACH PARTITION {child}"))
        await connection.execute(text(f"DROP TABLE {child}"))


def _week_of(child: str) -> datetime:
    year, week = child.rsplit("_p", 1)[1].split("w")
    return datetime.fromisocalendar(int(year), int(week), 1).replace(tzinfo=UTC)


async def _still_queued(connection: AsyncConnection, child: str) -> bool:
    # The name comes from the catalogue, not from a user.
    join = f"delivery_queue q JOIN {child} d ON d.org_id = q.org_id AND d.id = q.delivery_id"
    return bool(await connection.scalar(text(f"SELECT EXISTS (SELECT FROM {join})")))  # noqa: S608
