"""Slowing down by itself: when a site complains of how much it gets, its vMTA sends less there for a time, or nothing.

Which replies are complaints is told by mail/diagnosis. What follows from one is here, by its category; it is kept in
queue_throttles, so that all workers heed it within a second, and ends by itself.
"""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import structlog

from app.core.db import DATABASE_ERRORS, Database
from app.delivery.shaping import Rule
from app.mail.diagnosis import Category, Diagnosis
from app.queues import throttles
from app.queues.throttles import Key, State, Strike

_SYNC_SECONDS = 0.5
# As many complaints and successes are gathered between two syncs, or while the database is away.
_GATHERED_MAX = 10_000
_MINUTE = 60.0
_HOUR = 3600.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Course:
    """What follows from complaints of one kind. The first throttle lasts as long as the rule of the reply says, but not
    less than `min_seconds`; each further one twice as long, up to `max_seconds`, or what the rule says if that is more.
    """

    min_seconds: float
    max_seconds: float
    # The strike from which on nothing is sent any more; slower before.
    suspend_from: int


_NEVER = throttles.STRIKES_MAX + 1
_COURSES = {
    # Fewer connections are all that was asked for.
    Category.TOO_MANY_CONNECTIONS: _Course(5 * _MINUTE, _HOUR, _NEVER),
    Category.RATE_LIMITED: _Course(5 * _MINUTE, _HOUR, 3),
    # To go on knocking makes it worse.
    Category.BLOCKLISTED: _Course(15 * _MINUTE, 4 * _HOUR, 1),
}
_OTHER = _Course(5 * _MINUTE, _HOUR, _NEVER)


@dataclass(frozen=True, slots=True)
class Suspended:
    """Nothing new is to be transmitted until then."""

    until: datetime


def strike(vmta_id: UUID, site: str, diagnosis: Diagnosis) -> Strike | None:
    """What a diagnosed reply means for the way out on which it was heard; None if it is no complaint about that way."""
    if not diagnosis.slow_seconds:
        return None
    course = _COURSES.get(diagnosis.category, _OTHER)
    base_seconds = max(course.min_seconds, diagnosis.slow_seconds)
    max_seconds = max(course.max_seconds, diagnosis.slow_seconds)
    return Strike(vmta_id, site, diagnosis.category.value, base_seconds, max_seconds, course.suspend_from)


def effective(rule: Rule, throttle: State | None) -> Rule | Suspended:
    """The limits that hold now: half of the rule's connections and rate for each strike, at least one of each."""
    if throttle is None or not throttle.is_active:
        return rule
    if throttle.kind == "suspended":
        return Suspended(throttle.until)
    divisor = 2**throttle.strikes
    rate = rule.rate.divided(divisor) if rule.rate else None
    return replace(rule, connections=max(1, rule.connections // divisor), rate=rate)


class Automation:
    """The throttles as one worker knows them, and what it has to say of them. One a process."""

    def __init__(self) -> None:
        self._known: dict[Key, State] = {}
        self._strikes: dict[Key, Strike] = {}
        self._passed: set[Key] = set()

    def throttle(self, vmta_id: UUID, site: str) -> State | None:
        """The throttle of a way out, if there is one; half a second old at most while the database is there."""
        return self._known.get((vmta_id, site))

    def note_complaint(self, vmta_id: UUID, site: str, diagnosis: Diagnosis) -> None:
        """A host of the site has said this about mail of this way out. Others are no witnesses: an outsider's host must
        not be able to slow down a provider's site by standing beside the provider's in its own domain's MX set.
        """
        found = strike(vmta_id, site, diagnosis)
        if found is not None and len(self._strikes) < _GATHERED_MAX:
            self._strikes[vmta_id, site] = found

    def note_success(self, vmta_id: UUID, site: str) -> None:
        """The site has taken a mail of this way out. Costs nothing where no strike is to be forgiven."""
        known = self._known.get((vmta_id, site))
        if known is not None and not known.is_active and known.strikes:
            self._passed.add((vmta_id, site))

    async def run(self, database: Database) -> None:
        """Tell and learn twice a second, until cancelled; then tell once more."""
        try:
            while True:
                await self.sync(database)
                await asyncio.sleep(_SYNC_SECONDS)
        finally:
            if self._strikes or self._passed:
                await self.sync(database)

    async def sync(self, database: Database) -> None:
        """Write what was gathered and read what all workers know; while the database is away, what was known stays."""
        strikes, self._strikes = self._strikes, {}
        passed, self._passed = self._passed, set()
        try:
            async with database.transaction() as session:
                if strikes:
                    await throttles.report(session, list(strikes.values()))
                if passed:
                    await throttles.forgive(session, passed)
                known = await throttles.load(session)
        except DATABASE_ERRORS as error:
            self._strikes = strikes | self._strikes
            log.warning("throttles_not_synced", strikes=len(strikes), error=f"{type(error).__name__}: {error}"[:300])
            return
        for key, throttle in known.items():
            if throttle.is_active and not (key in self._known and self._known[key].until == throttle.until):
                log.info(
                    "queue_throttled",
                    vmta_id=str(key[0]),
                    site=key[1],
                    kind=throttle.kind,
                    reason=throttle.reason,
                    strikes=throttle.strikes,
                    until=throttle.until.isoformat(),
                )
        self._known = known
