"""Looking at queues: what stands in them, filters, pages, sums, and nothing of anybody else's."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from app.core.ids import new_id
from app.queues import queries
from tests.accounts import helpers
from tests.factories.senders import new_domain
from tests.queues.helpers import URL, Postmaster, new_site


async def _ids(master: Postmaster, **params: Any) -> list[str]:
    return [queue["id"] for queue in (await master.get(**params))["queues"]]


async def _throttle(master: Postmaster, way: UUID, site: str, kind: str, *, minutes: int = 10) -> None:
    await master.sql(
        "INSERT INTO queue_throttles (vmta_id, site, kind, reason, until) VALUES (:way, :site, :kind, 'rate_limited', "
        "now() + make_interval(mins => :minutes))",
        way=way,
        site=site,
        kind=kind,
        minutes=minutes,
    )


async def test_no_mail_no_queues(master: Postmaster) -> None:
    data = await master.get()
    assert (data["queues"], data["approximate"], data["pagination"]["has_more"]) == ([], False, False)
    status = (await master.get("/status"))["status"]
    assert (status["queues"], status["counts"]["total"], status["oldest_due_seconds"]) == (0, 0, None)
    assert set(status["states"].values()) == {0}


async def test_a_queue_tells_what_stands_in_it(master: Postmaster) -> None:
    site, one, other, vmta_id = new_site(), new_domain("to"), new_domain("to"), await master.vmta()
    await master.leads(site, one, other, provider="microsoft")
    waiting = [await master.send(one, vmta_id=vmta_id) for _ in range(3)]
    await master.set(waiting[0], "next_attempt_at = now() - interval '90 seconds'")
    await master.defer(await master.send(one, vmta_id=vmta_id), seconds=300)
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    await master.send(other, vmta_id=vmta_id, scheduled_at=soon)
    await master.claim(await master.send(other, vmta_id=vmta_id))
    await master.park(await master.send(other, vmta_id=vmta_id))
    lost = await master.send(other, vmta_id=vmta_id)
    await master.claim(lost)
    await master.set(lost, "next_attempt_at = now()")
    await master.set(await master.send(other, vmta_id=vmta_id), "simulated = 'delivered'")
    [queue] = (await master.get())["queues"]
    assert queue["id"] == f"{vmta_id}@{site}"
    assert queue["vmta"]["id"] == str(vmta_id)
    assert (queue["site"], queue["provider"], queue["state"]) == (site, "microsoft", "active")
    assert (queue["reason"], queue["until"]) == (None, None)
    assert queue["counts"] == {"waiting": 4, "deferred": 2, "sending": 1, "held": 1, "total": 8}
    assert 90 <= queue["oldest_due_seconds"] < 120
    next_at = datetime.fromisoformat(queue["next_attempt_at"]) - datetime.now(UTC)
    assert timedelta(seconds=270) < next_at <= timedelta(seconds=300)
    assert queue["domains"] == sorted([one, other]), "as many mails for each"
    assert await master.queue(queue["id"]) == queue | {"oldest_due_seconds": pytest.approx(90, abs=30)}


async def test_one_mail_to_several_domains_stands_in_several_queues(master: Postmaster) -> None:
    names = [new_domain("to") for _ in range(3)]
    await master.sender.send([f"ada@{name}" for name in names])
    queues = (await master.get())["queues"]
    assert sorted(queue["id"] for queue in queues) == sorted(f"default@{name}" for name in names)
    assert {queue["vmta"] for queue in queues} == {None}
    assert {queue["provider"] for queue in queues} == {"generic"}
    assert [queue["domains"] for queue in queues] == [[queue["site"]] for queue in queues]


async def test_at_most_ten_domains_are_named(master: Postmaster) -> None:
    site, names = new_site(), [new_domain("to") for _ in range(12)]
    await master.leads(site, *names)
    for name in names:
        await master.send(name)
    queue = await master.queue(f"default@{site}")
    assert (queue["counts"]["total"], len(queue["domains"])) == (12, 10)
    assert set(queue["domains"]) < set(names)


async def test_an_empty_queue_is_shown_by_its_id_but_not_listed(master: Postmaster) -> None:
    queue = await master.queue(f"default@{new_site()}")
    assert (queue["state"], queue["counts"]["total"], queue["domains"]) == ("active", 0, [])
    assert await _ids(master) == []


async def test_states_and_filters(master: Postmaster) -> None:
    site, vmta_id, paused = new_site(), await master.vmta(), await master.vmta(paused=True)
    held, slowed, suspended, over, plain = (new_domain("to") for _ in range(5))
    for name in (held, slowed, suspended, over, plain):
        await master.send(name, vmta_id=vmta_id)
    await master.leads(site, plain)
    await master.send(plain, vmta_id=paused)
    await master.send(held)
    await master.act(f"{vmta_id}@{held}", "hold")
    await _throttle(master, vmta_id, slowed, "slowed")
    await _throttle(master, vmta_id, suspended, "suspended")
    await _throttle(master, vmta_id, held, "suspended")
    await _throttle(master, vmta_id, over, "suspended", minutes=-1)
    queues = {queue["id"]: queue for queue in (await master.get())["queues"]}
    assert {queue_id: queue["state"] for queue_id, queue in queues.items()} == {
        f"{vmta_id}@{held}": "held",
        f"{vmta_id}@{slowed}": "slowed",
        f"{vmta_id}@{suspended}": "suspended",
        f"{vmta_id}@{over}": "active",
        f"{vmta_id}@{site}": "active",
        f"{paused}@{site}": "paused",
        f"default@{held}": "active",
    }
    for queue_id in (f"{vmta_id}@{slowed}", f"{vmta_id}@{suspended}", f"{vmta_id}@{held}"):
        assert queues[queue_id]["reason"] == "rate_limited"
        assert datetime.fromisoformat(queues[queue_id]["until"]) > datetime.now(UTC)
    assert queues[f"{vmta_id}@{over}"]["until"] is None
    assert await _ids(master, state="suspended") == [f"{vmta_id}@{suspended}"]
    assert await _ids(master, state="held") == [f"{vmta_id}@{held}"]
    assert await _ids(master, vmta_id=str(paused)) == [f"{paused}@{site}"]
    assert await _ids(master, vmta_id="default") == [f"default@{held}"]
    assert await _ids(master, site=site) == sorted([f"{vmta_id}@{site}", f"{paused}@{site}"])
    assert await _ids(master, site=held, vmta_id=str(vmta_id), state="held") == [f"{vmta_id}@{held}"]
    assert await _ids(master, site=site, state="held") == []
    status = (await master.get("/status"))["status"]
    assert status["states"] == {"active": 3, "held": 1, "paused": 1, "suspended": 1, "slowed": 1}
    assert (status["queues"], status["counts"]["total"], status["counts"]["held"]) == (7, 7, 1)


async def test_pages_in_the_order_of_ids(master: Postmaster) -> None:
    vmta_id, names = await master.vmta(), [new_domain("to") for _ in range(3)]
    for name in names:
        await master.send(name)
        await master.send(name, vmta_id=vmta_id)
    everything = sorted([f"default@{name}" for name in names] + [f"{vmta_id}@{name}" for name in names])
    assert await _ids(master) == everything
    first = await master.get(limit=2)
    assert [queue["id"] for queue in first["queues"]] == everything[:2]
    assert (first["pagination"]["has_more"], first["pagination"]["previous"]) == (True, None)
    second = await master.get(limit=2, after=first["pagination"]["next"])
    assert [queue["id"] for queue in second["queues"]] == everything[2:4]
    third = await master.get(limit=2, after=second["pagination"]["next"])
    assert [queue["id"] for queue in third["queues"]] == everything[4:]
    assert (third["pagination"]["has_more"], third["pagination"]["next"]) == (False, None)
    back = await master.get(limit=2, before=third["pagination"]["previous"])
    assert [queue["id"] for queue in back["queues"]] == everything[2:4]
    start = await master.get(limit=2, before=back["pagination"]["previous"])
    assert [queue["id"] for queue in start["queues"]] == everything[:2]
    assert start["pagination"]["previous"] is None


@pytest.mark.parametrize(
    "params",
    [
        {"after": "€"},
        {"after": "a"},
        {"before": "/+8"},
        {"after": "AAAA"},
        {"after": "x" * 801},
        {"after": "YQ", "before": "YQ"},
        {"limit": 0},
        {"limit": 101},
        {"vmta_id": "x"},
        {"state": "asleep"},
        {"site": "\x00"},
    ],
)
async def test_bad_questions(master: Postmaster, params: dict[str, Any]) -> None:
    answer = await master.sender.client.get(URL, params=params, headers=master.sender.key)
    assert answer.status_code == 422, answer.text


async def test_other_organizations_queues_are_not_seen(master: Postmaster, stranger: Postmaster) -> None:
    name, vmta_id = new_domain("to"), await stranger.vmta()
    await stranger.send(name)
    await stranger.send(name, vmta_id=vmta_id)
    await stranger.act(f"default@{name}", "hold")
    assert await _ids(master) == []
    assert await _ids(master, vmta_id=str(vmta_id)) == []
    assert (await master.get("/status"))["status"]["queues"] == 0
    # The platform's own way out is everybody's; what waits and what is held there is each one's own.
    assert (await master.queue(f"default@{name}"))["state"] == "active"
    assert (await master.queue(f"default@{name}"))["counts"]["total"] == 0
    foreign = f"{vmta_id}@{name}"
    helpers.assert_problem(
        await master.sender.client.get(f"{URL}/{foreign}", headers=master.sender.key), 404, "queue_not_found"
    )
    for action in ("flush", "hold", "release"):
        helpers.assert_problem(await master.post(foreign, action), 404, "queue_not_found")
    assert await _ids(stranger) == sorted([foreign, f"default@{name}"])


async def test_beyond_the_bound_the_counts_are_called_approximate(
    master: Postmaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = new_domain("to")
    for _ in range(3):
        await master.send(name)
    assert not (await master.get())["approximate"]
    monkeypatch.setattr(queries, "SCANNED_MAX", 2)
    assert (await master.get())["approximate"]
    assert (await master.get(state="held"))["approximate"]
    assert (await master.get("/status"))["status"]["approximate"]
    monkeypatch.setattr(queries, "SCANNED_MAX", 3)
    assert not (await master.get("/status"))["status"]["approximate"]


async def test_the_queues_of_a_vmta(master: Postmaster, stranger: Postmaster, client: httpx.AsyncClient) -> None:
    vmta_id, paused, names = await master.vmta(), await master.vmta(paused=True), [new_domain("to") for _ in range(2)]
    for name in (*names, names[1]):
        await master.send(name, vmta_id=vmta_id)
    await master.send(names[0])
    await master.act(f"{vmta_id}@{names[0]}", "hold")
    answer = await client.get(f"/api/v1/vmtas/{vmta_id}/queue", headers=master.sender.key)
    queue = answer.json()["data"]["queue"]
    assert (queue["vmta"]["id"], queue["paused"], queue["queues"]) == (str(vmta_id), False, 2)
    assert queue["counts"] == {"waiting": 2, "deferred": 0, "sending": 0, "held": 1, "total": 3}
    assert queue["states"] == {"active": 1, "held": 1, "paused": 0, "suspended": 0, "slowed": 0}
    assert [one["id"] for one in queue["fullest"]] == [f"{vmta_id}@{names[1]}", f"{vmta_id}@{names[0]}"]
    empty = (await client.get(f"/api/v1/vmtas/{paused}/queue", headers=master.sender.key)).json()["data"]["queue"]
    assert (empty["paused"], empty["queues"], empty["counts"]["total"], empty["fullest"]) == (True, 0, 0, [])
    for headers, identifier in ((stranger.sender.key, vmta_id), (master.sender.key, new_id())):
        answer = await client.get(f"/api/v1/vmtas/{identifier}/queue", headers=headers)
        helpers.assert_problem(answer, 404, "vmta_not_found")
