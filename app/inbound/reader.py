"""Reading what was stored: claim some, read them, have it written down what follows."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

import structlog

from app.core import ids
from app.core.config import Settings
from app.core.db import DATABASE_ERRORS, Database, is_away
from app.inbound import keeper, queries
from app.inbound.queries import Claimed
from app.inbound.settle import ATTEMPTS_MAX, settle
from app.mail import report
from app.mail.report import Report

_BATCH: Final = 100
_BATCH_BYTES: Final = 8 * 2**20
_BACKOFF_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


class Reader:
    """Reads stored mails. Any number of processes may do so at once."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self._poll_seconds = settings.poll_seconds
        self._lease_seconds = settings.lease_seconds
        self._wake = asyncio.Event()
        self._stopping = False

    def ring(self) -> None:
        """There is mail to be read."""
        self._wake.set()

    def stop(self) -> None:
        """Begin no other batch; `run` returns when the present one has ended."""
        self._stopping = True
        self.ring()

    async def run(self) -> None:
        """Read until `stop`, however the database comes and goes."""
        while not self._stopping:
            try:
                number = await self.read_some()
            except DATABASE_ERRORS as error:
                log.warning("inbound_claim_failed", error=f"{type(error).__name__}: {error}"[:300])
                await asyncio.sleep(_BACKOFF_SECONDS)
                continue
            if not number:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_seconds * random.uniform(0.7, 1.3)):  # noqa: S311
                        await self._wake.wait()
                self._wake.clear()

    async def read_some(self) -> int:
        """Read a batch of what is due, and one of those that were claimed before; how many. Raises DATABASE_ERRORS."""
        return await self._read_batch(again=False) + await self._read_batch(again=True)

    async def _read_batch(self, *, again: bool) -> int:
        lease_token, ends_at = ids.new_id(), time.monotonic() + self._lease_seconds
        async with self._database.bare() as connection:
            mails = await queries.claim(
                connection,
                again=again,
                batch=1 if again else _BATCH,
                size_bytes=_BATCH_BYTES,
                lease_token=lease_token,
                lease_seconds=self._lease_seconds,
            )
        if mails:
            # Others are spoken to meanwhile.
            reports = await asyncio.to_thread(_read_all, mails)
            await self._settle(lease_token, mails, reports, ends_at)
        return len(mails)

    async def _settle(
        self, lease_token: UUID, mails: Sequence[Claimed], reports: Mapping[UUID, Report], ends_at: float
    ) -> None:
        """Have it written down, if that can be while the lease lasts; a mail that cannot be holds up no other."""
        while time.monotonic() < ends_at:
            try:
                async with self._database.bare() as connection, connection.transaction():
                    await settle(connection, lease_token, mails, reports)
                return
            except Exception as error:
                if not is_away(error):
                    log.exception("inbound_settle_refused", mails=len(mails))
                    break
                log.warning("inbound_settle_failed", error=f"{type(error).__name__}: {error}"[:300])
            await asyncio.sleep(_BACKOFF_SECONDS)
        else:
            return
        if len(mails) > 1:
            for mail in mails:
                await self._settle(lease_token, [mail], reports, ends_at)
        elif reports:
            # As good as not read.
            await self._settle(lease_token, mails, {}, ends_at)


def _read_all(mails: Sequence[Claimed]) -> dict[UUID, Report]:
    """What the mails say; left out is one that cannot be read, or seems to have ended its readers before."""
    found = {}
    for mail in mails:
        if mail.attempt > ATTEMPTS_MAX:
            log.error("inbound_mail_put_aside", mail_id=str(mail.id), attempts=mail.attempt)
            continue
        try:
            found[mail.id] = report.read(keeper.unpack(mail.content))
        except Exception:
            log.exception("inbound_mail_unreadable", mail_id=str(mail.id), attempt=mail.attempt)
    return found
