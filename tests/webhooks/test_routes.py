"""Webhooks as their owner sets, rotates, tries and replays them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from standardwebhooks import Webhook, WebhookVerificationError

from app.core.ids import new_id
from app.messages import feed
from app.messages.schemas import EventType
from app.webhooks import documented, service
from app.webhooks.courier import Courier
from app.webhooks.schemas import WebhookType
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.senders import make_sender
from tests.webhooks.house import Hook, Tenant
from tests.webhooks.receiver import Receiver, reply

SOMEWHERE = "https://hooks.example.com/postroad"


async def test_a_webhook_from_its_making_to_its_end(tenant: Tenant) -> None:
    created = await tenant.ask("POST", "", {"url": SOMEWHERE, "events": ["message.delivered", "message.delivered"]})
    assert created.status_code == 201
    data = created.json()["data"]
    webhook, secret = data["webhook"], data["secret"]
    assert secret.startswith("whsec_")
    assert len(secret) == len("whsec_") + 32
    assert webhook == {
        "id": webhook["id"],
        "url": SOMEWHERE,
        "description": "",
        "events": ["message.delivered"],
        "enabled": True,
        "disabled_at": None,
        "disabled_reason": None,
        "failing_since": None,
        "last_success_at": None,
        "previous_secret_expires_at": None,
        "created_at": webhook["created_at"],
        "updated_at": webhook["updated_at"],
    }
    hook = Hook(webhook["id"], secret)
    assert await tenant.shown(hook) == webhook
    listed = await tenant.done("GET")
    assert listed["webhooks"] == [webhook]
    assert secret not in str(listed)
    other = await tenant.hook("https://other.example.com/", "message.opened", "*")
    assert (await tenant.shown(other))["events"] == ["*"]
    assert [one["id"] for one in (await tenant.done("GET", params={"limit": 1}))["webhooks"]] == [other.id]

    changed = (await tenant.done("PUT", f"/{hook.id}", {"description": "Orders", "events": ["*"]}))["webhook"]
    assert (changed["description"], changed["events"], changed["url"]) == ("Orders", ["*"], SOMEWHERE)
    assert changed["updated_at"] > webhook["updated_at"]
    off = (await tenant.done("PUT", f"/{hook.id}", {"enabled": False, "url": "https://x.example.com/"}))["webhook"]
    assert (off["enabled"], off["disabled_reason"], off["url"]) == (False, "manual", "https://x.example.com/")
    again = (await tenant.done("PUT", f"/{hook.id}", {"enabled": False}))["webhook"]
    assert again["disabled_at"] == off["disabled_at"]
    on = (await tenant.done("PUT", f"/{hook.id}", {"enabled": True}))["webhook"]
    assert (on["enabled"], on["disabled_at"], on["disabled_reason"]) == (True, None, None)

    assert (await tenant.ask("DELETE", f"/{hook.id}")).status_code == 204
    helpers.assert_problem(await tenant.ask("GET", f"/{hook.id}"), 404, "webhook_not_found")
    helpers.assert_problem(await tenant.ask("GET", f"/{hook.id}/deliveries"), 404, "webhook_not_found")
    helpers.assert_problem(await tenant.ask("DELETE", f"/{hook.id}"), 404, "webhook_not_found")


async def test_bodies_that_are_refused(tenant: Tenant) -> None:
    bodies: list[dict[str, Any]] = [
        {"url": ""},
        {"url": "ftp://x.example/"},
        {"url": "https://user:secret@x.example/"},
        {"url": "https://x.example:99999/"},
        {"url": "https://"},
        {"url": "https://" + "a" * 2100},
        {"url": "https://xn--a/"},
        {"url": "https://x.example/\x00"},
        {"url": "https://2130706433/"},
        {"url": SOMEWHERE, "events": []},
        {"url": SOMEWHERE, "events": ["message.eaten"]},
        {"url": SOMEWHERE, "events": ["delivered"]},
        {"url": SOMEWHERE, "events": ["*"] * 21},
        {"url": SOMEWHERE, "description": "x" * 201},
        {"url": SOMEWHERE, "secret": "mine"},
        {"events": ["*"]},
    ]
    for body in bodies:
        response = await tenant.ask("POST", "", body)
        assert response.status_code == 422, response.text
    assert (await tenant.done("GET"))["webhooks"] == []


async def test_there_are_only_so_many(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_WEBHOOKS", 2)
    for _ in range(2):
        await tenant.hook(SOMEWHERE)
    helpers.assert_problem(await tenant.ask("POST", "", {"url": SOMEWHERE}), 409, "too_many_webhooks")


async def test_a_key_that_is_restricted_to_domains(tenant: Tenant, client: httpx.AsyncClient) -> None:
    _, secret = await helpers.mint(client, tenant.sender.user, domains=[tenant.sender.domain])
    headers = {"X-API-Key": secret}
    for method, body in (("GET", None), ("POST", {"url": SOMEWHERE})):
        helpers.assert_problem(await tenant.ask(method, "", body, headers=headers), 403, "key_restricted")


async def test_secrets_are_sealed(tenant: Tenant) -> None:
    hook = await tenant.hook(SOMEWHERE)
    await tenant.done("POST", f"/{hook.id}/rotate-secret")
    ((stored, previous),) = await tenant.sql("SELECT secret, previous_secret FROM webhooks WHERE org_id = :org_id")
    for sealed in (bytes(stored), bytes(previous)):
        assert hook.secret.encode() not in sealed
        assert hook.secret.removeprefix("whsec_").encode() not in sealed


async def test_both_secrets_sign_while_they_are_rotated(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    hook = await tenant.hook(receiver.url("/"), "message.opened")
    rotated = await tenant.done("POST", f"/{hook.id}/rotate-secret", {"overlap_seconds": 60})
    expires_at = datetime.fromisoformat(rotated["webhook"]["previous_secret_expires_at"])
    assert timedelta(seconds=55) < expires_at - datetime.now(UTC) < timedelta(seconds=65)
    await tenant.tell()
    (both,) = await receiver.reach(1)
    assert len(both.headers["webhook-signature"].split(" ")) == 2
    for secret in (hook.secret, rotated["secret"]):
        Webhook(secret).verify(both.body, both.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(rotated["secret"]).verify(both.body + b"\n", both.headers)

    await tenant.sql("UPDATE webhooks SET previous_expires_at = now() WHERE org_id = :org_id")
    assert (await tenant.shown(hook))["previous_secret_expires_at"] is None
    await tenant.tell()
    single = (await receiver.reach(2))[1]
    Webhook(rotated["secret"]).verify(single.body, single.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(hook.secret).verify(single.body, single.headers)

    last = (await tenant.done("POST", f"/{hook.id}/rotate-secret", {"overlap_seconds": 0}))["secret"]
    await tenant.tell()
    newest = (await receiver.reach(3))[2]
    Webhook(last).verify(newest.body, newest.headers)
    assert len(newest.headers["webhook-signature"].split(" ")) == 1


async def test_trying_it_out(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    hook = await tenant.hook(receiver.url("/"), "message.opened")
    response = await tenant.ask("POST", f"/{hook.id}/test", {"type": "message.hard_bounced"})
    assert response.status_code == 202
    queued = response.json()["data"]["delivery"]
    assert (queued["event_type"], queued["message_id"]) == ("message.hard_bounced", None)
    (received,) = await receiver.reach(1)
    payload = Webhook(hook.secret).verify(received.body, received.headers)
    assert payload["data"]["test"] is True
    assert payload["data"]["event_id"] == received.webhook_id == queued["event_id"]
    assert payload["data"]["enhanced_code"] == "5.1.1"
    await tenant.settled(hook, 1)
    assert (await tenant.done("POST", f"/{hook.id}/test"))["delivery"]["event_type"] == "message.delivered"
    await tenant.done("PUT", f"/{hook.id}", {"enabled": False})
    helpers.assert_problem(await tenant.ask("POST", f"/{hook.id}/test"), 409, "webhook_disabled")


async def test_one_delivery_is_sent_again(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    hook = await tenant.hook(receiver.url("/"), "message.opened")
    await tenant.tell()
    ((first),) = await tenant.settled(hook, 1)
    response = await tenant.ask("POST", f"/{hook.id}/deliveries/{first['id']}/replay")
    assert response.status_code == 202
    queued = response.json()["data"]["delivery"]
    assert queued["id"] != first["id"]
    assert (queued["event_id"], queued["is_replay"], queued["message_id"]) == (
        first["event_id"],
        True,
        first["message_id"],
    )
    before, again = await receiver.reach(2)
    assert (again.webhook_id, again.body) == (before.webhook_id, before.body)
    await tenant.settled(hook, 2)
    assert [one["is_replay"] for one in await tenant.deliveries(hook)] == [True, False]


async def test_a_time_range_is_sent_again(
    tenant: Tenant, courier: Courier, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_REPLAY_BATCH", 3)
    receiver.manners["/"] = [reply("410 Gone"), reply()]
    hook = await tenant.hook(receiver.url("/"), "message.opened", "message.queued")
    before = datetime.now(UTC)
    opened = [*await tenant.tell(4)]
    await tenant.once(hook, lambda shown: not shown["enabled"])
    opened += await tenant.tell(2)
    await tenant.tell(1, "clicked")
    # Ids, and so time ranges, tell milliseconds.
    await asyncio.sleep(0.01)
    after = datetime.now(UTC)
    await asyncio.sleep(0.01)
    await tenant.tell(1)
    span = {"from": before.isoformat(), "to": after.isoformat()}
    helpers.assert_problem(await tenant.ask("POST", f"/{hook.id}/replay", span), 409, "webhook_disabled")
    await tenant.done("PUT", f"/{hook.id}", {"enabled": True})
    receiver.received.clear()

    queued, cursor, rounds = 0, None, 0
    while rounds == 0 or cursor is not None:
        replay = (await tenant.done("POST", f"/{hook.id}/replay", {**span, "after": cursor}))["replay"]
        queued, cursor, rounds = queued + replay["queued"], replay["next"], rounds + 1
        assert replay["queued"] <= 3
    assert queued == 7
    assert rounds <= 4
    got = await receiver.reach(7)
    assert {one.webhook_id for one in got} > set(opened)
    sequences = {one.webhook_id: one.event["data"]["sequence"] for one in got}
    assert [sequences[event_id] for event_id in opened] == [2, 3, 4, 5, 6, 7]

    body = {**span, "types": ["message.clicked"], "after": None}
    assert (await tenant.done("POST", f"/{hook.id}/replay", body))["replay"] == {"queued": 1, "next": None}
    assert (await receiver.reach(8))[7].event["type"] == "message.clicked"
    nothing = {"from": before.isoformat(), "to": (before + timedelta(microseconds=1)).isoformat()}
    assert (await tenant.done("POST", f"/{hook.id}/replay", nothing))["replay"]["queued"] == 0
    for wrong, code in (
        ({"from": after.isoformat(), "to": before.isoformat()}, "invalid_request"),
        ({**span, "after": "x"}, "invalid_cursor"),
        ({}, "invalid_request"),
    ):
        helpers.assert_problem(await tenant.ask("POST", f"/{hook.id}/replay", wrong), 422, code)


async def test_a_replay_says_when_it_could_not_see_all(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_PATIENCE_SECONDS", 0.1)
    hook = await tenant.hook("https://hooks.example.com/", "message.opened")
    span = {"from": datetime.now(UTC).isoformat(), "to": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
    async with tenant.database.transaction() as session:
        # What it writes, and what is written behind it, is not settled yet.
        await session.execute(text("SELECT pg_current_xact_id()"))
        await tenant.tell(2)
        replay = (await tenant.done("POST", f"/{hook.id}/replay", span))["replay"]
        assert replay["queued"] == 0
        assert replay["next"]
    replay = (await tenant.done("POST", f"/{hook.id}/replay", {**span, "after": replay["next"]}))["replay"]
    assert replay == {"queued": 2, "next": None}


async def test_replays_have_a_bound(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_PENDING", 2)
    hook = await tenant.hook(SOMEWHERE)
    for _ in range(2):
        await tenant.done("POST", f"/{hook.id}/test", {})
    helpers.assert_problem(await tenant.ask("POST", f"/{hook.id}/test", {}), 409, "too_many_pending")


async def test_what_waits_is_cancelled_with_its_webhook(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    receiver.manners["/"] = [reply("500 Oops")]
    deleted, disabled, kept = [await tenant.hook(receiver.url("/"), "message.opened") for _ in range(3)]
    await tenant.tell(2)
    for hook in (deleted, disabled, kept):
        await tenant.tried(hook, 2)
    await tenant.done("DELETE", f"/{deleted.id}")
    await tenant.done("PUT", f"/{disabled.id}", {"enabled": False})
    found = await tenant.settled(disabled, 2)
    assert {one["status"] for one in found} == {"cancelled"}
    assert {one["next_attempt_at"] for one in found} == {None}
    async with asyncio.timeout(5):
        statement = "SELECT status FROM webhook_deliveries WHERE org_id = :org_id AND webhook_id = :id"
        while {status for (status,) in await tenant.sql(statement, id=UUID(deleted.id))} != {"cancelled"}:
            await asyncio.sleep(0.05)
    assert {one["status"] for one in await tenant.deliveries(kept)} == {"pending"}


async def test_looking_at_deliveries(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    receiver.manners["/"] = [reply("410 Gone"), reply()]
    hook = await tenant.hook(receiver.url("/"), "message.opened")
    await tenant.tell()
    await tenant.once(hook, lambda shown: not shown["enabled"])
    await tenant.done("PUT", f"/{hook.id}", {"enabled": True})
    await tenant.tell(3)
    await tenant.settled(hook, 4)
    assert len(await tenant.deliveries(hook, status="delivered")) == 3
    (failed,) = await tenant.deliveries(hook, status="failed")
    assert failed["attempts"][0]["error"] == "It answered 410; only 2xx is a success."
    paged: list[str] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        data = await tenant.done("GET", f"/{hook.id}/deliveries", params=params)
        paged += [one["id"] for one in data["deliveries"]]
        if not data["pagination"]["has_more"]:
            break
        params["after"] = data["pagination"]["next"]
    assert paged == [one["id"] for one in await tenant.deliveries(hook)]
    other = await tenant.hook(SOMEWHERE)
    for identifier in (failed["id"], str(new_id())):
        response = await tenant.ask("GET", f"/{other.id}/deliveries/{identifier}")
        helpers.assert_problem(response, 404, "delivery_not_found")
    assert (await tenant.ask("GET", f"/{hook.id}/deliveries", params={"status": "eaten"})).status_code == 422


async def test_nothing_of_other_organizations(
    tenant: Tenant, courier: Courier, receiver: Receiver, client: httpx.AsyncClient, dns: DnsServer
) -> None:
    other = Tenant(await make_sender(client, dns), tenant.database)
    mine = await tenant.hook(receiver.url("/mine"))
    theirs = await other.hook(receiver.url("/theirs"))
    await tenant.tell(2)
    await other.tell(3)
    assert len(await receiver.reach(3, "/mine")) == 3
    assert len(await receiver.reach(4, "/theirs")) == 4
    (message,) = {one.event["data"]["message_id"] for one in receiver.at("/mine")}
    assert message not in {one.event["data"]["message_id"] for one in receiver.at("/theirs")}
    (delivery, *_) = await other.settled(theirs, 4)
    for hook_id in (mine.id, theirs.id):
        response = await tenant.ask("POST", f"/{hook_id}/deliveries/{delivery['id']}/replay")
        assert response.status_code == 404
    span = {"from": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}
    assert (await tenant.done("POST", f"/{mine.id}/replay", span))["replay"]["queued"] == 3
    await other.forget()


def test_every_type_is_documented(app: FastAPI) -> None:
    assert list(get_args(WebhookType)) == [f"message.{name}" for name in get_args(EventType)]
    document = app.openapi()
    assert list(document["webhooks"]) == list(get_args(WebhookType))
    models = {route.path: route.body_field for route in documented.router().routes}
    for type in get_args(WebhookType):
        example = documented.example(type)
        assert example["type"] == type
        receiving = document["webhooks"][type]["post"]
        reference = receiving["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert document["components"]["schemas"][reference.rpartition("/")[2]]["examples"] == [example]
        assert {one["name"] for one in receiving["parameters"]} == {
            "webhook-id",
            "webhook-timestamp",
            "webhook-signature",
        }
        _, flaws = models[type].validate(example, {}, loc=("body",))
        assert not flaws
