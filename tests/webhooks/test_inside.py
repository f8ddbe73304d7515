"""No webhook leads into our own network, however its address is spelt."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI

from app.core.config import Settings
from app.webhooks.courier import Courier
from tests.accounts import helpers
from tests.certificates import Certificate, make_authority
from tests.dnsd import DnsServer
from tests.webhooks.house import Tenant
from tests.webhooks.receiver import Receiver, reply

LITERALS = [
    *("127.0.0.1", "localhost", "x.localhost", "LOCALHOST.", "127.1", "2130706433", "0x7f000001", "0177.0.0.1"),
    *("0x7f.0.0.1", "127.0.0.1.", "017700000001", "127。0。0。1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]"),
    *("[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "169.254.169.254", "10.0.0.1"),
    *("172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200", "[fd00:ec2::254]", "[fe80::1%25lo]", "[fc00::1]"),
    *("192.0.0.192", "168.63.129.16", "224.0.0.1", "255.255.255.255", "[ff02::1]", "%31%32%37.0.0.1"),
]
NAMES = {
    "loopback": ("A", "127.0.0.1"),
    "metadata": ("A", "169.254.169.254"),
    "shared": ("A", "100.64.0.1"),
    "private": ("A", "192.168.0.1"),
    "zero": ("A", "0.0.0.0"),
    "six": ("AAAA", "::1"),
    "mapped": ("AAAA", "::ffff:127.0.0.1"),
}


@pytest.fixture(scope="module")
def authority() -> Certificate:
    return make_authority()


@pytest.fixture
def strict(settings: Settings) -> Settings:
    """As in production."""
    return settings.model_copy(update={"webhook_allow_private_networks": False})


@pytest.fixture
async def web(authority: Certificate) -> AsyncIterator[Receiver]:
    """It is there, so that a connection would be seen."""
    async with Receiver(authority.issue("127.0.0.1")) as found:
        yield found


async def test_no_such_webhook_can_be_made(tenant: Tenant, app: FastAPI, strict: Settings) -> None:
    before, app.state.settings = app.state.settings, strict
    try:
        for host in LITERALS:
            response = await tenant.ask("POST", "", {"url": f"https://{host}/"})
            helpers.assert_problem(response, 422, "url_not_allowed")
        helpers.assert_problem(await tenant.ask("POST", "", {"url": "http://x.example/"}), 422, "url_not_allowed")
        hook = await tenant.hook("https://hooks.example.com/")
        response = await tenant.ask("PUT", f"/{hook.id}", {"url": "https://127.0.0.1/"})
        helpers.assert_problem(response, 422, "url_not_allowed")
    finally:
        app.state.settings = before


async def test_no_connection_is_made(tenant: Tenant, strict: Settings, web: Receiver, dns: DnsServer) -> None:
    """Of webhooks that were made when it was allowed, and of names that lead inside."""
    for name, (kind, address) in NAMES.items():
        dns.add(f"{name}.inside.test", kind, address)
    dns.add("mixed.inside.test", "A", "127.0.0.1")
    dns.add("mixed.inside.test", "A", "10.0.0.1")
    hosts = [*LITERALS, *(f"{name}.inside.test" for name in (*NAMES, "mixed"))]
    urls = [web.url("/", host) for host in hosts]
    # Past the check of the route, for which many of them are no addresses at all.
    made = await tenant.hook("https://hooks.example.com/", "message.opened")
    await tenant.sql(
        "INSERT INTO webhooks (org_id, id, url, event_types, since_tx, secret) "
        "SELECT w.org_id, gen_random_uuid(), u, w.event_types, w.since_tx, w.secret "
        "FROM webhooks w, unnest(CAST(:urls AS text[])) u WHERE w.org_id = :org_id",
        urls=urls,
    )
    await tenant.done("DELETE", f"/{made.id}")
    courier = Courier(strict)
    running = asyncio.create_task(courier.run())
    await tenant.tell()
    statement = "SELECT attempts -> 0 ->> 'error' FROM webhook_deliveries WHERE org_id = :org_id AND attempt > 0"
    async with asyncio.timeout(15):
        while len(errors := await tenant.sql(statement)) < len(urls):
            await asyncio.sleep(0.05)
    courier.stop()
    await running
    assert len(hosts) > 40
    assert web.connections == 0
    for (error,) in errors:
        words = ("no public address", "No address could be found", "neither a name nor an IP address", "not valid")
        assert any(word in error for word in words), error


async def test_a_redirect_leads_nowhere(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    async with Receiver() as inside:
        for status in (
            "301 Moved Permanently",
            "302 Found",
            "303 See Other",
            "307 Temporary Redirect",
            "308 Permanent",
        ):
            receiver.manners["/"] = [reply(status, Location=inside.url("/latest/meta-data"))]
            hook = await tenant.hook(receiver.url("/"), "message.opened")
            await tenant.tell()
            await tenant.tried(hook, 1)
            await tenant.done("DELETE", f"/{hook.id}")
        assert inside.connections == 0
