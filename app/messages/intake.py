"""Storing accepted mail: requests of the same moment share one look at the suppressions, and one transaction."""

from collections.abc import Awaitable, Callable, Sequence, Set
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import Database
from app.core.groups import Groups
from app.messages import queries, sparing
from app.messages.sparing import Tables
from app.suppressions import service as suppressions

# One is written while the next one's rows are being sent.
_WRITERS = 2

# Stores the rows of one request; the messages of which every copy is suppressed.
Store = Callable[[Tables], Awaitable[Set[UUID]]]


async def store_within(session: AsyncSession, tables: Tables) -> Set[UUID]:
    """As `Intake.store`, but in the session's transaction: stored once that commits. The caller rings."""
    spared = sparing.spare(tables, await suppressions.find_within(session, sparing.asked(tables)))
    await queries.accept(session, spared)
    return sparing.unsent(tables, spared)


class Intake:
    """Takes rows of accepted mail; one a process. `ring` is called when some have been committed."""

    def __init__(self, database: Database, ring: Callable[[], None]) -> None:
        self._database = database
        self._ring = ring
        self._groups = Groups(self._write, _weigh, writers=_WRITERS)

    async def store(self, tables: Tables) -> Set[UUID]:
        """Return once the rows of one request are committed, all of them together or none.

        Copies to suppressed recipients are stored as such; the messages that have no others are returned. Raises
        DATABASE_ERRORS; then it may be unknown whether the rows were committed.
        """
        return await self._groups.add(tables)

    async def _write(self, group: Sequence[Tables]) -> Set[UUID]:
        tables = group[0]
        if len(group) > 1:
            tables = {name: [row for one in group for row in one[name]] for name in tables}
        async with self._database.bare() as connection:
            spared = sparing.spare(tables, await suppressions.find(connection, sparing.asked(tables)))
            await queries.store(connection, spared)
        self._ring()
        return sparing.unsent(tables, spared)


def _weigh(tables: Tables) -> tuple[int, int]:
    messages = tables["messages"]
    return len(messages), sum([message["size_bytes"] for message in messages])
