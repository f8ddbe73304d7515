"""Reading messages back: one, lists, filters, pages, and what a restricted key may see."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app.core.db import Database
from app.core.ids import new_id
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender

URL = "/api/v1/messages"


@pytest.fixture
async def sender(client: httpx.AsyncClient, dns: DnsServer) -> Sender:
    return await make_sender(client, dns)


async def _list(sender: Sender, **params: Any) -> dict[str, Any]:
    response = await sender.client.get(URL, params=params, headers=sender.key)
    assert response.status_code == 200, response.text
    data: dict[str, Any] = response.json()["data"]
    return data


async def _ids(sender: Sender, **params: Any) -> list[str]:
    return [message["id"] for message in (await _list(sender, **params))["messages"]]


async def test_a_message_tells_what_was_handed_in(sender: Sender) -> None:
    answer = await sender.post(
        sender.mail(
            [{"email": "ada@to.example", "name": "Ada"}],
            cc="grace@cc.example",
            bcc=["joan@bcc.example"],
            tags=["a", "b"],
            metadata={"n": 1, "x": 1.5, "yes": True, "s": "text"},
            batch_id="spring",
            track_opens=True,
            track_clicks="html_and_text",
            html="<p>Hello</p>",
        )
    )
    assert answer.status_code == 202
    accepted = answer.json()["data"]["message"]
    assert (accepted["status"], accepted["recipients"]) == ("queued", 3)
    message = await sender.message(accepted["id"])
    # The fields of the statistics API that this one grew from.
    assert {"id", "from_email", "to_email", "subject", "status", "created_at", "delivered_at"} <= set(message)
    assert message["from_email"] == f"hello@{sender.domain}"
    assert message["to_email"] == "ada@to.example"
    assert message["to"] == [{"email": "ada@to.example", "name": "Ada"}]
    assert [one["email"] for one in message["cc"]] == ["grace@cc.example"]
    assert [(one["email"], one["kind"]) for one in message["recipients"]] == [
        ("ada@to.example", "to"),
        ("grace@cc.example", "cc"),
        ("joan@bcc.example", "bcc"),
    ]
    assert message["metadata"] == {"n": 1, "x": 1.5, "yes": True, "s": "text"}
    assert (message["tags"], message["batch_id"], message["track_opens"]) == (["a", "b"], "spring", True)
    assert message["track_clicks"] == "html_and_text"
    assert message["size_bytes"] == len("Hello.") + len("<p>Hello</p>")
    assert message["created_at"].endswith("Z")
    assert message["delivered_at"] is None
    assert await sender.event_types(accepted["id"]) == ["queued"] * 3


async def test_filters(sender: Sender) -> None:
    now = datetime.now(UTC)
    spring = await sender.send("ada@x.example", batch_id="spring", subject="Spring 100% off", tags=["sale", "eu"])
    later = await sender.send("grace@y.example", scheduled_at=(now + timedelta(hours=1)).isoformat(), tags=["sale"])
    other = await sender.send("joan@z.example", bcc="Hidden@x.example", subject="Nothing_special")
    assert await _ids(sender) == [other, later, spring]
    assert await _ids(sender, status="pending") == [later]
    assert await _ids(sender, status="queued") == [other, spring]
    assert await _ids(sender, status="delivered") == []
    assert await _ids(sender, tag="sale") == [later, spring]
    assert await _ids(sender, tag="eu") == [spring]
    assert await _ids(sender, batch_id="spring") == [spring]
    assert await _ids(sender, to="hidden@X.example") == [other]
    assert await _ids(sender, **{"from": f"HELLO@{sender.domain}"}) == [other, later, spring]
    assert await _ids(sender, **{"from": "nobody@x.example"}) == []
    assert await _ids(sender, domain_id=sender.domain_id) == [other, later, spring]
    assert await _ids(sender, domain_id=str(new_id())) == []
    assert await _ids(sender, q="spring") == [spring]
    assert await _ids(sender, q="100% o") == [spring]
    assert await _ids(sender, q="g_s") == [other], "wildcards are taken literally"
    assert await _ids(sender, q="grace@") == [later]
    assert await _ids(sender, created_from=(now - timedelta(seconds=1)).isoformat()) == [other, later, spring]
    assert await _ids(sender, created_to=(now - timedelta(seconds=1)).isoformat()) == []
    assert await _ids(sender, tag="sale", status="queued") == [spring]


async def test_pages_forth_and_back(sender: Sender) -> None:
    sent = [await sender.send(f"user{number}@x.example") for number in range(5)][::-1]
    first = await _list(sender, limit=2)
    assert [one["id"] for one in first["messages"]] == sent[:2]
    assert first["pagination"] == {"limit": 2, "has_more": True, "next": first["pagination"]["next"], "previous": None}
    second = await _list(sender, limit=2, after=first["pagination"]["next"])
    assert [one["id"] for one in second["messages"]] == sent[2:4]
    third = await _list(sender, limit=2, after=second["pagination"]["next"])
    assert [one["id"] for one in third["messages"]] == sent[4:]
    assert (third["pagination"]["has_more"], third["pagination"]["next"]) == (False, None)
    back = await _list(sender, limit=2, before=third["pagination"]["previous"])
    assert [one["id"] for one in back["messages"]] == sent[2:4]


async def test_a_key_for_one_domain_sends_from_it_and_sees_its_mail_only(sender: Sender, database: Database) -> None:
    seen = await sender.send("ada@x.example")
    _, secret = await helpers.mint(sender.client, sender.user, domains=["other.example"])
    restricted = {"X-API-Key": secret}
    answer = await sender.client.post(f"{URL}/send", json=sender.mail("ada@x.example"), headers=restricted)
    assert (answer.status_code, answer.json()["code"]) == (403, "domain_not_allowed")
    for path in (f"{URL}/{seen}", f"{URL}/{seen}/events"):
        assert (await sender.client.get(path, headers=restricted)).status_code == 404
    listed = await sender.client.get(URL, headers=restricted)
    assert listed.json()["data"]["messages"] == []


async def test_a_user_may_send_with_an_access_token(sender: Sender) -> None:
    answer = await sender.client.post(f"{URL}/send", json=sender.mail("ada@x.example"), headers=sender.user)
    assert answer.status_code == 202


async def test_a_repeat_under_one_idempotency_key_sends_once(sender: Sender) -> None:
    body = sender.mail("ada@x.example")
    first = await sender.post(body, **{"Idempotency-Key": "order-1042"})
    again = await sender.post(body, **{"Idempotency-Key": "order-1042"})
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    other = await sender.post(sender.mail("grace@x.example"), **{"Idempotency-Key": "order-1042"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(await _ids(sender)) == 1
