"""A DNS of the tests' own, and domains made through the API."""

import httpx
import pytest

from app.mail.dns import Resolver
from tests.dnsd import DnsServer
from tests.domains.helpers import Tenant, register


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
