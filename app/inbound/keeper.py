"""Keeping what was taken: compressed, mails of the same moment in one transaction."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import zstandard

from app.core import ids
from app.core.db import Database
from app.core.groups import Groups
from app.inbound import queries
from app.inbound.queries import Taken

_LEVEL: Final = 3
# Compressing more than this takes milliseconds, in which nothing else of this process would move.
_AT_ONCE_BYTES: Final = 256 * 2**10


class Keeper:
    """Stores mails; one a process. `on_stored` is called when some have been committed."""

    def __init__(self, database: Database, on_stored: Callable[[], None]) -> None:
        self._database = database
        self._on_stored = on_stored
        self._groups = Groups(self._write, _weigh, writers=1)

    async def keep(
        self, content: bytes, *, client_address: str, helo: str, mail_from: str, recipients: list[str]
    ) -> str:
        """Return the mail's id once it is committed. Raises DATABASE_ERRORS; then it may be unknown whether it was."""
        if len(content) <= _AT_ONCE_BYTES:
            packed = _pack(content)
        else:
            packed = await asyncio.to_thread(_pack, content)
        mail = Taken(ids.new_id(), client_address, helo, mail_from, recipients, packed)
        await self._groups.add(mail)
        return str(mail.id)

    async def _write(self, mails: Sequence[Taken]) -> None:
        async with self._database.bare() as connection:
            await queries.store(connection, mails)
        self._on_stored()


def unpack(stored: bytes) -> bytes:
    """The octets of a mail that was kept. Raises zstandard.ZstdError for what was not."""
    return zstandard.ZstdDecompressor().decompress(stored)


def _pack(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(content)


def _weigh(mail: Taken) -> tuple[int, int]:
    return 1, len(mail.content)
