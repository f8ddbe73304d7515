"""What the rest of the house may ask of mail that comes back: how it fares, and its upkeep.

A mail is committed before its sender hears 250 (`listener`, `session`, `keeper`) and is read afterwards: `reader`
claims it, `judge` says what follows, `settle` writes that down. `process` puts them together.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import Database
from app.inbound import queries

_KEPT_FOR: Final = timedelta(days=14)
_FORGET_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Overview:
    """How many mails wait to be read, and for how long the first has been due; (kind, verdict, count) since the
    beginning.
    """

    unread: int
    due_seconds: float
    counts: list[tuple[str, str, int]]


async def overview(session: AsyncSession) -> Overview:
    """How mail that comes back fares."""
    unread, due_seconds = await queries.unread(session)
    return Overview(unread, due_seconds, await queries.counts(session))


async def upkeep(database: Database) -> None:
    """Forget what has been read and came two weeks ago; what was not read stays."""
    before = datetime.now(UTC) - _KEPT_FOR
    deleted = _FORGET_BATCH
    while deleted == _FORGET_BATCH:
        async with database.transaction() as session:
            deleted = await queries.forget(session, before, _FORGET_BATCH)
