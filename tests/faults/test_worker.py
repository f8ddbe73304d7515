"""Workers crash, or are asked to end, in the middle of mail. Those that are killed are in test_faults."""

import asyncio
import signal

import pytest

from tests.faults.house import House
from tests.faults.traffic import Traffic

# A worker one of whose claims raises what nobody foresaw, once the file named by TRIGGER appears.
CRASHING_WORKER = """
import os, sys
from app.delivery import queries
claim = queries.claim
async def crashing(*arguments, **named):
    try:
        os.unlink(os.environ["TRIGGER"])
    except FileNotFoundError:
        return await claim(*arguments, **named)
    raise RuntimeError("nobody foresaw this")
queries.claim = crashing
from app.cli import main
sys.exit(main(["worker"]))
"""


# A worker whose processes find at their end that nobody has read the results of their tasks, which is a race.
UNREAD_WORKER = """
import sys, time
from billiard.pool import Worker
Worker._ensure_messages_consumed = lambda self, completed: time.sleep(30)
from app.cli import main
sys.exit(main(["worker"]))
"""


async def test_an_engine_that_crashes_is_replaced(house: House, traffic: Traffic) -> None:
    trigger = house.path("trigger")
    ((began,),) = await house.query("SELECT clock_timestamp()")
    worker = house.run_python(["-c", CRASHING_WORKER], WORKER_PROCESSES="1", TRIGGER=str(trigger))
    (first,) = await house.engines_since(began, 1)
    await traffic.send(20)
    await traffic.settled()
    ((began,),) = await house.query("SELECT clock_timestamp()")
    trigger.touch()
    (second,) = await house.engines_since(began, 1)
    assert second != first
    assert worker.children() == [second]
    await traffic.send(20)
    await traffic.settled()
    assert "nobody foresaw this" in worker.said
    assert traffic.received() == dict.fromkeys(traffic.accepted, 1)


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [
        pytest.param(signal.SIGTERM, False, id="SIGTERM to the main process"),
        pytest.param(signal.SIGTERM, True, id="SIGTERM to all, as systemd does"),
        pytest.param(signal.SIGINT, True, id="Ctrl-C"),
    ],
)
async def test_a_worker_that_is_asked_to_end_drains(
    house: House, traffic: Traffic, number: signal.Signals, whole_group: bool
) -> None:
    # Leases are so long that whatever is not given back stays stuck for the test.
    traffic.be_slow(0.4)
    await traffic.send(200)
    worker = await house.worker(LEASE_SECONDS="600")
    await traffic.arrivals_reach(60)
    if whole_group:
        worker.send_all(number)
    else:
        worker.send(number)
    assert await asyncio.to_thread(worker.wait) == 0, worker.said
    assert await traffic.leases() == 0
    assert not await house.query("SELECT 1 FROM workers WHERE pid = ANY(:pids)", pids=[worker.pid])
    assert "Traceback" not in worker.said
    left = await traffic.unsettled()
    assert len(left) + traffic.arrivals == 200
    assert left
    traffic.be_quick()
    await house.worker(LEASE_SECONDS="600")
    await traffic.settled()
    assert traffic.received() == dict.fromkeys(traffic.accepted, 1)
    await traffic.assert_history_is_true()


async def test_a_worker_ends_soon_though_celery_is_late_to_tell_it(house: House, traffic: Traffic) -> None:
    traffic.be_slow(0.4)
    await traffic.send(200)
    ((began,),) = await house.query("SELECT clock_timestamp()")
    worker = house.run_python(["-c", UNREAD_WORKER], WORKER_PROCESSES="2", LEASE_SECONDS="600")
    await house.engines_since(began, 2)
    await traffic.arrivals_reach(40)
    worker.send(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 15) == 0, worker.said
    assert await traffic.leases() == 0
    assert await traffic.unsettled()
    traffic.be_quick()
    await house.worker(LEASE_SECONDS="600")
    await traffic.settled()
    assert traffic.received() == dict.fromkeys(traffic.accepted, 1)
