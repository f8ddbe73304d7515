"""Warm-up of a source address: how much it may send to each mailbox provider in a day, and when it may send freely.

Providers judge an address that they have never seen by how its volume grows and by how its mail is met, each for
itself. So the ramp is one cap a day (UTC) for each provider: `daily_start` on the first day, `growth` times as much
on each next one, `daily_limit` on the last, and none after that. All sites that belong to no known provider share
one cap, that of `generic`.

A day counts as a step only when the vMTA sent something on it, to whomever: an address that lies idle does not get
warmer. For a provider it does not count either when that provider held it back: when, on the day and the day before
together, more than 10 % of attempts were deferred, more than 5 % bounced hard, or more than 0.1 % of delivered mails
were complained of (the rate that Gmail and Yahoo ask their senders to stay below). Such a day's own cap is halved as
soon as it shows. Few mails prove nothing: rates count from 20 attempts, or two complaints, upwards.

Greylisting is no judgement of an address: who counts deferrals leaves it out.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Literal

# Those that are always shown; others are once they were sent to.
PROVIDERS: Final = ("gmail", "microsoft", "yahoo", "apple", "generic")
MIN_GROWTH: Final = 1.1
MAX_GROWTH: Final = 4.0
MAX_DAILY: Final = 10_000_000

_MIN_ATTEMPTS = 20
_MIN_COMPLAINTS = 2
_MAX_DEFERRED = 0.10
_MAX_BOUNCED = 0.05
_MAX_COMPLAINED = 0.001

Reason = Literal["deferrals", "bounces", "complaints"]


@dataclass(frozen=True, slots=True)
class Settings:
    """A ramp: mails a day to one provider on the first day, times `growth` each day, up to `daily_limit`."""

    enabled: bool = True
    daily_start: int = 50
    growth: float = 1.5
    daily_limit: int = 50_000

    def stored(self) -> dict[str, Any]:
        """As JSON, for the database."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a vMTA did on one day for one provider. `taken` is what was let go, whatever became of it."""

    day: date
    provider: str
    taken: int = 0
    delivered: int = 0
    deferred: int = 0
    hard_bounced: int = 0
    complained: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One day of the schedule."""

    day: int
    date: date
    cap_per_provider: int


@dataclass(frozen=True, slots=True)
class Today:
    """Where one provider's ramp stands. `cap` and `remaining` are None when there is no cap any more."""

    provider: str
    day: int
    cap: int | None
    used: int
    remaining: int | None
    reason: Reason | None
    finishes_on: date


@dataclass(frozen=True, slots=True)
class Status:
    """A vMTA's warm-up as its owner sees it. `day` counts from 1; None when it is over or switched off."""

    enabled: bool
    is_finished: bool
    day: int | None
    schedule: tuple[Step, ...]
    today: tuple[Today, ...]
    finishes_on: date | None


@lru_cache(maxsize=1000)
def ramp(settings: Settings) -> tuple[int, ...]:
    """The caps of all days that count, the first to the last; at most some 170 of them."""
    caps: list[int] = []
    while not caps or caps[-1] < settings.daily_limit:
        caps.append(min(settings.daily_limit, round(settings.daily_start * settings.growth ** len(caps))))
    return tuple(caps)


def cap(
    settings: Settings, started_at: datetime, usage_history: Iterable[Usage], day: date, provider: str
) -> int | None:
    """How many mails may go to `provider` on `day` (UTC); None when there is no cap (any more).

    `usage_history` has the days since `started_at`, of all providers, in any order.
    """
    return _cap(settings, _History(started_at, usage_history), day, provider)


def is_finished(settings: Settings, started_at: datetime, usage_history: Iterable[Usage], day: date) -> bool:
    """Whether no provider has a cap any more."""
    history = _History(started_at, usage_history)
    return all(_cap(settings, history, day, provider) is None for provider in history.providers())


def status(settings: Settings, started_at: datetime, usage_history: Iterable[Usage], day: date) -> Status:
    """The whole schedule, where each provider stands on `day`, and when the slowest of them will be through.

    Dates to come suppose that every day from `day` on counts.
    """
    if not settings.enabled:
        return Status(enabled=False, is_finished=False, day=None, schedule=(), today=(), finishes_on=None)
    history = _History(started_at, usage_history)
    caps = ramp(settings)
    today = tuple(_today(settings, history, day, provider) for provider in history.providers())
    is_over = all(one.cap is None for one in today)
    counted = history.active_before(day)
    return Status(
        enabled=True,
        is_finished=is_over,
        day=None if is_over else min(len(counted) + 1, len(caps)),
        schedule=tuple(_schedule(caps, counted, day)),
        today=today,
        finishes_on=max(one.finishes_on for one in today),
    )


class _History:
    """Usage by day and provider, from the day on which the ramp began."""

    def __init__(self, started_at: datetime, usage: Iterable[Usage]) -> None:
        self._first = started_at.astimezone(UTC).date()
        self._days: defaultdict[date, dict[str, Usage]] = defaultdict(dict)
        for one in usage:
            if one.day >= self._first:
                self._days[one.day][one.provider] = one

    def providers(self) -> Sequence[str]:
        """Those that are known, and others that were sent to."""
        seen = {provider for day in self._days.values() for provider in day}
        return [*PROVIDERS, *sorted(seen.difference(PROVIDERS))]

    def of(self, day: date, provider: str) -> Usage:
        """What was done; nothing when nothing is known."""
        return self._days.get(day, {}).get(provider) or Usage(day, provider)

    def active_before(self, day: date) -> list[date]:
        """The days before this one on which anything was sent, in their order."""
        return sorted(one for one, usage in self._days.items() if one < day and _is_active(usage))

    def counted(self, day: date, provider: str) -> list[date]:
        """The days before this one that were steps for the provider."""
        return [one for one in self.active_before(day) if self.trouble(one, provider) is None]

    def trouble(self, day: date, provider: str) -> Reason | None:
        """Why the provider held the address back on that day; None when it did not."""
        window = self.of(day, provider), self.of(day - timedelta(days=1), provider)
        delivered = sum(one.delivered for one in window)
        deferred = sum(one.deferred for one in window)
        bounced = sum(one.hard_bounced for one in window)
        complained = sum(one.complained for one in window)
        attempts = delivered + deferred + bounced
        if complained >= _MIN_COMPLAINTS and complained > _MAX_COMPLAINED * delivered:
            return "complaints"
        if attempts >= _MIN_ATTEMPTS and deferred > _MAX_DEFERRED * attempts:
            return "deferrals"
        if attempts >= _MIN_ATTEMPTS and bounced > _MAX_BOUNCED * attempts:
            return "bounces"
        return None


def _is_active(usage: Mapping[str, Usage]) -> bool:
    return any(one.taken > 0 or one.delivered > 0 for one in usage.values())


def _cap(settings: Settings, history: _History, day: date, provider: str) -> int | None:
    caps = ramp(settings)
    steps = len(history.counted(day, provider))
    if not settings.enabled or steps >= len(caps):
        return None
    return max(1, caps[steps] // 2) if history.trouble(day, provider) else caps[steps]


def _today(settings: Settings, history: _History, day: date, provider: str) -> Today:
    caps = ramp(settings)
    counted = history.counted(day, provider)
    allowed = _cap(settings, history, day, provider)
    used = history.of(day, provider).taken
    if allowed is None:
        # The day after the last step: the first one without a cap.
        ended_on = counted[len(caps) - 1] + timedelta(days=1)
        return Today(provider, len(caps), None, used, None, None, ended_on)
    reason = history.trouble(day, provider)
    # A day that is held back is one day more.
    days_left = len(caps) - len(counted) + (reason is not None)
    return Today(
        provider=provider,
        day=len(counted) + 1,
        cap=allowed,
        used=used,
        remaining=max(0, allowed - used),
        reason=reason,
        finishes_on=day + timedelta(days=days_left),
    )


def _schedule(caps: Sequence[int], counted: Collection[date], day: date) -> Iterable[Step]:
    """The ramp with the dates on which its steps were taken, or will be if every day counts."""
    passed = list(counted)[: len(caps)]
    to_come = (day + timedelta(days=number) for number in range(len(caps) - len(passed)))
    for number, (step, when) in enumerate(zip(caps, [*passed, *to_come], strict=True), start=1):
        yield Step(number, when, step)
