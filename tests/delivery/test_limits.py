"""Limits are never exceeded, whatever becomes of Redis and of workers: a sink counts, over every stretch of time."""

import asyncio
import contextlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from app.core.config import Settings
from app.core.ids import new_id
from app.core.redis import connect
from app.delivery.limits import SharedLimits, _Pace
from app.delivery.shaping import Rate
from tests.core.proxy import Proxy

TTL_SECONDS = 2.0
WORKERS = 3

Make = Callable[..., SharedLimits]


class Sink:
    """Counts connections at once and mails in time, as its clients tell them."""

    def __init__(self) -> None:
        self.at_once = self.most = 0
        self.by_client: Counter[str] = Counter()
        self.mails: list[float] = []

    async def __aenter__(self) -> "Sink":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def begun(self) -> None:
        """Wait for the first mail: on a busy machine a process is slow to start."""
        async with asyncio.timeout(30):
            while not self.mails:
                await asyncio.sleep(0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            while word := (await reader.readline()).strip():
                if word == b"Q":
                    break
                self.mails.append(time.monotonic())
                writer.write(b".")
        except ConnectionResetError:
            pass  # a worker was killed
        finally:
            self.at_once -= 1
            writer.write(b".")
            writer.close()


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as found:
        yield found


@pytest.fixture
async def proxy(settings: Settings) -> AsyncIterator[Proxy]:
    """A proxy before the tests' Redis."""
    url = urlsplit(str(settings.redis_url))
    async with Proxy(url.hostname or "", url.port or 0) as found:
        yield found


@pytest.fixture
async def redis_url(settings: Settings, proxy: Proxy) -> str:
    """Through the proxy to a database of its own, which a test may empty."""
    url = urlsplit(str(settings.redis_url))
    return f"redis://:{url.password}@127.0.0.1:{proxy.port}/7"


@pytest.fixture
async def redis(settings: Settings, redis_url: str) -> AsyncIterator[Redis]:
    """The same database, not through the proxy; empty."""
    url = urlsplit(str(settings.redis_url))
    client = Redis.from_url(f"redis://:{url.password}@{url.hostname}:{url.port}/7")
    await client.flushdb()
    yield client
    await client.aclose()


@pytest.fixture
async def make(settings: Settings, redis_url: str, redis: Redis) -> AsyncIterator[Make]:
    """Makes the limits of one more worker of this process."""
    clients, tasks = [], []

    def made(*, ttl_seconds: float = TTL_SECONDS, workers: int = 2, url: str = redis_url) -> SharedLimits:
        clients.append(connect(settings.model_copy(update={"redis_url": url})))
        limits = SharedLimits(clients[-1], ttl_seconds=ttl_seconds)
        limits.workers_alive = workers
        tasks.append(asyncio.create_task(limits.run()))
        return limits

    yield made
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, asyncio.CancelledError), result
    for client in clients:
        await client.aclose()


@contextlib.asynccontextmanager
async def workers(number: int, seconds: float, **work: Any) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Processes, each at work for that long once it runs; they all end well, or are killed by the test."""
    asked = {"ttl_seconds": TTL_SECONDS, "workers": number, "seconds": seconds, **work}
    running = [
        await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.delivery.limits_worker", json.dumps(asked))
        for _ in range(number)
    ]
    try:
        yield running
        for process in running:
            assert await asyncio.wait_for(process.wait(), seconds + 20) in (0, -9)
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def most_in(moments: Sequence[float], period_seconds: float) -> int:
    """The most of them that lie in any stretch of that length."""
    most = first = 0
    for last, moment in enumerate(sorted(moments)):
        while moment - moments[first] >= period_seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


async def hold(limits: SharedLimits, key: str, limit: int, wanted: int, seconds: float = 5) -> int:
    """Take so many slots, asking for that long."""
    held = 0
    ends_at = time.monotonic() + seconds
    while held < wanted and time.monotonic() < ends_at:
        if await limits.acquire(key, limit):
            held += 1
        else:
            await asyncio.sleep(0.02)
    return held


# Connections


@pytest.mark.parametrize("trouble", ["emptied", "away", "killed"])
async def test_connections_of_three_processes(sink: Sink, redis: Redis, redis_url: str, proxy: Proxy, trouble: str):
    limit, seconds = 6, 9.0
    work = {"port": sink.port, "redis_url": redis_url, "key": str(new_id()), "limit": limit}
    async with workers(WORKERS, seconds, tasks=10, mail_seconds=0.05, **work) as running:
        await sink.begun()
        await asyncio.sleep(3)
        before = len(sink.mails)
        assert before
        if trouble == "emptied":
            await redis.flushdb()
        elif trouble == "away":
            proxy.change("closed")
            await asyncio.sleep(2)
            proxy.change("open")
        elif trouble == "killed":
            running[0].kill()
    assert sink.most == limit
    assert len(sink.mails) > before + 50
    assert sink.at_once == 0
    # The gates were closed once for each worker that noticed, and are open again.
    seconds, _ = await redis.time()
    assert int(await redis.get("shaping:gates") or 0) / 1e6 < seconds


async def test_slots_of_a_killed_process_are_free_after_a_while(sink: Sink, redis: Redis, redis_url: str, make: Make):
    # Longer than elsewhere: a machine that stands still for a second must not look like a process that was killed.
    ttl_seconds, key, limit = 2 * TTL_SECONDS, str(new_id()), 3
    survivor = make(ttl_seconds=ttl_seconds)
    work = {"port": sink.port, "redis_url": redis_url, "key": key, "limit": limit, "mail_seconds": 1e6}
    async with workers(1, 30, tasks=3, **work, ttl_seconds=ttl_seconds) as running:
        async with asyncio.timeout(10):
            while sink.at_once < limit:
                await asyncio.sleep(0.05)
        # One that has never talked to Redis would take a late answer for none, and a slot by itself.
        assert await hold(survivor, str(new_id()), 1, 1) == 1
        # Kept by renewing for longer than a slot lasts by itself.
        assert await hold(survivor, key, limit, 1, ttl_seconds + 0.5) == 0
        running[0].kill()
        killed_at = time.monotonic()
        assert await hold(survivor, key, limit, limit, ttl_seconds + 3) == limit
    assert ttl_seconds / 2 < time.monotonic() - killed_at < ttl_seconds + 1


async def test_a_slot_is_taken_given_back_and_taken_by_another(make: Make):
    one, other, key = make(), make(), str(new_id())
    assert [await one.acquire(key, 2) for _ in range(3)] == [True, True, False]
    assert not await other.acquire(key, 2)
    assert await other.acquire(str(new_id()), 2)
    one.release(key)
    assert await hold(other, key, 2, 1, 1) == 1


async def test_the_default_time_of_a_slot_is_within_what_is_promised(make: Make, redis: Redis, settings: Settings):
    limits, key = SharedLimits(redis), str(new_id())
    assert await limits.acquire(key, 1)
    seconds, micro = await redis.time()
    [(_, ends_at)] = await redis.zrange(f"shaping:slots:{key}", 0, -1, withscores=True)
    assert ends_at / 1e6 - (seconds + micro / 1e6) == pytest.approx(15, abs=0.5)


async def test_who_has_none_gets_a_share_from_who_has_all(make: Make):
    one, other, key, limit = make(), make(), str(new_id()), 8
    assert await hold(one, key, limit, limit) == limit
    assert not one.should_yield(key, limit)
    shares = {one: limit, other: 0}
    ends_at = time.monotonic() + 10
    while shares[other] < limit // 2 and time.monotonic() < ends_at:
        for limits in (one, other):
            if limits.should_yield(key, limit):
                limits.release(key)
                shares[limits] -= 1
            # Both want as much as they can get.
            shares[limits] += await limits.acquire(key, limit)
            assert sum(shares.values()) <= limit
        await asyncio.sleep(0.02)
    assert shares == {one: limit // 2, other: limit // 2}
    assert not one.should_yield(key, limit)


async def test_a_single_slot_goes_round(make: Make):
    three, key = [make(ttl_seconds=1) for _ in range(3)], str(new_id())
    holder, turns = None, Counter[int]()
    ends_at = time.monotonic() + 6
    while time.monotonic() < ends_at and (len(turns) < 3 or min(turns.values()) < 2):
        for number, limits in enumerate(three):
            if holder == number and limits.should_yield(key, 1):
                limits.release(key)
                holder = None
            elif await limits.acquire(key, 1):
                assert holder is None
                holder = number
                turns[number] += 1
        await asyncio.sleep(0.02)
    assert min(turns[number] for number in range(3)) >= 2
    # In turn, not by luck.
    assert max(turns.values()) - min(turns.values()) <= 1


async def test_a_lowered_limit_is_reached_and_not_passed(make: Make):
    limits, key = make(), str(new_id())
    assert await hold(limits, key, 6, 6) == 6
    told = [limits.should_yield(key, 2) for _ in range(6)]
    # Four connections are told to close; the others stay, however often they ask before those have closed.
    assert told.count(True) == 4
    for _ in range(4):
        limits.release(key)
    assert not limits.should_yield(key, 2)
    assert not await limits.acquire(key, 2)


async def test_without_redis_each_worker_goes_by_its_part(make: Make):
    away = "redis://127.0.0.1:1/0"
    one, other, key = make(url=away), make(url=away), str(new_id())
    for limits in (one, other):
        assert [await limits.acquire(key, 5) for _ in range(3)] == [True, True, False]
        # One at least, where anything is allowed at all.
        assert await limits.acquire(str(new_id()), 1)
        assert not await limits.acquire(str(new_id()), 0)


async def test_when_redis_goes_the_rest_is_given_up_before_others_grow(make: Make, proxy: Proxy, redis: Redis):
    one, other, key, limit = make(ttl_seconds=1), make(ttl_seconds=1), str(new_id()), 6
    assert await hold(one, key, limit, 5) == 5
    assert await hold(other, key, limit, 1) == 1
    proxy.change("closed")
    assert not await other.acquire(key, limit)
    async with asyncio.timeout(2):
        while not one.should_yield(key, limit):
            await asyncio.sleep(0.01)
    one.release(key)
    assert one.should_yield(key, limit)
    one.release(key)
    assert not one.should_yield(key, limit)
    assert await hold(other, key, limit, 5, 1.5) == 2
    # Back again: what was taken alone is told, and the whole is shared.
    proxy.change("open")
    async with asyncio.timeout(5):
        while await redis.zcard(f"shaping:slots:{key}") < 6:
            await asyncio.sleep(0.05)
    assert await hold(other, key, limit, 1, 1) == 0
    for _ in range(3):
        one.release(key)
    assert await hold(other, key, limit, 4, 4) == 3


async def test_after_a_loss_nothing_is_granted_until_all_have_told(make: Make, redis: Redis):
    one, other, key, limit = make(), make(), str(new_id()), 4
    assert await hold(one, key, limit, 3) == 3
    assert await hold(other, key, limit, 1) == 1
    await redis.flushdb()
    started = time.monotonic()
    assert await hold(other, key, limit, 1, TTL_SECONDS / 5 * 3) == 0
    assert await redis.zcard(f"shaping:slots:{key}") == 4
    one.release(key)
    assert await hold(other, key, limit, 1) == 1
    assert time.monotonic() - started < TTL_SECONDS + 1


# Rates


@pytest.mark.parametrize(
    ("permits", "period_seconds"), [(1, 1), (1, 60), (7, 60), (39, 60), (40, 1), (600, 60), (10_000, 1), (5000, 3600)]
)
def test_the_pace_keeps_the_limit_and_comes_close_to_it(permits: int, period_seconds: int):
    pace = _Pace.of(Rate(permits, period_seconds))
    stretch = (period_seconds + pace.slack_seconds) * 1e6
    # In any half-open stretch: a full bucket at its first grant, and what drops in before its end.
    assert pace.burst + math.ceil(stretch / pace.interval) - 1 <= permits
    assert period_seconds * 1e6 / pace.interval >= 0.85 * permits
    assert pace.hold_seconds <= 1


@pytest.mark.parametrize(("rate", "trouble"), [((200, 1), "none"), ((40, 2), "emptied"), ((60, 2), "away")])
async def test_rates_of_three_processes(
    sink: Sink, redis: Redis, redis_url: str, proxy: Proxy, rate: tuple[int, int], trouble: str
):
    permits, period_seconds = rate
    seconds = 9.0
    work = {"port": sink.port, "redis_url": redis_url, "key": str(new_id()), "rate": rate}
    async with workers(WORKERS, seconds, tasks=5, **work):
        await sink.begun()
        await asyncio.sleep(3)
        if trouble == "emptied":
            await redis.flushdb()
        elif trouble == "away":
            proxy.change("closed")
            await asyncio.sleep(2)
            proxy.change("open")
        changed = len(sink.mails)
    assert changed
    assert len(sink.mails) > changed
    assert most_in(sink.mails, period_seconds) <= permits
    if trouble == "none":
        busy_seconds = sink.mails[-1] - sink.mails[0]
        assert len(sink.mails) / busy_seconds >= 0.8 * permits / period_seconds


async def test_a_steady_flow_reaches_most_of_the_limit(make: Make):
    one, other, rate, key = make(), make(), Rate(100, 1), str(new_id())
    moments: list[float] = []

    async def ask(limits: SharedLimits) -> None:
        while True:
            granted, seconds = await limits.permits(key, rate, 20)
            moments.extend([time.monotonic()] * granted)
            await asyncio.sleep(seconds)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(4):
            await asyncio.gather(ask(one), ask(other))
    assert most_in(moments, 1) <= 100
    assert len(moments) / (moments[-1] - moments[0]) > 0.83 * 100


async def test_the_first_mail_does_not_wait_and_the_next_is_told_how_long(make: Make):
    limits, key = make(), str(new_id())
    assert await limits.permits(key, Rate(1, 60), 5) == (1, pytest.approx(62, abs=0.5))
    granted, seconds = await limits.permits(key, Rate(1, 60), 1)
    assert granted == 0
    assert 60 < seconds < 63
    # A bucket that was not used is full: five percent of the limit.
    assert (await limits.permits(str(new_id()), Rate(600, 60), 100))[0] == 30


async def test_permits_are_fetched_twenty_at_a_time(make: Make, redis: Redis):
    limits, key, rate = make(), str(new_id()), Rate(60_000, 60)

    async def trips() -> int:
        return int((await redis.info("commandstats")).get("cmdstat_evalsha", {"calls": 0})["calls"])

    await limits.take(key, rate, 1)
    before = await trips()
    assert [await limits.take(key, rate, 1000 - number) for number in range(200)] == [0.0] * 200
    assert await trips() - before <= 11


async def test_permits_that_were_not_used_in_time_are_void(make: Make):
    limits, key, rate = make(), str(new_id()), Rate(200, 1)
    assert await limits.take(key, rate, 10) == 0
    await asyncio.sleep(0.06)
    # Nine were left of the first ten; a new bucket's worth is there, and asked for.
    granted = 0
    while await limits.take(key, rate, 100) == 0:
        granted += 1
    assert granted <= 12


async def test_many_waiters_ask_once(make: Make, redis: Redis):
    limits, key, rate = make(), str(new_id()), Rate(1, 60)
    assert await limits.take(key, rate, 1) == 0
    before = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    waits = await asyncio.gather(*(limits.take(key, rate, 400) for _ in range(400)))
    assert min(waits) > 0
    assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] - before <= 1


async def test_without_redis_each_worker_has_its_part_of_the_rate(make: Make):
    away = "redis://127.0.0.1:1/0"
    one, other, rate, key = make(url=away), make(url=away), Rate(80, 2), str(new_id())
    moments: list[float] = []

    async def ask(limits: SharedLimits) -> None:
        while True:
            granted, seconds = await limits.permits(key, rate, 20)
            moments.extend([time.monotonic()] * granted)
            await asyncio.sleep(seconds)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            await asyncio.gather(ask(one), ask(other))
    assert most_in(moments, 2) <= 80
    assert len(moments) > 0.8 * 80 * 2
