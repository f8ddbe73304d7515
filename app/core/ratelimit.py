"""Rate limits, shared by all processes through Redis, and kept by each process alone while Redis is away.

Fixed windows, of one minute unless a limit says otherwise. A request counts against every limit it names, in one
round trip. Headers after draft-ietf-httpapi-ratelimit-headers-10.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import TLRUCache
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.core.errors import TooManyRequests
from app.core.redis import Breaker

WINDOW_SECONDS = 60
_LOCAL_ENTRIES = 100_000


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `quota` requests a window for what `kind` and `subject` name together."""

    kind: str
    subject: str
    quota: int
    window_seconds: int = WINDOW_SECONDS


class RateLimiter:
    """Counts requests. One a process."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._breaker = Breaker()
        self._local: TLRUCache[str, _Count] = TLRUCache(_LOCAL_ENTRIES, lambda _, count, now: now + count.kept_seconds)

    async def take(self, limits: Sequence[Limit]) -> dict[str, str]:
        """Count one request against every limit and return the RateLimit headers of the tightest.

        Raises TooManyRequests when one is used up.
        """
        now = time.time()
        counts = await self._count(limits, now)
        limit, used = min(zip(limits, counts, strict=True), key=_tightness)
        remaining = max(0, limit.quota - used)
        reset_seconds = limit.window_seconds - int(now % limit.window_seconds)
        headers = {
            "RateLimit-Policy": ", ".join(f'"{one.kind}";q={one.quota};w={one.window_seconds}' for one in limits),
            "RateLimit": f'"{limit.kind}";r={remaining};t={reset_seconds}',
        }
        if used > limit.quota:
            raise TooManyRequests(
                "rate_limited",
                f"More than {limit.quota} requests in {limit.window_seconds} seconds for this {limit.kind}.",
                headers={**headers, "Retry-After": str(reset_seconds)},
            )
        return headers

    async def _count(self, limits: Sequence[Limit], now: float) -> list[int]:
        keys = [f"rl:{one.kind}:{one.subject}:{one.window_seconds}:{int(now // one.window_seconds)}" for one in limits]
        if self._breaker.closed:
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for key, limit in zip(keys, limits, strict=True):
                        pipe.incr(key)
                        pipe.expire(key, 2 * limit.window_seconds)
                    return [int(count) for count in (await pipe.execute())[::2]]
            except (RedisError, OSError, TimeoutError):
                self._breaker.trip()
        counts = []
        for key, limit in zip(keys, limits, strict=True):
            known = self._local.get(key)
            used = known.used + 1 if known else 1
            self._local[key] = _Count(used, 2 * limit.window_seconds)
            counts.append(used)
        return counts


def _tightness(counted: tuple[Limit, int]) -> tuple[int, int]:
    """Orders limits: those used up first, of which the one that lasts longest, then by what is left of them."""
    limit, used = counted
    return max(-1, limit.quota - used), -limit.window_seconds


@dataclass(frozen=True, slots=True)
class _Count:
    """What this process counted by itself, and how long it is worth keeping."""

    used: int
    kept_seconds: int
