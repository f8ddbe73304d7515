"""Rate limits, shared by all processes through Redis, and kept by each process alone while Redis is away.

Fixed windows, of one minute unless a limit says otherwise. A request counts against every limit it names, in one
round trip; while a large limit is far from used up, some are counted here and told to Redis together a moment later.
Headers after draft-ietf-httpapi-ratelimit-headers-10.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cachetools import TLRUCache
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.core.errors import TooManyRequests
from app.core.redis import Breaker

WINDOW_SECONDS = 60
_LOCAL_ENTRIES = 100_000
# What processes count by themselves for a moment must not matter: they may do it for large limits only, and only up to
# this share of them.
_LARGE_QUOTA = 1000
_SHARE_ALONE = 0.8
_TELL_SECONDS = 0.05


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
        self._counts: TLRUCache[str, _Count] = TLRUCache(_LOCAL_ENTRIES, lambda _, count, now: now + count.kept_seconds)
        self._untold: dict[str, _Count] = {}
        self._telling: asyncio.Task[None] | None = None

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
        counts = {key: self._known(key, limit) for key, limit in ((_key(one, now), one) for one in limits)}
        alone = all(map(_is_far_off, limits, counts.values()))
        for count in counts.values():
            count.untold += 1
        if alone:
            self._untold |= counts
            self._tell_soon()
        elif self._breaker.closed and (told := await self._tell(counts)) is not None:
            return told
        return [count.used for count in counts.values()]

    def _known(self, key: str, limit: Limit) -> "_Count":
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = _Count(2 * limit.window_seconds)
        return count

    async def _tell(self, counts: Mapping[str, "_Count"]) -> list[int] | None:
        """Add what was counted here to what all have counted; the sums, or None while Redis is away."""
        telling = [(key, count, count.untold) for key, count in counts.items()]
        for _, count, untold in telling:
            count.untold -= untold
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, count, untold in telling:
                    pipe.incrby(key, untold)
                    pipe.expire(key, count.kept_seconds)
                sums = [int(found) for found in (await pipe.execute())[::2]]
        except (RedisError, OSError, TimeoutError):
            self._breaker.trip()
            for _, count, untold in telling:
                count.untold += untold
            return None
        for (_, count, _), found in zip(telling, sums, strict=True):
            count.told = max(found, count.told or 0)
        return sums

    def _tell_soon(self) -> None:
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_later())

    async def _tell_later(self) -> None:
        while self._untold:
            await asyncio.sleep(_TELL_SECONDS)
            untold, self._untold = self._untold, {}
            if self._breaker.closed:
                await self._tell(untold)


def _key(limit: Limit, now: float) -> str:
    return f"rl:{limit.kind}:{limit.subject}:{limit.window_seconds}:{int(now // limit.window_seconds)}"


def _tightness(counted: tuple[Limit, int]) -> tuple[int, int]:
    """Orders limits: those used up first, of which the one that lasts longest, then by what is left of them."""
    limit, used = counted
    return max(-1, limit.quota - used), -limit.window_seconds


@dataclass(slots=True)
class _Count:
    """One window's count: what Redis said last (None: it was not asked yet), and what it was not told yet."""

    kept_seconds: int
    told: int | None = None
    untold: int = 0

    @property
    def used(self) -> int:
        return (self.told or 0) + self.untold


def _is_far_off(limit: Limit, count: _Count) -> bool:
    return limit.quota >= _LARGE_QUOTA and count.told is not None and count.used < limit.quota * _SHARE_ALONE
