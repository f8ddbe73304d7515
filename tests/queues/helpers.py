"""An organization and its queues, seen by the API and by SQL."""

import itertools
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import text

from app.core.db import Database
from app.core.ids import new_id
from app.queues import control
from tests.factories.senders import Sender, new_domain

URL = "/api/v1/queues"
NIL = UUID(int=0)
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Postmaster:
    """Who looks after an organization's queues."""

    sender: Sender
    database: Database

    @property
    def org_id(self) -> UUID:
        return self.sender.org_id

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        """Run a statement with :org_id; its rows if it has any."""
        async with self.database.transaction() as session:
            result = await session.execute(text(statement), {"org_id": self.org_id, **values})
            return list(result.all()) if result.returns_rows else []  # type: ignore[attr-defined]

    async def get(self, path: str = "", **params: Any) -> Any:
        """`data` of a look at /queues."""
        answer = await self.sender.client.get(URL + path, params=params, headers=self.sender.key)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    async def queue(self, queue_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.get(f"/{queue_id}"))["queue"]
        return found

    async def post(self, queue_id: str, action: str) -> httpx.Response:
        """Ask for an action; the answer, whatever it is."""
        return await self.sender.client.post(f"{URL}/{queue_id}/{action}", headers=self.sender.key)

    async def act(self, queue_id: str, action: str) -> dict[str, Any]:
        """`data` of an action."""
        answer = await self.post(queue_id, action)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["data"]
        assert (found["action"], found["queue"]["id"]) == (action, queue_id)
        return found

    async def vmta(self, *, pool: str | None = None, paused: bool = False) -> UUID:
        """A vMTA of this organization."""
        vmta_id = new_id()
        await self.sql(
            "INSERT INTO vmtas (org_id, id, name, pool, paused_at) VALUES (:org_id, :id, :name, :pool, "
            "CASE WHEN :paused THEN now() END)",
            id=vmta_id,
            name=f"vmta{next(_numbers)}",
            pool=pool,
            paused=paused,
        )
        return vmta_id

    async def send(self, domain: str, *, vmta_id: UUID | None = None, **fields: Any) -> str:
        """Send a mail there, by that vMTA or by the platform's own way out; its id."""
        message_id = await self.sender.send(f"user{next(_numbers)}@{domain}", **fields)
        await self.set(message_id, "vmta_id = CAST(:vmta_id AS uuid)", vmta_id=vmta_id)
        return message_id

    async def set(self, message_id: str, what: str, **values: Any) -> None:
        """Change a message's queue rows."""
        await self.sql(
            f"UPDATE delivery_queue SET {what} WHERE org_id = :org_id AND message_id = :id", id=message_id, **values
        )

    async def defer(self, message_id: str, *, seconds: float = 600) -> None:
        """As after an attempt that was deferred."""
        await self.set(
            message_id,
            "attempt = 1, lease_token = NULL, next_attempt_at = now() + make_interval(secs => :seconds)",
            seconds=seconds,
        )

    async def claim(self, message_id: str) -> None:
        """As a worker does."""
        await self.set(
            message_id,
            "attempt = attempt + 1, lease_token = gen_random_uuid(), next_attempt_at = now() + interval '1 minute'",
        )

    async def park(self, message_id: str) -> None:
        """As a worker does with what it has claimed, when its queue is held or its vMTA paused."""
        await self.set(message_id, "lease_token = NULL, next_attempt_at = 'infinity'")

    async def state(self, message_id: str) -> str:
        """due, later, sending or held, as the queue row says; gone if there is none."""
        rows = await self.sql(
            "SELECT CASE WHEN next_attempt_at = 'infinity' THEN 'held' WHEN next_attempt_at <= now() THEN 'due' "
            "WHEN lease_token IS NULL THEN 'later' ELSE 'sending' END FROM delivery_queue "
            "WHERE org_id = :org_id AND message_id = :id",
            id=message_id,
        )
        return str(rows[0][0]) if rows else "gone"

    async def states(self, *message_ids: str) -> list[str]:
        return [await self.state(message_id) for message_id in message_ids]

    async def wake(self, limit: int = 10_000) -> int:
        """What the sweep does."""
        async with self.database.transaction() as session:
            return await control.wake(session, limit)

    async def leads(self, site: str, *domains: str, provider: str = "generic") -> None:
        """Tell that these domains lead to a site."""
        async with self.database.transaction() as session:
            await control.upsert_destinations(session, [(domain, site, provider) for domain in domains])


def new_site() -> str:
    """A site of two hosts that no other test uses."""
    return f"mx1+mx2.{new_domain('host')}"


async def forget(master: Postmaster) -> None:
    """Leave nothing that another test's engine or wake would meet."""
    for table in ("delivery_queue", "queue_holds"):
        await master.sql(f"DELETE FROM {table} WHERE org_id = :org_id")
