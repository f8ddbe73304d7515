"""Partitions by week: made ahead, dropped when old, kept while mail that waits needs them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.core import ids, partitions
from app.core.config import Settings
from tests.factories.databases import own_database

# A Sunday, one minute before midnight: what happens next happens in the next week.
SUNDAY = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)
MONDAY = datetime(2026, 3, 2, 0, 1, tzinfo=UTC)
ORGANIZATION = UUID(int=1)
DOMAIN = UUID(int=2)
TABLES = ("messages", "message_bodies", "attachments", "deliveries", "events", "webhook_deliveries")


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """A database of its own that was set up on that Sunday."""
    async with own_database(settings, now=SUNDAY) as own:
        found = create_async_engine(str(own.database_url))
        yield found
        await found.dispose()


async def upkeep(engine: AsyncEngine, now: datetime) -> None:
    await partitions.upkeep(engine, now=now, retention_days=90)


async def names(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        join = "pg_inherits JOIN pg_class ON pg_class.oid = inhrelid AND relkind = 'r'"
        return set(await connection.scalars(text(f"SELECT relname FROM {join}")))


async def counts(engine: AsyncEngine) -> dict[str, int]:
    counting = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in (*TABLES, "delivery_queue"))
    async with engine.connect() as connection:
        return dict((await connection.execute(text(counting))).tuples().all())


def week(moment: datetime) -> str:
    year, number, _ = moment.isocalendar()
    return f"p{year}w{number:02d}"


async def put_message(engine: AsyncEngine, moment: datetime, *, queued: bool = False) -> None:
    """One message of that moment with a row in every table."""
    message_id = ids.floor(moment)
    delivery_id, event_id = ids.siblings(message_id, 2)
    values = {"org": ORGANIZATION, "domain": DOMAIN, "message": message_id, "now": moment}
    values |= {"delivery": delivery_id, "event": event_id}
    statements = """
        INSERT INTO organizations (id, name) VALUES (:org, 'o') ON CONFLICT DO NOTHING;
        INSERT INTO domains (org_id, id, name, dkim_selector) VALUES (:org, :domain, 'd.example', 's')
            ON CONFLICT DO NOTHING;
        INSERT INTO messages (org_id, id, domain_id, sender, "to", subject, track_opens, track_clicks, size_bytes)
            VALUES (:org, :message, :domain, '{}', '[]', 's', false, false, 1);
        INSERT INTO message_bodies (org_id, message_id, content) VALUES (:org, :message, '');
        INSERT INTO attachments (org_id, message_id, position, filename, content_type, content)
            VALUES (:org, :message, 0, 'f', 'text/plain', '');
        INSERT INTO deliveries (org_id, id, message_id, kind, recipient, status)
            VALUES (:org, :delivery, :message, 'to', 'a@b.example', 'queued');
        INSERT INTO events (org_id, id, message_id, delivery_id, type, recipient, occurred_at)
            VALUES (:org, :event, :message, :delivery, 'queued', 'a@b.example', :now);
        INSERT INTO webhook_deliveries (org_id, id, webhook_id, event_id, event_type, payload)
            VALUES (:org, :event, :org, :event, 'message.queued', '')
    """
    if queued:
        statements += """;
            INSERT INTO delivery_queue
                (org_id, delivery_id, message_id, recipient, domain, size_bytes, next_attempt_at, give_up_at)
                VALUES (:org, :delivery, :message, 'a@b.example', 'b.example', 1, :now, :now)
        """
    async with engine.begin() as connection:
        for statement in statements.split(";"):
            await connection.execute(text(statement), values)


async def test_upkeep_makes_last_week_this_and_four_more_of_each_table(engine: AsyncEngine):
    before = await names(engine)
    weeks = {week(SUNDAY + timedelta(weeks=number)) for number in range(-1, 5)}
    assert before == {f"{table}_{one}" for table in TABLES for one in weeks}
    await upkeep(engine, SUNDAY)
    assert await names(engine) == before
    await upkeep(engine, MONDAY)
    assert await names(engine) == before | {f"{table}_{week(MONDAY + timedelta(weeks=4))}" for table in TABLES}


async def test_the_53rd_week(engine: AsyncEngine):
    """ISO weeks of 2026 reach into 2027."""
    new_year = datetime(2027, 1, 2, tzinfo=UTC)
    await upkeep(engine, new_year)
    assert {"messages_p2026w53", "messages_p2027w01"} <= await names(engine)
    await put_message(engine, new_year)
    await put_message(engine, datetime(2027, 1, 4, tzinfo=UTC))
    assert set((await counts(engine)).items()) >= {(table, 2) for table in TABLES}


async def test_old_weeks_are_dropped_and_younger_ones_kept(engine: AsyncEngine):
    await put_message(engine, SUNDAY)
    await put_message(engine, MONDAY)
    later = SUNDAY + timedelta(days=90)
    await upkeep(engine, later)
    assert set((await counts(engine)).items()) >= {(table, 2) for table in TABLES}
    await upkeep(engine, later + timedelta(weeks=1))
    assert set((await counts(engine)).items()) >= {(table, 1) for table in TABLES}
    await upkeep(engine, later + timedelta(weeks=2))
    assert set((await counts(engine)).values()) == {0}
    found = await names(engine)
    assert not {f"{table}_{week(moment)}" for table in TABLES for moment in (SUNDAY, MONDAY)} & found
    assert {f"{table}_{week(later)}" for table in TABLES} <= found


async def test_mail_that_still_waits_is_kept_whole(engine: AsyncEngine):
    """Its body and attachments too, which no foreign key holds. Other weeks are dropped all the same."""
    await put_message(engine, SUNDAY, queued=True)
    await put_message(engine, MONDAY)
    later = SUNDAY + timedelta(days=365)
    await upkeep(engine, later)
    assert await counts(engine) == dict.fromkeys((*TABLES, "delivery_queue"), 1)
    assert f"messages_{week(MONDAY)}" not in await names(engine)
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM delivery_queue"))
    await upkeep(engine, later)
    assert set((await counts(engine)).values()) == {0}


async def test_who_reads_for_long_is_not_disturbed_and_holds_nobody_up(engine: AsyncEngine):
    await put_message(engine, SUNDAY)
    later = SUNDAY + timedelta(days=365)
    await partitions.upkeep(engine, now=later, retention_days=3650)
    async with engine.connect() as reader:
        await reader.execute(text("SELECT 1 FROM messages"))
        async with asyncio.timeout(15):
            await upkeep(engine, later)
        # Mail is accepted meanwhile.
        async with asyncio.timeout(5):
            await put_message(engine, later)
        assert (await reader.execute(text("SELECT 1 FROM messages"))).all()
    await upkeep(engine, later)
    assert set((await counts(engine)).items()) >= {(table, 1) for table in TABLES}
    assert f"messages_{week(SUNDAY)}" not in await names(engine)


async def test_several_at_once(engine: AsyncEngine):
    later = SUNDAY + timedelta(days=200)
    await asyncio.gather(*(upkeep(engine, later) for _ in range(4)))
    assert {f"{table}_{week(later)}" for table in TABLES} <= await names(engine)
    assert f"messages_{week(SUNDAY)}" not in await names(engine)
