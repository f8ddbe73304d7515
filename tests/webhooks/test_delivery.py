"""From an event to the endpoint, and whatever an endpoint may do."""

import asyncio
import json
from datetime import datetime, timedelta

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from app.core.config import Settings
from app.core.db import Database
from app.webhooks import post, schedule
from app.webhooks.courier import Courier
from tests.accounts import helpers
from tests.certificates import make_authority, self_signed
from tests.dnsd import DnsServer
from tests.factories.post_office import writing_from
from tests.webhooks.house import Tenant
from tests.webhooks.receiver import Flood, Receiver, drip, hang, reply


def verified(secret: str, received) -> dict:
    """The payload, as the customer's library reads it. Raises WebhookVerificationError."""
    return Webhook(secret).verify(received.body, received.headers)


async def test_an_event_arrives_signed_and_is_logged(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    hook = await tenant.hook(receiver.url("/hook"))
    (event_id,) = await tenant.tell(type="clicked", url="https://x.test/", response="250 ok")
    queued, clicked = await receiver.reach(2)
    assert (queued.event["type"], queued.event["data"]["sequence"]) == ("message.queued", 1)
    payload = verified(hook.secret, clicked)
    data = payload["data"]
    message_id = data.pop("message_id")
    assert data == {
        "event_id": event_id,
        "recipient": "ada@to.example",
        "sequence": 2,
        "subject": "Hello",
        "tags": ["a"],
        "metadata": {"n": 1},
        "simulated": False,
        "url": "https://x.test/",
        "mta_response": "250 ok",
    }
    assert payload["type"] == "message.clicked"
    assert clicked.webhook_id == event_id
    assert (clicked.headers["content-type"], clicked.headers["user-agent"]) == ("application/json", "Postroad")
    newest, oldest = await tenant.settled(hook, 2)
    assert [newest["event_type"], oldest["event_type"]] == ["message.clicked", "message.queued"]
    assert (newest["status"], newest["event_id"], newest["message_id"]) == ("delivered", event_id, message_id)
    (attempt,) = newest["attempts"]
    assert attempt.pop("latency_ms") >= 0
    assert attempt.pop("started_at").endswith("Z")
    assert attempt == {"number": 1, "status_code": 200, "response": "", "error": None}
    detail = (await tenant.done("GET", f"/{hook.id}/deliveries/{newest['id']}"))["delivery"]
    assert detail["payload"].encode() == clicked.body
    await tenant.once(hook, lambda shown: shown["last_success_at"] is not None)
    # What an idle hour does to a connection: it was kept for the second event.
    assert receiver.connections <= 2


async def test_what_is_tampered_with_fails(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    hook, other = await tenant.hook(receiver.url("/a")), await tenant.hook(receiver.url("/b"), "message.clicked")
    await tenant.tell()
    received = (await receiver.reach(2))[1]
    verified(hook.secret, received)
    for body, headers in (
        (received.body + b" ", received.headers),
        (received.body, received.headers | {"webhook-id": "another"}),
        (received.body, received.headers | {"webhook-timestamp": str(int(received.headers["webhook-timestamp"]) - 1)}),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(hook.secret).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(other.secret).verify(received.body, received.headers)


async def test_only_the_types_that_are_wanted(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    await tenant.hook(receiver.url("/opened"), "message.opened")
    await tenant.hook(receiver.url("/two"), "message.clicked", "message.opened")
    await tenant.tell(1, "clicked")
    await tenant.tell(1, "opened")
    await receiver.reach(2, "/two")
    assert [one.event["type"] for one in await receiver.reach(1, "/opened")] == ["message.opened"]
    assert {one.event["data"]["sequence"] for one in receiver.at("/two")} == {2, 3}


async def test_a_new_webhook_is_told_of_what_comes(tenant: Tenant, receiver: Receiver, settings: Settings) -> None:
    """Also when what was before has not been handed on yet, to others or to it itself before it was off."""
    first = await tenant.hook(receiver.url("/first"))
    await tenant.tell()
    second = await tenant.hook(receiver.url("/second"))
    await tenant.done("PUT", f"/{first.id}", {"enabled": False})
    await tenant.tell()
    await tenant.done("PUT", f"/{first.id}", {"enabled": True})
    last = await tenant.tell()
    courier = Courier(settings)
    running = asyncio.create_task(courier.run())
    await receiver.reach(2, "/second")
    assert [one.webhook_id for one in await receiver.reach(1, "/first")] == last
    await tenant.settled(second, 2)
    assert len(await tenant.deliveries(first)) == 1
    courier.stop()
    await running


FAILURES = {
    "/500": (reply("500 Oops", b"no\0pe" + b"x" * 5000), "It answered 500; only 2xx"),
    "/302": (reply("302 Found", Location="http://169.254.169.254/latest"), "redirects are not"),
    "/301": (reply("301 Moved", Location="/other"), "It answered 301, and redirects"),
    "/404": (reply("404 Not Found"), "It answered 404; only 2xx"),
    "/ssh": (b"SSH-2.0-OpenSSH_9.2\r\n", "malformed"),
    "/nothing": (b"", "malformed, or missing"),
    "/head": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000, "malformed"),
}


async def test_failures(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    hooks = {}
    for path, (manner, _) in FAILURES.items():
        receiver.manners[path] = [manner, reply("204 No Content")]
        hooks[path] = await tenant.hook(receiver.url(path), "message.opened")
    await tenant.tell()
    for path, (_, sentence) in FAILURES.items():
        ((delivery),) = await tenant.tried(hooks[path], 1)
        (attempt,) = delivery["attempts"]
        assert sentence in attempt["error"]
        assert len(attempt["response"]) <= 1024
        assert delivery["status"] == "pending"
        began, next_at = (datetime.fromisoformat(one) for one in (attempt["started_at"], delivery["next_attempt_at"]))
        assert timedelta(seconds=4.4) < next_at - began < timedelta(minutes=1)
        await tenant.once(hooks[path], lambda shown: shown["failing_since"] is not None)
    await tenant.hurry()
    for path, hook in hooks.items():
        ((delivery),) = await tenant.settled(hook, 1)
        assert delivery["status"] == "delivered"
        assert [one["status_code"] for one in delivery["attempts"]][1:] == [204]
        first, second = receiver.at(path)
        assert (first.webhook_id, first.body) == (second.webhook_id, second.body)
        await tenant.once(hook, lambda shown: shown["failing_since"] is None)
    assert not receiver.at("/other")


async def test_those_that_keep_us_waiting(
    tenant: Tenant, courier: Courier, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "TIMEOUT_SECONDS", 1.0)
    flood = Flood()
    receiver.manners |= {
        "/hang": [hang],
        "/drip": [drip(reply("200 OK", b"x" * 100))],
        "/body": [drip(b"x" * 100)],
        "/flood": [flood],
    }

    async def say_head_then_drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        await drip(b"x" * 100)(writer)

    receiver.manners["/body"] = [say_head_then_drip]
    hooks = {path: await tenant.hook(receiver.url(path), "message.opened") for path in receiver.manners}
    await tenant.tell()
    for path in ("/hang", "/drip"):
        ((delivery),) = await tenant.tried(hooks[path], 1)
        assert delivery["attempts"][0]["error"] == "It did not answer in full within 1 seconds."
        assert delivery["attempts"][0]["latency_ms"] > 900
    for path in ("/body", "/flood"):
        # Both have said 200, and that is what counts.
        ((delivery),) = await tenant.settled(hooks[path], 1)
        assert delivery["status"] == "delivered"
    assert len(delivery["attempts"][0]["response"]) == 1024
    assert flood.taken < 16 * 2**20


async def test_gone_disables_at_once(
    tenant: Tenant, settings: Settings, receiver: Receiver, database: Database
) -> None:
    operator = tenant.sender
    await tenant.sql("UPDATE users SET is_operator = true WHERE org_id = :org_id")
    courier = Courier(writing_from(settings, operator))
    running = asyncio.create_task(courier.run())
    try:
        receiver.manners["/"] = [reply("500 Oops"), reply("410 Gone")]
        hook = await tenant.hook(receiver.url("/"), "message.opened")
        await tenant.tell()
        await tenant.tried(hook, 1)
        await tenant.tell()
        first, second = await tenant.settled(hook, 2)
        assert [first["status"], second["status"]] == ["failed", "cancelled"]
        shown = await tenant.shown(hook)
        assert (shown["enabled"], shown["disabled_reason"]) == (False, "gone")
        ((email,),) = await tenant.sql("SELECT email FROM users WHERE org_id = :org_id")
        ((_, words),) = [one for one in await helpers.mails_to(database, email) if "webhook" in one[0]]
        assert receiver.url("/") in words
        assert "410" in words
        await tenant.tell()
        await asyncio.sleep(0.5)
        assert len(receiver.received) == 2
    finally:
        courier.stop()
        await running
        await tenant.sql("UPDATE users SET is_operator = false WHERE org_id = :org_id")


async def test_five_days_of_failure_disable(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    receiver.manners["/"] = [reply("500 Oops")]
    hooks = [await tenant.hook(receiver.url("/"), "message.opened") for _ in range(2)]
    await tenant.tell()
    for hook, minutes in zip(hooks, (-5, 1), strict=True):
        await tenant.tried(hook, 1)
        await tenant.once(hook, lambda shown: shown["failing_since"] is not None)
        await tenant.sql(
            "UPDATE webhooks SET failing_since = now() - CAST(:since AS interval) WHERE org_id = :org_id AND id = :id",
            since=schedule.GIVE_UP_AFTER + timedelta(minutes=minutes),
            id=hook.id,
        )
    # Until it is known to the process.
    await asyncio.sleep(1.3)
    await tenant.hurry()
    for hook in hooks:
        await tenant.tried(hook, 1, times=2)
    await tenant.once(hooks[1], lambda shown: shown["disabled_reason"] == "failing")
    assert (await tenant.shown(hooks[0]))["enabled"] is True
    await tenant.until(hooks[1], lambda one: one["status"] == "cancelled", 1)


async def test_all_attempts_fail(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    receiver.manners["/"] = [reply("500 Oops")]
    hook = await tenant.hook(receiver.url("/"), "message.opened")
    await tenant.tell()
    await tenant.tried(hook, 1)
    await tenant.sql("UPDATE webhook_deliveries SET attempt = 8 WHERE org_id = :org_id")
    await tenant.hurry()
    ((delivery),) = await tenant.tried(hook, 1, times=2)
    assert delivery["status"] == "pending"
    await tenant.hurry()
    ((delivery),) = await tenant.settled(hook, 1)
    assert delivery["status"] == "failed"
    assert [one["number"] for one in delivery["attempts"]] == [1, 9, 10]
    assert len({(one.webhook_id, one.body) for one in receiver.received}) == 1


async def test_a_dead_endpoint_costs_others_nothing(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    receiver.manners["/dead"] = [hang]
    for _ in range(3):
        await tenant.hook(receiver.url("/dead"), "message.opened")
    good = await tenant.hook(receiver.url("/good"), "message.opened")
    await tenant.tell(300)
    await receiver.reach(300, "/good")
    # The dead ones have not even had their 15 seconds.
    assert receiver.most_at_once <= 9 + 10
    assert len(receiver.at("/dead")) == 9
    assert len({one.webhook_id for one in receiver.at("/good")}) == 300
    await tenant.until(good, lambda one: one["status"] == "delivered", 100)


async def test_tls(tenant: Tenant, settings: Settings, dns: DnsServer, tmp_path) -> None:
    authority = make_authority()
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(authority.pem)
    dns.add("hooks.example.test", "A", "127.0.0.1")
    courier = Courier(settings.model_copy(update={"outbound_tls_ca_file": ca_file}))
    running = asyncio.create_task(courier.run())
    certificates = {
        "good": authority.issue("hooks.example.test"),
        "selfmade": self_signed("hooks.example.test"),
        "other": authority.issue("other.example.test"),
        "old": authority.issue("hooks.example.test", expired=True),
    }
    receivers = {name: Receiver(certificate) for name, certificate in certificates.items()}
    try:
        for one in receivers.values():
            await one.__aenter__()
        hooks = {
            name: await tenant.hook(one.url("/", "hooks.example.test"), "message.opened")
            for name, one in receivers.items()
        }
        await tenant.tell(3)
        await tenant.settled(hooks["good"], 3)
        assert receivers["good"].received[0].headers["host"] == f"hooks.example.test:{receivers['good'].port}"
        for name in ("selfmade", "other", "old"):
            found = await tenant.tried(hooks[name], 1)
            assert "certificate is not valid" in found[-1]["attempts"][0]["error"]
            assert not receivers[name].received
    finally:
        courier.stop()
        await running
        for one in receivers.values():
            await one.__aexit__(None, None, None)


async def test_a_connection_that_the_host_ends_is_made_anew(
    tenant: Tenant, courier: Courier, receiver: Receiver
) -> None:
    receiver.manners["/"] = [reply(Connection="close")]
    hook = await tenant.hook(receiver.url("/"), "message.opened")
    for count in range(1, 4):
        await tenant.tell()
        await tenant.settled(hook, count)
    assert receiver.connections == 3
    assert all(len(one["attempts"]) == 1 for one in await tenant.deliveries(hook))


async def test_two_processes_share_the_work(tenant: Tenant, settings: Settings, receiver: Receiver) -> None:
    hook = await tenant.hook(receiver.url("/"), "message.opened")
    couriers = [Courier(settings) for _ in range(2)]
    running = [asyncio.create_task(one.run()) for one in couriers]
    for _ in range(10):
        await tenant.tell(50)
    await receiver.reach(500)
    for one in couriers:
        one.stop()
    await asyncio.gather(*running)
    assert len({one.webhook_id for one in receiver.received}) == len(receiver.received) == 500
    assert {one["status"] for one in await tenant.deliveries(hook)} == {"delivered"}
    ((sequences,),) = await tenant.sql(
        "SELECT array_agg((payload::jsonb -> 'data' ->> 'sequence')::int ORDER BY id) FROM webhook_deliveries "
        "WHERE org_id = :org_id"
    )
    assert sorted(sequences) == list(range(2, 502))


async def test_metrics(tenant: Tenant, settings: Settings, receiver: Receiver) -> None:
    async def samples() -> dict[str, float]:
        response = await tenant.sender.client.get("/metrics", headers={"Accept": "application/json"})
        found = response.json()["data"]["metrics"]
        return {one["name"] + str(one["labels"].get("outcome", "")): one["value"] for one in found}

    before = await samples()
    receiver.manners["/"] = [reply("500 Oops"), reply()]
    hook = await tenant.hook(receiver.url("/"), "message.opened")
    courier = Courier(settings)
    running = asyncio.create_task(courier.run())
    await tenant.tell()
    await tenant.tried(hook, 1)
    await tenant.tell()
    await tenant.settled(hook, 1)
    courier.stop()
    await running
    after = await samples()
    for outcome in ("delivered", "deferred"):
        name = f"postroad_webhook_attempts_total{outcome}"
        assert after[name] == before.get(name, 0) + 1
    assert after["postroad_webhook_deliveries_pending"] == before["postroad_webhook_deliveries_pending"] + 1
    assert after["postroad_webhook_oldest_due_seconds"] >= 0


async def test_the_log_of_attempts_is_json(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    receiver.manners["/"] = [reply("500 Oops", bytes(range(256)))]
    hook = await tenant.hook(receiver.url("/"), "message.opened")
    await tenant.tell()
    ((delivery),) = await tenant.tried(hook, 1)
    response = delivery["attempts"][0]["response"]
    assert "\ufffd" in response
    assert json.loads(json.dumps(response)) == response
