"""When a delivery is tried again, and when an endpoint is given up."""

import random
from datetime import timedelta

# Before each attempt: seconds after the one before it.
PAUSES_SECONDS = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
# An endpoint that has failed for so long, without a success in between, is disabled.
GIVE_UP_AFTER = timedelta(days=5)
_JITTER = 0.1


def pause_seconds(attempt: int, retry_after_seconds: float | None = None) -> float | None:
    """How long to wait after the failed attempt of this number (from 1); None: it was the last.

    Spread by a tenth either way, so that what failed together does not come back together; never less than the
    endpoint has asked for.
    """
    if attempt >= len(PAUSES_SECONDS):
        return None
    spread = PAUSES_SECONDS[attempt] * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
    return max(spread, retry_after_seconds or 0.0)
