"""Flush, hold and release."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from app.core.ids import new_id
from app.queues import control, service
from tests.accounts import helpers
from tests.factories.senders import new_domain
from tests.queues.helpers import NIL, URL, Postmaster, new_site


def _in(**duration: float) -> str:
    return (datetime.now(UTC) + timedelta(**duration)).isoformat()


async def test_flush_retries_what_was_deferred_and_nothing_else(master: Postmaster) -> None:
    site, name, other = new_site(), new_domain("to"), new_domain("to")
    await master.leads(site, name)
    deferred = [await master.send(name) for _ in range(2)]
    for message_id in deferred:
        await master.defer(message_id)
    due, scheduled = await master.send(name), await master.send(name, scheduled_at=_in(hours=1))
    sending, elsewhere, by_vmta = await master.send(name), await master.send(other), await master.send(name)
    await master.claim(sending)
    await master.defer(elsewhere)
    await master.set(by_vmta, "vmta_id = :vmta_id", vmta_id=await master.vmta())
    await master.defer(by_vmta)
    done = await master.act(f"default@{site}", "flush")
    assert (done["mails"], done["complete"]) == (2, True)
    assert done["queue"]["counts"] == {"waiting": 3, "deferred": 1, "sending": 1, "held": 0, "total": 5}
    assert await master.states(*deferred, due) == ["due"] * 3
    assert await master.states(scheduled, sending, elsewhere, by_vmta) == ["later", "sending", "later", "later"]
    again = await master.act(f"default@{site}", "flush")
    assert (again["mails"], again["complete"]) == (0, True)


async def test_flush_takes_what_was_scheduled_and_then_tried_or_put_off(master: Postmaster) -> None:
    name = new_domain("to")
    tried, put_off = [await master.send(name, scheduled_at=_in(hours=1)) for _ in range(2)]
    await master.sql("UPDATE messages SET scheduled_at = now() - interval '1 hour' WHERE org_id = :org_id")
    await master.defer(tried)
    # Its time has come, but a limit had a worker give it back for a while.
    await master.set(put_off, "next_attempt_at = now() + interval '5 minutes'")
    assert (await master.act(f"default@{name}", "flush"))["mails"] == 2
    assert await master.states(tried, put_off) == ["due", "due"]


async def test_flush_goes_in_chunks_up_to_its_bound(master: Postmaster, monkeypatch: pytest.MonkeyPatch) -> None:
    name = new_domain("to")
    for message_id in [await master.send(name) for _ in range(5)]:
        await master.defer(message_id)
    monkeypatch.setattr(service, "CHUNK", 2)
    monkeypatch.setattr(service, "_FLUSH_CHUNKS", 2)
    first = await master.act(f"default@{name}", "flush")
    assert (first["mails"], first["complete"]) == (4, False)
    second = await master.act(f"default@{name}", "flush")
    assert (second["mails"], second["complete"]) == (1, True)


async def test_hold_sets_aside_and_release_makes_due(master: Postmaster) -> None:
    site, name, other = new_site(), new_domain("to"), new_domain("to")
    await master.leads(site, name)
    queue_id = f"default@{site}"
    due, deferred, scheduled = [
        await master.send(name),
        await master.send(name),
        await master.send(name, scheduled_at=_in(hours=1)),
    ]
    await master.defer(deferred)
    sending, elsewhere = await master.send(name), await master.send(other)
    await master.claim(sending)
    done = await master.act(queue_id, "hold")
    assert (done["mails"], done["complete"], done["queue"]["state"]) == (2, True, "held")
    assert done["queue"]["counts"] == {"waiting": 0, "deferred": 1, "sending": 1, "held": 2, "total": 4}
    assert await master.states(due, deferred) == ["held", "held"]
    assert await master.states(scheduled, sending, elsewhere) == ["later", "sending", "due"]
    assert (await master.act(queue_id, "hold"))["mails"] == 0
    # The worker that had it at the time of the hold could not deliver it.
    await master.defer(sending)
    flushed = await master.act(queue_id, "flush")
    assert (flushed["mails"], flushed["queue"]["state"], flushed["queue"]["counts"]["held"]) == (0, "held", 2)
    assert await master.state(sending) == "later"
    await master.wake()
    assert await master.states(due, deferred) == ["held", "held"]
    done = await master.act(queue_id, "release")
    assert (done["mails"], done["complete"], done["queue"]["state"]) == (2, True, "active")
    assert await master.states(due, deferred, scheduled) == ["due", "due", "later"]
    again = await master.act(queue_id, "release")
    assert (again["mails"], again["queue"]["state"]) == (0, "active")


async def test_held_mail_is_shown_as_held(master: Postmaster) -> None:
    name, other = new_domain("to"), new_domain("to")
    held, mixed = await master.send(name), await master.sender.send([f"ada@{name}", f"ada@{other}"])
    await master.act(f"default@{name}", "hold")
    message = await master.sender.message(held)
    assert message["status"] == "held"
    assert [(one["status"], one["next_attempt_at"]) for one in message["recipients"]] == [("held", None)]
    message = await master.sender.message(mixed)
    assert (message["status"], [one["status"] for one in message["recipients"]]) == ("queued", ["held", "queued"])
    listed = await master.sender.client.get("/api/v1/messages", params={"status": "held"}, headers=master.sender.key)
    assert [one["id"] for one in listed.json()["data"]["messages"]] == [held]
    await master.act(f"default@{name}", "release")
    assert (await master.sender.message(held))["status"] == "queued"


async def test_a_queue_may_be_held_before_it_has_mail(master: Postmaster) -> None:
    site, name = new_site(), new_domain("to")
    queue_id = f"{await master.vmta()}@{site}"
    done = await master.act(queue_id, "hold")
    assert (done["mails"], done["queue"]["state"], done["queue"]["counts"]["total"]) == (0, "held", 0)
    assert [queue["id"] for queue in (await master.get(state="held"))["queues"]] == [queue_id]
    await master.leads(site, name)
    async with master.database.transaction() as session:
        holds = await control.load_holds(session)
    assert (master.org_id, service.parse_id(queue_id).way, site) in holds
    await master.act(queue_id, "release")
    assert (await master.get())["queues"] == []


async def test_a_domain_held_by_its_name_stays_so_when_its_site_becomes_known(master: Postmaster) -> None:
    site, name, other = new_site(), new_domain("to"), new_domain("to")
    early = await master.send(name)
    await master.act(f"default@{name}", "hold")
    await master.leads(site, name, other)
    late, beside = await master.send(name), await master.send(other)
    await master.park(late)
    await master.wake()
    assert await master.states(early, late, beside) == ["held", "held", "due"]
    async with master.database.transaction() as session:
        holds = await control.load_holds(session)
    assert control.is_held(holds, master.org_id, None, name, site)
    assert not control.is_held(holds, master.org_id, None, other, site)
    assert not control.is_held(holds, master.org_id, new_id(), name, site)
    # It is a queue by itself until it is released; its site's is another.
    counts = {queue["id"]: queue["counts"]["total"] for queue in (await master.get())["queues"]}
    assert counts == {f"default@{name}": 2, f"default@{site}": 1}
    assert (await master.act(f"default@{site}", "hold"))["mails"] == 1
    assert (await master.act(f"default@{name}", "release"))["mails"] == 0, "its site is held"
    assert await master.states(early, late, beside) == ["held"] * 3
    assert (await master.act(f"default@{site}", "release"))["mails"] == 3
    assert await master.states(early, late, beside) == ["due"] * 3


async def test_one_action_moves_a_bounded_chunk_and_wake_the_rest(
    master: Postmaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = new_domain("to")
    message_ids = [await master.send(name) for _ in range(5)]
    monkeypatch.setattr(service, "CHUNK", 2)
    done = await master.act(f"default@{name}", "hold")
    assert (done["mails"], done["complete"], done["queue"]["state"]) == (2, False, "held")
    for message_id in message_ids:
        await master.park(message_id)
    done = await master.act(f"default@{name}", "release")
    assert (done["mails"], done["complete"]) == (2, False)
    assert sorted(await master.states(*message_ids)) == ["due"] * 2 + ["held"] * 3
    await master.wake()
    assert await master.states(*message_ids) == ["due"] * 5


async def test_a_release_does_not_send_by_a_paused_vmta(master: Postmaster) -> None:
    name, vmta_id = new_domain("to"), await master.vmta(paused=True)
    message_id = await master.send(name, vmta_id=vmta_id)
    await master.act(f"{vmta_id}@{name}", "hold")
    done = await master.act(f"{vmta_id}@{name}", "release")
    assert (done["mails"], done["queue"]["state"]) == (0, "paused")
    assert await master.state(message_id) == "held"


async def test_a_mail_parked_after_the_release_is_woken(master: Postmaster) -> None:
    """The worker's picture of the holds is half a second old."""
    name = new_domain("to")
    message_id = await master.send(name)
    await master.claim(message_id)
    await master.act(f"default@{name}", "hold")
    await master.act(f"default@{name}", "release")
    await master.park(message_id)
    assert await master.state(message_id) == "held"
    await master.wake()
    assert await master.state(message_id) == "due"


async def test_releases_while_workers_park_lose_nothing(master: Postmaster) -> None:
    name = new_domain("to")
    message_ids = [await master.send(name) for _ in range(20)]

    async def work() -> None:
        for message_id in message_ids:
            await master.claim(message_id)
            await master.park(message_id)

    async def manage() -> None:
        for _ in range(4):
            await master.act(f"default@{name}", "hold")
            await master.act(f"default@{name}", "release")

    await asyncio.gather(work(), manage())
    await master.wake()
    assert set(await master.states(*message_ids)) == {"due"}


async def test_rows_that_another_transaction_has_are_not_waited_for(master: Postmaster) -> None:
    name = new_domain("to")
    locked, free = await master.send(name), await master.send(name)
    async with master.database.transaction() as session:
        await session.execute(
            text("SELECT FROM delivery_queue WHERE org_id = :org_id AND message_id = :id FOR UPDATE"),
            {"org_id": master.org_id, "id": locked},
        )
        done = await asyncio.wait_for(master.act(f"default@{name}", "hold"), 5)
    assert (done["mails"], await master.states(locked, free)) == (1, ["due", "held"])


async def test_an_organization_may_hold_so_many_queues(master: Postmaster, stranger: Postmaster) -> None:
    await master.sql(
        "INSERT INTO queue_holds (org_id, vmta_id, site) "
        "SELECT :org_id, :nil, 'site' || g || '.example' FROM generate_series(1, :count) g",
        nil=NIL,
        count=service.MAX_HOLDS,
    )
    helpers.assert_problem(await master.post("default@one-more.example", "hold"), 409, "too_many_holds")
    await master.act("default@site7.example", "hold")
    await stranger.act("default@one-more.example", "hold")
    await master.act("default@site7.example", "release")
    await master.act("default@one-more.example", "hold")


@pytest.mark.parametrize("queue_id", ["x", "default@", "default@A", "nobody@gmail"])
async def test_malformed_ids(master: Postmaster, queue_id: str) -> None:
    for action in ("flush", "hold", "release"):
        helpers.assert_problem(await master.post(queue_id, action), 404, "queue_not_found")


async def test_unknown_vmtas_and_actions(master: Postmaster) -> None:
    for queue_id in (f"{new_id()}@gmail", f"{NIL}@gmail"):
        helpers.assert_problem(await master.post(queue_id, "hold"), 404, "queue_not_found")
    helpers.assert_problem(await master.post("default@gmail", "burn"), 404, "route_not_found")
    assert (await master.sender.client.get(f"{URL}/default@gmail/hold", headers=master.sender.key)).status_code == 405


async def test_a_suspended_organization_looks_but_does_not_act(master: Postmaster) -> None:
    name = new_domain("to")
    message_id = await master.send(name)
    await master.sql("UPDATE organizations SET suspended_at = now(), suspension_reason = 'Abuse' WHERE id = :org_id")
    try:
        # What is remembered of a caller is 1.5 seconds old at most.
        await asyncio.sleep(1.6)
        for action in ("flush", "hold", "release"):
            helpers.assert_problem(await master.post(f"default@{name}", action), 403, "organization_suspended")
        assert (await master.queue(f"default@{name}"))["counts"]["waiting"] == 1
    finally:
        await master.sql("UPDATE organizations SET suspended_at = NULL, suspension_reason = NULL WHERE id = :org_id")
    assert await master.state(message_id) == "due"


async def test_roles(master: Postmaster) -> None:
    client = master.sender.client
    founder = helpers.Account(master.org_id, master.org_id, "", "", "")
    analyst = await helpers.colleague(master.database, founder, "analyst")
    developer = await helpers.colleague(master.database, founder, "developer")
    refused = await client.post(f"{URL}/default@gmail/hold", headers=analyst.headers)
    helpers.assert_problem(refused, 403, "insufficient_scope")
    assert (await client.post(f"{URL}/default@gmail/hold", headers=developer.headers)).status_code == 200
    [row] = await master.sql("SELECT created_by FROM queue_holds WHERE org_id = :org_id")
    assert row.created_by == developer.user_id
