"""Throttles of vMTA × site: what complaints lead to, that all workers see it, that it ends and is forgiven."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.core.ids import new_id
from app.delivery.automation import Automation, Suspended, effective, strike
from app.delivery.shaping import Rate, Rule
from app.mail.diagnosis import Action, Category, Diagnosis, diagnose
from app.mail.reply import Phase, parse
from app.queues import throttles
from app.queues.throttles import Key, State

RULE = Rule(20, 100, Rate(600, 60), "opportunistic")
OURS = UUID(int=0)


def complaint(category: Category, slow_seconds: int, action: Action = Action.SLOW_DOWN) -> Diagnosis:
    return Diagnosis(category, action, False, "test", slow_seconds)


TOO_MANY = complaint(Category.TOO_MANY_CONNECTIONS, 300)
TOO_FAST = complaint(Category.RATE_LIMITED, 300)
LISTED = complaint(Category.BLOCKLISTED, 900)


def state(kind: str, strikes: int, *, is_active: bool = True) -> State:
    return State(kind, "rate_limited", strikes, datetime.now(UTC) + timedelta(minutes=5), is_active)


@pytest.fixture
async def clean(database: Database) -> AsyncIterator[Database]:
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM queue_throttles"))
    yield database
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM queue_throttles"))


async def later(database: Database, key: Key, seconds: float) -> None:
    """As if so much time had passed for that throttle."""
    statement = """
        UPDATE queue_throttles SET until = until - make_interval(secs => :seconds),
            since = since - make_interval(secs => :seconds), changed_at = changed_at - make_interval(secs => :seconds)
        WHERE vmta_id = :vmta_id AND site = :site
    """
    async with database.transaction() as session:
        await session.execute(text(statement), {"seconds": seconds, "vmta_id": key[0], "site": key[1]})


async def told(database: Database, key: Key, diagnosis: Diagnosis) -> State:
    """What a worker knows after it has reported a complaint."""
    worker = Automation()
    worker.note_complaint(*key, diagnosis)
    await worker.sync(database)
    found = worker.throttle(*key)
    assert found is not None
    return found


def lasts_seconds(throttle: State) -> float:
    return (throttle.until - datetime.now(UTC)).total_seconds()


# Rules


def test_each_strike_halves_connections_and_rate():
    assert effective(RULE, None) == RULE
    assert effective(RULE, state("slowed", 1)) == Rule(10, 100, Rate(300, 60), "opportunistic")
    assert effective(RULE, state("slowed", 2)) == Rule(5, 100, Rate(150, 60), "opportunistic")
    assert effective(RULE, state("slowed", 12)) == Rule(1, 100, Rate(1, 60), "opportunistic")
    unpaced = Rule(20, 100, None, "required")
    assert effective(unpaced, state("slowed", 1)) == Rule(10, 100, None, "required")


def test_a_suspension_says_until_when_and_an_end_is_an_end():
    throttle = state("suspended", 1)
    assert effective(RULE, throttle) == Suspended(throttle.until)
    assert effective(RULE, state("suspended", 1, is_active=False)) == RULE
    assert effective(RULE, state("slowed", 3, is_active=False)) == RULE


@pytest.mark.parametrize(
    ("diagnosis", "base_seconds", "max_seconds", "suspend_from"),
    [
        (TOO_MANY, 300, 3600, throttles.STRIKES_MAX + 1),
        (complaint(Category.TOO_MANY_CONNECTIONS, 60), 300, 3600, throttles.STRIKES_MAX + 1),
        (TOO_FAST, 300, 3600, 3),
        (complaint(Category.RATE_LIMITED, 7200), 7200, 7200, 3),
        (LISTED, 900, 14_400, 1),
        (complaint(Category.BLOCKLISTED, 60, Action.BLOCK), 900, 14_400, 1),
        (complaint(Category.AUTH_FAILURE, 1800), 1800, 3600, throttles.STRIKES_MAX + 1),
    ],
)
def test_what_follows_from_a_complaint(diagnosis, base_seconds, max_seconds, suspend_from):
    found = strike(OURS, "gmail", diagnosis)
    assert found is not None
    assert (found.reason, found.base_seconds, found.max_seconds, found.suspend_from) == (
        diagnosis.category,
        base_seconds,
        max_seconds,
        suspend_from,
    )


def test_what_is_no_complaint_has_no_consequence():
    assert strike(OURS, "gmail", Diagnosis(Category.GREYLISTED, Action.RETRY, False, "test")) is None
    assert strike(OURS, "gmail", Diagnosis(Category.BAD_MAILBOX, Action.HARD_BOUNCE, True, "test")) is None


@pytest.mark.parametrize(
    ("lines", "provider", "kind"),
    [
        ("421 4.7.0 Too many concurrent connections from your address", "", "slowed"),
        (
            "451 4.7.652 The mail server [192.0.2.1] has exceeded the maximum number of connections. (S3115)",
            "microsoft",
            "slowed",
        ),
        (
            "421 4.7.28 Our system has detected an unusual rate of unsolicited mail from your IP address.",
            "gmail",
            "slowed",
        ),
        ("554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org", "", "suspended"),
    ],
)
async def test_replies_of_the_world_lead_to_throttles(clean: Database, lines: str, provider: str, kind: str):
    key = (new_id(), "site.example")
    throttle = await told(clean, key, diagnose(parse([lines.encode()]), Phase.MAIL, provider))
    assert throttle.kind == kind
    assert throttle.is_active


# Strikes


async def test_rate_limits_slow_down_first_and_suspend_then(clean: Database):
    key = (new_id(), "gmail")
    course = []
    for _ in range(6):
        throttle = await told(clean, key, TOO_FAST)
        course.append((throttle.kind, throttle.strikes, round(lasts_seconds(throttle), -1)))
        await later(clean, key, lasts_seconds(throttle) + 31)
    assert course == [
        ("slowed", 1, 300),
        ("slowed", 2, 600),
        ("suspended", 3, 1200),
        ("suspended", 4, 2400),
        ("suspended", 5, 3600),
        ("suspended", 6, 3600),
    ]


async def test_blocklists_suspend_at_once_for_up_to_four_hours(clean: Database):
    key = (new_id(), "microsoft")
    course = []
    for _ in range(6):
        throttle = await told(clean, key, LISTED)
        course.append((throttle.kind, round(lasts_seconds(throttle), -1)))
        await later(clean, key, lasts_seconds(throttle) + 31)
    assert course == [("suspended", seconds) for seconds in (900, 1800, 3600, 7200, 14_400, 14_400)]


async def test_many_complaints_at_once_are_one_strike(clean: Database):
    keys = [(new_id(), f"site{number}.example") for number in range(20)]
    workers = [Automation() for _ in range(8)]
    for worker in workers:
        for _ in range(50):
            for key in keys:
                worker.note_complaint(*key, TOO_FAST)
    await asyncio.gather(*(worker.sync(clean) for worker in workers))
    # And again for rows that are there, from all sides at once, in all orders.
    for key in keys:
        await later(clean, key, 31)
    for number, worker in enumerate(workers):
        for key in keys[:: -1 if number % 2 else 1]:
            worker.note_complaint(*key, TOO_FAST)
    await asyncio.gather(*(worker.sync(clean) for worker in workers))
    await workers[0].sync(clean)
    assert {workers[0].throttle(*key).strikes for key in keys} == {2}  # type: ignore[union-attr]


async def test_what_was_on_its_way_adds_nothing_to_a_suspension_and_takes_nothing_from_it(clean: Database):
    key = (new_id(), "yahoo")
    suspended = await told(clean, key, LISTED)
    await later(clean, key, 60)
    again = await told(clean, key, TOO_MANY)
    assert (again.kind, again.reason, again.strikes) == ("suspended", "blocklisted", 1)
    assert again.until == suspended.until - timedelta(seconds=60)


async def test_a_longer_throttle_is_not_cut_short(clean: Database):
    key = (new_id(), "yahoo")
    await told(clean, key, complaint(Category.RATE_LIMITED, 3600))
    await later(clean, key, 60)
    throttle = await told(clean, key, TOO_MANY)
    assert (throttle.kind, throttle.strikes) == ("slowed", 2)
    assert lasts_seconds(throttle) == pytest.approx(3540, abs=5)


# Sharing and the end


async def test_all_workers_see_a_throttle_and_its_end(clean: Database):
    one, other, key = Automation(), Automation(), (new_id(), "gmail")
    running = [asyncio.create_task(worker.run(clean)) for worker in (one, other)]
    try:
        assert effective(RULE, other.throttle(*key)) == RULE
        one.note_complaint(*key, LISTED)
        async with asyncio.timeout(3):
            while not isinstance(effective(RULE, other.throttle(*key)), Suspended):
                await asyncio.sleep(0.05)
        # Another way to the same site, and this way to another, are free.
        assert other.throttle(OURS, "gmail") is None
        assert other.throttle(key[0], "yahoo") is None
        await later(clean, key, 901)
        async with asyncio.timeout(3):
            while effective(RULE, other.throttle(*key)) != RULE:
                await asyncio.sleep(0.05)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_mail_that_gets_through_afterwards_forgives_slowly(clean: Database):
    worker, key = Automation(), (new_id(), "gmail")

    async def passed() -> int:
        for _ in range(10):
            worker.note_success(*key)
        await worker.sync(clean)
        await worker.sync(clean)
        found = worker.throttle(*key)
        return found.strikes if found else 0

    for _ in range(2):
        await told(clean, key, TOO_FAST)
        await later(clean, key, 31)
    await worker.sync(clean)
    # Slowed, mail still gets through: that is what slowing down is for.
    assert await passed() == 2
    await later(clean, key, 700)
    await worker.sync(clean)
    assert await passed() == 2
    await later(clean, key, 301)
    assert await passed() == 1
    assert await passed() == 1
    await later(clean, key, 301)
    assert await passed() == 0
    async with clean.transaction() as session:
        await throttles.forget_ended(session)
        assert await throttles.load(session) == {}


async def test_the_sweep_deletes_only_what_is_over(clean: Database):
    active, ended, old = ((new_id(), "gmail") for _ in range(3))
    for key in (active, ended, old):
        await told(clean, key, TOO_FAST)
    await later(clean, ended, 600)
    await later(clean, old, 86_400 + 600)
    async with clean.transaction() as session:
        await throttles.forget_ended(session)
        # One that has ended is kept for its strike, until that is forgiven or a day has passed.
        assert set(await throttles.load(session)) == {active, ended}


async def test_while_the_database_is_away_complaints_are_kept(clean: Database, settings: Settings):
    url = str(settings.database_url)
    away = Database(settings.model_copy(update={"database_url": url.replace("@/postroad", "@/no_such_database", 1)}))
    worker, key = Automation(), (new_id(), "gmail")
    worker.note_complaint(*key, LISTED)
    try:
        await worker.sync(away)
        assert worker.throttle(*key) is None
    finally:
        await away.close()
    await worker.sync(clean)
    assert effective(RULE, worker.throttle(*key)) != RULE
