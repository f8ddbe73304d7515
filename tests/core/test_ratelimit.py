import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from app.core.config import Settings
from app.core.errors import TooManyRequests
from app.core.ids import new_id
from app.core.ratelimit import WINDOW_SECONDS, Limit, RateLimiter
from app.core.redis import connect
from tests.accounts import helpers
from tests.core.proxy import Proxy

AWAY = "redis://127.0.0.1:1/0"


@pytest.fixture
async def limiter() -> AsyncIterator[Callable[[Settings], RateLimiter]]:
    """Makes limiters, each with a client of its own, as each process has one."""
    clients = []

    def make(settings: Settings) -> RateLimiter:
        clients.append(connect(settings))
        return RateLimiter(clients[-1])

    yield make
    for client in clients:
        await client.aclose()


def new_limit(quota: int, kind: str = "key") -> Limit:
    return Limit(kind, str(new_id()), quota)


def remaining(headers: dict[str, str]) -> int:
    return int(headers["RateLimit"].split("r=")[1].split(";")[0])


async def test_requests_are_counted_down_to_a_refusal(settings: Settings, limiter):
    await helpers.one_window()
    counter, limit = limiter(settings), new_limit(3)
    assert [remaining(await counter.take([limit])) for _ in range(3)] == [2, 1, 0]
    with pytest.raises(TooManyRequests) as refusal:
        await counter.take([limit])
    headers = refusal.value.headers
    assert (refusal.value.status, refusal.value.code, remaining(headers)) == (429, "rate_limited", 0)
    assert headers["RateLimit-Policy"] == f'"key";q=3;w={WINDOW_SECONDS}'
    assert headers["RateLimit"].endswith(f"t={headers['Retry-After']}")
    assert 0 < int(headers["Retry-After"]) <= WINDOW_SECONDS
    # Another subject has a count of its own.
    assert remaining(await counter.take([new_limit(3)])) == 2


async def test_the_tightest_of_several_limits_is_told_and_holds(settings: Settings, limiter):
    await helpers.one_window()
    counter, key, organization = limiter(settings), new_limit(10), new_limit(2, "organization")
    headers = await counter.take([key, organization])
    assert headers["RateLimit"].startswith('"organization";r=1;')
    assert headers["RateLimit-Policy"] == '"key";q=10;w=60, "organization";q=2;w=60'
    await counter.take([key, organization])
    with pytest.raises(TooManyRequests, match="this organization"):
        await counter.take([new_limit(10), organization])
    assert remaining(await counter.take([key])) == 7


async def test_processes_share_their_counts(settings: Settings, limiter):
    await helpers.one_window()
    one, other, limit = limiter(settings), limiter(settings), new_limit(20)
    await asyncio.gather(*(counter.take([limit]) for counter in (one, other) for _ in range(10)))
    for counter in (one, other):
        with pytest.raises(TooManyRequests):
            await counter.take([limit])


@pytest.mark.parametrize("away", ["refused", "silent"])
async def test_without_redis_each_process_counts_alone(
    settings: Settings, proxied: Settings, proxy: Proxy, limiter, away
):
    await helpers.one_window()
    proxy.change("silent")
    without = settings.model_copy(update={"redis_url": AWAY}) if away == "refused" else proxied
    one, other, limit = limiter(without), limiter(without), new_limit(2)
    started = time.monotonic()
    for counter in (one, other):
        assert [remaining(await counter.take([limit])) for _ in range(2)] == [1, 0]
        with pytest.raises(TooManyRequests):
            await counter.take([limit])
    assert time.monotonic() - started < 3


async def test_an_outage_costs_one_wait_and_ends_by_itself(proxied: Settings, proxy: Proxy, limiter):
    await helpers.one_window()
    counter, limit = limiter(proxied), new_limit(1000)
    assert remaining(await counter.take([limit])) == 999
    proxy.change("silent")
    started = time.monotonic()
    asked_before = proxy.connections
    for _ in range(100):
        await counter.take([limit])
    # Were each to wait for Redis, it would take 25 seconds.
    assert time.monotonic() - started < 1.5
    assert proxy.connections - asked_before <= 2
    proxy.change("open")
    other = limiter(proxied)
    async with asyncio.timeout(10):
        while remaining(await other.take([limit])) != remaining(await counter.take([limit])) + 1:
            await asyncio.sleep(0.1)


async def test_over_http(client, app, settings: Settings):
    account = await helpers.register(client)
    view, secret = await helpers.mint(client, account.headers)
    await helpers.one_window()
    app.state.settings = settings.model_copy(update={"rate_limit_key_per_minute": 2})
    try:
        answers = [await helpers.me(client, {"X-API-Key": secret}) for _ in range(4)]
    finally:
        app.state.settings = settings
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    for answer in answers[2:]:
        helpers.assert_problem(answer, 429, "rate_limited")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert 0 < int(answer.headers["Retry-After"]) <= WINDOW_SECONDS
        assert answer.headers["RateLimit"].startswith('"key";r=0;t=')
        assert '"organization";q=' in answer.headers["RateLimit-Policy"]
    assert view["prefix"] not in answers[3].text
