"""What becomes of claimed mail: loaded, and put on its way, settled at once, or kept back."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from app.core.db import DATABASE_ERRORS, Database
from app.delivery import simulator, sparing
from app.delivery.content import Loader, Prepared
from app.delivery.egress import Egress, Wait, Way
from app.delivery.holdings import Holdings
from app.delivery.lanes import Ends, Lanes, expired, internal_error
from app.delivery.lease import Held
from app.delivery.limits import SharedLimits
from app.delivery.outcome import Outcome
from app.delivery.queries import Key
from app.delivery.routing import Route, Router, Unreachable
from app.delivery.tally import Taken
from app.delivery.transmit import unreached
from app.messages.status import Status
from app.suppressions.service import Suppressed

# Loads may not crowd settling and renewing out of the connection pool.
_LOADS_MAX = 2
# Held back together, let go one by one.
_SPREAD_SECONDS = 5.0
# What a warm-up does not let go is tried again after this: at midnight, or when its owner lets it go.
_ALLOWANCE_SECONDS = 3600.0
_DESTINATIONS_MAX = 50_000

log = structlog.get_logger(__name__)

Start = Callable[[Coroutine[Any, Any, None]], None]


@dataclass(frozen=True, slots=True)
class Fates:
    """Where mail goes that does not leave: settled, parked until a moment each, given back, or let go of."""

    settle: Callable[[Held, Outcome], None]
    park: Callable[[Sequence[tuple[Held, datetime | None]]], None]
    give_back: Callable[[Sequence[Held]], None]
    let_go: Callable[[Held], None]


class Dispatcher:
    """Puts mail on its way. `start` runs what must not keep others waiting."""

    def __init__(
        self,
        database: Database,
        loader: Loader,
        router: Router,
        egress: Egress,
        limits: SharedLimits,
        holdings: Holdings,
        fates: Fates,
        start: Start,
    ) -> None:
        self._database = database
        self._loader = loader
        self._router = router
        self._egress = egress
        self._holdings = holdings
        self._fates = fates
        self._start = start
        self._loads = asyncio.Semaphore(_LOADS_MAX)
        self.lanes = Lanes(router, egress, limits, Ends(fates.settle, fates.park, fates.give_back, self._reroute))
        # Domain → (site, provider), found since they were last written down.
        self.destinations: dict[str, tuple[str, str]] = {}

    async def dispatch(self, chunk: Sequence[Held]) -> None:
        """Load the chunk's messages, then let each delivery go its way."""
        loaded = await self._load(chunk)
        if loaded is None:
            return
        prepared, suppressed = loaded
        by_domain: defaultdict[str, list[Held]] = defaultdict(list)
        now = datetime.now(UTC)
        for held in chunk:
            claimed = held.claimed
            held.prepared = prepared.get((claimed.org_id, claimed.message_id))
            if held.is_expired:
                self._fates.settle(held, expired(now))
            elif claimed.simulated is not None:
                self._fates.settle(held, _simulated(claimed.simulated, claimed.attempt, now))
            elif held.prepared is None:
                detail = "the domain has no usable DKIM key"
                self._fates.settle(held, Outcome(Status.DEFERRED, "no_signing_key", detail, now, now))
            elif (why := suppressed.get((claimed.org_id, claimed.delivery_id))) is not None:
                self._fates.settle(held, sparing.outcome(why, now))
            else:
                by_domain[claimed.domain].append(held)
        for domain, mails in by_domain.items():
            route = self._router.known(domain)
            if route is not None:
                await self._let_leave(mails, route)
            else:
                # A slow DNS must not keep the others of this chunk waiting.
                self._start(self._find_route(domain, mails))

    async def _load(self, chunk: Sequence[Held]) -> tuple[dict[Key, Prepared], dict[Key, Suppressed]] | None:
        """The chunk's messages, and which deliveries are not to be sent any more; None when that could not be had, and
        what follows from it has been done.
        """
        # What is simulated is never composed.
        keys = {(held.claimed.org_id, held.claimed.message_id) for held in chunk if held.claimed.simulated is None}
        try:
            async with self._loads:
                prepared = await self._loader.load(keys) if keys else {}
                return prepared, await sparing.find(self._database, chunk, prepared)
        except DATABASE_ERRORS as error:
            _warn("load_failed", error)
            # The leases end by themselves and another attempt is made then: nothing is lost, nothing was sent.
            for held in chunk:
                self._fates.let_go(held)
        except Exception as error:
            if len(chunk) > 1:
                # One message that trips us must not take the others with it.
                for held in chunk:
                    self._start(self.dispatch([held]))
                return None
            log.exception("prepare_failed", delivery_id=str(chunk[0].claimed.delivery_id))
            self._fates.settle(chunk[0], internal_error(error))
        return None

    async def _find_route(self, domain: str, mails: Sequence[Held]) -> None:
        started_at = datetime.now(UTC)
        try:
            route = await self._router.find(domain)
        except Exception as error:
            self._trip("route_failed", mails, error)
            return
        if isinstance(route, Unreachable):
            for held in mails:
                self._fates.settle(held, unreached(route, None, started_at))
            return
        if len(self.destinations) < _DESTINATIONS_MAX:
            self.destinations[domain] = (route.site, route.provider)
        await self._let_leave(mails, route)

    async def _let_leave(self, mails: Sequence[Held], route: Route) -> None:
        """Choose each mail's way out and put it into its lane."""
        going = []
        for held in mails:
            if held.is_expired:
                self._fates.settle(held, expired(datetime.now(UTC)))
            else:
                going.append(held)
        try:
            chosen = await self._egress.choose_all([held.claimed for held in going], route)
        except DATABASE_ERRORS as error:
            _warn("egress_refresh_failed", error)
            self._fates.park([(held, datetime.now(UTC)) for held in going])
            return
        except Exception as error:
            # Else nobody would have these mails, and their leases would be renewed for ever.
            self._trip("choice_failed", going, error)
            return
        ways: defaultdict[Way, list[Held]] = defaultdict(list)
        kept: list[tuple[Held, datetime | None]] = []
        for held, way in zip(going, chosen, strict=True):
            if isinstance(way, Wait):
                kept.append((held, _spread(way.until)))
            else:
                ways[way].append(held)
        self._keep_back(kept)
        for way, leaving in ways.items():
            granted = len(leaving)
            if way.vmta is not None and way.vmta.warmup is not None:
                granted = await self._warm_up(way, route, leaving)
            for held in leaving[:granted]:
                self._enter(held, way, route)

    async def _warm_up(self, way: Way, route: Route, leaving: Sequence[Held]) -> int:
        """How many may leave by a way that is warming up; the others take one that is warm, or wait."""
        try:
            granted = await self._egress.take(way, route.provider, len(leaving))
        except DATABASE_ERRORS as error:
            _warn("warmup_failed", error)
            self._fates.park([(held, datetime.now(UTC)) for held in leaving])
            return 0
        except Exception as error:
            self._trip("warmup_failed", leaving, error)
            return 0
        if way.vmta is not None:
            taken = Taken(way.vmta, route.provider, datetime.now(UTC))
            for held in leaving[:granted]:
                held.taken = taken
        kept: list[tuple[Held, datetime | None]] = []
        for held in leaving[granted:]:
            warm = self._egress.warm_stand_in(held.claimed, way, route)
            if warm is not None:
                self._enter(held, warm, route)
            else:
                kept.append((held, _next_allowance()))
        self._keep_back(kept)
        return granted

    def _trip(self, event: str, mails: Sequence[Held], error: Exception) -> None:
        """Something of ours failed: the mails wait like any that are deferred."""
        log.error(event, domains=sorted({held.claimed.domain for held in mails})[:10], exc_info=error)
        for held in mails:
            self._fates.settle(held, internal_error(error))

    def _reroute(self, held: Held, route: Route) -> None:
        taken = self._holdings.leave_way(held)
        if taken is not None:
            self._egress.tally.give_back(taken)
        # The lane's route may be that of another domain with the same hosts.
        domain = held.claimed.domain
        route = self._router.known(domain) or replace(route, domain=domain)
        self._start(self._let_leave([held], route))

    def _keep_back(self, kept: Sequence[tuple[Held, datetime | None]]) -> None:
        """Park mails that have no way out before a moment each; those whose time is over have waited long enough."""
        now = datetime.now(UTC)
        detail = "its time was over before it had a way out"
        waiting = []
        for held, until in kept:
            if held.claimed.give_up_at <= now:
                self._fates.settle(held, Outcome(Status.DEFERRED, "no_way_out", detail, now, now, was_begun=False))
            else:
                waiting.append((held, until))
        if waiting:
            self._fates.park(waiting)

    def _enter(self, held: Held, way: Way, route: Route) -> None:
        self._holdings.enter(held, way.key(route.site), route.rule.connections)
        self.lanes.add(held, way, route)


def _simulated(wanted: str, attempt: int, now: datetime) -> Outcome:
    try:
        return simulator.outcomes(wanted, attempt, now)
    except ValueError as error:
        # Perhaps a newer version's: its own worker knows it.
        return internal_error(error)


def _spread(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment + timedelta(seconds=random.uniform(0, _SPREAD_SECONDS))  # noqa: S311


def _next_allowance() -> datetime:
    """When to ask a warm-up again: after midnight (UTC), or within the hour, as its settings may change. Spread."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    until = min(midnight, now + timedelta(seconds=_ALLOWANCE_SECONDS))
    return until + timedelta(seconds=random.uniform(0, _ALLOWANCE_SECONDS / 6))  # noqa: S311


def _warn(event: str, error: BaseException) -> None:
    log.warning(event, error=f"{type(error).__name__}: {error}"[:300])
