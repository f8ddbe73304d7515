"""Writing outcomes down, many in one transaction; kept and tried again while the database is away."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from app.core import ids
from app.core.config import Settings
from app.core.db import Database, is_away
from app.core.schemas import rfc3339
from app.delivery import queries, simulator
from app.delivery.lease import Held
from app.delivery.outcome import Claimed, Outcome, retry_delay_seconds
from app.delivery.queries import EventRow, Key, Settled
from app.messages.status import Status, sources
from app.suppressions import service as suppressions
from app.suppressions.service import Entry

_BATCH = 200
# Long enough to gather the outcomes of one burst, short enough for nobody to notice.
_GATHER_SECONDS = 0.005
RETRY_SECONDS = 1.0
# The reason of an outcome of which nothing else could be stored.
_UNTOLD = "not_storable"

log = structlog.get_logger(__name__)


class Settler:
    """Takes outcomes and settles them. `on_settled` is called for each delivery once its outcome is written."""

    def __init__(self, settings: Settings, database: Database, on_settled: Callable[[Held], None]) -> None:
        self._settings = settings
        self._database = database
        self._on_settled = on_settled
        self._waiting: asyncio.Queue[tuple[Held, Outcome]] = asyncio.Queue()
        self.counts: Counter[str] = Counter()

    def add(self, held: Held, outcome: Outcome) -> None:
        """Settle this soon. The engine's limit on deliveries in flight bounds how many wait here."""
        self._waiting.put_nowait((held, outcome))

    async def run(self) -> None:
        """Settle until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            await asyncio.sleep(_GATHER_SECONDS)
            while len(batch) < _BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            # One order for all workers: two that settle rows of one message must not wait for each other in a circle.
            batch.sort(key=lambda pair: (pair[0].claimed.org_id, pair[0].claimed.delivery_id))
            await self._settle(batch)
            for held, _ in batch:
                self._on_settled(held)
                self._waiting.task_done()

    async def drained(self) -> None:
        """Return once everything added so far has been settled."""
        await self._waiting.join()

    async def _settle(self, batch: list[tuple[Held, Outcome]]) -> None:
        """Write a batch down, however long the database is away; one row that it refuses holds up no other."""
        while True:
            try:
                await self._write(batch)
                return
            except Exception as error:
                if not is_away(error):
                    log.exception("settle_refused", deliveries=len(batch))
                    break
                # A mail that was delivered must be written down as such, or it is sent again when its lease ends.
                log.warning("settle_failed", deliveries=len(batch), error=f"{type(error).__name__}: {error}"[:300])
            await asyncio.sleep(RETRY_SECONDS)
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._settle(batch[:middle])
            await self._settle(batch[middle:])
        elif batch[0][1].reason != _UNTOLD:
            # Whatever it is that cannot be stored, that the mail has ended must be: else it is sent again and again.
            held, outcome = batch[0]
            told = Outcome(
                outcome.status, _UNTOLD, "", outcome.started_at, outcome.finished_at, sent_at=outcome.sent_at
            )
            await self._settle([(held, told)])

    async def _write(self, batch: Sequence[tuple[Held, Outcome]]) -> None:
        rows: list[Settled] = []
        events: list[EventRow] = []
        bounced: dict[Key, Entry] = {}
        for held, outcome in batch:
            row = _settled(held.claimed, outcome, self._settings)
            rows.append(row)
            events += _events(row, outcome)
            if _blames_address(held.claimed, outcome):
                bounced[row.claimed.org_id, row.claimed.delivery_id] = _suppression(row)
        async with self._database.bare() as connection, connection.transaction():
            kept = await queries.settle(connection, rows, events)
            await suppressions.note(connection, [entry for key, entry in bounced.items() if key in kept])
        for row in rows:
            claimed = row.claimed
            if (claimed.org_id, claimed.delivery_id) in kept:
                self.counts[row.status] += 1
            else:
                self.counts["fenced"] += 1
                log.warning("outcome_fenced", delivery_id=str(claimed.delivery_id), status=row.status)


# As arrays in PostgreSQL's notation.
_SOURCES = {status: "{" + ",".join(sources(status)) + "}" for status in Status}


def _settled(claimed: Claimed, outcome: Outcome, settings: Settings) -> Settled:
    status, reason, next_attempt_at = _next(claimed, outcome, settings)
    if not outcome.was_begun:
        claimed = replace(claimed, attempt=claimed.attempt - 1)
    # What follows a delivery comes from where that may come from.
    came_from = _SOURCES[status]
    if status is Status.DELIVERED and claimed.simulated is not None:
        status = simulator.follows(claimed.simulated) or status
    return Settled(
        claimed=claimed,
        status=status.value,
        reason=reason,
        response=outcome.response,
        category=outcome.category,
        vmta_id=outcome.vmta_id,
        settled_at=None if next_attempt_at else outcome.finished_at,
        next_attempt_at=next_attempt_at,
        sources=came_from,
    )


def _blames_address(claimed: Claimed, outcome: Outcome) -> bool:
    """Whether the address itself is bad: nothing else may suppress a recipient."""
    diagnosis = outcome.diagnosis if outcome.status is Status.HARD_BOUNCED else None
    return diagnosis is not None and diagnosis.address_level and claimed.simulated is None


def _suppression(row: Settled) -> Entry:
    claimed = row.claimed
    address = claimed.recipient.casefold()
    return Entry(claimed.org_id, address, "hard_bounce", message_id=claimed.message_id, detail=row.response)


def _events(row: Settled, outcome: Outcome) -> list[EventRow]:
    """What the attempt is told by: `sent` when the final dot went out, and how it ended."""
    claimed = row.claimed
    found: list[EventRow] = []

    def tell(type: str, moment: datetime, data: dict[str, Any]) -> None:
        key = (claimed.org_id, ids.new_id(), claimed.message_id, claimed.delivery_id)
        found.append((*key, type, claimed.recipient, moment, data))

    if outcome.sent_at is not None:
        tell("sent", outcome.sent_at, {"attempt": claimed.attempt, "mx": outcome.host, "mx_address": outcome.address})
    facts: dict[str, Any] = {"attempt": claimed.attempt, **outcome.facts(), "reason": row.reason}
    if row.next_attempt_at is not None:
        facts["next_attempt_at"] = rfc3339(row.next_attempt_at)
    ended = Status.DELIVERED.value if row.status == Status.COMPLAINED else row.status
    tell(ended, outcome.finished_at, facts)
    if row.status == Status.COMPLAINED:
        tell(row.status, outcome.finished_at, {"attempt": claimed.attempt, "reason": "simulated"})
    return found


def _next(claimed: Claimed, outcome: Outcome, settings: Settings) -> tuple[Status, str, datetime | None]:
    """(status, reason, when to try again): a delivery that has used up its time has failed."""
    if outcome.status not in (Status.DEFERRED, Status.SOFT_BOUNCED):
        return outcome.status, outcome.reason, None
    now = datetime.now(UTC)
    if claimed.expires_at is not None and claimed.expires_at <= now:
        return Status.FAILED, "expired", None
    if claimed.give_up_at <= now:
        return Status.FAILED, "retries_exhausted", None
    due = now + timedelta(seconds=retry_delay_seconds(claimed.attempt, settings))
    # The last try is at the very end, not a delay before it.
    ends = min(claimed.give_up_at, claimed.expires_at or claimed.give_up_at)
    return outcome.status, outcome.reason, min(due, ends)
