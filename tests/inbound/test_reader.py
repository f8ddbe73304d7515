"""The reader by itself: leases, mails that are hard to read, copies that are still on their way."""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.core.ids import floor, new_id
from app.inbound import queries, reader, service
from app.inbound.keeper import Keeper, unpack
from app.inbound.reader import Reader
from app.mail import report
from tests.factories.senders import Sender
from tests.inbound.house import Copy, copies, dsn, mail_of, reason, state


@pytest.fixture
async def unread(database: Database) -> None:
    """Nothing of other tests waits to be read."""
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM inbound_mails"))


@pytest.fixture
def reading(settings: Settings, database: Database, unread: None) -> Reader:
    """A reader that does what it is told to."""
    return Reader(settings, database)


async def keep(database: Database, *recipients: str, content: bytes) -> UUID:
    keeper = Keeper(database, lambda: None)
    facts = {"client_address": "192.0.2.1", "helo": "mx.example.net", "mail_from": ""}
    return UUID(await keeper.keep(content, recipients=list(recipients), **facts))


async def row(database: Database, mail_id: UUID) -> Any:
    return await mail_of(database, f"250 2.0.0 Kept as {mail_id}")


async def make_due(database: Database, *mail_ids: UUID, came_before: timedelta = timedelta()) -> None:
    """As if leases and pauses had passed, of all mails unless some are given, and they had come earlier."""
    async with database.transaction() as session:
        statement = (
            "UPDATE inbound_mails SET next_attempt_at = now(), received_at = received_at - CAST(:before AS interval) "
            "WHERE next_attempt_at IS NOT NULL AND (cardinality(CAST(:ids AS uuid[])) = 0 OR id = ANY(:ids))"
        )
        await session.execute(text(statement), {"before": came_before, "ids": list(mail_ids)})


async def bounce(database: Database, copy: Copy) -> UUID:
    return await keep(database, copy.return_path, content=dsn(copy.recipient))


async def test_a_mail_that_cannot_be_read_is_put_aside_and_holds_up_no_other(
    reading: Reader, sender: Sender, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await copies(database, sender, 2)
    whole = report.read

    def crash_at_poison(octets: bytes) -> report.Report:
        if octets.startswith(b"poison"):
            raise MemoryError("poison")
        return whole(octets)

    monkeypatch.setattr(report, "read", crash_at_poison)
    good = await bounce(database, first)
    bad = await keep(database, first.return_path, content=b"poison\r\n")
    assert await reading.read_some() == 2
    later = await bounce(database, second)
    assert await reading.read_some() == 1
    for mail_id in (good, later):
        assert (await row(database, mail_id))["verdict"] == "applied"
    for attempt in (1, 2):
        found = await row(database, bad)
        assert (found["attempt"], found["verdict"], found["lease_token"]) == (attempt, None, None)
        assert found["next_attempt_at"] > datetime.now(UTC) + timedelta(seconds=20)
        await make_due(database)
        assert await reading.read_some() == 1
    found = await row(database, bad)
    assert (found["kind"], found["verdict"], found["next_attempt_at"]) == ("unknown", "unreadable", None)
    assert await reading.read_some() == 0


async def test_a_mail_that_ends_its_readers_is_put_aside_and_its_neighbours_are_not(
    reading: Reader, sender: Sender, database: Database
) -> None:
    copy, other = await copies(database, sender, 2)
    bad, good = await bounce(database, copy), await bounce(database, other)

    async def claim_and_die(*, again: bool) -> int:
        async with database.bare() as connection:
            found = await queries.claim(
                connection, again=again, batch=10, size_bytes=10**6, lease_token=new_id(), lease_seconds=60
            )
        return len(found)

    assert await claim_and_die(again=False) == 2
    for _ in range(2):
        await make_due(database, bad)
        assert await claim_and_die(again=True) == 1
    assert await reading.read_some() == 0
    await make_due(database)
    # One by one, so that nobody ends with another.
    assert [await reading.read_some() for _ in range(3)] == [1, 1, 0]
    assert (await row(database, bad))["verdict"] == "unreadable"
    assert (await row(database, good))["verdict"] == "applied"
    assert (await state(database, copy), await state(database, other)) == (
        ("delivered", []),
        ("hard_bounced", ["hard_bounced"]),
    )


async def test_a_reader_that_lost_its_lease_writes_nothing(
    reading: Reader, sender: Sender, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy,) = await copies(database, sender)
    mail_id = await bounce(database, copy)
    # Another has claimed it meanwhile.
    real_settle = reader.settle

    async def steal_first(connection: Any, *arguments: Any) -> None:
        await connection.execute("UPDATE inbound_mails SET lease_token = $1 WHERE id = $2", new_id(), mail_id)
        await real_settle(connection, *arguments)

    monkeypatch.setattr(reader, "settle", steal_first)
    assert await reading.read_some() == 1
    assert (await row(database, mail_id))["verdict"] is None
    assert await state(database, copy) == ("delivered", [])
    monkeypatch.undo()
    await make_due(database)
    assert await reading.read_some() == 1
    assert (await row(database, mail_id))["verdict"] == "applied"


async def test_what_the_database_refuses_holds_up_no_other(
    reading: Reader, sender: Sender, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await copies(database, sender, 2)
    whole = report.read

    def with_nul(octets: bytes) -> report.Report:
        found = whole(octets)
        if first.recipient.encode() in octets:
            # What no text in PostgreSQL may hold.
            object.__setattr__(found.recipients[0], "diagnostic", "\x00")
        return found

    monkeypatch.setattr(report, "read", with_nul)
    bad, good = await bounce(database, first), await bounce(database, second)
    assert await reading.read_some() == 2
    assert (await row(database, good))["verdict"] == "applied"
    assert (await row(database, bad))["verdict"] is None
    for _ in range(2):
        await make_due(database)
        await reading.read_some()
    assert (await row(database, bad))["verdict"] == "unreadable"
    assert await state(database, first) == ("delivered", [])


async def test_a_copy_that_is_still_on_its_way_is_waited_for(
    reading: Reader, sender: Sender, database: Database
) -> None:
    (copy,) = await copies(database, sender, status="queued")
    mail_id = await bounce(database, copy)
    assert await reading.read_some() == 1
    found = await row(database, mail_id)
    assert (found["attempt"], found["verdict"], found["lease_token"]) == (0, None, None)
    assert await reading.read_some() == 0
    assert await state(database, copy) == ("queued", [])
    # The host's word was only just being written down.
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE deliveries SET status = 'delivered' WHERE org_id = :org AND id = :id"),
            {"org": copy.org_id, "id": copy.id},
        )
    await make_due(database)
    assert await reading.read_some() == 1
    assert await state(database, copy) == ("hard_bounced", ["hard_bounced"])


@pytest.mark.parametrize("status", ["queued", "deferred", "soft_bounced", "pending", "held"])
async def test_what_is_said_of_a_copy_that_is_not_delivered_is_absorbed(
    reading: Reader, sender: Sender, database: Database, status: str
) -> None:
    (copy,) = await copies(database, sender, status=status)
    mail_id = await bounce(database, copy)
    await make_due(database, came_before=timedelta(minutes=16))
    assert await reading.read_some() == 1
    assert (await row(database, mail_id))["verdict"] == "absorbed"
    assert await state(database, copy) == (status, [])
    assert await reason(database, copy) is None


async def test_batches_are_bounded_in_size(database: Database, unread: None) -> None:
    for _ in range(5):
        await keep(database, "postmaster", content=new_id().bytes * 10)
    token = new_id()

    async def claim(size_bytes: int) -> int:
        async with database.bare() as connection:
            found = await queries.claim(
                connection, again=False, batch=10, size_bytes=size_bytes, lease_token=token, lease_seconds=60
            )
        return len(found)

    # One at least, however large.
    assert [await claim(1), await claim(60), await claim(10**6), await claim(10**6)] == [1, 2, 2, 0]


async def test_of_a_large_mail_nothing_is_kept_once_it_was_read(reading: Reader, database: Database) -> None:
    octets = secrets.token_bytes(queries.KEPT_BYTES_MAX)
    large = await keep(database, "postmaster", content=octets)
    small = await keep(database, "postmaster", content=octets[:-100])
    assert await reading.read_some() == 2
    assert (await row(database, large))["content"] == b""
    assert unpack((await row(database, small))["content"]) == octets[:-100]


async def test_what_was_read_is_forgotten_after_two_weeks(database: Database, unread: None) -> None:
    async with database.transaction() as session:
        for age_days, due in ((13, "NULL"), (15, "NULL"), (15, "now()"), (400, "now()")):
            identifier = floor(datetime.now(UTC) - timedelta(days=age_days)).int + new_id().int % 2**74
            await session.execute(
                text(
                    "INSERT INTO inbound_mails (id, client_address, helo, mail_from, recipients, content, "
                    f"next_attempt_at) VALUES (:id, '', '', '', '{{}}', '', {due})"
                ),
                {"id": UUID(int=identifier)},
            )
    await service.upkeep(database)
    async with database.transaction() as session:
        assert await session.scalar(text("SELECT count(*) FROM inbound_mails")) == 3
        overview = await service.overview(session)
        assert overview.unread == 2
        await session.execute(text("DELETE FROM inbound_mails"))
