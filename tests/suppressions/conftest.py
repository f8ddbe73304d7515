"""Organizations and their suppressions."""

import httpx
import pytest

from tests.dnsd import DnsServer
from tests.factories.senders import make_sender
from tests.suppressions.helpers import Keeper


@pytest.fixture
async def keeper(client: httpx.AsyncClient, dns: DnsServer) -> Keeper:
    return Keeper(await make_sender(client, dns))


@pytest.fixture
async def stranger(client: httpx.AsyncClient, dns: DnsServer) -> Keeper:
    """Another organization."""
    return Keeper(await make_sender(client, dns))
