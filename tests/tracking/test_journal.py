"""Every event is kept, written with others of its moment; nobody waits long for a database that is away."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from app.core.config import Settings
from app.core.db import Database
from app.core.ids import new_id
from app.messages.aftermath import Happening
from app.tracking import journal as journals
from app.tracking.journal import LOST, Journal
from tests.core.proxy import Proxy
from tests.tracking.conftest import Copy, Recipients


@pytest.fixture
async def copy(recipients: Recipients) -> Copy:
    return await recipients.copy()


def opened(copy: Copy, **data: Any) -> Happening:
    return Happening(copy.org_id, copy.id, "opened", datetime.now(UTC), data)


async def kept(database: Database, copy: Copy) -> list[Any]:
    """What `n` the copy's opens have, in the order in which they were written."""
    async with database.transaction() as session:
        found = text("SELECT data -> 'n' FROM events WHERE delivery_id = :id AND type = 'opened' ORDER BY tx, id")
        return list(await session.scalars(found, {"id": copy.id}))


def lost() -> float:
    return LOST._value.get()  # type: ignore[no-any-return]


@pytest.fixture
async def proxy(settings: Settings) -> AsyncIterator[Proxy]:
    """A proxy before the tests' Postgres."""
    directory = make_url(str(settings.database_url)).query["host"]
    async with Proxy(f"{directory}/.s.PGSQL.5432") as found:
        yield found


@pytest.fixture
async def behind(settings: Settings, proxy: Proxy) -> AsyncIterator[Database]:
    """The same database, over the proxy."""
    url = make_url(str(settings.database_url)).set(host="127.0.0.1", port=proxy.port, query={})
    found = Database(settings.model_copy(update={"database_url": url.render_as_string(hide_password=False)}))
    yield found
    await found.close()


async def test_events_of_one_moment_share_transactions(database: Database, copy: Copy) -> None:
    journal = Journal(database)
    await asyncio.gather(*(journal.keep(opened(copy, n=number)) for number in range(600)))
    assert sorted(await kept(database, copy)) == list(range(600))
    async with database.transaction() as session:
        found = text("SELECT count(DISTINCT tx) FROM events WHERE delivery_id = :id AND type = 'opened'")
        assert int(await session.scalar(found, {"id": copy.id}) or 0) <= 4


async def test_what_the_database_refuses_harms_no_other(database: Database, copy: Copy) -> None:
    journal, before = Journal(database), lost()
    # NUL is what PostgreSQL takes in no text.
    await asyncio.gather(*(journal.keep(opened(copy, n=n)) for n in (1, 2, "\x00", 3, 4)))
    assert sorted(await kept(database, copy)) == [1, 2, 3, 4]
    assert lost() - before == 1


async def test_copies_that_are_not_there_are_not_told_of(database: Database, copy: Copy) -> None:
    journal, before = Journal(database), lost()
    await journal.keep(Happening(copy.org_id, new_id(), "opened", datetime.now(UTC)))
    assert await kept(database, copy) == []
    assert lost() == before


@pytest.mark.parametrize("away", ["closed", "silent"])
async def test_nobody_waits_for_a_database_that_is_away_and_nothing_is_lost(
    database: Database, behind: Database, proxy: Proxy, copy: Copy, away: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(journals, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(journals, "_PAUSE_SECONDS", 0.05)
    journal, before = Journal(behind), lost()
    await journal.keep(opened(copy, n=0))
    proxy.change(away)
    async with asyncio.timeout(5):
        for number in range(1, 40):
            await journal.keep(opened(copy, n=number))
    assert await kept(database, copy) == [0]
    proxy.change("open")
    async with asyncio.timeout(20):
        while len(await kept(database, copy)) < 40:
            await asyncio.sleep(0.05)
    await journal.keep(opened(copy, n=40))
    assert sorted(await kept(database, copy)) == list(range(41))
    await journal.close()
    assert lost() == before


async def test_an_event_whose_answer_was_lost_is_not_written_twice(
    database: Database, behind: Database, proxy: Proxy, copy: Copy, monkeypatch: Any
) -> None:
    monkeypatch.setattr(journals, "_PAUSE_SECONDS", 0.05)
    journal = Journal(behind)
    await journal.keep(opened(copy, n=0))
    # The next statement is committed, and the connection breaks before anybody is told.
    proxy.mode = "cut"
    await journal.keep(opened(copy, n=1))
    assert proxy.connections == 2
    assert await kept(database, copy) == [0, 1]


async def test_what_waits_is_bounded_and_what_is_lost_is_counted(
    behind: Database, proxy: Proxy, copy: Copy, monkeypatch: Any
) -> None:
    monkeypatch.setattr(journals, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(journals, "_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(journals, "_WAITING_MAX", 10)
    proxy.change("closed")
    journal, before = Journal(behind), lost()
    for _ in range(25):
        await journal.keep(opened(copy))
    assert lost() - before == 15
    await journal.close()
    assert lost() - before == 25
