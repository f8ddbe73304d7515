"""Writing outcomes down, many in one transaction; kept and tried again while the database is away."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.core import ids
from app.core.config import Settings
from app.core.db import Database
from app.core.schemas import rfc3339
from app.delivery import queries
from app.delivery.lease import Held
from app.delivery.outcome import Claimed, Outcome, retry_delay_seconds
from app.messages.status import Status, sources

_BATCH = 200
# Long enough to gather the outcomes of one burst, short enough for nobody to notice.
_GATHER_SECONDS = 0.005
_RETRY_SECONDS = 1.0

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
                if not _is_away(error):
                    log.exception("settle_refused", deliveries=len(batch))
                    break
                # A mail that was delivered must be written down as such, or it is sent again when its lease ends.
                log.warning("settle_failed", deliveries=len(batch), error=f"{type(error).__name__}: {error}"[:300])
            await asyncio.sleep(_RETRY_SECONDS)
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._settle(batch[:middle])
            await self._settle(batch[middle:])

    async def _write(self, batch: Sequence[tuple[Held, Outcome]]) -> None:
        rows = [_rows(held.claimed, outcome, self._settings) for held, outcome in batch]
        async with self._database.transaction() as session:
            kept = await queries.settle(
                session,
                outcomes=[row for row, _, _ in rows],
                attempts=[row for _, row, _ in rows],
                events=[event for _, _, events in rows for event in events],
            )
        for (held, _), (row, _, _) in zip(batch, rows, strict=True):
            if (held.claimed.org_id, held.claimed.delivery_id) in kept:
                self.counts[row["status"].value] += 1
            else:
                self.counts["fenced"] += 1
                log.warning("outcome_fenced", delivery_id=str(held.claimed.delivery_id), status=row["status"].value)


def _is_away(error: Exception) -> bool:
    """Whether the database is away or overloaded, so that the same rows may well be taken later."""
    if isinstance(error, DBAPIError):
        state = str(getattr(error.orig, "sqlstate", None) or "")
        # Connection trouble, conflicts between transactions, resources, restarts and time limits.
        return error.connection_invalidated or not state or state.startswith(("08", "25", "40", "53", "55", "57"))
    return isinstance(error, SQLAlchemyError | OSError | TimeoutError)


def _rows(
    claimed: Claimed, outcome: Outcome, settings: Settings
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """The outcome, attempt and event rows of one attempt."""
    status, reason, next_attempt_at = _next(claimed, outcome, settings)
    key = {"org_id": claimed.org_id, "delivery_id": claimed.delivery_id}
    row = {
        **key,
        "lease_token": claimed.lease_token,
        "attempt": claimed.attempt,
        "status": status,
        "sources": sources(status),
        "last_response": outcome.response,
        "settled_at": None if next_attempt_at else outcome.finished_at,
        "next_attempt_at": next_attempt_at,
    }
    attempt = {
        **key,
        "number": claimed.attempt,
        "outcome": outcome.status,
        "reason": outcome.reason,
        "host": outcome.host,
        "address": outcome.address,
        "phase": outcome.phase,
        "code": outcome.reply.code if outcome.reply else None,
        "enhanced_code": outcome.reply.enhanced if outcome.reply else None,
        "response": outcome.response,
        "tls": outcome.tls,
        "tls_verified": False,
        "started_at": outcome.started_at,
        "finished_at": outcome.finished_at,
    }
    facts: dict[str, Any] = {"attempt": claimed.attempt, **outcome.facts(), "reason": reason}
    if next_attempt_at is not None:
        facts["next_attempt_at"] = rfc3339(next_attempt_at)
    events = []
    event = {**key, "message_id": claimed.message_id, "recipient": claimed.recipient}
    if outcome.sent_at is not None:
        sent = {"attempt": claimed.attempt, "mx": outcome.host, "mx_address": outcome.address}
        events.append({**event, "id": ids.new_id(), "type": "sent", "occurred_at": outcome.sent_at, "data": sent})
    events.append({**event, "id": ids.new_id(), "type": status, "occurred_at": outcome.finished_at, "data": facts})
    return row, attempt, events


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
