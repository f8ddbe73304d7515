"""Writing opens and clicks down in groups: requests of the same moment share one statement and one wait for the disk.

Whoever asks is answered once their event is stored, or after a second if that takes longer: a person waits for their
page, and for them it must not matter that our database is away. Their event is not given up then: it is kept in memory
and tried again until it is stored. Only what exceeds that memory, or is still in it when the process ends, is lost,
and that is counted and logged.
"""

import asyncio
from collections.abc import Sequence

import structlog
from prometheus_client import Counter

from app.core.db import DATABASE_ERRORS, Database, is_away
from app.core.groups import Groups
from app.messages import aftermath
from app.messages.aftermath import Happening

# While one waits for the disk the other is sent.
_WRITERS = 2
# About 30 MB where user agents and targets are of the usual length.
_WAITING_MAX = 20_000
_PATIENCE_SECONDS = 1.0
_PAUSE_SECONDS = 0.25
_PAUSE_MAX_SECONDS = 4.0
_CLOSE_SECONDS = 5.0

LOST = Counter("postroad_tracking_lost_total", "Opens and clicks that were answered and could not be stored.")

log = structlog.get_logger(__name__)


class Journal:
    """Takes opens and clicks; one a process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._groups: Groups[Happening, None] = Groups(self._write, lambda _: (1, 0), writers=_WRITERS)
        self._waiting: set[asyncio.Future[None]] = set()
        # Since anything was stored: somebody has waited in vain, so nobody else needs to; something was lost.
        self._is_behind = False
        self._is_losing = False
        self._is_closing = False

    async def keep(self, happening: Happening) -> None:
        """Return once it is stored, or in time: see above. Never raises."""
        if len(self._waiting) >= _WAITING_MAX:
            self._lose("too many wait for the database")
            return
        stored = self._groups.put(happening)
        self._waiting.add(stored)
        stored.add_done_callback(self._end)
        if not self._is_behind:
            done, _ = await asyncio.wait((stored,), timeout=_PATIENCE_SECONDS)
            self._is_behind = not done

    async def close(self) -> None:
        """Store what is left, if the database is there; what it does not take now is lost."""
        self._is_closing = True
        if self._waiting:
            await asyncio.wait(set(self._waiting), timeout=_CLOSE_SECONDS)
        if self._waiting:
            log.error("tracking_lost", reason="the process ends", waiting=len(self._waiting))

    def _end(self, stored: asyncio.Future[None]) -> None:
        self._waiting.discard(stored)
        if (error := stored.exception()) is not None:
            self._lose(f"{type(error).__name__}: {str(error)[:200]}")

    def _lose(self, reason: str) -> None:
        LOST.inc()
        if not self._is_losing:
            log.error("tracking_lost", reason=reason, waiting=len(self._waiting))
        self._is_losing = True

    async def _write(self, happenings: Sequence[Happening]) -> None:
        """Write them, sooner or later. Raises what the database has against them."""
        pause_seconds, again = _PAUSE_SECONDS, False
        while True:
            try:
                async with self._database.bare() as connection:
                    await aftermath.record(connection, happenings, again=again)
            except DATABASE_ERRORS as error:
                if not is_away(error) or self._is_closing:
                    raise
                log.warning("tracking_not_stored", events=len(happenings), error=type(error).__name__)
            else:
                self._is_behind = self._is_losing = False
                return
            await asyncio.sleep(pause_seconds)
            pause_seconds, again = min(2 * pause_seconds, _PAUSE_MAX_SECONDS), True
