"""The periodic look at the DNS: what it finds by itself, when it tells the owners, and that it stops no mail."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select, update

from app.domains import proof, rotation, service
from app.domains.models import DkimKey
from tests.domains.house import House, dkim_name


async def test_a_vanished_record_is_told_once_and_so_is_its_return(house: House) -> None:
    name = "vanishing.example"
    domain_id = await house.create(name)
    value = (await house.shown(domain_id)).dns_records[0].value
    assert await house.look(domain_id) == []
    house.zone.remove(dkim_name(name))

    assert await house.look(domain_id) == []
    assert (await house.shown(domain_id)).failing_since is None
    subject = f"The DKIM record of {name} is missing"
    house.postbox.notices.clear()
    await house.change(domain_id, next_check_at=datetime.now(UTC))
    await house.run()
    (first, _) = house.postbox.notices
    assert f"{dkim_name(name)}. 3600 IN TXT" in first.text
    assert house.postbox.take() == [(owner, subject) for owner in house.owners]
    for _ in range(3):
        assert await house.look(domain_id) == []
    failing = await house.shown(domain_id)
    assert (failing.status, failing.failing_since is not None) == ("verified", True)
    assert await house.may_send(name)
    assert await house.signs(domain_id)

    house.zone.add(dkim_name(name), "TXT", value)
    assert await house.look(domain_id) == [(owner, f"The DKIM record of {name} is back") for owner in house.owners]
    assert await house.look(domain_id) == []
    assert (await house.shown(domain_id)).failing_since is None


async def test_a_changed_record_counts_as_a_miss(house: House) -> None:
    domain_id = await house.create("changed.example")
    house.zone.replace(dkim_name("changed.example"), "TXT", "v=DKIM1; k=rsa; p=")
    assert await house.look(domain_id) == []
    assert len(await house.look(domain_id)) == 2


async def test_look_ups_that_fail_count_for_nothing(house: House) -> None:
    name = "flaky.example"
    domain_id = await house.create(name)
    value = (await house.shown(domain_id)).dns_records[0].value
    for record in (await house.shown(domain_id)).dns_records:
        house.zone.fail(record.name)
    for _ in range(4):
        assert await house.look(domain_id) == []
    shown = await house.shown(domain_id)
    assert (shown.status, shown.failing_since) == ("verified", None)
    assert await house.may_send(name)

    for record in shown.dns_records:
        house.zone.heal(record.name)
    house.zone.remove(dkim_name(name))
    assert await house.look(domain_id) == []
    house.zone.fail(dkim_name(name), "REFUSED")
    assert await house.look(domain_id) == []
    house.zone.heal(dkim_name(name))
    house.zone.add(dkim_name(name), "TXT", value)
    # Well in between: the next miss is a first one again.
    assert await house.look(domain_id) == []
    house.zone.remove(dkim_name(name))
    assert await house.look(domain_id) == []
    assert (await house.row(domain_id)).misses == 1


async def test_records_that_are_not_required_are_nobodys_alarm(house: House) -> None:
    domain_id = await house.create("optional.example")
    for record in (await house.shown(domain_id)).dns_records[1:]:
        house.zone.remove(record.name)
    for _ in range(3):
        assert await house.look(domain_id) == []
    assert (await house.row(domain_id)).misses == 0


async def test_told_when_there_is_somebody_to_send_it(house: House) -> None:
    domain_id = await house.create("silent.example")
    house.zone.remove(dkim_name("silent.example"))
    house.postbox.is_configured = False
    await house.look(domain_id)
    assert await house.look(domain_id) == []
    house.postbox.is_configured = house.postbox.is_broken = True
    assert await house.look(domain_id) == []
    assert (await house.row(domain_id)).misses == 3
    house.postbox.is_broken = False
    assert len(await house.look(domain_id)) == 2


async def test_who_verifies_by_hand_is_not_mailed_but_the_other_owners_are_told_that_all_is_well(house: House) -> None:
    domain_id = await house.create("byhand.example")
    value = (await house.shown(domain_id)).dns_records[0].value
    house.zone.remove(dkim_name("byhand.example"))
    for _ in range(4):
        await service.verify(house.database, house.resolver, house.org_id, domain_id, only=None)
    assert (await house.row(domain_id)).misses == 0
    await house.look(domain_id)
    assert len(await house.look(domain_id)) == 2
    house.zone.add(dkim_name("byhand.example"), "TXT", value)
    verified = await service.verify(house.database, house.resolver, house.org_id, domain_id, only=None)
    assert verified.failing_since is None
    assert await house.run() == 1
    assert len(house.postbox.take()) == 2


async def test_new_domains_and_new_keys_become_active_by_themselves(house: House) -> None:
    name = "young.example"
    domain_id = await house.create(name, publish=False)
    assert await house.look(domain_id) == []
    assert not await house.may_send(name)
    house.publish(await house.shown(domain_id))
    assert await house.look(domain_id) == []
    assert await house.may_send(name)

    async with house.database.transaction() as session:
        rotated = await rotation.rotate(session, house.org_id, domain_id, selector=None, only=None)
    soon = (await house.row(domain_id)).next_check_at
    assert soon is not None
    assert soon < datetime.now(UTC) + timedelta(minutes=2)
    house.publish(rotated)
    assert await house.look(domain_id) == []
    states = {key.selector: key.status for key in (await house.shown(domain_id)).dkim_keys}
    assert (states["pmta"], states["pmta2"]) == ("retiring", "active")

    async with house.database.transaction() as session:
        await session.execute(update(DkimKey).where(DkimKey.status == "retiring").values(retire_at=func.now()))
    assert await house.look(domain_id) == []
    async with house.database.transaction() as session:
        keys = (await session.execute(select(DkimKey.selector, DkimKey.status, DkimKey.private_key))).all()
    assert [(status, private) for selector, status, private in keys if selector == "pmta"][-1] == ("retired", None)


async def test_how_often(house: House) -> None:
    """Every six hours, spread; what is waited for sooner and ever more rarely, in the end no more."""
    now = datetime.now(UTC)
    hour = timedelta(hours=1)

    async def pause(domain_id: UUID) -> timedelta | None:
        await house.look(domain_id)
        at = (await house.row(domain_id)).next_check_at
        return None if at is None else at - datetime.now(UTC)

    async def age(domain_id: UUID, hours: float) -> None:
        async with house.database.transaction() as session:
            created = now - hours * hour
            await session.execute(update(DkimKey).where(DkimKey.domain_id == domain_id).values(created_at=created))

    steady = await house.create("steady.example")
    pauses = [await pause(steady) for _ in range(5)]
    assert all(one is not None and 5.3 * hour < one < 6.7 * hour for one in pauses)
    assert len(set(pauses)) == 5
    house.zone.remove(dkim_name("steady.example"))
    assert (await pause(steady) or hour) < timedelta(minutes=12)

    waiting = await house.create("waiting.example", publish=False)
    for hours, least, most in ((0, 0.01, 0.02), (8, 1.7, 2.3), (71, 5.3, 6.7)):
        await age(waiting, hours)
        assert least * hour < (await pause(waiting) or 99 * hour) < most * hour
    await age(waiting, 73)
    assert await pause(waiting) is None


async def test_trusted_and_deleted_domains_are_left_alone(house: House) -> None:
    trusted = await house.create("trusted.example", publish=False)
    deleted = await house.create("deleted.example", publish=False)
    async with house.database.transaction() as session:
        await service.trust(session, house.org_id, trusted)
        await service.delete(session, house.org_id, deleted, only=None)
    await house.change(deleted, next_check_at=datetime.now(UTC))
    assert (await house.row(trusted)).next_check_at is None
    assert await house.run() == 0


async def test_several_workers_share_the_work_and_hold_no_transaction_meanwhile(house: House) -> None:
    names = [f"many{number}.example" for number in range(22)]
    for name in names:
        await house.change(await house.create(name, publish=False), next_check_at=datetime.now(UTC))
    house.zone.queries.clear()
    house.zone.delay_seconds = 0.2
    workers = [asyncio.create_task(house.run()) for _ in range(3)]
    held = []
    while not all(worker.done() for worker in workers):
        held.append(house.database.engine.pool.checkedout())
        await asyncio.sleep(0.01)
    assert sum([await worker for worker in workers]) == 22
    asked = Counter(query.name for query in house.zone.queries if query.name.startswith("pmta._domainkey."))
    assert asked == {dkim_name(name): 1 for name in names}
    assert min(held) == 0


async def test_a_dead_worker_s_domains_are_due_again(house: House) -> None:
    domain_id = await house.create("abandoned.example", publish=False)
    await house.change(domain_id, next_check_at=datetime.now(UTC))
    house.zone.delay_seconds = 30
    worker = asyncio.create_task(house.run())
    while not house.zone.queries:
        await asyncio.sleep(0.01)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    at = (await house.row(domain_id)).next_check_at
    assert at is not None
    assert timedelta(minutes=8) < at - datetime.now(UTC) <= proof._CLAIM_LEASE
