"""One lane: mails that may share connections, in their order, and the carriers at work on them."""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice

from app.delivery.egress import Way
from app.delivery.lease import Held
from app.delivery.routing import Route
from app.delivery.security import Secured

# Mails that are composed and signed one right after the other find all that takes in the processor's caches, and are
# made a fifth sooner. So many of 10 KB hold everything else up for 8 ms.
_AHEAD = 15
_AHEAD_BYTES = 256 * 2**10


@dataclass(slots=True, eq=False)
class Lane:
    """Mails that may share connections. `route` is that of the one that came last.

    carriers: how many are at work; connected: how many of them have a connection; resting: those that have one and no
    mail. `crowded_until`: until then (loop time) the host or the limits are known to let no further connection in.
    """

    way: Way
    route: Route
    limit_key: str
    first: deque[Held] = field(default_factory=deque)
    waiting: deque[Held] = field(default_factory=deque)
    carriers: int = 0
    connected: int = 0
    resting: list[asyncio.Future[Held | None]] = field(default_factory=list)
    crowded_until: float = 0.0

    def __len__(self) -> int:
        return len(self.first) + len(self.waiting)

    def put(self, held: Held, *, again: bool = False) -> bool:
        """Hand a mail to a carrier that rests, or let it wait: first when it expires soon or was here before (`again`).

        Whether it waits.
        """
        while self.resting:
            waiter = self.resting.pop()
            if not waiter.done():
                waiter.set_result(held)
                return False
        if again:
            self.first.appendleft(held)
        else:
            (self.first if held.claimed.urgent else self.waiting).append(held)
        return True

    def take(self) -> Held | None:
        """The next mail, if one waits."""
        if self.first:
            return self.first.popleft()
        return self.waiting.popleft() if self.waiting else None

    async def octets(self, held: Held) -> bytes:
        """The mail as it goes over the wire, of a delivery that was taken from here; those that come next are made
        along with it. Raises what composing raises.
        """
        if held.octets is None:
            await held.compose()
            await self._compose_ahead()
        octets, held.octets = held.octets, None
        assert octets is not None  # noqa: S101 - composed above, or ahead
        return octets

    async def _compose_ahead(self) -> None:
        room_bytes = _AHEAD_BYTES
        for coming in [*islice(chain(self.first, self.waiting), _AHEAD)]:
            room_bytes -= coming.claimed.size_bytes
            if room_bytes < 0:
                return
            if coming.octets is None:
                # One that cannot be composed is told of when it is its turn.
                with suppress(Exception):
                    await coming.compose()

    def take_all(self) -> list[Held]:
        """All that wait."""
        found = [*chain(self.first, self.waiting)]
        self.first.clear()
        self.waiting.clear()
        return found


@dataclass(slots=True, eq=False)
class Carrier:
    """One carrier's connection and its slot. `refused`: it could get none while others have one."""

    lane: Lane
    secured: Secured | None = None
    has_slot: bool = False
    refused: bool = False

    @property
    def is_good(self) -> bool:
        """Whether its connection is good for another mail."""
        if self.secured is None:
            return False
        connection = self.secured.connection
        return connection.is_usable and connection.transactions < self.lane.route.rule.messages_per_connection
