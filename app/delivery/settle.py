"""Writing outcomes down, many in one transaction; kept and tried again while the database is away."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.core import ids
from app.core.config import Settings
from app.core.db import Database
from app.delivery import queries
from app.delivery.outcome import Claimed, Outcome, retry_delay_seconds
from app.messages.status import Status, sources

_BATCH = 200
# Long enough to gather the outcomes of one burst, short enough for nobody to notice.
_GATHER_SECONDS = 0.005
_RETRY_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Settler:
    """Takes outcomes and settles them. `on_settled` is called for each delivery once its outcome is written."""

    def __init__(self, settings: Settings, database: Database, on_settled: Callable[[Claimed], None]) -> None:
        self._settings = settings
        self._database = database
        self._on_settled = on_settled
        self._waiting: asyncio.Queue[tuple[Claimed, Outcome]] = asyncio.Queue()
        self.counts: Counter[str] = Counter()

    def add(self, claimed: Claimed, outcome: Outcome) -> None:
        """Settle this soon. The engine's limit on deliveries in flight bounds how many wait here."""
        self._waiting.put_nowait((claimed, outcome))

    async def run(self) -> None:
        """Settle until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            await asyncio.sleep(_GATHER_SECONDS)
            while len(batch) < _BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self._settle(batch)

    async def drained(self) -> None:
        """Return once everything added so far has been settled."""
        await self._waiting.join()

    async def _settle(self, batch: list[tuple[Claimed, Outcome]]) -> None:
        # One order for all workers: two that settle rows of one message must not wait for each other in a circle.
        batch.sort(key=lambda pair: (pair[0].org_id, pair[0].delivery_id))
        rows = [_rows(claimed, outcome, self._settings) for claimed, outcome in batch]
        values = {
            "outcomes": [row for row, _, _ in rows],
            "attempts": [row for _, row, _ in rows],
            "events": [event for _, _, events in rows for event in events],
        }
        while True:
            try:
                async with self._database.transaction() as session:
                    held = await queries.settle(session, **values)
                break
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                # A mail that was delivered must be written down as such, or it is sent again when its lease ends.
                log.warning("settle_failed", deliveries=len(batch), error=f"{type(error).__name__}: {error}"[:300])
                await asyncio.sleep(_RETRY_SECONDS)
        for (claimed, _), (row, _, _) in zip(batch, rows, strict=True):
            if (claimed.org_id, claimed.delivery_id) in held:
                self.counts[row["status"]] += 1
            else:
                self.counts["fenced"] += 1
                log.warning("outcome_fenced", delivery_id=str(claimed.delivery_id), status=row["status"])
            self._on_settled(claimed)
            self._waiting.task_done()


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
        "id": ids.new_id(),
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
        "started_at": outcome.started_at,
        "finished_at": outcome.finished_at,
    }
    facts: dict[str, Any] = {"attempt": claimed.attempt, **outcome.facts(), "reason": reason}
    if next_attempt_at is not None:
        facts["next_attempt_at"] = next_attempt_at
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
