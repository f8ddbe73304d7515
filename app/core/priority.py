"""Which process goes first when the processors are full."""

import os
from contextlib import suppress
from pathlib import Path

# Linux: while autogroup is on, a nice value counts among the processes of one session only, and the session's own value
# among sessions (sched(7)).
_AUTOGROUP = Path("/proc/self/autogroup")


def be_nice(value: int) -> None:
    """Let others go first by this nice value (1 to 19), and the session too if this process leads one."""
    os.nice(value)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            _AUTOGROUP.write_text(str(value))
