"""Mail of the same moment is stored together, and nobody's trouble is anybody else's."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import httpx
import pytest
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.domains.service import SendingDomain
from app.messages import accept
from app.messages.intake import Intake, Tables
from app.messages.schemas import SendRequest
from app.vmtas.choice import Fleet
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender


@pytest.fixture(scope="module")
async def sender(client: httpx.AsyncClient, dns: DnsServer) -> Sender:
    return await make_sender(client, dns)


def tables(sender: Sender, settings: Settings, *, subject: str = "A mail", mails: int = 1) -> Tables:
    terms = accept.Terms(datetime.now(UTC), settings, Fleet([]))
    domain = SendingDomain(sender.org_id, UUID(sender.domain_id), sender.domain)
    request = SendRequest.model_validate(sender.mail("ada@example.net"))
    found = accept.rows([(accept.check(request, terms), domain) for _ in range(mails)], terms)
    for message in found["messages"]:
        message["subject"] = subject
    return found


async def stored(database: Database, *given: Tables) -> list[dict[str, int]]:
    """How many rows of each request there are, by table."""
    counts = []
    async with database.transaction() as session:
        for one in given:
            ids = [message["id"] for message in one["messages"]]
            found = {}
            for name, column in (
                ("messages", "id"),
                ("message_bodies", "message_id"),
                ("delivery_queue", "message_id"),
            ):
                statement = text(f"SELECT count(*) FROM {name} WHERE {column} = ANY(:ids)")
                found[name] = int(await session.scalar(statement, {"ids": ids}) or 0)
            counts.append(found)
    return counts


def whole(count: int) -> dict[str, int]:
    return {"messages": count, "message_bodies": count, "delivery_queue": count}


@pytest.mark.parametrize("mails", [1, 30], ids=["by one statement", "by COPY"])
async def test_what_the_database_refuses_harms_no_other_request(
    sender: Sender, settings: Settings, database: Database, mails: int
) -> None:
    rings: list[int] = []
    intake = Intake(database, lambda: rings.append(1))
    # NUL is what PostgreSQL takes in no text.
    good = [tables(sender, settings, mails=mails) for _ in range(4)]
    bad = tables(sender, settings, subject="\x00", mails=mails)
    answers = await asyncio.gather(*(intake.store(one) for one in (*good[:2], bad, *good[2:])), return_exceptions=True)
    assert [answer == frozenset() for answer in answers] == [True, True, False, True, True]
    assert isinstance(answers[2], asyncpg.DataError)
    assert await stored(database, *good, bad) == [whole(mails)] * 4 + [whole(0)]
    assert rings


async def test_requests_of_one_moment_share_transactions(
    sender: Sender, settings: Settings, database: Database
) -> None:
    rings: list[int] = []
    intake = Intake(database, lambda: rings.append(1))
    given = [tables(sender, settings) for _ in range(64)]
    await asyncio.gather(*map(intake.store, given))
    assert await stored(database, *given) == [whole(1)] * 64
    assert len(rings) <= 4


async def test_who_goes_away_does_not_take_the_others_with_them(
    sender: Sender, settings: Settings, database: Database
) -> None:
    intake = Intake(database, lambda: None)
    given = [tables(sender, settings) for _ in range(8)]
    storing = [asyncio.create_task(intake.store(one)) for one in given]
    await asyncio.sleep(0)
    storing[3].cancel()
    answers = await asyncio.gather(*storing, return_exceptions=True)
    assert [type(answer) for answer in answers if answer != frozenset()] == [asyncio.CancelledError]
    # It was asked for, and nobody was told that it failed.
    assert await stored(database, *given) == [whole(1)] * 8


async def test_while_the_database_is_away_all_are_told(sender: Sender, settings: Settings, tmp_path: object) -> None:
    away = Database(settings.model_copy(update={"database_url": f"postgresql://postgres@/x?host={tmp_path}"}))
    intake = Intake(away, lambda: None)
    answers = await asyncio.gather(*(intake.store(tables(sender, settings)) for _ in range(8)), return_exceptions=True)
    assert all(isinstance(answer, OSError) for answer in answers)
    await away.close()
