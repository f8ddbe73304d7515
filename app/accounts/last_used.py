"""When API keys were last used: gathered in memory and written now and then, never while a request waits."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.accounts import key_queries
from app.core.db import Database

_FLUSH_SECONDS = 10
_ENTRIES_MAX = 10_000

log = structlog.get_logger(__name__)


class LastUsed:
    """The uses of keys that are not written yet. One a process: `LAST_USED`."""

    def __init__(self) -> None:
        self._used: dict[tuple[UUID, UUID], datetime] = {}

    def note(self, org_id: UUID, key_id: UUID) -> None:
        """The key was used just now."""
        if len(self._used) < _ENTRIES_MAX or (org_id, key_id) in self._used:
            self._used[org_id, key_id] = datetime.now(UTC)

    async def flush(self, database: Database) -> None:
        """Write what was gathered; while the database is away it is kept for the next time."""
        used, self._used = self._used, {}
        if not used:
            return
        is_written = False
        try:
            async with database.transaction() as session:
                await key_queries.mark_keys_used(session, used)
            is_written = True
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("last_used_not_written", keys=len(used), error=type(error).__name__)
        finally:
            if not is_written:
                self._used = used | self._used

    async def run(self, database: Database) -> None:
        """Write every few seconds until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_SECONDS)
                await self.flush(database)
        finally:
            await self.flush(database)


LAST_USED = LastUsed()
