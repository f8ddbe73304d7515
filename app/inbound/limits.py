"""How much the listener takes on: in all, of one client at a time, and of one client in a minute."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from redis.asyncio import Redis

from app.core.errors import TooManyRequests
from app.core.networks import subscriber
from app.core.ratelimit import Limit, RateLimiter

CONNECTIONS_MAX: Final = 1000
CLIENT_CONNECTIONS_MAX: Final = 50
CLIENT_CONNECTIONS_PER_MINUTE: Final = 600
CLIENT_MAILS_PER_MINUTE: Final = 600
# What is being received and not yet stored lies in memory.
CONTENT_BYTES_MAX: Final = 128 * 2**20


class Limits:
    """Counts connections, mails and octets of one process; the rates are shared with others through Redis."""

    def __init__(self, redis: Redis) -> None:
        self._rates = RateLimiter(redis)
        self._connections: Counter[str] = Counter()
        self._in_all = 0
        self._content_bytes = 0
        self._receiving = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self, address: str) -> bool:
        """Count a new connection, until it is to `leave`; False, and it is not counted, when there are too many."""
        client = subscriber(address)
        if self._in_all >= CONNECTIONS_MAX or self._connections[client] >= CLIENT_CONNECTIONS_MAX:
            return False
        self._in_all += 1
        self._connections[client] += 1
        return True

    def leave(self, address: str) -> None:
        """A connection that was let in has ended."""
        client = subscriber(address)
        self._in_all -= 1
        self._connections[client] -= 1
        if not self._connections[client]:
            del self._connections[client]

    async def may_connect(self, address: str) -> bool:
        """Count one more connection of a client in this minute; whether it may be used."""
        return await self._within("inbound_connections", subscriber(address), CLIENT_CONNECTIONS_PER_MINUTE)

    async def may_send(self, address: str) -> bool:
        """Count one more mail of a client; whether it may be taken now."""
        return await self._within("inbound_mails", subscriber(address), CLIENT_MAILS_PER_MINUTE)

    def is_crowded(self) -> bool:
        """Whether connections are becoming scarce, so that nobody should keep one for long."""
        return self._in_all > CONNECTIONS_MAX // 2

    def take_room(self, octets: int) -> bool:
        """Count content that is being received; False, and nothing is counted, when there is no room for it."""
        if self._content_bytes + octets > CONTENT_BYTES_MAX:
            return False
        self._content_bytes += octets
        return True

    def give_room(self, octets: int) -> None:
        """Content that was counted is stored, or given up."""
        self._content_bytes -= octets

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """While it is open, a mail's content is being received or stored."""
        self._receiving += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._receiving -= 1
            if not self._receiving:
                self._idle.set()

    async def idle(self) -> None:
        """Return once no content is being received or stored."""
        await self._idle.wait()

    async def _within(self, kind: str, client: str, quota: int) -> bool:
        try:
            await self._rates.take([Limit(kind, client, quota)])
        except TooManyRequests:
            return False
        return True
