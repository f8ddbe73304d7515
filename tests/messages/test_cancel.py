"""Cancelling what waits, and nothing else; also while workers claim it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.core.db import Database
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender, new_domain

_CLAIM = (
    "WITH picked AS MATERIALIZED (SELECT delivery_id FROM delivery_queue WHERE org_id = :org_id "
    "AND next_attempt_at <= now() LIMIT :count FOR UPDATE SKIP LOCKED) "
    "UPDATE delivery_queue q SET lease_token = gen_random_uuid(), attempt = attempt + 1, "
    "next_attempt_at = now() + interval '1 minute' "
    "FROM picked WHERE q.org_id = :org_id AND q.delivery_id = picked.delivery_id"
)


@pytest.fixture
async def sender(client: httpx.AsyncClient, dns: DnsServer, database: Database) -> AsyncIterator[Sender]:
    found = await make_sender(client, dns)
    yield found
    await run(database, "DELETE FROM delivery_queue WHERE org_id = :org_id", org_id=found.org_id)


async def run(database: Database, statement: str, **values: Any) -> list[Any]:
    async with database.transaction() as session:
        result = await session.execute(text(statement), values)
        return list(result) if result.returns_rows else []


async def cancel(sender: Sender, message_id: str, headers: dict[str, str] | None = None) -> httpx.Response:
    url = f"/api/v1/messages/{message_id}/cancel"
    return await sender.client.post(url, headers=headers or sender.key)


async def queued(database: Database, sender: Sender) -> int:
    rows = await run(database, "SELECT count(*) FROM delivery_queue WHERE org_id = :org_id", org_id=sender.org_id)
    count: int = rows[0][0]
    return count


async def test_what_waits_is_cancelled(sender: Sender, database: Database) -> None:
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    other = await sender.send("other@to.example")
    for fields in ({}, {"scheduled_at": later}):
        message_id = await sender.send(["a@to.example", "b@to.example"], bcc="c@to.example", **fields)
        response = await cancel(sender, message_id)
        assert response.status_code == 200, response.text
        message = response.json()["data"]["message"]
        assert message == await sender.message(message_id)
        assert message["status"] == "cancelled"
        assert {one["status"] for one in message["recipients"]} == {"cancelled"}
        assert all(one["settled_at"] and one["next_attempt_at"] is None for one in message["recipients"])
        events = await sender.events(message_id)
        assert [event["type"] for event in events] == ["queued"] * 3 + ["cancelled"] * 3
        assert {event["recipient"] for event in events[3:]} == {"a@to.example", "b@to.example", "c@to.example"}
    assert await queued(database, sender) == 1
    assert (await sender.message(other))["status"] == "queued"


@pytest.mark.parametrize("status", ["deferred", "soft_bounced", "held"])
async def test_what_waits_for_another_try_is_cancelled(sender: Sender, database: Database, status: str) -> None:
    message_id = await sender.send("a@to.example")
    due = "'infinity'" if status == "held" else "now() + interval '1 hour'"
    await run(database, "UPDATE deliveries SET status = :s WHERE org_id = :o", s=status, o=sender.org_id)
    await run(database, f"UPDATE delivery_queue SET next_attempt_at = {due} WHERE org_id = :o", o=sender.org_id)
    assert (await sender.message(message_id))["status"] == status
    assert (await cancel(sender, message_id)).json()["data"]["message"]["status"] == "cancelled"


async def test_what_a_worker_has_goes_on(sender: Sender, database: Database) -> None:
    message_id = await sender.send("a@to.example")
    await run(database, _CLAIM, org_id=sender.org_id, count=1)
    response = await cancel(sender, message_id)
    helpers.assert_problem(response, 409, "message_not_cancellable")
    assert response.json()["message_status"] == "sending"
    assert await queued(database, sender) == 1
    assert await sender.event_types(message_id) == ["queued"]
    # A lease that has ended is nobody's.
    await run(
        database, "UPDATE delivery_queue SET next_attempt_at = now() WHERE org_id = :org_id", org_id=sender.org_id
    )
    assert (await cancel(sender, message_id)).status_code == 200


async def test_the_rest_of_a_message_is_cancelled(sender: Sender, database: Database) -> None:
    message_id = await sender.send(["a@to.example", "b@to.example", "c@to.example"])
    await run(database, _CLAIM, org_id=sender.org_id, count=1)
    response = await cancel(sender, message_id)
    assert response.status_code == 200
    message = response.json()["data"]["message"]
    assert message["status"] == "sending"
    assert sorted(one["status"] for one in message["recipients"]) == ["cancelled", "cancelled", "sending"]
    helpers.assert_problem(await cancel(sender, message_id), 409, "message_not_cancellable")


@pytest.mark.parametrize("status", ["delivered", "hard_bounced", "failed", "suppressed", "complained"])
async def test_what_has_ended_is_not_cancelled(sender: Sender, database: Database, status: str) -> None:
    message_id = await sender.send("a@to.example")
    await run(database, "UPDATE deliveries SET status = :s WHERE org_id = :o", s=status, o=sender.org_id)
    await run(database, "DELETE FROM delivery_queue WHERE org_id = :o", o=sender.org_id)
    response = await cancel(sender, message_id)
    helpers.assert_problem(response, 409, "message_not_cancellable")
    assert response.json()["message_status"] == status
    assert response.json()["detail"].endswith(f"{status}.")


async def test_a_second_time_there_is_nothing_left(sender: Sender) -> None:
    message_id = await sender.send("a@to.example")
    assert (await cancel(sender, message_id)).status_code == 200
    again = await cancel(sender, message_id)
    helpers.assert_problem(again, 409, "message_not_cancellable")
    assert again.json()["message_status"] == "cancelled"
    assert await sender.event_types(message_id) == ["queued", "cancelled"]


async def test_a_key_for_another_domain_finds_no_message(sender: Sender) -> None:
    other = new_domain("other")
    await sender.client.post("/api/v1/domains", json={"domain": other}, headers=sender.user)
    _, secret = await helpers.mint(sender.client, sender.user, domains=[other])
    message_id = await sender.send("a@to.example")
    response = await cancel(sender, message_id, {"X-API-Key": secret})
    helpers.assert_problem(response, 404, "message_not_found")
    assert (await sender.message(message_id))["status"] == "queued"


async def test_a_claim_that_has_not_committed_is_waited_for(sender: Sender, database: Database) -> None:
    message_id = await sender.send("a@to.example")
    async with database.transaction() as session:
        await session.execute(text(_CLAIM), {"org_id": sender.org_id, "count": 1})
        cancelling = asyncio.create_task(cancel(sender, message_id))
        await asyncio.sleep(0.3)
        assert not cancelling.done()
    helpers.assert_problem(await cancelling, 409, "message_not_cancellable")
    assert (await sender.message(message_id))["status"] == "sending"


async def test_workers_and_cancels_share_the_mail_out(sender: Sender, database: Database) -> None:
    message_ids = [await sender.send([f"{n}@to.example" for n in range(5)]) for _ in range(20)]

    async def claim() -> None:
        for _ in range(10):
            await run(database, _CLAIM, org_id=sender.org_id, count=5)
            await asyncio.sleep(0.005)

    answers, *_ = await asyncio.gather(
        asyncio.gather(*(cancel(sender, message_id) for message_id in message_ids)), claim(), claim()
    )
    assert {response.status_code for response in answers} <= {200, 409}
    leased = {
        row[0]
        for row in await run(
            database,
            "SELECT delivery_id FROM delivery_queue WHERE org_id = :org_id AND lease_token IS NOT NULL",
            org_id=sender.org_id,
        )
    }
    ended = {
        row[0]
        for row in await run(
            database, "SELECT id FROM deliveries WHERE org_id = :o AND status = 'cancelled'", o=sender.org_id
        )
    }
    told = await run(
        database,
        "SELECT delivery_id, count(*) FROM events WHERE org_id = :o AND type = 'cancelled' GROUP BY 1",
        o=sender.org_id,
    )
    assert not leased & ended
    assert len(leased) + len(ended) == await queued(database, sender) + len(ended) == 100
    assert {row[0]: row[1] for row in told} == dict.fromkeys(ended, 1)
    for message_id, response in zip(message_ids, answers, strict=True):
        statuses = {one["status"] for one in (await sender.message(message_id))["recipients"]}
        assert ("cancelled" in statuses) == (response.status_code == 200)
