"""Writing down what attempts came to, many in one statement; kept and tried again while the database is away."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from app.accounts.notices import Mailer
from app.core.db import DATABASE_ERRORS, Database, is_away
from app.webhooks import due, schedule, service
from app.webhooks.due import Job, Key, Settled
from app.webhooks.endpoint import Endpoint
from app.webhooks.post import Attempt

_BATCH = 200
# Long enough to gather what a burst of attempts came to.
_GATHER_SECONDS = 0.005
_RETRY_SECONDS = 1.0
# How exactly the time of an endpoint's last success is kept.
_NOTE_SUCCESS_EVERY = timedelta(seconds=10)

_Ended = tuple[Endpoint, Job, Attempt]

log = structlog.get_logger(__name__)


class Settler:
    """Takes ended attempts and settles them; `on_settled` is called for each delivery once that is written."""

    def __init__(self, database: Database, mailer: Mailer, on_settled: Callable[[Job], None]) -> None:
        self._database = database
        self._mailer = mailer
        self._on_settled = on_settled
        self._waiting: asyncio.Queue[_Ended] = asyncio.Queue()
        self._counts: Counter[str] = Counter()

    def add(self, endpoint: Endpoint, job: Job, attempt: Attempt) -> None:
        """Settle this soon. What the process holds bounds how many wait here."""
        self._waiting.put_nowait((endpoint, job, attempt))

    async def run(self) -> None:
        """Settle until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            await asyncio.sleep(_GATHER_SECONDS)
            while len(batch) < _BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            # One order for all processes, so that none wait for each other in a circle.
            batch.sort(key=lambda ended: (ended[1].org_id, ended[1].id))
            await self._settle(batch)
            for _, job, _ in batch:
                self._on_settled(job)
                self._waiting.task_done()

    async def drained(self) -> None:
        """Return once everything added so far has been settled."""
        await self._waiting.join()

    async def flush_counts(self) -> None:
        """Add what was counted to the counts of all processes; kept while the database is away."""
        counts, self._counts = self._counts, Counter()
        try:
            if counts:
                async with self._database.bare() as connection:
                    await due.count(connection, counts)
        except DATABASE_ERRORS as error:
            log.warning("webhook_counts_not_written", error=_words(error))
            self._counts += counts

    async def _settle(self, batch: list[_Ended]) -> None:
        while True:
            try:
                await self._write(batch)
            except Exception as error:
                if not is_away(error):
                    # Their leases end, and they are tried again.
                    log.exception("webhook_settle_refused", deliveries=len(batch))
                    return
                log.warning("webhook_settle_failed", error=_words(error))
            else:
                await self._note(batch)
                return
            await asyncio.sleep(_RETRY_SECONDS)

    async def _write(self, batch: list[_Ended]) -> None:
        now = datetime.now(UTC)
        rows = [_settled(job, attempt, now) for _, job, attempt in batch]
        async with self._database.bare() as connection:
            kept = await due.settle(connection, rows)
        for row in rows:
            outcome = "deferred" if row.status == "pending" else row.status
            self._counts[outcome if row.job.id in kept else "fenced"] += 1

    async def _note(self, batch: list[_Ended]) -> None:
        """Keep what the webhooks themselves show up to date, and disable those that are to be left alone."""
        try:
            await self._write_notes(batch, datetime.now(UTC))
        except DATABASE_ERRORS as error:
            # The next attempt is the next occasion.
            log.warning("webhook_not_noted", error=_words(error))

    async def _write_notes(self, batch: list[_Ended], now: datetime) -> None:
        successes = {endpoint for endpoint, _, attempt in batch if attempt.has_succeeded}
        failures = {endpoint for endpoint, _, attempt in batch if not attempt.has_succeeded}
        well = {one for one in successes if _is_news(one, now)}
        ill = {one for one in failures - successes if one.failing_since is None}
        if well or ill:
            async with self._database.bare() as connection:
                if well:
                    await due.succeeded(connection, {one.key: now for one in sorted(well, key=_rank)})
                if ill:
                    await due.failed(connection, {one.key: now for one in sorted(ill, key=_rank)})
        for endpoint in well:
            endpoint.failing_since, endpoint.success_noted_at = None, now
        for endpoint in ill:
            endpoint.failing_since = now
        gone = {endpoint for endpoint, _, attempt in batch if attempt.is_gone}
        for endpoint in failures:
            since = endpoint.failing_since
            if endpoint in gone or (since is not None and now - since >= schedule.GIVE_UP_AFTER):
                async with self._database.transaction() as session:
                    await service.give_up(
                        session, self._mailer, *endpoint.key, "gone" if endpoint in gone else "failing"
                    )


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _is_news(endpoint: Endpoint, now: datetime) -> bool:
    noted_at = endpoint.success_noted_at
    return endpoint.failing_since is not None or noted_at is None or now - noted_at > _NOTE_SUCCESS_EVERY


def _rank(endpoint: Endpoint) -> Key:
    return endpoint.key


def _settled(job: Job, attempt: Attempt, now: datetime) -> Settled:
    number = job.attempts_before + 1
    entry = attempt.entry(number)
    if attempt.has_succeeded:
        return Settled(job, "delivered", entry, None, now)
    pause_seconds = None if attempt.is_gone else schedule.pause_seconds(number, attempt.retry_after_seconds)
    if pause_seconds is None:
        return Settled(job, "failed", entry, None, now)
    return Settled(job, "pending", entry, now + timedelta(seconds=pause_seconds), None)
