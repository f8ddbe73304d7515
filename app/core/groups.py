"""Writing in groups: what is to be stored at the same moment shares one transaction, and one wait for the disk.

Whoever comes while a group is being written waits for the next one, so who is alone waits for nobody.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from app.core.db import is_away

_GROUP_ROWS = 200
_GROUP_BYTES = 8 * 2**20

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Groups(Generic[ItemT, ResultT]):
    """Has items written in groups by `write`, which commits all of them together or none.

    `weigh` says how many rows and octets an item comes to, `writers` how many groups may be in the making at once.
    """

    def __init__(
        self,
        write: Callable[[Sequence[ItemT]], Awaitable[ResultT]],
        weigh: Callable[[ItemT], tuple[int, int]],
        *,
        writers: int,
    ) -> None:
        self._write = write
        self._weigh = weigh
        self._writers_max = writers
        self._waiting: list[tuple[ItemT, asyncio.Future[ResultT]]] = []
        self._writers: set[asyncio.Task[None]] = set()

    async def add(self, item: ItemT) -> ResultT:
        """Return what `write` said of the item's group once that is committed.

        Raises what `write` raised; then it may be unknown whether the item was committed.
        """
        # Who asked may go away; what was taken for them is stored all the same.
        return await asyncio.shield(self.put(item))

    def put(self, item: ItemT) -> asyncio.Future[ResultT]:
        """As `add`, for those who do not wait, or not so long: not to be cancelled."""
        stored: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, stored))
        if len(self._writers) < self._writers_max:
            task = asyncio.create_task(self._write_all())
            self._writers.add(task)
            task.add_done_callback(self._writers.discard)
        return stored

    async def _write_all(self) -> None:
        while self._waiting:
            await self._write_group(self._next_group())

    def _next_group(self) -> list[tuple[ItemT, asyncio.Future[ResultT]]]:
        rows = size_bytes = taken = 0
        for item, _ in self._waiting:
            its_rows, its_bytes = self._weigh(item)
            rows += its_rows
            size_bytes += its_bytes
            if taken and (rows > _GROUP_ROWS or size_bytes > _GROUP_BYTES):
                break
            taken += 1
        group, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return group

    async def _write_group(self, group: list[tuple[ItemT, asyncio.Future[ResultT]]]) -> None:
        try:
            result = await self._write([item for item, _ in group])
        except Exception as error:
            if len(group) == 1 or is_away(error):
                for _, stored in group:
                    stored.set_exception(error)
                return
            # What the database has against one item must not fall upon the others.
            for one in group:
                await self._write_group([one])
            return
        for _, stored in group:
            stored.set_result(result)
