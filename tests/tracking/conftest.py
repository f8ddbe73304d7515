"""A tenant whose mail has been delivered, and what its recipients' programs do with it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.core.db import Database
from app.tracking import tokens
from tests.accounts.helpers import client_from
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"


@dataclass(frozen=True, slots=True)
class Copy:
    """A delivered copy and its links."""

    org_id: UUID
    id: UUID
    message_id: str
    recipient: str

    @property
    def pixel(self) -> str:
        return tokens.Links("", self.org_id, self.id).open()

    @property
    def unsubscribe(self) -> str:
        return tokens.Links("", self.org_id, self.id).unsubscribe()

    def link(self, target: str) -> str:
        found = tokens.Links("", self.org_id, self.id).click(target)
        assert found is not None
        return found


@dataclass(frozen=True, slots=True)
class Recipients:
    """Those who get the tenant's mail, as seen from the outside; and what is known of them inside."""

    sender: Sender
    database: Database
    client: httpx.AsyncClient

    async def copy(
        self, recipient: str = "ada@there.example", *, delivered_ago: float | None = 60, **fields: Any
    ) -> Copy:
        """A copy that was delivered so many seconds ago; None: not yet."""
        message_id = await self.sender.send(recipient, **fields)
        values = {"org": self.sender.org_id, "message": message_id, "ago": delivered_ago}
        async with self.database.transaction() as session:
            await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :org"), values)
            (identifier,) = await session.execute(
                text(
                    "UPDATE deliveries SET settled_at = now() - make_interval(secs => CAST(:ago AS float8)), "
                    "status = CASE WHEN CAST(:ago AS float8) IS NULL THEN status ELSE 'delivered' END "
                    "WHERE org_id = :org AND message_id = :message RETURNING id"
                ),
                values,
            )
        return Copy(self.sender.org_id, identifier[0], message_id, recipient)

    async def get(self, path: str, *, method: str = "GET", **headers: str) -> httpx.Response:
        """Ask as a browser, unless the headers say otherwise (underscores are hyphens)."""
        named = {name.replace("_", "-"): value for name, value in ({"User_Agent": BROWSER} | headers).items()}
        return await self.client.request(method, path, headers=named)

    async def events(self, copy: Copy, *types: str) -> list[dict[str, Any]]:
        """The message's events of these types."""
        return [event for event in await self.sender.events(copy.message_id) if event["type"] in types]

    async def suppressions(self) -> list[tuple[str, str, str, str]]:
        """(address, tag, reason, message) of all that the tenant's mail spares."""
        async with self.database.transaction() as session:
            columns = "address, tag, reason, message_id"
            rows = await session.execute(
                text(f"SELECT {columns} FROM suppressions WHERE org_id = :org ORDER BY tag, address"),
                {"org": self.sender.org_id},
            )
            return [(address, tag, reason, str(message_id)) for address, tag, reason, message_id in rows]


@pytest.fixture
async def outside(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without credentials, from an address of its own."""
    async with client_from(app, "203.0.113.77") as found:
        yield found


@pytest.fixture
async def recipients(
    client: httpx.AsyncClient, dns: DnsServer, database: Database, outside: httpx.AsyncClient
) -> Recipients:
    return Recipients(await make_sender(client, dns), database, outside)
