"""What the tests of webhooks do again and again."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import text

from app.core.db import Database
from app.messages.aftermath import Happening, record
from tests.factories.senders import Sender

URL = "/api/v1/webhooks"


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook that was made, and its secret."""

    id: str
    secret: str


@dataclass(slots=True)
class Tenant:
    """An organization that may send, and its webhooks."""

    sender: Sender
    database: Database
    copy: UUID | None = None

    @property
    def org_id(self) -> UUID:
        return self.sender.org_id

    async def ask(self, method: str, path: str = "", body: Any = None, **named: Any) -> httpx.Response:
        """Call a route of webhooks."""
        headers = named.pop("headers", None) or self.sender.key
        return await self.sender.client.request(method, URL + path, json=body, headers=headers, **named)

    async def done(self, method: str, path: str = "", body: Any = None, **named: Any) -> dict[str, Any]:
        """`data` of a call that goes well."""
        response = await self.ask(method, path, body, **named)
        assert response.is_success, response.text
        data: dict[str, Any] = response.json()["data"] if response.content else {}
        return data

    async def hook(self, url: str, *events: str) -> Hook:
        """Make a webhook."""
        data = await self.done("POST", "", {"url": url, "events": list(events or ["*"])})
        return Hook(data["webhook"]["id"], data["secret"])

    async def shown(self, hook: Hook) -> dict[str, Any]:
        """The webhook as the API shows it."""
        found: dict[str, Any] = (await self.done("GET", f"/{hook.id}"))["webhook"]
        return found

    async def once(self, hook: Hook, is_so: Any, *, timeout_seconds: float = 10) -> dict[str, Any]:
        """The webhook once it shows what is awaited."""
        async with asyncio.timeout(timeout_seconds):
            while not is_so(shown := await self.shown(hook)):
                await asyncio.sleep(0.03)
        return shown

    async def deliveries(self, hook: Hook, **params: Any) -> list[dict[str, Any]]:
        """Its latest deliveries, newest first."""
        data = await self.done("GET", f"/{hook.id}/deliveries", params={"limit": 100, **params})
        found: list[dict[str, Any]] = data["deliveries"]
        return found

    async def tell(self, count: int = 1, type: str = "opened", **facts: Any) -> list[str]:
        """Let things happen to one copy; the ids of their events."""
        if self.copy is None:
            message_id = await self.sender.send("ada@to.example", subject="Hello", tags=["a"], metadata={"n": 1})
            statement = "SELECT id FROM deliveries WHERE org_id = :org_id AND message_id = :message_id"
            ((self.copy,),) = await self.sql(statement, message_id=message_id)
        assert self.copy is not None
        happenings = [Happening(self.org_id, self.copy, type, datetime.now(UTC), facts) for _ in range(count)]
        async with self.database.bare() as connection:
            assert len(await record(connection, happenings)) == count
        return [str(one.event_id) for one in happenings]

    async def settled(self, hook: Hook, count: int, *, timeout_seconds: float = 15) -> list[dict[str, Any]]:
        """Wait until so many deliveries have come to their end; all of them."""
        return await self.until(hook, lambda one: one["status"] != "pending", count, timeout_seconds=timeout_seconds)

    async def tried(self, hook: Hook, count: int, *, times: int = 1) -> list[dict[str, Any]]:
        """Wait until so many deliveries have been attempted so often."""
        return await self.until(hook, lambda one: len(one["attempts"]) >= times, count)

    async def until(self, hook: Hook, is_so: Any, count: int, *, timeout_seconds: float = 15) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(timeout_seconds):
                while sum(map(is_so, found)) < count:
                    await asyncio.sleep(0.03)
                    found = await self.deliveries(hook)
        except TimeoutError:
            raise AssertionError(f"not {count} within {timeout_seconds} s: {found}") from None
        return found

    async def hurry(self) -> None:
        """Let all that waits for another attempt be due."""
        await self.sql(
            "UPDATE webhook_deliveries SET next_attempt_at = now() "
            "WHERE org_id = :org_id AND lease_token IS NULL AND next_attempt_at > now()"
        )

    async def forget(self) -> None:
        """Leave nothing to other tests, nor to their engines and hosts."""
        for table in ("delivery_queue", "events", "webhooks", "webhook_cursors", "webhook_deliveries"):
            await self.sql(f"DELETE FROM {table} WHERE org_id = :org_id")

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        """One statement about this organization."""
        async with self.database.transaction() as session:
            found = await session.execute(text(statement), {"org_id": self.org_id, **values})
            return list(found) if found.returns_rows else []
