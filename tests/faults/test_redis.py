"""What goes on without Redis, and what begins again with it. That no mail is lost or doubled is in test_faults."""

import asyncio
import os
import signal
import time

from tests.faults.house import House, Process, eventually
from tests.faults.traffic import Traffic


async def test_rings_are_heard_again(house: House, traffic: Traffic) -> None:
    # This worker polls so rarely that only a ring can explain mail that arrives.
    worker = await house.worker(POLL_SECONDS="300")
    await _rings(traffic, timeout_seconds=20)
    await asyncio.to_thread(house.stop_redis)
    await eventually(lambda: _said(worker, "ConnectionError"), timeout_seconds=20)
    await asyncio.to_thread(house.start_redis)
    await _rings(traffic, timeout_seconds=30)
    # Celery's queue and whoever waited there are forgotten.
    await asyncio.to_thread(house.flush_redis)
    await _rings(traffic, timeout_seconds=30)
    before = traffic.arrivals
    began = time.monotonic()
    await traffic.send(1)
    await traffic.arrivals_reach(before + 1, timeout_seconds=5)
    assert time.monotonic() - began < 2
    await traffic.settled()


async def _said(worker: Process, words: str) -> bool:
    return words in worker.said


async def _rings(traffic: Traffic, *, timeout_seconds: float) -> None:
    """Send one mail after the other until all sent so far have arrived."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        await traffic.send(1)
        await asyncio.sleep(0.5)
        if traffic.arrivals == len(traffic.accepted):
            return
        assert time.monotonic() < deadline


async def test_a_worker_starts_delivers_respawns_and_ends_without_redis(house: House, traffic: Traffic) -> None:
    await asyncio.to_thread(house.stop_redis)
    try:
        worker = await house.worker(processes=1)
        await traffic.send(20)
        await traffic.settled()
        assert traffic.refused == {}
        await eventually(lambda: _counted(house), timeout_seconds=15)
        # The only engine dies while Celery waits for its broker: another must take its place nonetheless.
        ((began,),) = await house.query("SELECT clock_timestamp()")
        os.kill(worker.children()[0], signal.SIGKILL)
        await house.engines_since(began, 1)
        await traffic.send(20)
        await traffic.settled()
        worker.send(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait) == 0, worker.said
    finally:
        await asyncio.to_thread(house.start_redis)
    assert traffic.received() == dict.fromkeys(traffic.accepted, 1)
    assert len(traffic.accepted) == 40


async def _counted(house: House) -> bool:
    """The workers' heartbeats, told in the database and not in Redis, have come to tell of this mail."""
    total = "SELECT coalesce(sum((outcomes->>'delivered')::int), 0) FROM workers WHERE seen_at > now() - interval '9 s'"
    return bool((await house.query(total))[0][0] >= 20)
