"""A DNS of the tests' own, and domains made through the API."""

from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import update

from app.core.config import Settings
from app.core.db import Database
from app.domains.models import Domain
from app.mail.dns import Resolver
from tests.dnsd import DnsServer
from tests.domains.helpers import Tenant, register
from tests.domains.house import House, Postbox, organization
from tests.factories.databases import own_database


@pytest.fixture
async def zone():
    """What the world's DNS holds."""
    async with DnsServer() as server:
        yield server


@pytest.fixture
def resolver(zone: DnsServer) -> Resolver:
    return Resolver([zone.address], timeout_seconds=5)


@pytest.fixture
def api(app, client: httpx.AsyncClient, resolver: Resolver):
    """The client of an application that asks the test's DNS."""
    before = app.state.resolver
    app.state.resolver = resolver
    yield client
    app.state.resolver = before


@pytest.fixture
async def tenant(api: httpx.AsyncClient) -> Tenant:
    return await register(api)


@pytest.fixture
async def stranger(api: httpx.AsyncClient) -> Tenant:
    """Another organization."""
    return await register(api)


@pytest.fixture(scope="session")
async def empty(client: httpx.AsyncClient) -> Tenant:
    """An organization that never gets a domain."""
    return await register(client)


@pytest.fixture(scope="module")
async def own(settings: Settings) -> AsyncIterator[Settings]:
    """Settings with a database in which no other test's domains are due."""
    async with own_database(settings) as found:
        yield found


@pytest.fixture
async def house(own: Settings, zone: DnsServer, resolver: Resolver) -> AsyncIterator[House]:
    """An organization with two owners in that database; when it leaves, nothing of it is due."""
    database = Database(own, pool_size=4)
    org_id, owners = await organization(database, owners=2)
    yield House(database, own, zone, resolver, Postbox(), org_id, owners)
    async with database.transaction() as session:
        await session.execute(update(Domain).values(next_check_at=None))
    await database.close()
