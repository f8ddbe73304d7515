"""A tenant with webhooks, the hosts that receive them, and the process that delivers, in the tests' own event loop."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from app.core.config import Settings
from app.core.db import Database
from app.webhooks.courier import Courier
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender
from tests.webhooks.house import Tenant
from tests.webhooks.receiver import Receiver


@pytest.fixture(scope="package")
async def sender(client: httpx.AsyncClient, dns: DnsServer) -> Sender:
    return await make_sender(client, dns)


@pytest.fixture
async def tenant(sender: Sender, database: Database) -> AsyncIterator[Tenant]:
    """Ready to send, without webhooks, and nothing has happened to its mail yet."""
    found = Tenant(sender, database)
    yield found
    await found.forget()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as found:
        yield found


@pytest.fixture
async def courier(settings: Settings) -> AsyncIterator[Courier]:
    """At work until the test ends."""
    found = Courier(settings)
    running = asyncio.create_task(found.run())
    yield found
    found.stop()
    await running
