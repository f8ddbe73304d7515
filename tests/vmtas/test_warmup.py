"""The ramp: what each day allows, what holds it back, when it ends."""

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from app.vmtas import warmup
from app.vmtas.warmup import PROVIDERS, Settings
from tests.vmtas.house import usage

# 10, 20, 40, 80, 100
SETTINGS = Settings(daily_start=10, growth=2.0, daily_limit=100)
STARTED = datetime(2026, 11, 1, 23, 59, tzinfo=UTC)


def good(*days: int, provider: str = "gmail") -> list[warmup.Usage]:
    """Days on which all went well."""
    return [usage(day, provider, taken=100, delivered=100) for day in days]


@pytest.mark.parametrize(
    ("settings", "caps"),
    [
        (SETTINGS, (10, 20, 40, 80, 100)),
        (Settings(daily_start=1, growth=1.1, daily_limit=2), (1, 1, 1, 1, 1, 2)),
        (Settings(daily_start=50, growth=4.0, daily_limit=51), (50, 51)),
        (Settings(daily_start=100, growth=1.5, daily_limit=225), (100, 150, 225)),
    ],
)
def test_the_ramp(settings, caps):
    assert warmup.ramp(settings) == caps


def test_the_default_ramp_takes_weeks_and_the_longest_ends():
    caps = warmup.ramp(Settings())
    assert caps[:5] == (50, 75, 112, 169, 253)
    assert (len(caps), caps[-1]) == (19, 50_000)
    longest = warmup.ramp(Settings(daily_start=1, growth=warmup.MIN_GROWTH, daily_limit=warmup.MAX_DAILY))
    assert len(longest) < 180
    assert list(longest) == sorted(longest)


@pytest.mark.parametrize(
    ("history", "day", "cap"),
    [
        ([], 1, 10),
        ([], 9, 10),  # an address that lies idle does not get warmer
        (good(1), 1, 10),
        (good(1), 2, 20),
        (good(1, 2, 3), 4, 80),
        (good(1, 3), 4, 40),
        (good(3, 1, 2), 3, 40),
        (good(1, 2, 3, 4), 5, 100),
        (good(1, 2, 3, 4, 5), 6, None),
        (good(1, 2, 3, 4, 5, 6, 7), 30, None),
        (good(1, provider="yahoo"), 2, 20),  # it counts to whomever it sent
        ([usage(1, taken=1)], 2, 20),
        ([usage(1, deferred=5)], 2, 10),  # nothing was let go: what was recorded belongs to mails of before
        # Deferrals: more than 10 % of at least 20 attempts, this day and the one before.
        ([usage(1, taken=10, delivered=90, deferred=10)], 2, 20),
        ([usage(1, taken=10, delivered=89, deferred=11)], 2, 5),
        ([usage(1, taken=10, delivered=89, deferred=11)], 3, 10),
        ([usage(1, taken=10, delivered=0, deferred=19)], 2, 20),
        ([usage(1, taken=10, delivered=0, deferred=20)], 2, 5),
        ([usage(1, taken=10, delivered=100), usage(2, delivered=0, deferred=13)], 2, 10),
        ([usage(1, taken=10, delivered=100), usage(2, delivered=0, deferred=11)], 2, 20),
        ([usage(1, "yahoo", taken=10, deferred=50)], 2, 20),  # another provider's trouble
        # A good day after a bad one makes up for it; then it counts.
        ([usage(1, taken=10, delivered=10, deferred=10), *good(2)], 2, 10),
        ([usage(1, taken=10, delivered=10, deferred=10), *good(2)], 3, 20),
        # Hard bounces: more than 5 %.
        ([usage(1, taken=10, delivered=95, hard_bounced=5)], 2, 20),
        ([usage(1, taken=10, delivered=94, hard_bounced=6)], 2, 5),
        # Complaints: more than one in a thousand, and not a single person.
        ([usage(1, taken=10, delivered=50, complained=1)], 2, 20),
        ([usage(1, taken=10, delivered=50, complained=2)], 2, 5),
        ([usage(1, taken=10, delivered=2000, complained=2)], 2, 20),
        ([usage(1, taken=10, delivered=1999, complained=2)], 2, 5),
        ([usage(1, taken=10, delivered=500, complained=1), usage(2, delivered=500, complained=1)], 2, 10),
    ],
)
def test_the_cap(history, day, cap):
    assert warmup.cap(SETTINGS, STARTED, history, date(2026, 11, day), "gmail") == cap


def test_what_was_before_the_ramp_does_not_count():
    started = datetime(2026, 11, 5, tzinfo=UTC)
    assert warmup.cap(SETTINGS, started, good(1, 2, 3, 4), date(2026, 11, 5), "gmail") == 10
    assert warmup.cap(SETTINGS, started, good(1, 2, 3, 4, 5), date(2026, 11, 6), "gmail") == 20


def test_days_are_days_in_utc():
    started = datetime(2026, 11, 2, 1, tzinfo=timezone(timedelta(hours=2)))  # the 1st in UTC
    assert warmup.cap(SETTINGS, started, good(1), date(2026, 11, 2), "gmail") == 20


def test_a_cap_is_never_nothing():
    settings = Settings(daily_start=1, growth=2.0, daily_limit=4)
    assert warmup.cap(settings, STARTED, [usage(1, taken=1, deferred=20)], date(2026, 11, 1), "gmail") == 1


def test_switched_off_there_is_no_cap():
    off = Settings(enabled=False)
    assert warmup.cap(off, STARTED, [], date(2026, 11, 1), "gmail") is None
    status = warmup.status(off, STARTED, [], date(2026, 11, 1))
    assert (status.enabled, status.schedule, status.today, status.finishes_on) == (False, (), (), None)


def test_the_status_of_the_first_day():
    status = warmup.status(SETTINGS, STARTED, [usage(1, taken=3)], date(2026, 11, 1))
    assert (status.enabled, status.is_finished, status.day) == (True, False, 1)
    assert [(one.day, one.date.day, one.cap_per_provider) for one in status.schedule] == [
        (1, 1, 10),
        (2, 2, 20),
        (3, 3, 40),
        (4, 4, 80),
        (5, 5, 100),
    ]
    assert status.finishes_on == date(2026, 11, 6)
    assert [one.provider for one in status.today] == list(PROVIDERS)
    gmail, *others = status.today
    assert (gmail.cap, gmail.used, gmail.remaining, gmail.reason) == (10, 3, 7, None)
    assert {(one.cap, one.used, one.remaining) for one in others} == {(10, 0, 10)}


def test_the_status_while_one_provider_holds_back():
    history = [
        *good(1, 2, provider="yahoo"),
        usage(1, taken=10, delivered=10),
        usage(2, taken=18, delivered=10, deferred=10),
        usage(4, "smallhost", taken=1, delivered=1),
    ]
    status = warmup.status(SETTINGS, STARTED, history, date(2026, 11, 3))
    assert status.day == 3
    # The third day was yesterday's tomorrow; nothing was sent on it yet.
    assert [one.date.day for one in status.schedule] == [1, 2, 3, 4, 5]
    by_name = {one.provider: one for one in status.today}
    gmail, yahoo = by_name["gmail"], by_name["yahoo"]
    assert (gmail.day, gmail.cap, gmail.reason) == (2, 10, "deferrals")
    # Step 2 is still to be taken, and not today.
    assert gmail.finishes_on == date(2026, 11, 8)
    assert (yahoo.day, yahoo.cap, yahoo.reason, yahoo.finishes_on) == (3, 40, None, date(2026, 11, 6))
    assert status.finishes_on == gmail.finishes_on
    assert by_name["smallhost"].day == 3


def test_the_status_when_more_was_used_than_is_left():
    history = [usage(1, taken=9, delivered=1, deferred=30)]
    gmail = warmup.status(SETTINGS, STARTED, history, date(2026, 11, 1)).today[0]
    assert (gmail.cap, gmail.used, gmail.remaining, gmail.reason) == (5, 9, 0, "deferrals")


def test_the_finish_date_comes_true():
    """Whatever the day, with mail on every day from then on the ramp ends on the day that was told."""
    history: list[warmup.Usage] = []
    day = STARTED.date()
    for number in range(5):
        told = warmup.status(SETTINGS, STARTED, history, day)
        assert told.finishes_on == date(2026, 11, 6), number
        assert not warmup.is_finished(SETTINGS, STARTED, history, day)
        history.append(warmup.Usage(day, "gmail", taken=told.today[0].cap or 0, delivered=told.today[0].cap or 0))
        day += timedelta(days=1)
    status = warmup.status(SETTINGS, STARTED, history, day)
    assert (day, status.is_finished, status.day) == (date(2026, 11, 6), True, None)
    assert warmup.is_finished(SETTINGS, STARTED, history, day)
    assert {(one.cap, one.remaining, one.finishes_on) for one in status.today} == {(None, None, day)}
    later = warmup.status(SETTINGS, STARTED, history, day + timedelta(days=9))
    assert later.finishes_on == day


def test_a_provider_that_was_held_back_ends_later_than_the_others():
    history = [*good(1, 2, 3, 4, 5), usage(3, "yahoo", taken=40, deferred=30)]
    assert warmup.cap(SETTINGS, STARTED, history, date(2026, 11, 6), "gmail") is None
    # Two days did not count: the bad one, and the one after, which still saw it.
    assert warmup.cap(SETTINGS, STARTED, history, date(2026, 11, 6), "yahoo") == 80
    assert not warmup.is_finished(SETTINGS, STARTED, history, date(2026, 11, 6))
