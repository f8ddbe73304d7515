"""One lane: mails that may share connections, in their order, and the carriers at work on them."""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice

from app.delivery.content import AT_ONCE_BYTES, Prepared, octets_together
from app.delivery.egress import Way
from app.delivery.lease import Held
from app.delivery.routing import Route
from app.delivery.security import Secured

# So many mails of 10 KB are made in 7 ms, in which nothing else of this process moves.
_TOGETHER = 16


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
        along with it, unless they are large. Raises what composing raises.
        """
        if held.octets is None:
            # What goes wrong with another one is told of when it is that one's turn.
            with suppress(Exception):
                self._compose_together(held)
        octets, held.octets = held.octets, None
        assert held.prepared is not None  # noqa: S101 - the engine lets no other leave
        return octets or await held.prepared.octets(held.claimed.delivery_id)

    def _compose_together(self, held: Held) -> None:
        """Compose a mail and those that come next, as far as they are small. Raises what composing raises."""
        room_bytes = AT_ONCE_BYTES
        together: list[tuple[Held, Prepared]] = []
        for one in chain((held,), islice(chain(self.first, self.waiting), _TOGETHER - 1)):
            room_bytes -= one.claimed.size_bytes
            if room_bytes < 0:
                break
            if one.octets is None and one.prepared is not None:
                together.append((one, one.prepared))
        made = octets_together([(prepared, one.claimed.delivery_id) for one, prepared in together])
        for (one, _), octets in zip(together, made, strict=True):
            one.octets = octets

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
