"""Leases: how long this worker may act for the deliveries that it claimed, judged by its own monotonic clock."""

import time
from dataclasses import dataclass

# The clock of the database started the lease after ours asked for it, so ours ends first; the margin covers the
# time between the last look and the octets reaching the host.
_MARGIN = 0.1


@dataclass(slots=True)
class Lease:
    """Good until `ends_at` on the monotonic clock, unless renewed or lost."""

    seconds: float
    ends_at: float

    @classmethod
    def from_now(cls, seconds: float) -> "Lease":
        """A lease that is asked for now."""
        return cls(seconds, time.monotonic() + seconds * (1 - _MARGIN))

    def renew(self, asked_at: float) -> None:
        """The database prolonged it; `asked_at` is when it was asked to."""
        self.ends_at = asked_at + self.seconds * (1 - _MARGIN)

    def lose(self) -> None:
        """Somebody else has the delivery now, or it is gone."""
        self.ends_at = 0.0

    @property
    def is_held(self) -> bool:
        """Whether nobody else can have claimed the delivery yet."""
        return time.monotonic() < self.ends_at


class ByteBudget:
    """Bounds the memory for contents in flight. Not fair on purpose: small mails pass while a large one waits."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0

    def try_take(self, size_bytes: int) -> bool:
        """Take if there is room. A content larger than the whole budget is let in alone."""
        if self._used and self._used + size_bytes > self._limit:
            return False
        self._used += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Return what was taken."""
        self._used -= size_bytes
