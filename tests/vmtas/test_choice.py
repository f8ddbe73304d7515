"""Which vMTA is drawn, and who stands in."""

import asyncio
import random
import time
from collections import Counter
from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.core.errors import Invalid
from app.core.ids import new_id
from app.vmtas import choice, service, warmup
from app.vmtas.choice import Fleet
from tests.factories.databases import own_database
from tests.vmtas.house import make

DRAWS = 10_000
WARMING = {"warmup": warmup.Settings(), "warmup_started_at": datetime.now(UTC)}


def draws(fleet: Fleet, requested: str | None = None, count: int = DRAWS) -> Counter[str]:
    rng = random.Random(7)
    return Counter(vmta.name for _ in range(count) if (vmta := fleet.draw(requested, rng)))


def test_a_pool_is_drawn_from_by_weight():
    fleet = Fleet([make("a", pool="p", weight=70), make("b", pool="p", weight=25), make("c", pool="p", weight=5)])
    drawn = draws(fleet, "p")
    # Four standard deviations of the binomial distribution: sqrt(n p (1 - p)).
    assert abs(drawn["a"] - 7000) < 184
    assert abs(drawn["b"] - 2500) < 174
    assert abs(drawn["c"] - 500) < 88
    assert sum(drawn.values()) == DRAWS


def test_weight_zero_is_not_drawn_beside_others():
    fleet = Fleet([make("a", pool="p", weight=1), make("spare", pool="p", weight=0)])
    assert draws(fleet, "p", 100) == {"a": 100}


def test_without_a_wish_it_comes_from_the_default_pool():
    fleet = Fleet([make("a", pool="default"), make("b", pool="default"), make("c", pool="other"), make("d")])
    assert set(draws(fleet, count=1000)) == {"a", "b"}


def test_without_a_default_pool_it_comes_from_all():
    fleet = Fleet([make("a", pool="p", weight=3), make("b", pool="q"), make("c")])
    drawn = draws(fleet)
    assert abs(drawn["a"] - 6000) < 196
    assert set(drawn) == {"a", "b", "c"}


def test_no_vmtas_no_choice():
    assert Fleet([]).draw(None, random.Random(1)) is None


def test_by_name_and_by_id_in_any_case():
    one, other = make("mta-1", pool="p"), make("mta-2", pool="p")
    fleet = Fleet([one, other])
    rng = random.Random(1)
    for requested in ("mta-1", "MTA-1", str(one.id), str(one.id).upper()):
        assert fleet.draw(requested, rng) is one
    assert set(draws(fleet, "P", 100)) == {"mta-1", "mta-2"}


def test_an_id_goes_before_a_name_and_a_name_before_a_pool():
    one = make("a", pool="b")
    other = make("b", pool="c")
    disguised = make(str(one.id), pool="c")
    fleet = Fleet([one, other, disguised])
    rng = random.Random(1)
    assert fleet.draw("b", rng) is other
    assert fleet.draw(str(one.id), rng) is one


@pytest.mark.parametrize("requested", ["nothing", "", "default", str(UUID(int=0))])
def test_what_is_not_there_is_refused(requested):
    for fleet in (Fleet([]), Fleet([make("a")])):
        with pytest.raises(Invalid) as error:
            fleet.draw(requested, random.Random(1))
        assert (error.value.code, error.value.flaws[0].pointer) == ("vmta_not_found", "/vmta")


def test_the_paused_are_left_out():
    fleet = Fleet([make("a", pool="p", is_paused=True, weight=1000), make("b", pool="p"), make("c", pool="p")])
    assert set(draws(fleet, "p", 1000)) == {"b", "c"}
    # Even for those that are there only in place of others, which share equally.
    spare = [make("b", pool="p", weight=0), make("c", pool="p", weight=0)]
    drawn = draws(Fleet([make("a", pool="p", is_paused=True), *spare]), "p")
    assert set(drawn) == {"b", "c"}
    assert abs(drawn["b"] - 5000) < 200


def test_when_all_are_paused_one_is_drawn_and_its_mail_waits():
    fleet = Fleet([make("a", pool="default", is_paused=True), make("b", pool="default", is_paused=True), make("c")])
    assert set(draws(fleet, count=200)) == {"a", "b"}


def test_who_is_asked_for_alone_is_drawn_in_any_state():
    paused = make("a", pool="p", is_paused=True)
    fleet = Fleet([paused, make("b", pool="p")])
    assert fleet.draw("a", random.Random(1)) is paused
    assert [one.name for one in fleet.stand_ins(paused)] == ["b"]


def test_stand_ins_in_their_order():
    one = make("one", pool="p")
    fleet = Fleet(
        [
            make("spare", pool="p", weight=0),
            make("warming", pool="p", weight=50, **WARMING),
            one,
            make("light", pool="p", weight=2),
            make("paused", pool="p", weight=90, is_paused=True),
            make("heavy", pool="p", weight=9),
            make("elsewhere", pool="q"),
            make("alone"),
        ]
    )
    assert [vmta.name for vmta in fleet.stand_ins(one)] == ["heavy", "light", "warming", "spare"]


def test_who_stands_alone_has_no_stand_ins():
    alone, other = make("alone"), make("other")
    assert Fleet([alone, other]).stand_ins(alone) == []


async def test_load_remembers_and_asks_again_for_what_it_does_not_know(tenant, database):
    async def names(*wanted: str | None) -> set[str]:
        async with database.transaction() as session:
            return {one.name for one in (await service.load(session, tenant.org_id, wanted)).vmtas.values()}

    await tenant.create(name="first")
    assert await names() == {"first"}
    async with database.transaction() as session:
        # As another process would.
        await session.execute(
            text("INSERT INTO vmtas (org_id, id, name, pool) VALUES (:org_id, :id, 'second', 'p')"),
            {"org_id": tenant.org_id, "id": new_id()},
        )
    assert await names() == await names(None, "FIRST") == {"first"}
    assert await names("p") == {"first", "second"}
    await tenant.create(name="third")
    assert await names() == {"first", "second", "third"}


async def test_what_load_remembers_ages(tenant, database):
    async def is_paused() -> bool:
        async with database.transaction() as session:
            (one,) = (await service.load(session, tenant.org_id)).vmtas.values()
        return one.is_paused

    await tenant.create(name="one")
    assert not await is_paused()
    async with database.transaction() as session:
        await session.execute(text("UPDATE vmtas SET paused_at = now() WHERE org_id = :id"), {"id": tenant.org_id})
    assert not await is_paused()
    await asyncio.sleep(service.FLEET_SECONDS + 0.1)
    assert await is_paused()


async def fleets(database: Database, *org_ids: UUID) -> list[set[str] | None]:
    async with database.transaction() as session:
        found = await service.load_all(session)
    known = (found.get(org_id) for org_id in org_ids)
    return [None if fleet is None else {one.name for one in fleet.vmtas.values()} for fleet in known]


async def test_all_fleets_follow_every_change(tenant, stranger, database):
    ours = tenant.org_id, stranger.org_id
    assert await fleets(database, *ours) == [None, None]
    vmta = await tenant.create(name="a", warmup={"daily_start": 5})
    await stranger.create(name="theirs")
    assert await fleets(database, *ours) == [{"a"}, {"theirs"}]
    second = await tenant.create(name="b")
    assert await fleets(database, *ours) == [{"a", "b"}, {"theirs"}]
    await tenant.update(second, name="c")
    assert await fleets(database, *ours) == [{"a", "c"}, {"theirs"}]
    async with database.transaction() as session:
        found = (await service.load_all(session))[tenant.org_id]
        assert await service.load_all(session) == await service.load_all(session)
        again = (await service.load_all(session))[tenant.org_id]
    assert found is again
    assert found.vmtas[UUID(vmta["id"])].warmup == warmup.Settings(daily_start=5)
    await tenant.act(vmta, "pause")
    async with database.transaction() as session:
        found = (await service.load_all(session))[tenant.org_id]
    assert found.vmtas[UUID(vmta["id"])].is_paused
    for one in (vmta, second):
        assert (await tenant.call("DELETE", f"/{one['id']}")).status_code == 204
    assert await fleets(database, *ours) == [None, {"theirs"}]


async def test_a_change_that_commits_late_is_seen(tenant, database):
    """It carries an older time than what others wrote, and was committed after that was read."""
    slow, quick = await tenant.create(name="slow"), await tenant.create(name="quick")
    async with database.transaction() as session:
        statement = text("UPDATE vmtas SET paused_at = now(), updated_at = clock_timestamp() WHERE id = :id")
        await session.execute(statement, {"id": UUID(slow["id"])})
        await tenant.act(quick, "pause")
        async with database.transaction() as other:
            assert not (await service.load_all(other))[tenant.org_id].vmtas[UUID(slow["id"])].is_paused
    async with database.transaction() as session:
        assert (await service.load_all(session))[tenant.org_id].vmtas[UUID(slow["id"])].is_paused


async def test_ten_thousand_vmtas_cost_little(settings: Settings):
    async with own_database(settings) as own:
        database = Database(own, pool_size=4)
        async with database.transaction() as session:
            await session.execute(
                text(
                    "INSERT INTO organizations (id, name) "
                    "SELECT md5(n::text)::uuid, 'o' FROM generate_series(1, 2000) n"
                )
            )
            await session.execute(
                text(
                    "INSERT INTO vmtas (org_id, id, name, updated_at) SELECT o.id, gen_random_uuid(), 'v' || n, "
                    "now() - interval '1 day' FROM organizations o, generate_series(1, 5) n"
                )
            )
        async with database.transaction() as session:
            found = await service.load_all(session)
            assert sum(len(fleet.vmtas) for fleet in found.values()) == 10_000
            before = dict(found)
            cpu = time.process_time()
            for _ in range(50):
                await service.load_all(session)
            # Measured: 0.4 ms each; the bound leaves room for a busy machine.
            assert (time.process_time() - cpu) / 50 < 0.005
            org_id = next(iter(before))
            await session.execute(
                text("UPDATE vmtas SET weight = 9, updated_at = clock_timestamp() WHERE org_id = :id"), {"id": org_id}
            )
            after = await service.load_all(session)
            assert {one for one in before if after[one] is not before[one]} == {org_id}
            # Once a minute everything is read, also what has an old time; what is the same is kept.
            choice._pictures[session.get_bind()]._whole_due = 0.0
            await session.execute(text("DELETE FROM vmtas WHERE org_id = :id"), {"id": org_id})
            whole = await service.load_all(session)
            assert org_id not in whole
            assert all(whole[one] is before[one] for one in whole)
        await database.close()
