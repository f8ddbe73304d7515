"""One name, two organizations: only who proves it by DNS may send."""

from app.domains import service
from tests.domains.house import House, dkim_name, organization


async def test_who_replaces_the_record_takes_the_name_over(house: House) -> None:
    name = "moved.example"
    mine = await house.create(name)
    assert await house.may_send(name)
    other, other_owners = await organization(house.database)
    theirs = await house.create(name, org_id=other)
    assert (await house.row(theirs)).status == "verified"
    # Found without being asked for: the new proof made the old one due.
    assert await house.run() == 1
    assert house.postbox.take() == [(owner, f"{name} is no longer verified") for owner in house.owners]
    assert not await house.may_send(name)
    assert not await house.signs(mine)
    assert await house.may_send(name, other)
    assert await house.signs(theirs)
    shown = await house.shown(mine)
    assert (shown.status, shown.verified, shown.verified_at) == ("pending", False, None)
    for _ in range(3):
        assert await house.look(mine, theirs) == []

    # And back again, the same way.
    house.publish(shown)
    assert await house.look(mine) == [(owner, f"The DKIM record of {name} is back") for owner in house.owners]
    assert await house.signs(mine)
    assert await house.run() == 1
    assert [to for to, _ in house.postbox.take()] == other_owners
    assert not await house.signs(theirs)


async def test_who_removes_the_record_loses_the_name_after_a_second_look(house: House) -> None:
    name = "cleaned.example"
    mine = await house.create(name)
    other, _ = await organization(house.database)
    async with house.database.transaction() as session:
        created = await service.create(session, other, name=name, selector="theirs", only=None)
    house.zone.remove(dkim_name(name))
    house.publish(created)
    assert await house.look(created.id) == []
    assert (await house.row(created.id)).status == "verified"
    assert await house.run() == 1
    assert await house.may_send(name)
    assert len(await house.look(mine)) == 2
    assert (await house.row(mine)).status == "pending"


async def test_records_of_both_are_the_consent_to_both(house: House) -> None:
    name = "shared.example"
    mine = await house.create(name)
    other, _ = await organization(house.database)
    async with house.database.transaction() as session:
        created = await service.create(session, other, name=name, selector="agency", only=None)
    house.publish(created)
    for _ in range(3):
        assert await house.look(mine, created.id) == []
    assert await house.may_send(name)
    assert await house.may_send(name, other)
    assert await house.signs(mine)
    assert await house.signs(created.id)


async def test_a_failing_dns_takes_no_name_away(house: House) -> None:
    name = "contested.example"
    mine = await house.create(name)
    other, _ = await organization(house.database)
    async with house.database.transaction() as session:
        created = await service.create(session, other, name=name, selector="agency", only=None)
    house.publish(created)
    await house.look(created.id)
    house.zone.fail(dkim_name(name))
    for _ in range(3):
        assert await house.look(mine) == []
    assert (await house.row(mine)).status == "verified"


async def test_when_both_are_gone_nobody_has_taken_it_over(house: House) -> None:
    name = "erased.example"
    mine = await house.create(name)
    other, _ = await organization(house.database)
    async with house.database.transaction() as session:
        created = await service.create(session, other, name=name, selector="agency", only=None)
    house.publish(created)
    await house.look(created.id)
    assert await house.run() == 1
    house.zone.remove(dkim_name(name))
    house.zone.remove(dkim_name(name, "agency"))
    for _ in range(3):
        await house.look(created.id)
        await house.look(mine)
    assert {(await house.row(one)).status for one in (mine, created.id)} == {"verified"}


async def test_an_unproven_claim_harms_nobody(house: House) -> None:
    name = "squatted.example"
    mine = await house.create(name)
    squatter, _ = await organization(house.database)
    claim = await house.create(name, org_id=squatter, publish=False)
    for _ in range(3):
        assert await house.look(mine, claim) == []
    assert await house.may_send(name)
    assert not await house.may_send(name, squatter)
    assert not await house.signs(claim)
