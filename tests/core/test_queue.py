"""The doorbell: it never holds up who rings, whatever Redis does, and is heard again when Redis is back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
import redis.asyncio

from app.core.config import Settings
from app.core.queue import RING_TASK, Doorbell
from tests.core.proxy import Proxy

AWAY = "redis://127.0.0.1:1/0"
RINGS = 20_000


@pytest.fixture
async def doorbell(proxy: Proxy) -> AsyncIterator[Callable[[Settings], Doorbell]]:
    made = []

    def make(settings: Settings) -> Doorbell:
        made.append(Doorbell(settings))
        return made[-1]

    yield make
    for bell in made:
        started = time.monotonic()
        await asyncio.to_thread(bell.close)
        assert time.monotonic() - started < 6


@pytest.fixture
async def broker(settings: Settings, proxied: Settings) -> AsyncIterator[redis.asyncio.Redis]:
    """The broker's database as it is, past the proxy."""
    url = str(settings.redis_url).removesuffix("/0") + "/6"
    async with redis.asyncio.Redis.from_url(url) as found:
        await found.flushdb()
        yield found
        await found.flushdb()


async def heard(broker: redis.asyncio.Redis, timeout_seconds: float = 30) -> bytes:
    """The first ring in the queue."""
    async with asyncio.timeout(timeout_seconds):
        while not (found := await broker.lindex("postroad", 0)):
            await asyncio.sleep(0.02)
    return bytes(found)


def ring_often(bell: Doorbell) -> float:
    """How long many rings take, in seconds."""
    started = time.monotonic()
    for _ in range(RINGS):
        bell.ring()
    return time.monotonic() - started


async def test_many_rings_are_few_tasks(proxied: Settings, broker, doorbell):
    bell = doorbell(proxied)
    assert ring_often(bell) < 2
    assert RING_TASK.encode() in await heard(broker)
    await asyncio.sleep(0.1)
    assert 1 <= await broker.llen("postroad") <= RINGS / 50


async def test_a_ring_after_the_last_task_makes_another(proxied: Settings, broker, doorbell):
    bell = doorbell(proxied)
    bell.ring()
    await heard(broker)
    await broker.flushdb()
    bell.ring()
    assert RING_TASK.encode() in await heard(broker)


@pytest.mark.parametrize("away", ["refused", "closed", "silent"])
async def test_ringing_never_waits_for_redis(settings: Settings, proxied: Settings, proxy: Proxy, doorbell, away: str):
    proxy.change("silent" if away == "refused" else away)
    bell = doorbell(settings.model_copy(update={"redis_url": AWAY}) if away == "refused" else proxied)
    for _ in range(3):
        assert ring_often(bell) < 2
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("away", ["closed", "silent"])
async def test_it_is_heard_again_when_redis_is_back(proxied: Settings, proxy: Proxy, broker, doorbell, away: str):
    bell = doorbell(proxied)
    bell.ring()
    await heard(broker)
    proxy.change(away)
    await broker.flushdb()
    bell.ring()
    await asyncio.sleep(0.5)
    assert await broker.llen("postroad") == 0
    proxy.change("open")
    async with asyncio.timeout(30):
        while not await broker.llen("postroad"):
            bell.ring()
            await asyncio.sleep(0.2)
