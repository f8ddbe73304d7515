"""Faults in the middle of mail; `make faults` inflicts each of all kinds fifty times."""

from collections.abc import AsyncIterator

import pytest

from tests.dnsd import DnsServer
from tests.faults import verdict
from tests.faults.campaign import Campaign, campaign
from tests.faults.house import House
from tests.faults.kinds import Scene

KILLS = 1
# The others take minutes, and are left to `make faults`; some have tests of their own beside this one.
KINDS = ("worker-child", "postgres", "sigstop")
LEASE_SECONDS = 3.0
OUTAGE_SECONDS = 3.0


@pytest.fixture(scope="module")
async def under_way(house: House, dns: DnsServer, smtp_port: int) -> AsyncIterator[Campaign]:
    """Load and two worker services for all faults, one kind after the other."""
    scene = Scene(house, LEASE_SECONDS, OUTAGE_SECONDS)
    async with campaign(house, dns, smtp_port, scene) as found:
        yield found


@pytest.mark.parametrize("kind", KINDS)
async def test_every_mail_arrives_once(under_way: Campaign, kind: str) -> None:
    found = await under_way.run(kind, KILLS)
    assert found.kills == KILLS
    assert found.delivered >= found.accepted > 0
    assert not found.wrong, verdict.table([found])
