"""What a warm-up grants, by all workers together, and how outcomes are added up."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from app.core.ids import new_id
from app.vmtas import service
from app.vmtas.choice import Vmta
from app.vmtas.service import Outcomes
from tests.vmtas.house import use

# 37, 74, 100
RAMP = {"daily_start": 37, "growth": 2.0, "daily_limit": 100}
NOW = datetime.now(UTC)
TODAY = NOW.date()


async def known(tenant, database, vmta) -> Vmta:
    async with database.transaction() as session:
        return (await service.load(session, tenant.org_id, [vmta["name"]])).vmtas[UUID(vmta["id"])]


@pytest.fixture
async def warming(tenant, database) -> Vmta:
    return await known(tenant, database, await tenant.create(warmup=RAMP))


async def take(database, vmta: Vmta, count: int, *, provider: str = "gmail", now: datetime = NOW) -> int:
    async with database.transaction() as session:
        return await service.take(session, vmta, provider, count, now)


async def stored(database, vmta: Vmta) -> dict[str, tuple[int, ...]]:
    statement = text(
        "SELECT provider, taken, delivered, deferred, hard_bounced, complained FROM vmta_usage WHERE vmta_id = :id"
    )
    async with database.transaction() as session:
        return {provider: tuple(counts) for provider, *counts in await session.execute(statement, {"id": vmta.id})}


async def test_no_more_than_the_cap(warming, database):
    assert await take(database, warming, 30) == 30
    assert await take(database, warming, 30) == 7
    assert await take(database, warming, 30) == 0
    assert await take(database, warming, 30, provider="yahoo") == 30
    assert (await stored(database, warming))["gmail"][0] == 37
    assert await take(database, warming, 80, now=NOW + timedelta(days=1)) == 74


async def test_the_first_take_of_a_day_may_be_cut_too(warming, database):
    assert await take(database, warming, 1000) == 37


async def test_twenty_at_once_never_exceed_the_cap(warming, database):
    granted = await asyncio.gather(*(take(database, warming, 3) for _ in range(20)))
    assert sum(granted) == 37
    assert sorted(granted) == [0] * 7 + [1] + [3] * 12
    assert (await stored(database, warming))["gmail"][0] == 37


async def test_what_a_rolled_back_transaction_took_is_free_again(warming, database):
    async def fail() -> None:
        async with database.transaction() as session:
            assert await service.take(session, warming, "gmail", 37, NOW) == 37
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await take(database, warming, 37) == 37


async def test_give_back(warming, database):
    assert await take(database, warming, 37) == 37
    async with database.transaction() as session:
        await service.give_back(session, warming, "gmail", 5, NOW)
        # What was taken on another day is none of this one's.
        await service.give_back(session, warming, "gmail", 5, NOW - timedelta(days=1))
    assert await take(database, warming, 37) == 5
    async with database.transaction() as session:
        await service.give_back(session, warming, "gmail", 1000, NOW)
    assert await take(database, warming, 40) == 37


async def test_deferrals_of_today_halve_the_cap_at_once(warming, database):
    assert await take(database, warming, 10) == 10
    row = Outcomes(warming.org_id, warming.id, TODAY, "gmail", deferred=20)
    async with database.transaction() as session:
        await service.record(session, [row])
    assert await take(database, warming, 30) == 8
    assert await take(database, warming, 30, provider="yahoo") == 30


async def test_who_does_not_warm_up_takes_all_and_nothing_is_written(tenant, database):
    for fields in ({}, {"warmup": {**RAMP, "enabled": False}}):
        vmta = await known(tenant, database, await tenant.create(**fields))
        assert vmta.warmup is None
        assert await take(database, vmta, 10**6) == 10**6
        async with database.transaction() as session:
            await service.give_back(session, vmta, "gmail", 5, NOW)
        assert await stored(database, vmta) == {}


async def test_the_end_of_the_ramp_is_written_down(tenant, database):
    shown = await tenant.create(warmup=RAMP)
    vmta = await known(tenant, database, shown)
    for number in range(3):
        day = TODAY + timedelta(days=number)
        await use(database, tenant.org_id, shown["id"], day, "gmail", taken=1, delivered=1)
    assert await take(database, vmta, 1000, now=NOW + timedelta(days=2)) == 99
    assert (await tenant.get(shown))["warming_up"]
    assert await take(database, vmta, 1000, now=NOW + timedelta(days=3)) == 1000
    finished = await tenant.get(shown)
    assert not finished["warming_up"]
    assert finished["updated_at"] > shown["updated_at"]
    async with database.transaction() as session:
        assert (await service.load_all(session))[tenant.org_id].vmtas[vmta.id].warmup is None


async def test_while_one_provider_holds_back_the_ramp_goes_on(tenant, database):
    shown = await tenant.create(warmup=RAMP)
    vmta = await known(tenant, database, shown)
    for number in range(3):
        day = TODAY + timedelta(days=number)
        await use(database, tenant.org_id, shown["id"], day, "gmail", taken=1, delivered=1)
    await use(database, tenant.org_id, shown["id"], TODAY, "yahoo", taken=30, deferred=30)
    end = NOW + timedelta(days=3)
    assert await take(database, vmta, 1000, now=end) == 1000
    assert await take(database, vmta, 1000, now=end, provider="yahoo") == 74
    assert (await tenant.get(shown))["warming_up"]


async def test_record_adds_up(warming, tenant, database):
    rows = [
        Outcomes(warming.org_id, warming.id, TODAY, "yahoo", delivered=1),
        Outcomes(warming.org_id, warming.id, TODAY, "gmail", delivered=2, complained=1),
        Outcomes(warming.org_id, warming.id, TODAY, "gmail", delivered=3, deferred=4, hard_bounced=5),
        # One that never was does not keep the others back.
        Outcomes(warming.org_id, new_id(), TODAY, "gmail", delivered=9),
        Outcomes(new_id(), warming.id, TODAY, "gmail", delivered=9),
    ]
    for _ in range(2):
        async with database.transaction() as session:
            await service.record(session, rows)
    async with database.transaction() as session:
        await service.record(session, [])
    assert await stored(database, warming) == {"yahoo": (0, 2, 0, 0, 0), "gmail": (0, 10, 8, 10, 2)}


async def test_batches_in_any_order_do_not_block_each_other_for_good(warming, database):
    providers = ["gmail", "yahoo", "microsoft", "apple", "generic"]

    async def batch(number: int) -> None:
        turned = providers[number % 5 :] + providers[: number % 5]
        async with database.transaction() as session:
            rows = [Outcomes(warming.org_id, warming.id, TODAY, one, delivered=1) for one in turned]
            await service.record(session, rows)

    await asyncio.gather(*(batch(number) for number in range(20)))
    assert await stored(database, warming) == dict.fromkeys(providers, (0, 20, 0, 0, 0))
