"""An organization at work on its vMTAs and queues while engines run."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.delivery import service
from app.delivery.engine import Engine
from tests.delivery.conftest import QUICK
from tests.factories.senders import Sender

_numbers = itertools.count(1)
Json = dict[str, Any]


def new_address() -> str:
    """An address of this host that no other test uses."""
    number = next(_numbers)
    return f"127.78.{number // 250}.{number % 250 + 1}"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who sends, and looks after what becomes of it."""

    sender: Sender
    database: Database

    async def call(self, method: str, path: str, body: Any = None) -> Json:
        """`data` of a good answer below /api/v1."""
        answer = await self.sender.client.request(method, f"/api/v1{path}", json=body, headers=self.sender.key)
        assert answer.status_code < 300, answer.text
        found: Json = answer.json()["data"]
        return found

    async def vmta(self, **fields: Any) -> Json:
        """A new vMTA with an address and a name of its own."""
        number = next(_numbers)
        body = {"name": f"way-{number}", "ip_address": new_address(), "hostname": f"way{number}.mta.example", **fields}
        found: Json = (await self.call("POST", "/vmtas", body))["vmta"]
        return found

    async def act(self, vmta: Json, action: str) -> None:
        """pause or resume."""
        await self.call("POST", f"/vmtas/{vmta['id']}/{action}")

    async def used(self, vmta: Json, provider: str = "generic") -> int:
        """How many mails today's warm-up has let go."""
        status = (await self.call("GET", f"/vmtas/{vmta['id']}/warmup"))["warmup"]
        return next(int(one["used"]) for one in status["today"] if one["provider"] == provider)

    async def queue(self, queue_id: str) -> Json:
        found: Json = (await self.call("GET", f"/queues/{queue_id}"))["queue"]
        return found

    async def queue_act(self, queue_id: str, action: str) -> Json:
        """flush, hold or release."""
        return await self.call("POST", f"/queues/{queue_id}/{action}")

    async def batch(self, recipients: Sequence[str], **fields: Any) -> list[str]:
        """A mail to each, a hundred in a request; the messages' ids."""
        found: list[str] = []
        for first in range(0, len(recipients), 100):
            mails = [self.sender.mail(one, **fields) for one in recipients[first : first + 100]]
            data = await self.call("POST", "/messages/batch", {"messages": mails})
            found += [result["message"]["id"] for result in data["results"]]
        return found

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        """Run a statement with :org_id; its rows if it has any."""
        async with self.database.transaction() as session:
            result = await session.execute(text(statement), {"org_id": self.sender.org_id, **values})
            return list(result.all()) if result.returns_rows else []  # type: ignore[attr-defined]

    async def sweep(self) -> None:
        """What beat has done every five seconds."""
        await service.sweep(self.database)

    async def usage(self, vmta: Json) -> list[Any]:
        """(provider, delivered, deferred, bounced hard) of all days."""
        rows = await self.sql(
            "SELECT provider, delivered, deferred, hard_bounced FROM vmta_usage WHERE org_id = :org_id "
            "AND vmta_id = :vmta_id ORDER BY provider",
            vmta_id=UUID(vmta["id"]),
        )
        return [tuple(row) for row in rows]


@asynccontextmanager
async def engines(settings: Settings, count: int = 1, **changed: Any) -> AsyncIterator[list[Engine]]:
    """Engines at work until the block ends."""
    found = [Engine(settings.model_copy(update=changed), timeouts=QUICK) for _ in range(count)]
    running = [asyncio.create_task(one.run()) for one in found]
    try:
        yield found
    finally:
        for one in found:
            one.stop()
        await asyncio.gather(*running)


async def eventually(look: Callable[[], Awaitable[Any]], *, timeout_seconds: float = 10) -> Any:
    """What is found, once it is anything true. Raises TimeoutError."""
    async with asyncio.timeout(timeout_seconds):
        while not (found := await look()):
            await asyncio.sleep(0.05)
    return found
