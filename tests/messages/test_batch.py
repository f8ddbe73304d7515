"""Batches: all or nothing, or one by one; what a single send can do, and what it refuses."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.core.db import Database
from app.core.ids import new_id
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender, new_domain
from tests.messages.refusals import nothing_stored, stored

Json = dict[str, Any]


@pytest.fixture
async def sender(client: httpx.AsyncClient, dns: DnsServer) -> Sender:
    return await make_sender(client, dns)


async def post(sender: Sender, messages: Any, **fields: Any) -> httpx.Response:
    headers = sender.key | {"Idempotency-Key": str(new_id())}
    return await sender.client.post(
        "/api/v1/messages/batch", json={"messages": messages, **fields}, headers=fields.pop("headers", headers)
    )


async def accepted(sender: Sender, messages: Any, **fields: Any) -> Json:
    response = await post(sender, messages, **fields)
    assert response.status_code == 202, response.text
    data: Json = response.json()["data"]
    return data


def pointers(problem: Json) -> list[str]:
    return [flaw["pointer"] for flaw in problem["errors"]]


async def test_a_hundred_in_order(sender: Sender, database: Database) -> None:
    before = await stored(database, sender.org_id)
    data = await accepted(sender, [sender.mail(f"u{n}@to.example", subject=f"No {n}") for n in range(100)])
    assert (data["accepted"], data["rejected"], data["batch_id"]) == (100, 0, None)
    assert [one["index"] for one in data["results"]] == list(range(100))
    assert {one["status"] for one in data["results"]} == {"accepted"}
    messages = [one["message"] for one in data["results"]]
    assert [one["subject"] for one in messages] == [f"No {n}" for n in range(100)]
    assert [one["to_email"] for one in messages] == [f"u{n}@to.example" for n in range(100)]
    assert len({one["id"] for one in messages}) == 100
    after = await stored(database, sender.org_id)
    grown = {table: after[table] - before[table] for table in after}
    assert grown.pop("idempotency_keys") == 1
    assert grown.pop("attachments") == 0
    assert set(grown.values()) == {100}
    for one in (messages[0], messages[99]):
        assert (await sender.message(one["id"]))["status"] == "queued"
        assert await sender.event_types(one["id"]) == ["queued"]


async def test_a_mail_of_a_batch_is_a_mail(sender: Sender) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    full = sender.mail(
        [{"email": "ada@to.example", "name": "Ada"}, "ADA@to.example"],
        cc="grace@cc.example",
        bcc=["joan@bcc.example"],
        reply_to="answers@to.example",
        subject="Größe",
        html="<p>ü</p>",
        headers={"X-Order": "7"},
        attachments=[{"filename": "a.txt", "content": base64.b64encode(b"file").decode()}],
        tags=["a"],
        metadata={"n": 1},
        track_opens=True,
        scheduled_at=soon.isoformat(),
        expires_at=(soon + timedelta(minutes=5)).isoformat(),
        batch_id="b-1",
    )
    single = await sender.message(await sender.send(full.pop("to"), **{k: v for k, v in full.items() if k != "from"}))
    data = await accepted(sender, [sender.mail("x@to.example"), {**full, "to": single["to"]}])
    batched = await sender.message(data["results"][1]["message"]["id"])
    assert batched.pop("id") != single.pop("id")
    assert batched.pop("created_at") >= single.pop("created_at")
    assert batched == single
    assert batched["status"] == "pending"


async def test_the_batch_id_is_that_of_its_mails(sender: Sender) -> None:
    label = f"spring-{new_id()}"
    mails = [sender.mail("a@to.example"), sender.mail("b@to.example", batch_id=label)]
    data = await accepted(sender, mails, batch_id=label)
    assert data["batch_id"] == label
    assert [one["message"]["batch_id"] for one in data["results"]] == [label, label]
    listed = await sender.client.get("/api/v1/messages", params={"batch_id": label}, headers=sender.key)
    assert len(listed.json()["data"]["messages"]) == 2
    refused = await post(sender, [*mails, sender.mail("c@to.example", batch_id="autumn")], batch_id=label)
    helpers.assert_problem(refused, 422, "batch_id_differs")
    assert pointers(refused.json()) == ["/messages/2/batch_id"]
    alone = await accepted(sender, [sender.mail("d@to.example", batch_id="own"), sender.mail("e@to.example")])
    assert [one["message"]["batch_id"] for one in alone["results"]] == ["own", None]


def bad_items(sender: Sender) -> list[tuple[Any, str, str, int]]:
    """Bad items: what, the pointer from the item, the code, the status."""
    foreign = new_domain("foreign")
    return [
        (sender.mail("not an address"), "/to", "invalid_request", 422),
        (sender.mail(["a@to.example", "no"]), "/to/1", "invalid_request", 422),
        (sender.mail("a@to.example", subjct="typo"), "/subjct", "invalid_request", 422),
        (sender.mail("a@to.example", subject="a\r\nBcc: x"), "/subject", "invalid_request", 422),
        (5, "", "invalid_request", 422),
        (None, "", "invalid_request", 422),
        (sender.mail("a@to.example", **{"from": f"a@{foreign}"}), "/from", "domain_not_found", 422),
        (sender.mail([f"u{n}@to.example" for n in range(50)], cc="x@to.example"), "/to", "too_many_recipients", 422),
        (sender.mail("a@to.example", vmta="no-such"), "/vmta", "vmta_not_found", 422),
        (sender.mail("a@to.example", expires_at="2020-01-01T00:00:00Z"), "/expires_at", "invalid_schedule", 422),
        (
            sender.mail("a@to.example", attachments=[{"filename": "x.exe", "content": ""}]),
            "/attachments/0/filename",
            "attachment_not_allowed",
            422,
        ),
        (sender.mail("a@to.example", text="x" * (25 * 2**20 + 1)), "", "message_too_large", 413),
    ]


async def test_a_strict_batch_with_a_bad_mail_stores_nothing(sender: Sender, database: Database) -> None:
    good = sender.mail("good@to.example")
    async with nothing_stored(database, sender.org_id):
        for bad, pointer, code, status in bad_items(sender):
            response = await post(sender, [good, bad, good])
            helpers.assert_problem(response, status, code)
            assert pointers(response.json()) == [f"/messages/1{pointer}"]
            assert "/messages/1" in response.json()["detail"]


async def test_a_permissive_batch_takes_the_good_ones_and_tells_of_the_others(
    sender: Sender, database: Database
) -> None:
    bad = bad_items(sender)
    messages: list[Any] = []
    for item, *_ in bad:
        messages += [sender.mail("good@to.example"), item]
    before = await stored(database, sender.org_id)
    data = await accepted(sender, messages, mode="permissive")
    assert (data["accepted"], data["rejected"]) == (len(bad), len(bad))
    assert [one["status"] for one in data["results"]] == ["accepted", "rejected"] * len(bad)
    assert [one["index"] for one in data["results"]] == list(range(2 * len(bad)))
    for (item, pointer, code, status), result in zip(bad, data["results"][1::2], strict=True):
        error = result["error"]
        assert (error["code"], error["status"]) == (code, status)
        assert error["type"] == f"urn:postroad:problem:{code}"
        assert error["title"]
        # As the same mail alone would have been told.
        alone = await sender.post(item)
        told = alone.json()
        told.pop("request_id")
        if item is not None:
            assert error == {"errors": [], **told}, pointer
        assert pointers(error) == ([] if code == "message_too_large" else [pointer])
    after = await stored(database, sender.org_id)
    assert after["messages"] - before["messages"] == after["delivery_queue"] - before["delivery_queue"] == len(bad)


async def test_a_permissive_batch_without_a_good_mail_is_refused(sender: Sender, database: Database) -> None:
    bad = bad_items(sender)[:7]
    async with nothing_stored(database, sender.org_id):
        response = await post(sender, [item for item, *_ in bad], mode="permissive")
        helpers.assert_problem(response, 422, "batch_rejected")
        problem = response.json()
        assert pointers(problem) == [f"/messages/{index}{one[1]}" for index, one in enumerate(bad)]
        assert [one["error"]["code"] for one in problem["results"]] == [one[2] for one in bad]
        alone = await post(sender, [bad[6][0]] * 2, mode="permissive")
        helpers.assert_problem(alone, 422, "domain_not_found")


async def test_a_domain_that_is_not_verified(sender: Sender, database: Database) -> None:
    name = new_domain("unproven")
    await sender.client.post("/api/v1/domains", json={"domain": name}, headers=sender.user)
    mails = [sender.mail("a@to.example"), sender.mail("b@to.example", **{"from": f"a@{name}"})]
    async with nothing_stored(database, sender.org_id):
        refused = await post(sender, mails)
        helpers.assert_problem(refused, 403, "domain_not_verified")
        assert pointers(refused.json()) == ["/messages/1/from"]
    data = await accepted(sender, mails, mode="permissive")
    assert data["results"][1]["error"]["status"] == 403


async def test_faults_of_many_kinds_are_told_together(sender: Sender, database: Database) -> None:
    faulty = [sender.mail("a@to.example", vmta="x"), sender.mail("a@to.example", expires_at="2020-01-01T00:00:00Z")]
    async with nothing_stored(database, sender.org_id):
        response = await post(sender, [sender.mail("a@to.example"), *faulty])
    helpers.assert_problem(response, 422, "batch_rejected")
    assert pointers(response.json()) == ["/messages/1/vmta", "/messages/2/expires_at"]
    assert response.json()["detail"].startswith("2 messages cannot be accepted")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/messages"),
        ({"messages": []}, "/messages"),
        ({"messages": None}, "/messages"),
        ({"messages": {}}, "/messages"),
        ({"messages": [5] * 101}, "/messages"),
        ({"messages": [5] * 101, "mode": "permissive"}, "/messages"),
        ({"messages": [], "mode": "careless"}, "/mode"),
        ({"messages": [], "batch_id": ""}, "/batch_id"),
        ({"messages": [], "batch": "x"}, "/messages"),
        ([], ""),
    ],
)
async def test_bad_batches(sender: Sender, database: Database, body: Any, pointer: str) -> None:
    async with nothing_stored(database, sender.org_id):
        response = await sender.client.post("/api/v1/messages/batch", json=body, headers=sender.key)
        helpers.assert_problem(response, 422, "invalid_request")
        assert pointer in pointers(response.json())


async def test_errors_are_bounded(sender: Sender) -> None:
    worst = {f"field{n}": n for n in range(200)}
    for fields in ({}, {"mode": "permissive"}):
        response = await post(sender, [worst] * 100, **fields)
        assert response.status_code == 422
        assert len(response.json()["errors"]) == 50
        assert all(len(one["error"]["errors"]) == 50 for one in response.json().get("results", []))


async def test_a_batch_is_repeated_as_a_whole(sender: Sender, database: Database) -> None:
    headers = sender.key | {"Idempotency-Key": str(new_id())}
    body = {"messages": [sender.mail(f"u{n}@to.example") for n in range(3)] + [{}], "mode": "permissive"}
    first, again = [await sender.client.post("/api/v1/messages/batch", json=body, headers=headers) for _ in range(2)]
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (await stored(database, sender.org_id))["messages"] == 3
    other = await sender.client.post("/api/v1/messages/batch", json={**body, "batch_id": "x"}, headers=headers)
    helpers.assert_problem(other, 422, "idempotency_key_reused")


async def test_a_refused_batch_may_be_mended_under_its_key(sender: Sender) -> None:
    headers = sender.key | {"Idempotency-Key": str(new_id())}
    for mode in ("strict", "permissive"):
        body: Json = {"messages": [sender.mail("a@to.example", vmta="x")], "mode": mode}
        refused = await sender.client.post("/api/v1/messages/batch", json=body, headers=headers)
        helpers.assert_problem(refused, 422, "vmta_not_found")
    mended = {"messages": [sender.mail("a@to.example")]}
    response = await sender.client.post("/api/v1/messages/batch", json=mended, headers=headers)
    assert response.status_code == 202, response.text


async def test_a_restricted_key(sender: Sender) -> None:
    other = new_domain("other")
    await sender.client.post("/api/v1/domains", json={"domain": other}, headers=sender.user)
    _, secret = await helpers.mint(sender.client, sender.user, domains=[sender.domain])
    mails = [sender.mail("a@to.example"), sender.mail("a@to.example", **{"from": f"a@{other}"})]
    body = {"messages": mails, "mode": "permissive"}
    response = await sender.client.post("/api/v1/messages/batch", json=body, headers={"X-API-Key": secret})
    assert [one.get("error", {}).get("code") for one in response.json()["data"]["results"]] == [
        None,
        "domain_not_allowed",
    ]


async def test_a_body_beyond_the_bound(sender: Sender, database: Database) -> None:
    mails = [sender.mail("a@to.example", text="x" * 20 * 2**20) for _ in range(2)]
    async with nothing_stored(database, sender.org_id):
        response = await post(sender, mails)
        helpers.assert_problem(response, 413, "request_too_large")


async def test_a_field_given_twice_is_refused_in_a_batch_too(sender: Sender) -> None:
    one = json.dumps(sender.mail("a@to.example"))
    content = f'{{"mode": "permissive", "messages": [{one}, {{"to": "b@c.example", {one[1:]}]}}'
    headers = sender.key | {"Content-Type": "application/json"}
    response = await sender.client.post("/api/v1/messages/batch", content=content.encode(), headers=headers)
    helpers.assert_problem(response, 422, "invalid_json")


async def test_what_expires_soon_is_urgent(sender: Sender, database: Database) -> None:
    now = datetime.now(UTC)
    later = now + timedelta(days=1)

    def until(moment: datetime, scheduled_at: datetime | None = None) -> Json:
        fields = {"scheduled_at": scheduled_at.isoformat()} if scheduled_at else {}
        return sender.mail("a@to.example", expires_at=moment.isoformat(), **fields)

    mails = [
        sender.mail("a@to.example"),
        until(now + timedelta(minutes=14)),
        until(now + timedelta(minutes=16)),
        until(later + timedelta(minutes=15), later),
        until(later + timedelta(minutes=16), later),
    ]
    data = await accepted(sender, mails)
    async with database.transaction() as session:
        rows = await session.execute(
            text("SELECT message_id, urgent FROM delivery_queue WHERE org_id = :org_id"), {"org_id": sender.org_id}
        )
        urgent = {str(message_id): is_urgent for message_id, is_urgent in rows}
    found = [urgent[one["message"]["id"]] for one in data["results"]]
    assert found == [False, True, False, True, False]
