"""Mail on its way out: a lane for each way out and set of mail hosts, and carriers, each with one connection.

A carrier takes mail after mail from its lane. How many there may be, and how fast they go, is shared by all workers
(`limits`); what follows from a mail's end is the engine's.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from app.delivery.automation import Suspended
from app.delivery.egress import NO_VMTA, Egress, Way
from app.delivery.lane import Carrier, Lane
from app.delivery.lease import Held
from app.delivery.limits import SharedLimits
from app.delivery.outcome import Outcome
from app.delivery.routing import Route, Router, Unreachable
from app.delivery.security import Policy, Secured
from app.delivery.shaping import Rule
from app.delivery.transmit import broken, has_closed, transmit, unreached
from app.mail.reply import Phase
from app.mail.smtp import SmtpError
from app.messages.status import Status

_IDLE_SECONDS = 2.0
# How soon a resting carrier hears that its slot is wanted elsewhere.
_REST_SECONDS = 0.25
_SLOT_RETRY_SECONDS = 0.1
# A host that has just refused one more connection is asked again after this.
_CROWDED_SECONDS = 5.0
# A lane with mail that waits tries that soon to have as many connections as it may.
_STAFF_AGAIN_SECONDS = 1.0
# What a rate does not let go within this is given back, to come again when it is its turn.
_PACED_SECONDS = 3.0

# A host that got as far as this with a mail has seen it.
_TRANSACTION = frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT})

log = structlog.get_logger(__name__)

_LaneKey = tuple[str, tuple[str, ...], Policy]


@dataclass(frozen=True, slots=True)
class Ends:
    """Whom carriers tell: how a mail ended, which are given back until a moment each (None: until released) or at
    once, and which need another way out than the one they came by.
    """

    settle: Callable[[Held, Outcome], None]
    park: Callable[[Sequence[tuple[Held, datetime | None]]], None]
    give_back: Callable[[Sequence[Held]], None]
    reroute: Callable[[Held, Route], None]


class Lanes:
    """All lanes of one engine."""

    def __init__(self, router: Router, egress: Egress, limits: SharedLimits, ends: Ends) -> None:
        self._router = router
        self._egress = egress
        self._limits = limits
        self._ends = ends
        self._lanes: dict[_LaneKey, Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._quitting: set[asyncio.Task[None]] = set()
        self._stopping = False

    def add(self, held: Held, way: Way, route: Route) -> None:
        """Let a mail leave by the way along the route."""
        limit_key = way.key(route.site)
        key = (limit_key, route.hosts, route.policy)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(way, route, limit_key)
        # The latest word on limits and names.
        lane.way, lane.route = way, route
        if lane.put(held):
            self._staff(lane, key)

    def _staff(self, lane: Lane, key: _LaneKey) -> None:
        """One more carrier if there is mail for it. Each opens its connection by itself, so they come one by one."""
        opening = lane.carriers - lane.connected
        if lane.carriers and (len(lane) <= opening or lane.carriers >= lane.route.rule.connections):
            return
        if lane.connected and asyncio.get_running_loop().time() < lane.crowded_until:
            return
        lane.carriers += 1
        self._start(self._carry(lane, key))

    def _staff_again(self, lane: Lane, key: _LaneKey) -> None:
        if len(lane) and lane.carriers and not self._stopping:
            self._staff(lane, key)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, lane: Lane, key: _LaneKey) -> None:
        """A carrier's life: until no mail has come for a while, or its slot is wanted elsewhere."""
        carrier = Carrier(lane)
        try:
            while (held := await self._next(lane, carrier)) is not None:
                if lane.connected:
                    # Slots that were refused may be free by now, and no mail may come that would ask for them.
                    self._staff(lane, key)
                try:
                    await self._deliver(lane, carrier, held)
                except Exception as error:
                    # One mail that trips us must neither stop the others nor be lost: it waits like any deferred mail.
                    log.exception("attempt_failed", delivery_id=str(held.claimed.delivery_id))
                    self._ends.settle(held, internal_error(error))
        finally:
            self._dismiss(carrier)
            lane.carriers -= 1
            if not lane.carriers:
                # Nobody is left to carry what came in this very moment.
                if len(lane) and not self._stopping:
                    self._staff(lane, key)
                elif self._lanes.get(key) is lane:
                    del self._lanes[key]
            elif len(lane) and carrier.refused:
                # Those that go on may be long at their mails, and there may be room for one more by then.
                now = asyncio.get_running_loop().time()
                at = max(lane.crowded_until, now + _STAFF_AGAIN_SECONDS)
                asyncio.get_running_loop().call_at(at, self._staff_again, lane, key)

    async def _next(self, lane: Lane, carrier: Carrier) -> Held | None:
        """The next mail to carry, waited for a while; None when this carrier is not needed any more."""
        rest_until = asyncio.get_running_loop().time() + _IDLE_SECONDS
        while True:
            if self._stopping:
                self._ends.give_back(lane.take_all())
                return None
            if carrier.secured is not None and self._limits.should_yield(lane.limit_key, self._connections(lane)):
                self._dismiss(carrier)
                carrier.refused = True
            # Others of this lane go on; alone, it queues up for a slot again.
            if carrier.refused and lane.connected:
                return None
            if (held := lane.take()) is not None:
                return held
            if carrier.secured is None or asyncio.get_running_loop().time() > rest_until:
                return None
            if (held := await self._rest(lane)) is not None:
                return held

    async def _rest(self, lane: Lane) -> Held | None:
        """Wait a moment for more mail, with an open connection."""
        waiter: asyncio.Future[Held | None] = asyncio.get_running_loop().create_future()
        lane.resting.append(waiter)
        timer = asyncio.get_running_loop().call_later(_REST_SECONDS, _end_rest, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            if waiter in lane.resting:
                lane.resting.remove(waiter)

    def _connections(self, lane: Lane) -> int:
        rule = self._egress.rule(lane.way, lane.route)
        return 0 if isinstance(rule, Suspended) else rule.connections

    async def _deliver(self, lane: Lane, carrier: Carrier, held: Held) -> None:
        """One attempt, unless something keeps the mail back."""
        started_at = datetime.now(UTC)
        if held.is_expired:
            self._ends.settle(held, expired(started_at))
            return
        if not self._is_open(lane, held):
            return
        content: bytes | None = None
        outcome = None
        while outcome is None:
            was_kept = carrier.is_good
            secured = await self._connected(lane, carrier, held, started_at)
            if secured is None:
                return
            if content is None:
                content = await lane.octets(held)
            # The permit is taken with the connection at hand: it is good for a second only.
            if not await self._permitted(lane, held):
                return
            outcome = await self._transmit(lane, secured, held, content, started_at, may_have_closed=was_kept)
        self._settle(lane, held, outcome)

    def _is_open(self, lane: Lane, held: Held) -> bool:
        """Whether the mail may still leave this way; if not, the engine looks for another, or parks it."""
        if self._egress.is_open(held.claimed, lane.way, lane.route):
            return True
        self._ends.reroute(held, lane.route)
        return False

    async def _permitted(self, lane: Lane, held: Held) -> bool:
        """Wait until the rate lets the mail go; False: it has been given back meanwhile."""
        while True:
            # To be connected, or to be its turn, may have taken long.
            if not self._is_open(lane, held):
                return False
            rule = self._egress.rule(lane.way, lane.route)
            if isinstance(rule, Rule):
                if rule.rate is None:
                    return True
                wait_seconds = await self._limits.take(lane.limit_key, rule.rate, len(lane) + 1)
                if not wait_seconds:
                    return True
                self._pace(lane, rule)
                await asyncio.sleep(min(wait_seconds, _PACED_SECONDS))
            if self._stopping:
                self._ends.give_back([held])
                return False

    async def _transmit(
        self, lane: Lane, secured: Secured, held: Held, content: bytes, started_at: datetime, *, may_have_closed: bool
    ) -> Outcome | None:
        """The outcome; None when a kept connection was closed by its peer in this very moment.

        That costs no attempt, as nothing was sent yet. A fresh one that fails is the host's doing.
        """
        try:
            outcome = await transmit(held, secured, lane.route, content, started_at)
        except SmtpError as error:
            if may_have_closed and not error.content_sent:
                return None
            return broken(error, secured, lane.route, started_at)
        return None if may_have_closed and has_closed(outcome) else outcome

    def _pace(self, lane: Lane, rule: Rule) -> None:
        """Give back what the rate does not let go soon, each until it will be its turn."""
        assert rule.rate is not None  # noqa: S101 - asked for by the caller
        per_second = rule.rate.permits / rule.rate.period_seconds
        keep = max(1, int(per_second * _PACED_SECONDS))
        now = datetime.now(UTC)
        surplus = []
        while len(lane.waiting) > keep:
            due_at = now + timedelta(seconds=len(lane.waiting) / per_second)
            surplus.append((lane.waiting.pop(), due_at))
        if surplus:
            self._ends.park(surplus)

    async def _connected(self, lane: Lane, carrier: Carrier, held: Held, started_at: datetime) -> Secured | None:
        """The carrier's connection, opened if need be; None: there is none, and the mail waits again or is settled."""
        if carrier.is_good:
            return carrier.secured
        # Closed before the next is opened: both together might be one more than is allowed.
        await self._close(carrier)
        found = await self._open(lane, carrier)
        if found is None:
            # No slot is to be had: whoever has one carries it, or it waits here.
            lane.put(held, again=True)
        elif isinstance(found, Unreachable):
            outcome = self._unreachable(lane, carrier, found, held, started_at)
            if outcome is not None:
                self._settle(lane, held, outcome)
        elif self._stopping:
            self._ends.give_back([held])
        else:
            return found
        return None

    async def _open(self, lane: Lane, carrier: Carrier) -> Secured | Unreachable | None:
        """Take a slot and connect. None: there is no slot now, and this one has waited a little for it."""
        if not carrier.has_slot:
            if not await self._limits.acquire(lane.limit_key, self._connections(lane)):
                carrier.refused = True
                lane.crowded_until = asyncio.get_running_loop().time() + _REST_SECONDS
                await asyncio.sleep(_SLOT_RETRY_SECONDS)
                return None
            carrier.has_slot = True
        found = await self._router.connect(lane.route, lane.way.source_address, lane.way.ehlo_name)
        if isinstance(found, Unreachable):
            self._dismiss(carrier)
        else:
            carrier.secured = found
            carrier.refused = False
            lane.connected += 1
        return found

    def _unreachable(
        self, lane: Lane, carrier: Carrier, found: Unreachable, held: Held, started_at: datetime
    ) -> Outcome | None:
        """What a failed connection means for the mail that wanted it, and for those behind it."""
        if lane.connected and found.status is Status.DEFERRED:
            # Others have connections: the host wants no more of them, but it does take mail.
            lane.crowded_until = asyncio.get_running_loop().time() + _CROWDED_SECONDS
            carrier.refused = True
            lane.put(held, again=True)
            return None
        outcome = unreached(found, lane.route, started_at)
        # Whoever waits behind would only wait for the same hosts in vain.
        behind = lane.take_all()
        for other in behind:
            self._settle(lane, other, outcome)
        return outcome

    def _settle(self, lane: Lane, held: Held, outcome: Outcome) -> None:
        way = lane.way
        outcome.vmta_id, outcome.source_address = way.vmta_id, way.source_address
        outcome.provider = lane.route.provider
        self._egress.tally.note(held.claimed.org_id, outcome)
        if outcome.phase in _TRANSACTION:
            held.taken = None
        automation = self._egress.automation
        if outcome.status is Status.DELIVERED:
            automation.note_success(way.vmta_id or NO_VMTA, lane.route.site)
        # A host that stands in a domain's MX set beside a provider's speaks for itself only.
        elif outcome.diagnosis and outcome.host and self._router.is_spoken_by(outcome.host, lane.route):
            automation.note_complaint(way.vmta_id or NO_VMTA, lane.route.site, outcome.diagnosis)
        self._ends.settle(held, outcome)

    async def _close(self, carrier: Carrier) -> None:
        """Close the carrier's connection; its slot is for the next one."""
        secured, carrier.secured = carrier.secured, None
        if secured is not None:
            carrier.lane.connected -= 1
            await secured.connection.quit()

    def _dismiss(self, carrier: Carrier) -> None:
        """Close the carrier's connection in peace, and release its slot when it is closed."""
        secured, carrier.secured = carrier.secured, None
        has_slot, carrier.has_slot = carrier.has_slot, False
        if secured is not None:
            carrier.lane.connected -= 1
            task = asyncio.create_task(self._quit(secured, carrier.lane.limit_key, has_slot=has_slot))
            self._quitting.add(task)
            task.add_done_callback(self._quitting.discard)
        elif has_slot:
            self._limits.release(carrier.lane.limit_key)

    async def _quit(self, secured: Secured, limit_key: str, *, has_slot: bool) -> None:
        try:
            await secured.connection.quit()
        finally:
            if has_slot:
                self._limits.release(limit_key)

    def stop(self) -> None:
        """Begin nothing more: give back what waits, let go of those who rest. What is being transmitted goes on."""
        self._stopping = True
        for lane in self._lanes.values():
            waiting = lane.take_all()
            if waiting:
                self._ends.give_back(waiting)
            for waiter in lane.resting:
                if not waiter.done():
                    waiter.set_result(None)

    async def stopped(self) -> None:
        """Return once every carrier has ended and said goodbye."""
        while self._tasks or self._quitting:
            await asyncio.wait(self._tasks | self._quitting)

    def abandon(self) -> None:
        """Cancel what did not end in time."""
        for task in self._tasks | self._quitting:
            task.cancel()


def _end_rest(waiter: "asyncio.Future[Held | None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def expired(moment: datetime) -> Outcome:
    """The outcome of a mail that its sender wants no longer to be sent."""
    detail = "expires_at passed before it could be delivered"
    return Outcome(Status.FAILED, "expired", detail, moment, moment, was_begun=False)


def internal_error(error: Exception) -> Outcome:
    """The outcome of a mail that tripped us: tried again later."""
    moment = datetime.now(UTC)
    return Outcome(Status.DEFERRED, "internal_error", f"{type(error).__name__} in the worker", moment, moment)
