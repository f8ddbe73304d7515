"""What the tests of refused sends share: sending what should not be, and looking at all that is stored."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import text

from app.core.db import Database
from app.core.ids import new_id
from tests.factories.senders import Sender

TABLES = ("messages", "message_bodies", "attachments", "deliveries", "delivery_queue", "events", "idempotency_keys")
_COUNT = text(" UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table} WHERE org_id = :org_id" for table in TABLES))

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """What a send must be answered with. No pointer: nothing in particular is wrong (413)."""

    pointer: str | None
    status: int = 422
    code: str = "invalid_request"


async def stored(database: Database, org_id: UUID) -> dict[str, int]:
    """How many rows each table holds of an organization."""
    async with database.transaction() as session:
        return dict((await session.execute(_COUNT, {"org_id": org_id})).tuples().all())


@asynccontextmanager
async def nothing_stored(database: Database, *org_ids: UUID) -> AsyncIterator[None]:
    """What happens inside stores nothing."""
    before = [await stored(database, org_id) for org_id in org_ids]
    yield
    assert [await stored(database, org_id) for org_id in org_ids] == before


async def send_raw(sender: Sender, content: bytes, **headers: str) -> httpx.Response:
    """Send a body as it is, with an Idempotency-Key of its own."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": str(new_id())} | sender.key | headers
    return await sender.client.post("/api/v1/messages/send", content=content, headers=headers)


async def send_json(sender: Sender, body: Any) -> httpx.Response:
    """Send a body as JSON, lone surrogates as escapes."""
    try:
        return await send_raw(sender, json.dumps(body, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return await send_raw(sender, json.dumps(body).encode())


def difference(response: httpx.Response, wanted: Refused) -> str:
    """How the answer differs from the one wanted; empty when it does not."""
    if response.headers.get("Content-Type") != "application/problem+json":
        return f"{response.status_code} {response.text[:300]}"
    problem = response.json()
    pointers = [flaw["pointer"] for flaw in problem.get("errors", [])]
    found = Refused(pointers[0] if pointers else None, response.status_code, problem["code"])
    if found == wanted and len(set(pointers)) <= 1:
        return ""
    return f"{found} {pointers} {problem['detail'][:300]}"
