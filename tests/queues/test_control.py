"""What the engine and the sweep ask: which mail is woken and which is not, what is held, where domains lead."""

from datetime import UTC, datetime, timedelta

import httpx

from app.queues import control
from app.queues.models import Destination
from tests.dnsd import DnsServer
from tests.factories.senders import make_sender, new_domain
from tests.queues.helpers import Postmaster, forget, new_site


async def test_what_a_hold_keeps_is_not_woken(master: Postmaster) -> None:
    site, held, free, vmta_id = new_site(), new_domain("to"), new_domain("to"), await master.vmta()
    await master.leads(site, held)
    kept, by_vmta, other = await master.send(held), await master.send(held, vmta_id=vmta_id), await master.send(free)
    for message_id in (kept, by_vmta, other):
        await master.park(message_id)
    await master.sql("INSERT INTO queue_holds VALUES (:org_id, :nil, :site)", nil=control._NIL, site=site)
    await master.wake()
    assert await master.states(kept, by_vmta, other) == ["held", "due", "due"]
    await master.leads(new_site(), held)
    await master.wake()
    assert await master.state(kept) == "due", "its domain has moved to a site that is not held"


async def test_holds_are_each_organizations_own(master: Postmaster, stranger: Postmaster) -> None:
    name = new_domain("to")
    mine, theirs = await master.send(name), await stranger.send(name)
    await master.act(f"default@{name}", "hold")
    await stranger.park(theirs)
    await master.wake()
    assert (await master.state(mine), await stranger.state(theirs)) == ("held", "due")


async def test_a_paused_vmta_keeps_its_mail_unless_another_stands_in(master: Postmaster) -> None:
    name = new_domain("to")
    alone, paused = await master.vmta(paused=True), await master.vmta(paused=True, pool="a")
    resting, backed = await master.vmta(paused=True, pool="a"), await master.vmta(paused=True, pool="b")
    standby, active = await master.vmta(pool="b"), await master.vmta()
    ways = [alone, paused, resting, backed, active, None]
    message_ids = [await master.send(name, vmta_id=vmta_id) for vmta_id in ways]
    for message_id in message_ids:
        await master.park(message_id)
    await master.wake()
    assert await master.states(*message_ids) == ["held", "held", "held", "due", "due", "due"]
    await master.sql("UPDATE vmtas SET paused_at = NULL WHERE org_id = :org_id AND id = :id", id=resting)
    await master.wake()
    assert await master.states(*message_ids[:3]) == ["held", "due", "due"], "one resumed: it serves its whole pool"
    await master.park(message_ids[3])
    await master.sql("UPDATE vmtas SET deleted_at = now() WHERE org_id = :org_id AND id = :id", id=standby)
    await master.wake()
    assert await master.state(message_ids[3]) == "held", "who is deleted stands in for nobody"
    await master.sql("UPDATE vmtas SET paused_at = NULL WHERE org_id = :org_id AND id = :id", id=alone)
    await master.wake()
    assert await master.state(message_ids[0]) == "due"


async def test_another_organizations_pool_does_not_stand_in(master: Postmaster, stranger: Postmaster) -> None:
    vmta_id = await master.vmta(paused=True, pool="shared")
    await stranger.vmta(pool="shared")
    message_id = await master.send(new_domain("to"), vmta_id=vmta_id)
    await master.park(message_id)
    await master.wake()
    assert await master.state(message_id) == "held"


async def test_expired_mail_comes_due_whatever_holds_it(master: Postmaster) -> None:
    name, paused = new_domain("to"), await master.vmta(paused=True)
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    expired, given_up, alive = [await master.send(name, expires_at=soon) for _ in range(3)]
    by_vmta = await master.send(new_domain("to"), vmta_id=paused)
    await master.act(f"default@{name}", "hold")
    await master.park(by_vmta)
    await master.set(expired, "expires_at = now()")
    await master.set(given_up, "give_up_at = now() - interval '1 second'")
    await master.set(by_vmta, "give_up_at = now() - interval '1 second'")
    assert await master.wake() == 3
    assert await master.states(expired, given_up, by_vmta, alive) == ["due", "due", "due", "held"]


async def test_what_is_not_held_is_left_alone(master: Postmaster) -> None:
    name = new_domain("to")
    deferred, sending = await master.send(name), await master.send(name)
    await master.defer(deferred)
    await master.claim(sending)
    await master.wake()
    assert await master.states(deferred, sending) == ["later", "sending"]


async def test_all_who_wait_get_their_share(
    master: Postmaster, stranger: Postmaster, client: httpx.AsyncClient, dns: DnsServer
) -> None:
    """One with a lot, one with a little beside a queue that stays held, one of whom all stays held."""
    third = Postmaster(await make_sender(client, dns), master.database)
    try:
        many, held, stays = [new_domain("to") for _ in range(3)]
        lot = [await master.send(many) for _ in range(8)]
        few = await stranger.send(many)
        kept = await stranger.send(held)
        await stranger.act(f"default@{held}", "hold")
        await third.send(stays)
        await third.act(f"default@{stays}", "hold")
        for message_id in lot:
            await master.park(message_id)
        await stranger.park(few)
        assert await master.wake(limit=6) == 4
        assert sorted(await master.states(*lot)) == ["due"] * 3 + ["held"] * 5
        assert await stranger.states(few, kept) == ["due", "held"]
        assert await master.wake(limit=6) == 5
        assert await master.wake(limit=6) == 0
    finally:
        await forget(third)


async def test_destinations_are_written_once_a_day_or_when_they_change(master: Postmaster) -> None:
    site, moved, names = new_site(), new_site(), sorted(new_domain("to") for _ in range(3))
    await master.leads(site, *names, names[0], provider="yahoo")

    async def seen() -> list[tuple[str, str, datetime, int]]:
        rows = await master.sql(
            "SELECT site, provider, seen_at, CAST(CAST(xmin AS text) AS bigint) FROM destinations "
            "WHERE domain = ANY(:names) ORDER BY domain",
            names=names,
        )
        return [tuple(row) for row in rows]

    first = await seen()
    assert [row[:2] for row in first] == [(site, "yahoo")] * 3
    await master.leads(site, *names, provider="yahoo")
    assert await seen() == first, "not even a new version of a row"
    await master.sql(
        "UPDATE destinations SET seen_at = now() - interval '25 hours' WHERE domain = :name", name=names[0]
    )
    await master.leads(site, names[0], names[1], provider="yahoo")
    await master.leads(moved, names[2], provider="generic")
    again = await seen()
    assert again[0][2] > first[0][2]
    assert again[1] == first[1]
    assert again[2][:2] == (moved, "generic")
    async with master.database.transaction() as session:
        await control.upsert_destinations(session, [])
        found = await session.get(Destination, names[2])
    assert found is not None
    assert found.site == moved
