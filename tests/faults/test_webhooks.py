"""kill -9 of the process that delivers webhooks; `python -m tests.faults.webhooks` does it with 10,000 events."""

from tests.dnsd import DnsServer
from tests.faults.house import House
from tests.faults.webhooks import Campaign
from tests.webhooks.receiver import Receiver


async def test_every_event_arrives_though_the_process_is_killed(house: House, dns: DnsServer) -> None:
    try:
        async with Receiver() as receiver:
            campaign = Campaign(house, receiver)
            await campaign.prepare(dns)
            verdict = await campaign.run(300, 2, LEASE_SECONDS="1")
            assert not verdict.wrong, verdict
            assert verdict.events == 400
    finally:
        house.kill_workers()
        await house.query("DELETE FROM delivery_queue RETURNING 1")
