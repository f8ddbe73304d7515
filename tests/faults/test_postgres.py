"""Postgres restarts: what was answered 202 is delivered, what was not says so."""

import asyncio

from tests.faults.house import House
from tests.faults.traffic import Traffic


async def test_a_restart_in_the_middle_of_sending(house: House, traffic: Traffic) -> None:
    # Long leases: a restart must not let them end, and nothing may need them to.
    await house.worker(LEASE_SECONDS="20")
    traffic.be_slow(0.05)
    await traffic.send(20)
    sending = asyncio.create_task(traffic.send(60))
    await traffic.arrivals_reach(25)
    await asyncio.to_thread(house.stop_postgres)
    await traffic.send(10)
    await asyncio.to_thread(house.start_postgres)
    await sending
    await traffic.send(10)
    assert len(traffic.accepted) >= 30
    assert set(traffic.refused.values()) <= {503}
    assert len(traffic.accepted) + len(traffic.refused) == 100
    await traffic.settled()
    received = traffic.received()
    assert set(traffic.accepted) <= set(received)
    # A connection that breaks during COMMIT leaves it open whether that took place, so a 503 may be delivered.
    assert set(received) <= set(traffic.accepted) | set(traffic.refused)
    assert max(received.values()) == 1
    await traffic.assert_history_is_true()
