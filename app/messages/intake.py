"""Storing accepted mail in groups: requests of the same moment share one look at the suppressions, one transaction,
and one wait for the disk.

Whoever comes while a group is being written waits for the next one, so a lone request waits for nobody.
"""

import asyncio
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import Database, is_away
from app.messages import queries, sparing
from app.messages.sparing import Tables
from app.suppressions import service as suppressions

# Groups in the making at once: one is written while the next one's rows are being sent.
_WRITERS = 2
_GROUP_MESSAGES = 200
_GROUP_BYTES = 8 * 2**20

# Stores the rows of one request; the messages of which every copy is suppressed.
Store = Callable[[Tables], Awaitable[Set[UUID]]]


async def store_within(session: AsyncSession, tables: Tables) -> Set[UUID]:
    """As `Intake.store`, but in the session's transaction: stored once that commits. The caller rings."""
    spared = sparing.spare(tables, await suppressions.find_within(session, sparing.asked(tables)))
    await queries.accept(session, spared)
    return sparing.unsent(tables, spared)


@dataclass(slots=True, eq=False)
class _Waiting:
    tables: Tables
    messages: int
    size_bytes: int
    stored: asyncio.Future[Set[UUID]]


class Intake:
    """Takes rows of accepted mail; one a process. `ring` is called when some have been committed."""

    def __init__(self, database: Database, ring: Callable[[], None]) -> None:
        self._database = database
        self._ring = ring
        self._waiting: list[_Waiting] = []
        self._writers: set[asyncio.Task[None]] = set()

    async def store(self, tables: Tables) -> Set[UUID]:
        """Return once the rows of one request are committed, all of them together or none.

        Copies to suppressed recipients are stored as such; the messages that have no others are returned. Raises
        DATABASE_ERRORS; then it may be unknown whether the rows were committed.
        """
        stored: asyncio.Future[Set[UUID]] = asyncio.get_running_loop().create_future()
        messages = tables["messages"]
        size_bytes = sum([message["size_bytes"] for message in messages])
        self._waiting.append(_Waiting(tables, len(messages), size_bytes, stored))
        if len(self._writers) < _WRITERS:
            task = asyncio.create_task(self._write_all())
            self._writers.add(task)
            task.add_done_callback(self._writers.discard)
        # Who asked may go away; what was taken for them is stored all the same.
        return await asyncio.shield(stored)

    async def _write_all(self) -> None:
        while self._waiting:
            group = self._next_group()
            try:
                await self._write(group)
            except Exception as error:
                await self._write_apart(group, error)

    def _next_group(self) -> list[_Waiting]:
        messages = size_bytes = taken = 0
        for one in self._waiting:
            messages += one.messages
            size_bytes += one.size_bytes
            if taken and (messages > _GROUP_MESSAGES or size_bytes > _GROUP_BYTES):
                break
            taken += 1
        group, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return group

    async def _write(self, group: list[_Waiting]) -> None:
        tables = group[0].tables
        if len(group) > 1:
            tables = {name: [row for one in group for row in one.tables[name]] for name in tables}
        async with self._database.bare() as connection:
            spared = sparing.spare(tables, await suppressions.find(connection, sparing.asked(tables)))
            await queries.store(connection, spared)
        unsent = sparing.unsent(tables, spared)
        for one in group:
            if not one.stored.done():
                one.stored.set_result(unsent)
        self._ring()

    async def _write_apart(self, group: list[_Waiting], error: Exception) -> None:
        if len(group) == 1 or is_away(error):
            for one in group:
                if not one.stored.done():
                    one.stored.set_exception(error)
            return
        # What one request has against it must not fall upon the others.
        for one in group:
            try:
                await self._write([one])
            except Exception as its_own:
                await self._write_apart([one], its_own)
