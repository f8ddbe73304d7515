"""Organizations and their suppressions."""

import httpx
import pytest

from tests.suppressions.helpers import Keeper, make_keeper


@pytest.fixture
async def keeper(client: httpx.AsyncClient) -> Keeper:
    return await make_keeper(client)


@pytest.fixture
async def stranger(client: httpx.AsyncClient) -> Keeper:
    """Another organization."""
    return await make_keeper(client)
