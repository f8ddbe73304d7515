"""Organizations that work on their vMTAs through the API."""

import httpx
import pytest
from fastapi import FastAPI

from tests.accounts import helpers
from tests.vmtas.house import Tenant


@pytest.fixture
async def tenant(client: httpx.AsyncClient) -> Tenant:
    return Tenant(client, await helpers.register(client))


@pytest.fixture
async def stranger(client: httpx.AsyncClient) -> Tenant:
    """Another organization."""
    return Tenant(client, await helpers.register(client))


@pytest.fixture
def production(app: FastAPI):
    """The application in production, as far as addresses go."""
    before = app.state.settings
    app.state.settings = before.model_copy(update={"mode": "production"})
    yield
    app.state.settings = before
