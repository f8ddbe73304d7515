"""However many organizations have endpoints that never answer, there is room for the others."""

import asyncio

import httpx
import pytest

from app.core.db import Database
from app.webhooks import courier as couriers
from app.webhooks.courier import Courier
from tests.dnsd import DnsServer
from tests.factories.senders import make_sender
from tests.webhooks.house import Tenant
from tests.webhooks.receiver import Receiver, hang

ORGANIZATIONS = 12
ENDPOINTS = 4
EVENTS = 200


async def test_those_that_hang_leave_room_for_others(
    tenant: Tenant,
    courier: Courier,
    receiver: Receiver,
    client: httpx.AsyncClient,
    dns: DnsServer,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A tenth of all, so that it takes no thousand connections.
    monkeypatch.setattr(couriers, "_AT_ONCE_MAX", 100)
    monkeypatch.setattr(couriers, "_ORGANIZATION_AT_ONCE_MAX", 10)
    receiver.manners["/hang"] = [hang]
    good = await tenant.hook(receiver.url("/good"), "message.opened")
    hostile = [Tenant(await make_sender(client, dns), database) for _ in range(ORGANIZATIONS)]
    try:
        for one in hostile:
            for _ in range(ENDPOINTS):
                await one.hook(receiver.url("/hang"), "message.opened")
        for one in hostile:
            await one.tell(EVENTS)
        await receiver.reach(60, "/hang", timeout_seconds=10)
        # They take all they get.
        await asyncio.sleep(1)
        await tenant.tell()
        await receiver.reach(1, "/good", timeout_seconds=5)
        await tenant.settled(good, 1)
        # Not one of theirs has ended meanwhile.
        assert receiver.at_once == len(receiver.at("/hang")) < 100
    finally:
        for one in hostile:
            await one.forget()
