"""Mail to suppressed recipients as it is accepted: whose copy is stored as ended, and whose waits to be sent."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.accounts.notices import Notice
from app.core.config import Settings
from app.core.db import Database
from app.core.ids import new_id
from app.domains.service import SendingDomain
from app.messages import accept
from app.messages.intake import Intake
from app.messages.schemas import SendRequest
from app.messages.simulator import DOMAIN
from app.suppressions.service import Entry, note
from app.vmtas.choice import Fleet
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.post_office import post_office
from tests.factories.senders import Sender, make_sender

Json = dict[str, Any]


@pytest.fixture
async def sender(client: httpx.AsyncClient, dns: DnsServer, database: Database) -> AsyncIterator[Sender]:
    found = await make_sender(client, dns)
    yield found
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :org_id"), {"org_id": found.org_id})


async def suppress(database: Database, sender: Sender, *addresses: str, reason: Any = "manual", tag: str = "") -> None:
    async with database.bare() as connection:
        await note(connection, [Entry(sender.org_id, address, reason, tag=tag) for address in addresses])


async def queued(database: Database, org_id: UUID) -> list[str]:
    """Who waits to be sent to."""
    statement = text("SELECT recipient FROM delivery_queue WHERE org_id = :org_id ORDER BY recipient")
    async with database.transaction() as session:
        return list(await session.scalars(statement, {"org_id": org_id}))


async def accepted(sender: Sender, to: Any, headers: dict[str, str] | None = None, **fields: Any) -> Json:
    """What the sender is told."""
    response = await sender.post(sender.mail(to, **fields), **(headers or {}))
    assert response.status_code == 202, response.text
    message: Json = response.json()["data"]["message"]
    return message


async def statuses(sender: Sender, message_id: str) -> dict[str, str]:
    message = await sender.message(message_id)
    return {one["email"]: one["status"] for one in message["recipients"]}


@pytest.mark.parametrize("with_key", [False, True], ids=["", "with an Idempotency-Key"])
async def test_each_reason_stops_the_next_send(sender: Sender, database: Database, with_key: bool) -> None:
    for reason in ("complaint", "hard_bounce", "unsubscribe", "manual"):
        address = f"Ada.{reason}@to.example"
        await suppress(database, sender, address.lower(), reason=reason)
        listed = await sender.client.get(f"/api/v1/suppressions?reason={reason}", headers=sender.key)
        (suppression,) = listed.json()["data"]["suppressions"]
        headers = {"Idempotency-Key": str(new_id())} if with_key else {}
        message = await accepted(sender, address, headers)
        assert (message["status"], message["recipients"]) == ("suppressed", 1)
        if with_key:
            assert await accepted(sender, address, headers) == message
        found = await sender.message(message["id"])
        copy = found["recipients"][0]
        assert (found["status"], copy["status"], copy["attempts"]) == ("suppressed", "suppressed", 0)
        assert copy["last_response"] == f"the recipient is suppressed: {reason}"
        assert (copy["settled_at"], copy["next_attempt_at"]) == (found["created_at"], None)
        (event,) = await sender.events(message["id"])
        assert (event["type"], event["recipient"]) == ("suppressed", address)
        assert (event["reason"], event["suppression_id"], "tag" in event) == (reason, suppression["id"], False)
    assert await queued(database, sender.org_id) == []
    cancelled = await sender.client.post(f"/api/v1/messages/{message['id']}/cancel", headers=sender.key)
    helpers.assert_problem(cancelled, 409, "message_not_cancellable")


async def test_what_one_has_suppressed_is_nothing_to_another(
    sender: Sender, client: httpx.AsyncClient, dns: DnsServer, database: Database
) -> None:
    other = await make_sender(client, dns)
    await suppress(database, sender, "ada@to.example", reason="complaint")
    for headers in ({}, {"Idempotency-Key": str(new_id())}):
        mine, theirs = await asyncio.gather(*(accepted(one, "ada@to.example", headers) for one in (sender, other)))
        assert (mine["status"], theirs["status"]) == ("suppressed", "queued")


async def test_the_other_recipients_get_theirs(sender: Sender, database: Database) -> None:
    await suppress(database, sender, "b@to.example", "c@to.example", reason="unsubscribe")
    message = await accepted(sender, ["a@to.example", "B@to.example"], cc="c@to.example", bcc="d@to.example")
    assert (message["status"], message["recipients"]) == ("queued", 4)
    assert await statuses(sender, message["id"]) == {
        "a@to.example": "queued",
        "B@to.example": "suppressed",
        "c@to.example": "suppressed",
        "d@to.example": "queued",
    }
    types = {event["recipient"]: event["type"] for event in await sender.events(message["id"])}
    assert types["a@to.example"] == types["d@to.example"] == "queued"
    assert types["B@to.example"] == types["c@to.example"] == "suppressed"
    assert await queued(database, sender.org_id) == ["a@to.example", "d@to.example"]


async def test_spellings_of_one_mailbox(sender: Sender, database: Database) -> None:
    await suppress(database, sender, "ada@xn--bcher-kva.example", "ärger@to.example")
    for address in (
        "Ada <ADA@Bücher.Example>",
        "ada@XN--BCHER-KVA.example",
        "ÄRGER@to.example",
        "a\u0308rger@to.example",
    ):
        assert (await accepted(sender, address))["status"] == "suppressed"
    for address in ("ada+x@bücher.example", "ada@bucher.example", "arger@to.example"):
        assert (await accepted(sender, address))["status"] == "queued"


async def test_a_tags_suppression_stops_what_carries_the_tag(sender: Sender, database: Database) -> None:
    await suppress(database, sender, "ada@to.example", reason="unsubscribe", tag="news")
    assert (await accepted(sender, "ada@to.example"))["status"] == "queued"
    assert (await accepted(sender, "ada@to.example", tags=["New", "News", "sale"]))["status"] == "queued"
    message = await accepted(sender, "ada@to.example", tags=["sale", "news"])
    assert message["status"] == "suppressed"
    (event,) = await sender.events(message["id"])
    assert (event["tag"], event["tags"]) == ("news", ["sale", "news"])
    await suppress(database, sender, "ada@to.example", reason="complaint")
    (event,) = await sender.events((await accepted(sender, "ada@to.example", tags=["news"]))["id"])
    assert (event["reason"], "tag" in event) == ("complaint", False)


async def test_what_is_scheduled_is_suppressed_at_once_too(sender: Sender, database: Database) -> None:
    await suppress(database, sender, "ada@to.example")
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    message = await accepted(sender, ["ada@to.example", "b@to.example"], scheduled_at=later)
    assert message["status"] == "pending"
    assert await statuses(sender, message["id"]) == {"ada@to.example": "suppressed", "b@to.example": "pending"}
    assert (await accepted(sender, "ada@to.example", scheduled_at=later))["status"] == "suppressed"


@pytest.mark.parametrize("count", [5, 40], ids=["by one statement", "by COPY"])
async def test_a_batch(sender: Sender, database: Database, count: int) -> None:
    await suppress(database, sender, *(f"u{number}@to.example" for number in range(0, count, 2)))
    mails = [sender.mail([f"u{number}@to.example"]) for number in range(count)]
    mails[0]["cc"] = "cc@to.example"
    body = {"messages": mails}
    response = await sender.client.post("/api/v1/messages/batch", json=body, headers=sender.key)
    results = [one["message"] for one in response.json()["data"]["results"]]
    expected = ["queued" if number % 2 or number == 0 else "suppressed" for number in range(count)]
    assert [one["status"] for one in results] == expected
    assert [(await sender.message(one["id"]))["status"] for one in results[:5]] == expected[:5]
    assert len(await queued(database, sender.org_id)) == count // 2 + 1
    listed = await sender.client.get("/api/v1/messages?status=suppressed&limit=100", headers=sender.key)
    suppressed = {one["id"] for one in results if one["status"] == "suppressed"}
    assert {one["id"] for one in listed.json()["data"]["messages"]} == suppressed


async def test_simulated_mail_asks_nobody(sender: Sender, database: Database) -> None:
    magic = f"delivered@{DOMAIN}"
    await suppress(database, sender, "ada@to.example", magic)
    _, secret = await helpers.mint(sender.client, sender.user, test=True)
    by_test_key = await sender.post(sender.mail("ada@to.example"), **{"X-API-Key": secret})
    body = {"message": sender.mail("ada@to.example")}
    simulated = await sender.client.post("/api/v1/messages/simulate-delivery", json=body, headers=sender.key)
    for response in (by_test_key, simulated):
        message = response.json()["data"]["message"]
        assert (message["status"], message["simulated"]) == ("queued", True)
    mixed = await accepted(sender, ["ada@to.example", magic])
    assert await statuses(sender, mixed["id"]) == {"ada@to.example": "suppressed", magic: "queued"}


async def test_after_the_suppression_is_deleted_mail_is_sent(sender: Sender, database: Database) -> None:
    await suppress(database, sender, "ada@to.example")
    assert (await accepted(sender, "ada@to.example"))["status"] == "suppressed"
    deleted = await sender.client.delete("/api/v1/suppressions?address=ada@to.example", headers=sender.key)
    assert deleted.status_code == 204
    assert (await accepted(sender, "ada@to.example"))["status"] == "queued"


async def test_only_bounces_hold_back_postroads_own_mail(
    app: FastAPI, client: httpx.AsyncClient, dns: DnsServer, database: Database
) -> None:
    expected = {"hard_bounce": "suppressed", "complaint": "queued", "unsubscribe": "queued", "manual": "queued"}
    async with post_office(app, client, dns) as operator:
        for reason, status in expected.items():
            address = helpers.new_email()
            await suppress(database, operator, address, reason=reason)
            async with database.transaction() as session:
                await app.state.mailer.post(session, Notice(address, "New password", "Here it is."))
            listed = await client.get(f"/api/v1/messages?to={address}", headers=operator.key)
            assert [one["status"] for one in listed.json()["data"]["messages"]] == [status]
            # The operator's other mail is held back, whatever its tags.
            assert (await accepted(operator, address, tags=["postroad"]))["status"] == "suppressed"


async def test_what_the_database_refuses_takes_nobodys_suppression(
    sender: Sender, settings: Settings, database: Database
) -> None:
    """The rows of a group that is refused are stored one request at a time, and looked at anew."""
    await suppress(database, sender, "ada@to.example")
    terms = accept.Terms(datetime.now(UTC), settings, Fleet([]))
    domain = SendingDomain(sender.org_id, UUID(sender.domain_id), sender.domain)
    given = []
    for _ in range(3):
        request = SendRequest.model_validate(sender.mail(["ada@to.example", "b@to.example"]))
        given.append(accept.rows([(accept.check(request, terms), domain)], terms))
    given[1]["messages"][0]["subject"] = "\x00"
    answers = await asyncio.gather(*map(Intake(database, lambda: None).store, given), return_exceptions=True)
    assert [isinstance(one, Exception) for one in answers] == [False, True, False]
    for one in (given[0], given[2]):
        found = await statuses(sender, str(one["messages"][0]["id"]))
        assert found == {"ada@to.example": "suppressed", "b@to.example": "queued"}
    assert await queued(database, sender.org_id) == ["b@to.example"] * 2
