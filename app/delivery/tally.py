"""What attempts do to the usage of vMTAs: gathered in memory, written down once a second, out of the mail's way."""

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime
from uuid import UUID

import structlog

from app.core.db import DATABASE_ERRORS, Database, is_away
from app.delivery.outcome import Outcome
from app.mail.diagnosis import Category
from app.messages.status import Status
from app.vmtas import usage
from app.vmtas.choice import Vmta

_FLUSH_SECONDS = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """One mail that was counted against a vMTA's warm-up before it was sent."""

    vmta: Vmta
    provider: str
    at: datetime


class Tally:
    """The counts of one engine. Costs nothing for mail that leaves by the platform's own way out."""

    def __init__(self) -> None:
        # (organization, vMTA, day, provider), and how often each field of usage.Outcomes.
        self._met: defaultdict[tuple[UUID, UUID, date, str], Counter[str]] = defaultdict(Counter)
        self._unused: Counter[Taken] = Counter()

    def note(self, org_id: UUID, outcome: Outcome) -> None:
        """An attempt has ended like this."""
        if outcome.vmta_id is not None and (field := _field(outcome)) is not None:
            day = outcome.finished_at.astimezone(UTC).date()
            self._met[org_id, outcome.vmta_id, day, outcome.provider or ""][field] += 1

    def give_back(self, taken: Taken) -> None:
        """The mail was not transmitted after all."""
        self._unused[taken] += 1

    async def run(self, database: Database) -> None:
        """Write down what was gathered each second, until cancelled; then once more."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_SECONDS)
                await self.flush(database)
        finally:
            await self.flush(database)

    async def flush(self, database: Database) -> None:
        """Write down what was gathered; it is kept while the database is away."""
        met, self._met = self._met, defaultdict(Counter)
        unused, self._unused = self._unused, Counter()
        try:
            if met:
                async with database.transaction() as session:
                    await usage.record(session, [_outcomes(*key, counts) for key, counts in met.items()])
                met.clear()
            if unused:
                async with database.transaction() as session:
                    for taken in sorted(unused, key=_rank):
                        await usage.give_back(session, taken.vmta, taken.provider, unused[taken], taken.at)
        except DATABASE_ERRORS as error:
            log.warning("usage_not_written", error=f"{type(error).__name__}: {error}"[:300])
            if not is_away(error):
                # It would be refused again, and what comes after with it.
                return
            for key, counts in met.items():
                self._met[key] += counts
            self._unused += unused


def _field(outcome: Outcome) -> str | None:
    """What the provider has said by it of the address that the mail came from; None: nothing."""
    if outcome.status is Status.DELIVERED:
        return "delivered"
    # Nobody else's trouble is a judgement, nor is greylisting, which all newcomers meet.
    if outcome.reply is None or outcome.reply.local or outcome.category == Category.GREYLISTED:
        return None
    if outcome.status is Status.HARD_BOUNCED:
        return "hard_bounced"
    return "deferred" if outcome.status is Status.DEFERRED else None


def _outcomes(org_id: UUID, vmta_id: UUID, day: date, provider: str, counts: Counter[str]) -> usage.Outcomes:
    return usage.Outcomes(
        *(org_id, vmta_id, day, provider),
        delivered=counts["delivered"],
        deferred=counts["deferred"],
        hard_bounced=counts["hard_bounced"],
    )


def _rank(taken: Taken) -> tuple[UUID, UUID, date, str]:
    # One order for all workers, so that none wait for each other in a circle.
    return taken.vmta.org_id, taken.vmta.id, taken.at.date(), taken.provider
