"""Writing down what follows from mails that were read: events, suppressions, verdicts and counts in one transaction."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from app.inbound import judge, queries
from app.inbound.judge import Ruling, Verdict
from app.inbound.queries import Claimed, Copy, Key
from app.mail.report import Report
from app.messages import aftermath
from app.messages.aftermath import Happening
from app.suppressions import service as suppressions
from app.suppressions.service import Entry

ATTEMPTS_MAX: Final = 3
# A host may send a mail back before what it said to us is written down here; after this time it is.
WAITING_FOR: Final = timedelta(minutes=15)
_WAITING_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 30.0
# What could not be read is of no kind.
_NO_KIND: Final = "unknown"


async def settle(
    connection: asyncpg.Connection, lease_token: UUID, mails: Sequence[Claimed], reports: Mapping[UUID, Report]
) -> None:
    """Within a transaction of the caller's, bring about what mails say that are still held under the lease.

    Those that are not among the reports could not be read: they are tried again, ATTEMPTS_MAX times in all. Copies
    stay locked until the commit, so that each report meets the state that the one before it has left.
    Raises DATABASE_ERRORS.
    """
    held = await queries.hold(connection, [mail.id for mail in mails], lease_token)
    mails = [mail for mail in mails if mail.id in held]
    keys = {
        mail.id: judge.bears_on(reports[mail.id], mail.recipients)
        for mail in mails
        if mail.id in reports and reports[mail.id].kind in judge.OF_EFFECT
    }
    copies = await queries.copies(connection, {key for found in keys.values() for key in found})
    delayed = await queries.delayed(connection, copies.values())
    outcome = _Outcome(copies, delayed)
    for mail in mails:
        if (report := reports.get(mail.id)) is None:
            outcome.fail(mail)
        elif report.kind in judge.OF_EFFECT:
            outcome.apply(mail, report, keys[mail.id])
        else:
            outcome.read.append((mail.id, report.kind, Verdict.IGNORED))
    await outcome.write(connection, lease_token)


class _Outcome:
    """What a batch comes to, gathered mail by mail; `copies` and `delayed` are as they are after those before."""

    def __init__(self, copies: dict[Key, Copy], delayed: set[Key]) -> None:
        self.read: list[tuple[UUID, str, str]] = []
        self._copies = copies
        self._delayed = delayed
        self._happenings: list[Happening] = []
        # By the event that tells of it.
        self._entries: dict[UUID, Entry] = {}
        self._postponed: list[tuple[UUID, int, float]] = []

    def fail(self, mail: Claimed) -> None:
        """It could not be read."""
        if mail.attempt < ATTEMPTS_MAX:
            self._postponed.append((mail.id, mail.attempt, _AGAIN_SECONDS * mail.attempt))
        else:
            self.read.append((mail.id, _NO_KIND, Verdict.UNREADABLE))

    def apply(self, mail: Claimed, report: Report, keys: Sequence[Key]) -> None:
        """What it says of these copies comes to pass, all of it or none."""
        rulings = {key: self._rule(mail, report, key) for key in keys}
        verdicts = {ruling.verdict for ruling in rulings.values()} or {Verdict.UNPROVEN}
        if Verdict.WAITING in verdicts:
            if datetime.now(UTC) < mail.received_at + WAITING_FOR:
                self._postponed.append((mail.id, 0, _WAITING_SECONDS))
                return
            verdicts = verdicts - {Verdict.WAITING} | {Verdict.ABSORBED}
        for key, ruling in rulings.items():
            if ruling.happening is not None:
                self._bring_about(key, ruling.happening, ruling)
        # Of several copies, what was most.
        self.read.append((mail.id, report.kind, next(one for one in Verdict if one in verdicts)))

    def _bring_about(self, key: Key, happening: Happening, ruling: Ruling) -> None:
        self._happenings.append(happening)
        if ruling.status is None:
            self._delayed.add(key)
        else:
            self._copies[key] = replace(self._copies[key], status=ruling.status)
        if ruling.entry is not None:
            self._entries[happening.event_id] = ruling.entry

    def _rule(self, mail: Claimed, report: Report, key: Key) -> Ruling:
        copy = self._copies.get(key)
        if copy is None:
            return Ruling(Verdict.UNKNOWN_DELIVERY)
        return judge.rule(report, copy, was_delayed=key in self._delayed, received_at=mail.received_at)

    async def write(self, connection: asyncpg.Connection, lease_token: UUID) -> None:
        """Write it down."""
        if self._happenings:
            told = await aftermath.record(connection, self._happenings)
            real = {one.happening.event_id for one in told if not one.is_simulated}
            await suppressions.note(connection, [entry for event, entry in self._entries.items() if event in real])
        if self._postponed:
            await queries.postpone(connection, self._postponed, lease_token)
        if self.read:
            await queries.finish(connection, self.read)
            await queries.count(connection, Counter((kind, verdict) for _, kind, verdict in self.read))
