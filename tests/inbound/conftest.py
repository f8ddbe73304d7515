"""The listener and the reader, at work in the tests' own event loop on a port of their own."""

from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.inbound.process import Inbound
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender


@pytest.fixture
def any_port(settings: Settings) -> Settings:
    """Settings with which the listener takes a port that is free."""
    return settings.model_copy(update={"inbound_smtp_port": 0})


@pytest.fixture
async def inbound(any_port: Settings) -> AsyncIterator[Inbound]:
    """At work until the test ends."""
    found = Inbound(any_port)
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
def port(inbound: Inbound) -> int:
    return inbound.port


@pytest.fixture(scope="module")
async def sender(client: httpx.AsyncClient, dns: DnsServer, database: Database) -> AsyncIterator[Sender]:
    """An organization ready to send; mail that it leaves waiting does not reach other tests' hosts."""
    found = await make_sender(client, dns)
    yield found
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :org_id"), {"org_id": found.org_id})
