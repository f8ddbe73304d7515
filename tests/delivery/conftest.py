"""The engine, running in the tests' own event loop."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.delivery.engine import Engine
from app.mail.smtp import Timeouts
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender, new_domain
from tests.smtpd import SmtpServer

QUICK = Timeouts(
    connect_seconds=2,
    greeting_seconds=2,
    command_seconds=2,
    mail_seconds=2,
    rcpt_seconds=2,
    data_seconds=2,
    block_seconds=2,
    final_seconds=2,
    quit_seconds=1,
)


@pytest.fixture
async def sender(client: httpx.AsyncClient, dns: DnsServer, database: Database) -> AsyncIterator[Sender]:
    """An organization ready to send; mail that it leaves waiting does not reach the next test's hosts."""
    found = await make_sender(client, dns)
    yield found
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :org_id"), {"org_id": found.org_id})


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[Engine]:
    """An engine at work until the test ends."""
    found = Engine(settings, timeouts=QUICK)
    running = asyncio.create_task(found.run())
    yield found
    found.stop()
    await running


@pytest.fixture
async def mx(settings: Settings) -> AsyncIterator[SmtpServer]:
    """The SMTP host at 127.0.0.2."""
    async with SmtpServer("127.0.0.2", settings.outbound_smtp_port) as server:
        yield server


@pytest.fixture
def site(dns: DnsServer) -> str:
    """A recipients' domain whose only mail host is at 127.0.0.2."""
    name = new_domain("site")
    dns.add(name, "MX", f"10 mx.{name}.")
    dns.add(f"mx.{name}", "A", "127.0.0.2")
    return name


async def settled(sender: Sender, message_id: str, *statuses: str, timeout_seconds: float = 15) -> dict[str, object]:
    """The message once it has one of these statuses."""
    async with asyncio.timeout(timeout_seconds):
        while True:
            message = await sender.message(message_id)
            if message["status"] in statuses:
                return message
            await asyncio.sleep(0.05)
