"""Rate limits, shared by all processes through Redis, and kept by each process alone while Redis is away.

Fixed windows of one minute. A request counts against every limit it names, in one round trip. Headers after
draft-ietf-httpapi-ratelimit-headers-10.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import TTLCache
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


class RateLimiter:
    """Counts requests. One a process."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._breaker = Breaker()
        self._local: TTLCache[str, int] = TTLCache(_LOCAL_ENTRIES, 2 * WINDOW_SECONDS)

    async def take(self, limits: Sequence[Limit]) -> dict[str, str]:
        """Count one request against every limit and return the RateLimit headers of the tightest.

        Raises TooManyRequests when one is used up.
        """
        now = time.time()
        window = int(now // WINDOW_SECONDS)
        reset_seconds = WINDOW_SECONDS - int(now % WINDOW_SECONDS)
        counts = await self._count([f"rl:{limit.kind}:{limit.subject}:{window}" for limit in limits])
        limit, used = min(zip(limits, counts, strict=True), key=lambda pair: pair[0].quota - pair[1])
        remaining = max(0, limit.quota - used)
        headers = {
            "RateLimit-Policy": ", ".join(f'"{one.kind}";q={one.quota};w={WINDOW_SECONDS}' for one in limits),
            "RateLimit": f'"{limit.kind}";r={remaining};t={reset_seconds}',
        }
        if used > limit.quota:
            raise TooManyRequests(
                "rate_limited",
                f"More than {limit.quota} requests in {WINDOW_SECONDS} seconds for this {limit.kind}.",
                headers={**headers, "Retry-After": str(reset_seconds)},
            )
        return headers

    async def _count(self, keys: Sequence[str]) -> list[int]:
        if self._breaker.closed:
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for key in keys:
                        pipe.incr(key)
                        pipe.expire(key, 2 * WINDOW_SECONDS)
                    return [int(count) for count in (await pipe.execute())[::2]]
            except (RedisError, OSError, TimeoutError):
                self._breaker.trip()
        counts = []
        for key in keys:
            self._local[key] = self._local.get(key, 0) + 1
            counts.append(self._local[key])
        return counts
