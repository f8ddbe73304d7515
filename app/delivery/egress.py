"""Which way out a delivery takes now: its vMTA or one that stands in, and what keeps it back.

Every half second the picture is taken anew: vMTAs, queues that are held, sites that have told us to slow down.
"""

import asyncio
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog
from cachetools import LRUCache

from app.accounts import suspension
from app.core.config import Settings
from app.core.db import DATABASE_ERRORS, Database
from app.delivery.automation import Automation, Suspended, effective
from app.delivery.outcome import Claimed
from app.delivery.routing import Route
from app.delivery.shaping import Rate, Rule
from app.delivery.tally import Tally
from app.queues import control
from app.vmtas import addresses, choice, usage
from app.vmtas.choice import Fleet, Vmta

# In the table of throttles, as in that of holds, this is the platform's own way out.
NO_VMTA = UUID(int=0)
_REFRESH_SECONDS = 0.5
_MINUTE = 60
_GONE = 10_000

log = structlog.get_logger(__name__)
_rng = random.Random()  # noqa: S311 - shares out mail, keeps no secret


@dataclass(frozen=True, slots=True)
class Way:
    """A way out to one site. `vmta` None is the platform's own."""

    vmta: Vmta | None
    source_address: str | None
    ehlo_name: str

    @property
    def vmta_id(self) -> UUID | None:
        """The vMTA's id, if it is one."""
        return self.vmta.id if self.vmta is not None else None

    def key(self, site: str) -> str:
        """What limits are counted under."""
        return f"{self.vmta_id or 'default'}@{site}"


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing may leave for now. `until` None: not before somebody releases it."""

    until: datetime | None


class Egress:
    """The picture as one engine has it. `run` keeps it up to date."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self.automation = Automation()
        self.tally = Tally()
        self._own = Way(None, None, settings.ehlo_hostname)
        self._ehlo_name = settings.ehlo_hostname
        self._fleets: dict[UUID, Fleet] = {}
        self._gone: LRUCache[UUID, bool] = LRUCache(_GONE)
        self._refreshing = asyncio.Lock()
        self._refreshed_at = 0.0
        self._holds: Collection[tuple[UUID, UUID, str]] = frozenset()
        self._suspended: frozenset[UUID] = frozenset()

    async def run(self) -> None:
        """Keep the picture up to date, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.automation.run(self._database))
            tasks.create_task(self.tally.run(self._database))
            while True:
                try:
                    await self.refresh()
                except DATABASE_ERRORS as error:
                    log.warning("egress_refresh_failed", error=f"{type(error).__name__}: {error}"[:300])
                await asyncio.sleep(_REFRESH_SECONDS)

    async def refresh(self) -> None:
        """Take the picture anew. Raises DATABASE_ERRORS."""
        wanted_at = time.monotonic()
        async with self._refreshing:
            # Whoever waited here may have been given what he wants.
            if self._refreshed_at < wanted_at:
                began_at = time.monotonic()
                async with self._database.transaction() as session:
                    self._fleets = await choice.load_all(session)
                    self._holds = await control.load_holds(session)
                    self._suspended = await suspension.suspended(session)
                self._refreshed_at = began_at

    async def choose_all(self, claims: Sequence[Claimed], route: Route) -> list[Way | Wait]:
        """The way out for each of these deliveries to one domain, warm-ups aside. Raises DATABASE_ERRORS.

        A vMTA may be newer than the picture, and what is held have been released since: then it is taken anew.
        """
        strange = {claimed.vmta_id for claimed in claims if self._drawn(claimed) is None}
        strange.difference_update(self._gone, {None})
        found = [self._choose(claimed, route) for claimed in claims]
        if strange or any(isinstance(one, Wait) and one.until is None for one in found):
            await self.refresh()
            for claimed in claims:
                if claimed.vmta_id is not None and self._drawn(claimed) is None:
                    self._gone[claimed.vmta_id] = True
            found = [self._choose(claimed, route) for claimed in claims]
        return found

    def _drawn(self, claimed: Claimed) -> Vmta | None:
        fleet = self._fleets.get(claimed.org_id)
        return fleet.vmtas.get(claimed.vmta_id) if fleet is not None and claimed.vmta_id is not None else None

    def foreign(self) -> list[UUID]:
        """The vMTAs whose addresses this host does not have: other hosts' workers take their mail, if there are any."""
        return [vmta.id for fleet in self._fleets.values() for vmta in fleet.vmtas.values() if not _is_here(vmta)]

    def _choose(self, claimed: Claimed, route: Route) -> Way | Wait:
        now = datetime.now(UTC)
        if self._is_held(claimed, claimed.vmta_id, route):
            return Wait(None)
        candidates = self._candidates(claimed)
        if candidates is None:
            return self._unless_suspended(self._own, route, now)
        wait = Wait(None)
        for vmta in candidates:
            if vmta.is_paused or not _is_here(vmta) or self._is_held(claimed, vmta.id, route):
                continue
            way = self._unless_suspended(self._way(vmta), route, now)
            if isinstance(way, Way):
                return way
            wait = _sooner(wait, way)
        if wait.until is None and not all(vmta.is_paused for vmta in candidates):
            # On this host none of them can send, on another one perhaps.
            return Wait(now + timedelta(seconds=_MINUTE))
        return wait

    def warm_stand_in(self, claimed: Claimed, way: Way, route: Route) -> Way | None:
        """A warm member of the way's pool that can send now: it takes what a warm-up does not let go."""
        fleet = self._fleets.get(claimed.org_id)
        if fleet is None or way.vmta is None:
            return None
        now = datetime.now(UTC)
        for vmta in fleet.stand_ins(way.vmta):
            if vmta.warmup is None and _is_here(vmta) and not self._is_held(claimed, vmta.id, route):
                found = self._unless_suspended(self._way(vmta), route, now)
                if isinstance(found, Way):
                    return found
        return None

    def _way(self, vmta: Vmta) -> Way:
        return Way(vmta, vmta.ip_address, vmta.hostname or self._ehlo_name)

    def _candidates(self, claimed: Claimed) -> Sequence[Vmta] | None:
        """Its vMTA and those that stand in for it; None: the platform's own way out."""
        if claimed.vmta_id is None:
            return None
        fleet, drawn = self._fleets.get(claimed.org_id), self._drawn(claimed)
        if fleet is not None and drawn is None:
            # Deleted in the moment in which it was drawn.
            drawn = fleet.draw(None, _rng)
        return [drawn, *fleet.stand_ins(drawn)] if fleet is not None and drawn is not None else None

    def _is_held(self, claimed: Claimed, vmta_id: UUID | None, route: Route) -> bool:
        if claimed.org_id in self._suspended:
            return True
        # By the mail's own domain: a lane's route may be that of another one with the same hosts.
        return bool(self._holds) and control.is_held(self._holds, claimed.org_id, vmta_id, claimed.domain, route.site)

    def _unless_suspended(self, way: Way, route: Route, now: datetime) -> Way | Wait:
        rule = self.rule(way, route)
        if isinstance(rule, Suspended):
            # Not all in the same moment.
            return Wait(max(rule.until, now))
        return way

    def rule(self, way: Way, route: Route) -> Rule | Suspended:
        """What holds for the way to the route's site at this moment."""
        rule = route.rule
        vmta = way.vmta
        # A vMTA's own limits are beside the site's: whichever is the tighter one holds.
        if vmta is not None and vmta.max_connections is not None:
            rule = replace(rule, connections=min(rule.connections, vmta.max_connections))
        if vmta is not None and vmta.max_rate is not None:
            rule = replace(rule, rate=_tighter(rule.rate, Rate(vmta.max_rate, _MINUTE)))
        return effective(rule, self.automation.throttle(way.vmta_id or NO_VMTA, route.site))

    def is_open(self, claimed: Claimed, way: Way, route: Route) -> bool:
        """Whether the way that was chosen a moment ago may still be taken: nothing was paused, held or suspended."""
        if any(self._is_held(claimed, vmta_id, route) for vmta_id in {claimed.vmta_id, way.vmta_id}):
            return False
        if way.vmta is not None:
            fleet = self._fleets.get(claimed.org_id)
            present = fleet.vmtas.get(way.vmta.id) if fleet is not None else None
            if present is None or present.is_paused:
                return False
        return not isinstance(self.rule(way, route), Suspended)

    async def take(self, way: Way, provider: str, count: int) -> int:
        """How many of `count` mails the way's warm-up lets go to the provider now. Raises DATABASE_ERRORS."""
        if way.vmta is None or way.vmta.warmup is None:
            return count
        async with self._database.transaction() as session:
            return await usage.take(session, way.vmta, provider, count, datetime.now(UTC))


def _is_here(vmta: Vmta) -> bool:
    return vmta.ip_address is None or addresses.can_bind(vmta.ip_address)


def _tighter(one: Rate | None, other: Rate) -> Rate:
    return other if one is None else min(one, other, key=lambda rate: rate.permits / rate.period_seconds)


def _sooner(one: Wait, other: Wait) -> Wait:
    if one.until is None or other.until is None:
        return other if one.until is None else one
    return min(one, other, key=lambda wait: wait.until or datetime.max.replace(tzinfo=UTC))
