"""The event feed: each event once, in one order, to whoever follows, however writers overlap."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from sqlalchemy import text

from app.core.db import Database
from app.core.ids import new_id
from app.messages import feed
from app.messages.aftermath import Happening, record
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender

URL = "/api/v1/events"
WRITERS = 8
EVENTS_PER_WRITER = 25


@pytest.fixture
async def sender(client: httpx.AsyncClient, dns: DnsServer, database: Database) -> AsyncIterator[Sender]:
    found = await make_sender(client, dns)
    yield found
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :id"), {"id": found.org_id})


async def page(sender: Sender, headers: dict[str, str] | None = None, **params: Any) -> dict[str, Any]:
    response = await sender.client.get(URL, params=params, headers=headers or sender.key)
    assert response.status_code == 200, response.text
    data: dict[str, Any] = response.json()["data"]
    return data


async def everything(sender: Sender, **params: Any) -> list[dict[str, Any]]:
    """All events, page by page, until there are no more."""
    found: list[dict[str, Any]] = []
    while True:
        data = await page(sender, **params)
        found += data["events"]
        if not data["pagination"]["has_more"]:
            return found
        params["after"] = data["pagination"]["next"]


async def copy_of(database: Database, message_id: str) -> UUID:
    async with database.transaction() as session:
        statement = text("SELECT id FROM deliveries WHERE message_id = :id ORDER BY id LIMIT 1")
        return UUID(str(await session.scalar(statement, {"id": message_id})))


async def tell(connection: asyncpg.Connection, sender: Sender, copy: UUID, type: str = "opened", **data: Any) -> UUID:
    happening = Happening(sender.org_id, copy, type, datetime.now(UTC), data)
    assert await record(connection, [happening])
    return happening.event_id


def seen(events: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(event["type"], event["sequence"]) for event in events]


async def test_what_an_event_tells(sender: Sender, database: Database) -> None:
    message_id = await sender.send("ada@to.example", subject="Hello", tags=["a"], metadata={"n": 1})
    async with database.bare() as connection:
        event_id = await tell(connection, sender, await copy_of(database, message_id), "clicked", url="https://x.test/")
    queued, clicked = (await page(sender))["events"]
    assert (queued["type"], queued["sequence"]) == ("queued", 1)
    assert clicked.pop("timestamp").endswith("Z")
    assert clicked == {
        "id": str(event_id),
        "type": "clicked",
        "message_id": message_id,
        "recipient": "ada@to.example",
        "sequence": 2,
        "subject": "Hello",
        "tags": ["a"],
        "metadata": {"n": 1},
        "simulated": False,
        "url": "https://x.test/",
    }


async def test_following_page_by_page(sender: Sender, database: Database) -> None:
    empty = await page(sender)
    assert empty["events"] == []
    assert empty["pagination"]["has_more"] is False
    first, second = [await sender.send(["a@to.example", "b@to.example"]) for _ in range(2)]
    followed = await everything(sender, limit=1, after=empty["pagination"]["next"])
    assert [(event["message_id"], event["sequence"]) for event in followed] == [
        (first, 1),
        (first, 2),
        (second, 1),
        (second, 2),
    ]
    assert await everything(sender) == followed
    assert await everything(sender, limit=3) == followed
    last = (await page(sender, limit=4))["pagination"]
    assert last["has_more"] is False
    assert (await page(sender, after=last["next"]))["events"] == []
    async with database.bare() as connection:
        await tell(connection, sender, await copy_of(database, first))
    data = await page(sender, after=last["next"])
    assert seen(data["events"]) == [("opened", 3)]
    assert (await page(sender, after=data["pagination"]["next"]))["events"] == []


async def test_filters(sender: Sender, database: Database) -> None:
    first, second = [await sender.send(["a@to.example", "b@to.example"]) for _ in range(2)]
    async with database.bare() as connection:
        for message_id in (first, second, first):
            await tell(connection, sender, await copy_of(database, message_id))
    assert seen(await everything(sender, message_id=first)) == [
        ("queued", 1),
        ("queued", 2),
        ("opened", 3),
        ("opened", 4),
    ]
    assert seen(await everything(sender, type="opened", limit=2)) == [("opened", 3), ("opened", 3), ("opened", 4)]
    assert len(await everything(sender, type=["opened", "queued"])) == 7
    assert await everything(sender, type="clicked") == []
    chosen = await everything(sender, recipient="B@to.example", limit=1)
    assert [(event["recipient"], event["sequence"]) for event in chosen] == [("b@to.example", 2)] * 2
    assert await everything(sender, message_id=first, type="opened", recipient="b@to.example") == []
    before, later = [(datetime.now(UTC) + timedelta(hours=hours)).isoformat() for hours in (-1, 1)]
    assert len(await everything(sender, **{"from": before})) == 7
    assert await everything(sender, **{"from": later}) == []


async def test_a_filter_that_finds_little_still_goes_on(sender: Sender, database: Database) -> None:
    message_id = await sender.send("a@to.example")
    copy = await copy_of(database, message_id)
    async with database.bare() as connection:
        for type in ("opened", "opened", "clicked", "opened"):
            await tell(connection, sender, copy, type)
        until = await feed.horizon(connection)
        position, found = feed.START, []
        for has_more in (True, True, False):
            wanted = feed.Wanted(limit=10, scan=2, types=["clicked"])
            one = await feed.read(connection, sender.org_id, position, until, wanted)
            assert one.has_more is has_more
            position = one.next
            found += one.events
    assert [(event.type, event.sequence) for event in found] == [("clicked", 4)]


async def test_what_is_written_late_is_waited_for(sender: Sender, database: Database) -> None:
    """Of two writers the first to begin is the last to commit: a reader meets both, in one order."""
    copy = await copy_of(database, await sender.send("a@to.example"))
    start = (await page(sender))["pagination"]["next"]
    async with database.bare() as slow, database.bare() as quick:
        transaction = slow.transaction()
        await transaction.start()
        late = await tell(slow, sender, copy)
        early = await tell(quick, sender, copy)
        waiting = await page(sender, after=start)
        assert waiting["events"] == []
        await transaction.commit()
    events = (await page(sender, after=waiting["pagination"]["next"]))["events"]
    assert [event["id"] for event in events] == [str(late), str(early)]
    assert [event["sequence"] for event in events] == [2, 3]


async def test_a_follower_of_concurrent_writers_misses_nothing(sender: Sender, database: Database) -> None:
    copies = [await copy_of(database, await sender.send("a@to.example")) for _ in range(3)]
    position = feed.decode((await page(sender))["pagination"]["next"])
    written: set[UUID] = set()
    draw = random.Random(5)

    async def write() -> None:
        for _ in range(EVENTS_PER_WRITER):
            # Ids are made, and transactions begun, in another order than they end in.
            happenings = [
                Happening(sender.org_id, draw.choice(copies), "opened", datetime.now(UTC))
                for _ in range(draw.randint(1, 3))
            ]
            await asyncio.sleep(draw.uniform(0, 0.01))
            async with database.bare() as connection:
                transaction = connection.transaction()
                await transaction.start()
                await record(connection, happenings)
                await asyncio.sleep(draw.uniform(0, 0.02))
                if draw.random() < 0.1:
                    await transaction.rollback()
                    continue
                await transaction.commit()
            written.update(one.event_id for one in happenings)

    writers = asyncio.gather(*(write() for _ in range(WRITERS - 1)))
    met: list[feed.FeedEvent] = []
    while True:
        ended = writers.done()
        async with database.bare() as connection:
            until = await feed.horizon(connection)
            one = await feed.read(connection, sender.org_id, position, until, feed.Wanted(limit=7, scan=7))
        met += one.events
        position = one.next
        if ended and not one.has_more:
            break
        await asyncio.sleep(0)
    await writers
    assert len(met) == len(written)
    assert {event.id for event in met} == written
    numbers = defaultdict(list)
    for event in met:
        numbers[event.message_id].append(event.sequence)
    # The first event of each is `queued`.
    assert all(found == list(range(2, len(found) + 2)) for found in numbers.values())
    assert [event["id"] for event in await everything(sender, type="opened")] == [str(event.id) for event in met]


async def test_a_restored_database_does_not_stop_anybody(sender: Sender, database: Database) -> None:
    message_id = await sender.send("a@to.example")
    first = (await page(sender))["events"][0]
    far = feed.encode(feed.Position(2**62, UUID(first["id"])))
    copy = await copy_of(database, message_id)
    async with database.bare() as connection:
        opened = await tell(connection, sender, copy)
        # An event of the old count, which this one has not reached.
        old = await tell(connection, sender, copy)
        await connection.execute("UPDATE events SET tx = $1 WHERE id = $2", 2**61, old)
    data = await page(sender, after=far)
    assert [event["id"] for event in data["events"]] == [first["id"], str(opened)]
    assert (await page(sender, after=data["pagination"]["next"]))["events"] == []
    # What deploy/README.md says to do after a restore.
    async with database.bare() as connection:
        await connection.execute("UPDATE events SET tx = 0 WHERE id = $1", old)
    assert [event["id"] for event in (await page(sender, after=far))["events"]] == [str(old), first["id"], str(opened)]


async def test_of_a_message_that_is_gone_events_are_told_still(sender: Sender, database: Database) -> None:
    message_id = await sender.send("a@to.example", tags=["a"])
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM messages WHERE id = :id"), {"id": message_id})
    (event,) = (await page(sender))["events"]
    assert (event["sequence"], event["subject"], event["tags"], event["metadata"]) == (None, "", [], {})
    assert event["message_id"] == message_id


async def test_only_the_own_events(sender: Sender, client: httpx.AsyncClient, dns: DnsServer) -> None:
    other = await make_sender(client, dns)
    message_id = await other.send("a@to.example")
    theirs = await page(other)
    assert [event["message_id"] for event in theirs["events"]] == [message_id]
    assert await everything(sender) == []
    assert await everything(sender, message_id=message_id) == []
    await sender.send("b@to.example")
    # A cursor is a place, not a right.
    assert (await page(sender, after=theirs["pagination"]["next"]))["events"][0]["recipient"] == "b@to.example"


async def test_a_restricted_key_sees_its_domains_only(
    sender: Sender, client: httpx.AsyncClient, dns: DnsServer
) -> None:
    await sender.send("a@to.example")
    for domain, count in ((sender.domain, 1), ("elsewhere.example", 0)):
        _, secret = await helpers.mint(client, sender.user, scopes=["messages"], domains=[domain])
        data = await page(sender, {"X-API-Key": secret})
        assert len(data["events"]) == count
        assert data["pagination"]["has_more"] is False


async def test_what_is_no_cursor_and_no_filter(sender: Sender) -> None:
    for cursor in ("", "x", "AAAA", "A" * 31, "A" * 33, "é" * 32, "_" * 32, str(new_id())):
        response = await sender.client.get(URL, params={"after": cursor}, headers=sender.key)
        helpers.assert_problem(response, 422, "invalid_cursor")
    refused: list[dict[str, Any]] = [
        *({"limit": 0}, {"limit": 101}, {"type": "nothing"}, {"message_id": "x"}, {"from": "yesterday"}),
        *({"recipient": "\0"}, {"after": "A" * 65}),
    ]
    for params in refused:
        response = await sender.client.get(URL, params=params, headers=sender.key)
        assert response.status_code == 422, response.text
