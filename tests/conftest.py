"""The house that every test stands in: real Postgres and Redis, a real DNS server, the API in this process."""

import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app import migrate
from app.core import log
from app.core.config import Settings, get_settings
from app.core.db import Database
from app.local import servers
from app.main import create_app
from tests.dnsd import DnsServer

LOOPBACK_HOSTS = [f"127.0.0.{number}" for number in range(2, 10)]


def _free_port(hosts: list[str]) -> int:
    """A port that is free on all of these addresses: every SMTP host of a test listens on the one that is set."""
    while True:
        with socket.socket() as probe:
            probe.bind((hosts[0], 0))
            port: int = probe.getsockname()[1]
        try:
            for host in hosts:
                with socket.socket() as other:
                    other.bind((host, port))
        except OSError:
            continue
        return port


@pytest.fixture(scope="session", autouse=True)
def environment() -> Iterator[None]:
    """Embedded servers of their own, a migrated database, and the settings that lead there."""
    with (
        tempfile.TemporaryDirectory(prefix="postroad-") as directory,
        servers.embedded(Path(directory), ["DATABASE_URL", "REDIS_URL"]) as urls,
    ):
        os.environ.update(
            urls,
            POSTROAD_MODE="local",
            DATA_DIR=directory,
            PUBLIC_URL="http://postroad.test",
            RETURN_PATH_DOMAIN="bounces.postroad.test",
            EHLO_HOSTNAME="mta.postroad.test",
            OUTBOUND_SMTP_PORT=str(_free_port(LOOPBACK_HOSTS)),
            POLL_SECONDS="0.2",
            RETRY_FIRST_SECONDS="1",
            WEBHOOK_ALLOW_PRIVATE_NETWORKS="true",
            # All tests come from one address.
            RATE_LIMIT_ADDRESS_PER_MINUTE="6000",
            DNS_TIMEOUT_SECONDS="2",
        )
        os.environ.pop("DNS_NAMESERVERS", None)
        get_settings.cache_clear()
        log.configure(get_settings())
        migrate.upgrade()
        yield


@pytest.fixture(scope="session")
async def dns(environment: None) -> AsyncIterator[DnsServer]:
    """The DNS of the world as far as the tests go. Names in it are each test's own."""
    async with DnsServer() as server:
        os.environ["DNS_NAMESERVERS"] = server.setting
        get_settings.cache_clear()
        yield server


@pytest.fixture(scope="session")
async def settings(dns: DnsServer) -> Settings:
    """The settings that all processes under test see in the environment."""
    return get_settings()


@pytest.fixture(scope="session")
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """The API, started."""
    application = create_app(settings)
    async with application.router.lifespan_context(application):
        yield application


@pytest.fixture(scope="session")
async def database(app: FastAPI) -> Database:
    """The database of the API under test."""
    found: Database = app.state.database
    return found


@pytest.fixture(scope="session")
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API; a failure inside it is a 500, as it is for everybody."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://postroad.test") as found:
        yield found
