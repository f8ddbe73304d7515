"""What a worker holds: leases judged by its own monotonic clock, and the memory for contents in flight."""

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

from app.delivery.content import Prepared
from app.delivery.outcome import Claimed
from app.delivery.tally import Taken

# The clock of the database started the lease after ours asked for it, so ours ends first; the margin covers the
# time between the last look and the octets reaching the host.
_MARGIN = 0.1


@dataclass(slots=True)
class Lease:
    """Good until `ends_at` on the monotonic clock, unless renewed or lost."""

    seconds: float
    ends_at: float

    @classmethod
    def asked_at(cls, moment: float, seconds: float) -> "Lease":
        """A lease that the database was asked for at a moment of the monotonic clock."""
        return cls(seconds, moment + seconds * (1 - _MARGIN))

    def renew(self, asked_at: float) -> None:
        """The database prolonged it, or gave it anew; `asked_at` is when it was asked to."""
        self.ends_at = asked_at + self.seconds * (1 - _MARGIN)

    def lose(self) -> None:
        """Somebody else has the delivery now, or it is gone."""
        self.ends_at = 0.0

    @property
    def is_held(self) -> bool:
        """Whether nobody else can have claimed the delivery yet."""
        return time.monotonic() < self.ends_at


@dataclass(slots=True)
class Gate:
    """A way out to one site, as far as this worker goes: how many deliveries it holds for it, by domain too."""

    key: str
    connections: int
    held: int = 0
    domains: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class Held:
    """A delivery in this worker's hands, from its claim until its outcome is settled or it is given back.

    There is one for a delivery, whatever happens: when a lease ends while the attempt goes on and this worker claims
    the delivery again, the attempt goes on under the new claim. `taken`: it counts against a warm-up, and nothing of it
    has been transmitted yet. `octets`: the signed mail, when it was composed ahead of its turn.
    """

    claimed: Claimed
    lease: Lease
    taken_bytes: int = 0
    prepared: Prepared | None = None
    gate: Gate | None = None
    taken: Taken | None = None
    octets: bytes | None = None

    @property
    def is_expired(self) -> bool:
        """Whether its sender wants it no longer to be sent."""
        expires_at = self.claimed.expires_at
        return expires_at is not None and expires_at <= datetime.now(UTC)

    def may_send(self) -> bool:
        """The fence, asked before the content and before its final dot."""
        return self.lease.is_held and not self.is_expired


class ByteBudget:
    """Bounds the memory for contents in flight: many small ones within the limit, and beside them one large one.

    So neither waits for the other, and the whole stays below the limit and the largest content together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._large_in_flight = False

    @property
    def has_large(self) -> bool:
        """Whether a large content is in flight."""
        return self._large_in_flight

    def is_large(self, size_bytes: int) -> bool:
        """Whether contents of this size go one at a time."""
        return size_bytes > self._limit // 4

    def try_take(self, size_bytes: int) -> bool:
        """Take if there is room."""
        if self.is_large(size_bytes):
            taken, self._large_in_flight = not self._large_in_flight, True
            return taken
        if self._used + size_bytes > self._limit:
            return False
        self._used += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Return what was taken."""
        if self.is_large(size_bytes):
            self._large_in_flight = False
        else:
            self._used -= size_bytes
