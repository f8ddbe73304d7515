"""The process `postroad inbound`: takes what comes back, and reads it."""

import asyncio
import logging
import signal
from collections import Counter
from typing import Final

import structlog

from app.core.config import Settings
from app.core.db import DATABASE_ERRORS, Database
from app.core.memory import collect_rarely
from app.core.redis import connect
from app.inbound import queries
from app.inbound.keeper import Keeper
from app.inbound.limits import Limits
from app.inbound.listener import Hooks, Policy, listen, take_all
from app.inbound.reader import Reader
from app.inbound.recipients import Recipients

# The kind under which mail is counted that was not taken.
REFUSED: Final = "refused"
_TELL_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 15.0

log = structlog.get_logger(__name__)


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises ListenError, and what a part of it did not foresee."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    # It tells of every client that misbehaves; what matters of them is counted.
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    collect_rarely()
    inbound = Inbound(settings)
    try:
        await inbound.start()
        log.info("inbound_listening", host=settings.inbound_smtp_host, port=inbound.port)
        await inbound.wait(stopped)
    finally:
        await inbound.stop()


class Inbound:
    """The parts of the process, put together."""

    def __init__(self, settings: Settings, *, policy: Policy = take_all) -> None:
        self._settings = settings
        self._database = Database(settings)
        self._redis = connect(settings)
        self._refused: Counter[str] = Counter()
        self._reader = Reader(settings, self._database)
        self._limits = Limits(self._redis)
        recipients = Recipients(settings, self._database)
        self._hooks = Hooks(self._limits, recipients, Keeper(self._database, self._reader.ring), policy)
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        """Where it listens, once it does."""
        assert self._server is not None  # noqa: S101 - the caller has started it
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Take mail and read it from now on. Raises ListenError."""
        self._server = await listen(self._settings, self._hooks, self._limits, self._refused)
        self._tasks = [asyncio.create_task(self._reader.run()), asyncio.create_task(self._tell())]

    async def wait(self, stopped: asyncio.Event) -> None:
        """Return when it is to stop; raises what has ended one of its parts."""
        stopping = asyncio.create_task(stopped.wait())
        ended, _ = await asyncio.wait([stopping, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in ended:
            task.result()

    async def stop(self) -> None:
        """Take nothing new, end what is under way, close everything.

        What is cut off has not been answered by 250, and comes again.
        """
        if self._server is not None:
            self._server.close()
        self._reader.stop()
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._limits.idle()
                if self._tasks:
                    await asyncio.wait(self._tasks[:1])
        except TimeoutError:
            log.warning("inbound_drain_timed_out", hint="mails that were being read are read again after their lease")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._tell_now()
        await self._redis.aclose()
        await self._database.close()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            await self._tell_now()

    async def _tell_now(self) -> None:
        """Add to the counts what was refused since the last time."""
        counted = {(REFUSED, verdict): number for verdict, number in self._refused.items()}
        if not counted:
            return
        self._refused.clear()
        try:
            async with self._database.bare() as connection:
                await queries.count(connection, counted)
        except DATABASE_ERRORS as error:
            log.warning("inbound_counts_failed", error=f"{type(error).__name__}: {error}"[:300])
            for (_, verdict), number in counted.items():
                self._refused[verdict] += number
