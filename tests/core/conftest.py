"""Redis through a proxy, so that it can be away for one test and there for all others."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from app.core.config import Settings
from tests.core.proxy import Proxy


@pytest.fixture
async def proxy(settings: Settings) -> AsyncIterator[Proxy]:
    """A proxy before the tests' Redis."""
    url = urlsplit(str(settings.redis_url))
    async with Proxy(url.hostname or "", url.port or 0) as found:
        yield found


@pytest.fixture
def proxied(settings: Settings, proxy: Proxy) -> Settings:
    """Settings that lead to Redis through the proxy, to a database of its own there."""
    url = urlsplit(str(settings.redis_url))
    return settings.model_copy(update={"redis_url": f"redis://:{url.password}@127.0.0.1:{proxy.port}/6"})
