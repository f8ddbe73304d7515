"""Which process goes first when the processors are full."""

import os
from contextlib import suppress
from pathlib import Path

# Linux: while autogroup is on, a nice value counts among the processes of one session only, and the session's own value
# among sessions (sched(7)).
_AUTOGROUP = Path("/proc/self/autogroup")
# Linux: nanoseconds that the main thread has run, and waited for a processor while it could have run.
_SCHEDSTAT = Path("/proc/self/schedstat")
# They are full when so much of the time that it could have run, and no less than that, went by in waiting.
_FULL_SHARE = 0.8
_FULL_SECONDS = 0.05


def be_nice(value: int) -> None:
    """Let others go first by this nice value (1 to 19), and the session too if this process leads one."""
    os.nice(value)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            _AUTOGROUP.write_text(str(value))


class Processors:
    """Whether the processors are full, as a nice process sees it: it waits for one far longer than it runs."""

    def __init__(self) -> None:
        self._ran_seconds, self._waited_seconds = _scheduled()

    def were_full(self) -> bool:
        """Whether they were, since this was asked last. Never where the system does not tell."""
        ran, waited = _scheduled()
        ran_seconds, waited_seconds = ran - self._ran_seconds, waited - self._waited_seconds
        self._ran_seconds, self._waited_seconds = ran, waited
        return waited_seconds > max(_FULL_SECONDS, _FULL_SHARE * (ran_seconds + waited_seconds))


def _scheduled() -> tuple[float, float]:
    """Seconds that this process has (run, waited to run)."""
    with suppress(OSError, ValueError):
        ran, waited, _ = _SCHEDSTAT.read_text().split()
        return int(ran) / 1e9, int(waited) / 1e9
    return 0.0, 0.0
