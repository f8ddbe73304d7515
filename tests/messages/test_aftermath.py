"""What is learnt of a copy later: told once, and only of what is there."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from app.core.db import Database
from app.core.ids import new_id
from app.messages.aftermath import Happening, Told, record
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender


@pytest.fixture
async def sender(client: httpx.AsyncClient, dns: DnsServer) -> Sender:
    return await make_sender(client, dns)


async def copies(database: Database, sender: Sender, *recipients: str, status: str = "delivered") -> list[UUID]:
    """The deliveries of one message, all in this state and out of the queue."""
    values = {"org": sender.org_id, "message": await sender.send(list(recipients)), "status": status}
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :org"), values)
        await session.execute(
            text("UPDATE deliveries SET status = :status WHERE org_id = :org AND message_id = :message"), values
        )
        found = text("SELECT id FROM deliveries WHERE org_id = :org AND message_id = :message ORDER BY id")
        return list(await session.scalars(found, values))


async def tell(database: Database, *happenings: Happening) -> list[Told]:
    async with database.bare() as connection:
        return await record(connection, happenings)


def now() -> datetime:
    return datetime.now(UTC)


async def state(database: Database, delivery_id: UUID) -> tuple[str, str | None, str | None, list[str]]:
    async with database.transaction() as session:
        row = (
            await session.execute(
                text("SELECT status, last_response, category FROM deliveries WHERE id = :id"), {"id": delivery_id}
            )
        ).one()
        types = await session.scalars(
            text("SELECT type FROM events WHERE delivery_id = :id AND type <> 'queued' ORDER BY tx, id"),
            {"id": delivery_id},
        )
        return (*row, list(types))


async def test_a_late_bounce_is_told_and_moves_the_copy_once(database, sender):
    (first, second) = await copies(database, sender, "a@example.com", "b@example.com")
    data: dict[str, Any] = {"response": "550 5.1.1 unknown", "category": "bad_mailbox"}
    told = await tell(
        database,
        Happening(sender.org_id, first, "hard_bounced", now(), data),
        Happening(sender.org_id, first, "hard_bounced", now(), {"response": "again"}),
    )
    assert [(one.recipient, one.is_simulated) for one in told] == [("a@example.com", False)]
    assert await state(database, first) == ("hard_bounced", "550 5.1.1 unknown", "bad_mailbox", ["hard_bounced"])
    assert await tell(database, Happening(sender.org_id, first, "hard_bounced", now(), data)) == []
    assert await tell(database, Happening(sender.org_id, first, "complained", now())) == []
    assert (await state(database, second))[3] == []


async def test_opens_and_clicks_are_told_each_time_and_move_nothing(database, sender):
    (copy,) = await copies(database, sender, "a@example.com", status="complained")
    happenings = [Happening(sender.org_id, copy, type, now(), {"n": type}) for type in ("opened", "opened", "clicked")]
    assert [one.happening for one in await tell(database, *happenings)] == happenings
    assert await state(database, copy) == ("complained", None, None, ["opened", "opened", "clicked"])


async def test_nothing_is_told_of_what_is_not_there_or_anothers(client, dns, database, sender):
    (copy,) = await copies(database, sender, "a@example.com")
    other = await make_sender(client, dns)
    strangers = [(other.org_id, copy), (sender.org_id, new_id())]
    for org_id, delivery_id in strangers:
        for type in ("hard_bounced", "complained", "opened"):
            assert await tell(database, Happening(org_id, delivery_id, type, now())) == []
    assert await state(database, copy) == ("delivered", None, None, [])


async def told_data(database: Database, copy: UUID) -> list[Any]:
    async with database.transaction() as session:
        found = text("SELECT data FROM events WHERE delivery_id = :id AND type <> 'queued' ORDER BY tx, id")
        return list(await session.scalars(found, {"id": copy}))


async def test_what_comes_too_soon_for_a_person_is_told_so(database, sender):
    (copy,) = await copies(database, sender, "a@example.com")
    delivered_at = now()

    def click(seconds: float) -> Happening:
        at = delivered_at + timedelta(seconds=seconds)
        return Happening(sender.org_id, copy, "clicked", at, {"n": 1}, early={"soon": True})

    # Nobody has heard yet that it was delivered.
    await tell(database, click(60))
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE deliveries SET settled_at = :at WHERE id = :id"), {"at": delivered_at, "id": copy}
        )
    await tell(database, click(-1), click(1.9), click(2.1))
    early = {"n": 1, "soon": True}
    assert await told_data(database, copy) == [early, early, early, {"n": 1}]


async def test_what_may_have_been_told_before_is_told_once(database, sender):
    (copy,) = await copies(database, sender, "a@example.com")
    first, second = (Happening(sender.org_id, copy, "opened", now(), {"n": n}) for n in (1, 2))
    await tell(database, first)
    async with database.bare() as connection:
        told = await record(connection, [first, second], again=True)
        assert [one.happening for one in told] == [second]
        assert await record(connection, [first, second], again=True) == []
    assert await told_data(database, copy) == [{"n": 1}, {"n": 2}]
