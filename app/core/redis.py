"""Redis, which may vanish: a client with short timeouts, and a breaker so that an outage costs one wait only."""

import time

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.core.config import Settings

_TIMEOUT_SECONDS = 0.25
_REST_SECONDS = 2.0


def connect(settings: Settings) -> "Redis":
    """A client for one event loop; nothing is sent until it is first used."""
    return Redis.from_url(
        settings.redis_url or "redis://127.0.0.1:6379/0",
        socket_timeout=_TIMEOUT_SECONDS,
        socket_connect_timeout=_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


class Breaker:
    """Remembers that Redis was away, so that callers go without it for a moment instead of waiting each."""

    def __init__(self) -> None:
        self._open_until = 0.0

    @property
    def closed(self) -> bool:
        """Whether Redis is worth asking now."""
        return time.monotonic() >= self._open_until

    def trip(self) -> None:
        """Redis did not answer: leave it alone for a while."""
        self._open_until = time.monotonic() + _REST_SECONDS
