"""A house of its own for the tests that break things: other tests' servers stay whole."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import httpx
import pytest

from tests.dnsd import DnsServer
from tests.faults import campaign
from tests.faults.house import House, free_port
from tests.faults.traffic import Traffic
from tests.smtpd import SmtpServer

# Small enough for a test to wait for.
SETTINGS = {
    "LEASE_SECONDS": "4",
    "POLL_SECONDS": "0.5",
    "SITE_CONNECTIONS": "5",
    "RETRY_FIRST_SECONDS": "1",
    "RETRY_MAX_SECONDS": "2",
    "DNS_TIMEOUT_SECONDS": "2",
}
HOSTS = tuple(campaign.HOSTS)[:4]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`FAULTS_REPEAT=20 make test ARGS=tests/faults` runs each twenty times: where a fault strikes is chance."""
    repetitions = int(os.environ.get("FAULTS_REPEAT", "1"))
    if repetitions > 1:
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize("repetition", range(repetitions))


@pytest.fixture(scope="package")
def smtp_port() -> int:
    return free_port(tuple(campaign.HOSTS))


@pytest.fixture(scope="package")
async def house(dns: DnsServer, smtp_port: int) -> AsyncIterator[House]:
    """Servers, a migrated database and a running API."""
    # Directly under the temporary directory: pytest's own are closed to the account that PostgreSQL runs as.
    directory = Path(tempfile.mkdtemp(prefix="postroad-faults-"))
    found = House(directory, SETTINGS | {"DNS_NAMESERVERS": dns.setting, "OUTBOUND_SMTP_PORT": str(smtp_port)})
    try:
        found.migrate()
        await found.start_api()
        yield found
    finally:
        found.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def traffic(house: House, dns: DnsServer, smtp_port: int) -> AsyncIterator[Traffic]:
    """A tenant with a verified domain, and hosts that take its mail; afterwards no process is left."""
    hosts = [SmtpServer(host, smtp_port) for host in HOSTS]
    async with httpx.AsyncClient(base_url=house.base_url, trust_env=False, timeout=30) as client:
        for host in hosts:
            await host.start()
        try:
            yield await Traffic.make(house, client, dns, hosts)
        finally:
            house.kill_workers()
            for host in hosts:
                await host.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    house = getattr(item, "funcargs", {}).get("house")
    if report.failed and isinstance(house, House):
        report.sections.append(("the processes' output", house.outputs()))
    return report
