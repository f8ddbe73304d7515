"""Mail that never leaves: test keys, the simulator's addresses, and simulated deliveries."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.core.ids import new_id
from app.mail import address
from app.messages.simulator import DOMAIN, outcome_of
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender, new_domain
from tests.messages.refusals import nothing_stored

MAGIC = ["delivered", "deferred", "soft_bounced", "hard_bounced", "complained", "suppressed"]
Json = dict[str, Any]


@pytest.fixture
async def sender(client: httpx.AsyncClient, dns: DnsServer, database: Database) -> AsyncIterator[Sender]:
    found = await make_sender(client, dns)
    yield found
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :o"), {"o": found.org_id})


async def with_test_key(sender: Sender, **fields: Any) -> Sender:
    _, secret = await helpers.mint(sender.client, sender.user, test=True, **fields)
    return Sender(sender.client, sender.org_id, sender.domain, sender.domain_id, sender.user, {"X-API-Key": secret})


async def outcomes(database: Database, message_id: str) -> dict[str, str | None]:
    """How each copy is to end, by recipient; None: it is sent."""
    async with database.transaction() as session:
        rows = await session.execute(
            text("SELECT recipient, simulated FROM delivery_queue WHERE message_id = :id"), {"id": message_id}
        )
        return dict(rows.tuples().all())


async def simulate(sender: Sender, **body: Any) -> httpx.Response:
    return await sender.client.post("/api/v1/messages/simulate-delivery", json=body, headers=sender.key)


async def simulated(sender: Sender, **body: Any) -> Json:
    response = await simulate(sender, **body)
    assert response.status_code == 202, response.text
    message: Json = response.json()["data"]["message"]
    assert message["simulated"] is True
    return message


@pytest.mark.parametrize(
    ("email", "expected"),
    [
        *((f"{name}@{DOMAIN}", name) for name in MAGIC),
        *((f"{name}+label-7@{DOMAIN.upper()}", name) for name in MAGIC),
        (f"Hard_Bounced@{DOMAIN}", "hard_bounced"),
        (f"queued@{DOMAIN}", "delivered"),
        (f"somebody@{DOMAIN}", "delivered"),
        (f"hard_bounced@sub.{DOMAIN}", None),
        (f"hard_bounced@{DOMAIN}.example", None),
        ("hard_bounced@to.example", None),
    ],
)
def test_what_an_address_asks_for(email: str, expected: str | None) -> None:
    assert outcome_of(address.parse(email)) == expected


async def test_all_that_a_test_key_sends_is_simulated(sender: Sender, database: Database) -> None:
    key = await with_test_key(sender)
    to = [f"{name}+x@{DOMAIN}" for name in MAGIC] + ["ada@to.example", "hard_bounced@to.example"]
    message_id = await key.send(to)
    expected = dict(zip(to, [*MAGIC, "delivered", "delivered"], strict=True))
    assert await outcomes(database, message_id) == expected
    message = await key.message(message_id)
    assert (message["simulated"], message["status"]) == (True, "queued")
    assert await key.event_types(message_id) == ["queued"] * 8
    batch = await key.client.post(
        "/api/v1/messages/batch", json={"messages": [key.mail(f"deferred@{DOMAIN}")] * 2}, headers=key.key
    )
    for result in batch.json()["data"]["results"]:
        assert result["message"]["simulated"] is True
        assert await outcomes(database, result["message"]["id"]) == {f"deferred@{DOMAIN}": "deferred"}


async def test_a_live_key_simulates_copy_by_copy(sender: Sender, database: Database) -> None:
    message_id = await sender.send(["ada@to.example", f"hard_bounced@{DOMAIN}"])
    assert await outcomes(database, message_id) == {"ada@to.example": None, f"hard_bounced@{DOMAIN}": "hard_bounced"}
    # Something of it leaves.
    assert (await sender.message(message_id))["simulated"] is False
    alone = await sender.send([f"suppressed@{DOMAIN}", f"delivered@{DOMAIN}"])
    assert (await sender.message(alone))["simulated"] is True
    assert (await sender.message(await sender.send("ada@to.example")))["simulated"] is False


async def test_domains_of_simulated_mail_need_no_proof(sender: Sender, database: Database) -> None:
    key = await with_test_key(sender)
    unproven, foreign = new_domain("unproven"), new_domain("foreign")
    await sender.client.post("/api/v1/domains", json={"domain": unproven}, headers=sender.user)
    mail = key.mail("ada@to.example", **{"from": f"hello@{unproven}"})
    assert (await key.post(mail)).status_code == 202
    await simulated(sender, message=mail)
    async with nothing_stored(database, sender.org_id):
        # What is sent needs it, whatever its recipients.
        live = await sender.post({**mail, "to": f"delivered@{DOMAIN}"})
        helpers.assert_problem(live, 403, "domain_not_verified")
        for refused in (
            await key.post({**mail, "from": f"hello@{foreign}"}),
            await simulate(sender, message={**mail, "from": f"hello@{foreign}"}),
        ):
            helpers.assert_problem(refused, 422, "domain_not_found")
    restricted = await with_test_key(sender, domains=[unproven])
    assert (await restricted.post(mail)).status_code == 202
    helpers.assert_problem(await restricted.post(key.mail("ada@to.example")), 403, "domain_not_allowed")


async def test_simulated_mail_needs_no_verified_address(sender: Sender, app: Any, settings: Settings) -> None:
    key = await with_test_key(sender)
    app.state.settings = settings.model_copy(update={"require_verified_email": True})
    try:
        helpers.assert_problem(await sender.post(sender.mail("a@to.example")), 403, "email_not_verified")
        batch = await sender.client.post(
            "/api/v1/messages/batch", json={"messages": [sender.mail("a@to.example")]}, headers=sender.key
        )
        helpers.assert_problem(batch, 403, "email_not_verified")
        await key.send("a@to.example")
        await simulated(sender, message=sender.mail("a@to.example"))
    finally:
        app.state.settings = settings


@pytest.mark.parametrize("outcome", [*MAGIC, "failed"])
async def test_every_copy_is_to_end_as_wanted(sender: Sender, database: Database, outcome: str) -> None:
    mail = sender.mail(["ada@to.example", f"delivered@{DOMAIN}"], bcc="joan@bcc.example")
    message = await simulated(sender, message=mail, outcome=outcome)
    assert message["recipients"] == 3
    found = await outcomes(database, message["id"])
    assert found == dict.fromkeys(["ada@to.example", f"delivered@{DOMAIN}", "joan@bcc.example"], outcome)


async def test_the_copy_of_a_message(sender: Sender, database: Database) -> None:
    original = await sender.send(
        [{"email": "ada@to.example", "name": "Ada"}],
        cc="grace@cc.example",
        bcc=["joan@bcc.example"],
        reply_to="Answers <answers@to.example>",
        subject="Größe",
        html="<p>ü</p>",
        headers={"X-Order": "7"},
        attachments=[
            {"filename": "a.txt", "content": base64.b64encode(b"file").decode()},
            {"filename": "b.png", "content": "AA==", "content_id": "logo", "content_type": "image/png"},
        ],
        tags=["a"],
        metadata={"n": 1},
        batch_id="b",
        track_clicks="html_and_text",
    )
    before = await sender.message(original)
    copied = (await simulated(sender, message_id=original, outcome="hard_bounced"))["id"]
    assert copied != original
    assert await sender.message(original) == before
    assert await outcomes(database, original) == dict.fromkeys(before_recipients(before))
    copy = await sender.message(copied)
    assert await outcomes(database, copied) == dict.fromkeys(before_recipients(before), "hard_bounced")
    for name in ("id", "created_at", "simulated", "recipients"):
        kept = (before.pop(name), copy.pop(name))
        if name == "recipients":
            assert [(one["email"], one["kind"]) for one in kept[0]] == [(one["email"], one["kind"]) for one in kept[1]]
    assert copy == before
    # Packed anew, yet octet for octet the same.
    async with database.transaction() as session:
        for table, columns in (
            ("message_bodies", "content"),
            ("attachments", "position, filename, content_type, content_id, content"),
        ):
            said = [
                (
                    await session.execute(
                        text(
                            f"SELECT {columns} FROM {table} WHERE org_id = :o AND message_id = :id ORDER BY {columns}"
                        ),
                        {"o": sender.org_id, "id": message_id},
                    )
                ).all()
                for message_id in (original, copied)
            ]
            assert said[0] == said[1]
            assert len(said[0]) == (1 if table == "message_bodies" else 2)


def before_recipients(message: Json) -> list[str]:
    return [one["email"] for one in message["recipients"]]


async def test_a_message_to_copy_must_be_ones_own(
    sender: Sender, client: httpx.AsyncClient, dns: DnsServer, database: Database
) -> None:
    stranger = await make_sender(client, dns)
    other = new_domain("other")
    await sender.client.post("/api/v1/domains", json={"domain": other}, headers=sender.user)
    mine, theirs = await sender.send("a@to.example"), await stranger.send("a@to.example")
    restricted = await with_test_key(sender, domains=[other])
    async with nothing_stored(database, sender.org_id, stranger.org_id):
        for refused in (
            await simulate(sender, message_id=theirs),
            await simulate(sender, message_id=str(new_id())),
            await simulate(restricted, message_id=mine),
        ):
            helpers.assert_problem(refused, 404, "message_not_found")


async def test_bad_simulations(sender: Sender, database: Database) -> None:
    mail, message_id = sender.mail("a@to.example"), await sender.send("a@to.example")
    async with nothing_stored(database, sender.org_id):
        for body, pointer in (
            ({}, ""),
            ({"message": mail, "message_id": message_id}, ""),
            ({"message": mail, "outcome": "queued"}, "/outcome"),
            ({"message": mail, "outcome": None}, "/outcome"),
            ({"message_id": "7"}, "/message_id"),
            ({"message": {**mail, "to": ["x"]}}, "/message/to/0"),
            ({"message": {**mail, "vmta": "x"}}, "/message/vmta"),
            ({"message": {**mail, "from": "a@foreign.example"}}, "/message/from"),
            ({"message": mail, "outcomes": "x"}, "/outcomes"),
        ):
            response = await simulate(sender, **body)
            assert response.status_code == 422, response.text
            assert [flaw["pointer"] for flaw in response.json()["errors"]] == [pointer]
