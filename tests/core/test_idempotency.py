"""Idempotency-Key: one effect for one key, whatever happens between the question and the answer."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text, update

from app.core.config import Settings
from app.core.db import Database
from app.core.idempotency import IdempotencyKey
from app.core.ids import new_id
from app.delivery import service as delivery
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender
from tests.messages.refusals import nothing_stored, stored

SEND = "/api/v1/messages/send"
CALLS = 100


@pytest.fixture
async def sender(client: httpx.AsyncClient, dns: DnsServer, database: Database) -> AsyncIterator[Sender]:
    found = await make_sender(client, dns)
    yield found
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :org_id"), {"org_id": found.org_id})


def new_key() -> dict[str, str]:
    return {"Idempotency-Key": str(new_id())}


def replayed(response: httpx.Response) -> bool:
    return response.headers.get("Idempotency-Replayed") == "true"


def message_id(response: httpx.Response) -> str:
    assert response.status_code == 202, response.text
    return str(response.json()["data"]["message"]["id"])


async def test_a_hundred_at_once_make_one_message(database: Database, sender: Sender):
    key, body = new_key(), sender.mail(["a@b.example", "c@d.example"])
    answers = await asyncio.gather(*(sender.post(body, **key) for _ in range(CALLS)))
    accepted = [answer for answer in answers if answer.status_code == 202]
    others = [answer for answer in answers if answer.status_code != 202]
    assert len({message_id(answer) for answer in accepted}) == 1
    assert [replayed(answer) for answer in accepted].count(False) == 1
    for answer in others:
        helpers.assert_problem(answer, 409, "idempotency_in_progress")
    rows = await stored(database, sender.org_id)
    assert rows | {"messages": 1, "deliveries": 2, "delivery_queue": 2, "events": 2, "idempotency_keys": 1} == rows
    late = await sender.post(body, **key)
    assert replayed(late)
    assert late.json() == accepted[0].json()
    async with nothing_stored(database, sender.org_id):
        helpers.assert_problem(await sender.post(body | {"subject": "Other"}, **key), 422, "idempotency_key_reused")


async def test_without_a_key_every_request_counts(sender: Sender):
    body = sender.mail("a@b.example")
    assert len({message_id(await sender.post(body)) for _ in range(3)}) == 3


async def test_keys_are_an_organizations_and_a_routes_own(sender: Sender, client: httpx.AsyncClient, dns: DnsServer):
    key = new_key()
    first = message_id(await sender.post(sender.mail("a@b.example"), **key))
    other = await make_sender(client, dns)
    answer = await other.post(other.mail("a@b.example", scheduled_at=None), **key)
    assert message_id(answer) != first
    assert not replayed(answer)
    minted = await client.post("/api/v1/api-keys", json={"name": "k"}, headers=sender.key | key)
    assert (minted.status_code, replayed(minted)) == (201, False)


async def test_an_answer_is_for_who_asked_first(sender: Sender, client: httpx.AsyncClient):
    """It may hold a secret: another caller of the organization is refused."""
    key, body = new_key(), {"name": "k", "scopes": ["send"]}
    first = await client.post("/api/v1/api-keys", json=body, headers=sender.user | key)
    again = await client.post("/api/v1/api-keys", json=body, headers=sender.user | key)
    assert again.json()["data"]["secret"] == first.json()["data"]["secret"]
    other = await client.post("/api/v1/api-keys", json=body, headers=sender.key | key)
    helpers.assert_problem(other, 422, "idempotency_key_reused")
    assert "secret" not in other.text


async def test_answers_lie_sealed(database: Database, sender: Sender, client: httpx.AsyncClient):
    minted = await client.post("/api/v1/api-keys", json={"name": "k"}, headers=sender.user | new_key())
    secret = minted.json()["data"]["secret"].encode()
    async with database.transaction() as session:
        statement = text("SELECT answer, request_digest FROM idempotency_keys WHERE org_id = :org_id")
        rows = (await session.execute(statement, {"org_id": sender.org_id})).all()
    assert len(rows) == 1
    assert not any(secret in part or b"pmta_" in part for row in rows for part in row)


async def test_refusals_are_not_kept(database: Database, sender: Sender):
    """Invalid, unverified, conflicting: after the cause is mended the same key works."""
    key = new_key()
    body = sender.mail("a@b.example")
    async with nothing_stored(database, sender.org_id):
        assert (await sender.post(body | {"subject": "a\r\nb"}, **key)).status_code == 422
        assert (await sender.post(body | {"from": "a@elsewhere.example"}, **key)).status_code == 422
        assert (await sender.post(body | {"expires_at": "2020-01-01T00:00:00Z"}, **key)).status_code == 422
    assert not replayed(await sender.post(body, **key))


async def test_a_conflict_is_not_kept(sender: Sender):
    key, url = new_key(), "/api/v1/domains"
    body: dict[str, Any] = {"domain": sender.domain}
    helpers.assert_problem(await sender.client.post(url, json=body, headers=sender.key | key), 409, "domain_exists")
    await sender.client.delete(f"{url}/{sender.domain_id}", headers=sender.key)
    created = await sender.client.post(url, json=body, headers=sender.key | key)
    assert (created.status_code, replayed(created)) == (201, False)


async def test_429_is_not_kept(app, settings: Settings, sender: Sender):
    key, body = new_key(), sender.mail("a@b.example")
    app.state.settings = settings.model_copy(update={"rate_limit_key_per_minute": 1})
    try:
        await sender.post(body)
        helpers.assert_problem(await sender.post(body, **key), 429, "rate_limited")
    finally:
        app.state.settings = settings
    assert not replayed(await sender.post(body, **key))


async def _waiting_backend(database: Database) -> int:
    """The process of the connection that waits for a lock on `messages`."""
    statement = text("SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'messages'::regclass")
    async with asyncio.timeout(10), database.transaction() as session:
        while not (pid := await session.scalar(statement)):
            await asyncio.sleep(0.02)
    return int(pid)


async def test_a_crash_in_the_middle_leaves_nothing(database: Database, sender: Sender):
    key, body = new_key(), sender.mail("a@b.example")
    before = await stored(database, sender.org_id)
    async with database.engine.connect() as connection:
        await connection.execute(text("LOCK TABLE messages IN SHARE MODE"))
        first = asyncio.create_task(sender.post(body, **key))
        pid = await _waiting_backend(database)
        # The first has begun and not ended.
        helpers.assert_problem(await sender.post(body, **key), 409, "idempotency_in_progress")
        await connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        helpers.assert_problem(await first, 503, "database_unavailable")
        await connection.rollback()
    assert await stored(database, sender.org_id) == before
    second = await sender.post(body, **key)
    assert not replayed(second)
    assert message_id(await sender.post(body, **key)) == message_id(second)
    assert (await stored(database, sender.org_id))["messages"] == 1


async def test_a_key_is_forgotten_after_a_day(database: Database, sender: Sender):
    keys, body = [new_key(), new_key()], sender.mail("a@b.example")
    first = [message_id(await sender.post(body, **key)) for key in keys]
    for key, age in zip(keys, (timedelta(hours=23, minutes=59), timedelta(hours=24, minutes=1)), strict=True):
        mine = IdempotencyKey.org_id == sender.org_id, IdempotencyKey.key == key["Idempotency-Key"]
        async with database.transaction() as session:
            await session.execute(update(IdempotencyKey).where(*mine).values(created_at=datetime.now(UTC) - age))
    await delivery.sweep(database)
    second = [message_id(await sender.post(body, **key)) for key in keys]
    assert second[0] == first[0]
    assert second[1] != first[1]
