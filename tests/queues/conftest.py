"""Organizations with mail in their queues; no worker runs, so nothing moves but what a test moves."""

from collections.abc import AsyncIterator

import httpx
import pytest

from app.core.db import Database
from tests.dnsd import DnsServer
from tests.factories.senders import make_sender
from tests.queues.helpers import Postmaster, forget


@pytest.fixture
async def master(client: httpx.AsyncClient, dns: DnsServer, database: Database) -> AsyncIterator[Postmaster]:
    found = Postmaster(await make_sender(client, dns), database)
    yield found
    await forget(found)


@pytest.fixture
async def stranger(client: httpx.AsyncClient, dns: DnsServer, database: Database) -> AsyncIterator[Postmaster]:
    """Another organization."""
    found = Postmaster(await make_sender(client, dns), database)
    yield found
    await forget(found)
