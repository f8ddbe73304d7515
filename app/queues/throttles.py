"""SQL of throttles: ways out that a site has told to slow down. Written and read by workers, for all organizations."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import dumps
from app.queues.models import Throttle

# Workers hear the same complaint many times at once, and mail that is on its way makes it some more times.
STRIKE_SECONDS = 30
STRIKES_MAX = 12
# A strike is forgiven for mail that gets through this long after the end, or after the one before.
FORGIVE_SECONDS = 300
# A way out that was not used any more is not remembered for ever.
KEPT_FOR = timedelta(days=1)

Key = tuple[UUID, str]

_ROWS = """json_to_recordset(:rows) AS r(
    vmta_id uuid, site text, reason text, base_seconds float, max_seconds float, suspend_from int)"""

# In one order for all workers, so that none wait for each other in a circle. While a site is suspended nothing is
# sent; what it says then is said of mail that was on its way before.
_STRIKE_AGAIN = text(
    f"""
    WITH r AS (SELECT * FROM {_ROWS}), found AS MATERIALIZED (
        SELECT t.vmta_id, t.site FROM queue_throttles t JOIN r USING (vmta_id, site)
        ORDER BY t.vmta_id, t.site FOR UPDATE OF t
    )
    UPDATE queue_throttles t
    SET strikes = least(t.strikes + 1, {STRIKES_MAX}), reason = r.reason, changed_at = now(),
        kind = CASE WHEN t.strikes + 1 >= r.suspend_from THEN 'suspended' ELSE 'slowed' END,
        since = CASE WHEN t.until > now() THEN t.since ELSE now() END,
        until = greatest(t.until, now() + make_interval(
            secs => least(r.base_seconds * 2 ^ least(t.strikes, {STRIKES_MAX}), r.max_seconds)))
    FROM found f JOIN r USING (vmta_id, site)
    WHERE t.vmta_id = f.vmta_id AND t.site = f.site
      AND t.changed_at < now() - make_interval(secs => {STRIKE_SECONDS})
      AND (t.kind = 'slowed' OR t.until <= now())
    """  # noqa: S608 - a query of our own
)

_STRIKE_FIRST = text(
    f"""
    INSERT INTO queue_throttles (vmta_id, site, kind, reason, strikes, until)
    SELECT vmta_id, site, CASE WHEN suspend_from <= 1 THEN 'suspended' ELSE 'slowed' END, reason, 1,
           now() + make_interval(secs => least(base_seconds, max_seconds))
    FROM {_ROWS} ORDER BY vmta_id, site
    ON CONFLICT DO NOTHING
    """  # noqa: S608 - a query of our own
)

_FORGIVE = text(
    f"""
    WITH found AS MATERIALIZED (
        SELECT t.vmta_id, t.site FROM queue_throttles t
        JOIN json_to_recordset(:keys) AS k(vmta_id uuid, site text) USING (vmta_id, site)
        ORDER BY t.vmta_id, t.site FOR UPDATE OF t
    )
    UPDATE queue_throttles t SET strikes = t.strikes - 1, changed_at = now()
    FROM found f
    WHERE t.vmta_id = f.vmta_id AND t.site = f.site
      AND greatest(t.until, t.changed_at) < now() - make_interval(secs => {FORGIVE_SECONDS})
    """  # noqa: S608 - a query of our own
)


@dataclass(frozen=True, slots=True)
class Strike:
    """A site has told a way out (the nil UUID is the platform's own) to slow down, and what follows from it.

    The throttle lasts `base_seconds`, twice as long with each further strike, up to `max_seconds`; it suspends from the
    strike of number `suspend_from` on, and slows down before.
    """

    vmta_id: UUID
    site: str
    reason: str
    base_seconds: float
    max_seconds: float
    suspend_from: int


@dataclass(frozen=True, slots=True)
class State:
    """One throttle, as it was when it was read. `is_active`: its time is not over, by the database's clock."""

    kind: str
    reason: str
    strikes: int
    until: datetime
    is_active: bool


async def load(session: AsyncSession) -> dict[Key, State]:
    """All throttles, also those whose time is over and whose strikes are not forgiven yet. Few at any time."""
    rows = await session.execute(select(Throttle, Throttle.until > func.now()))
    return {
        (row.vmta_id, row.site): State(row.kind, row.reason, row.strikes, row.until, is_active)
        for row, is_active in rows.tuples()
    }


async def report(session: AsyncSession, strikes: Sequence[Strike]) -> None:
    """Write strikes down, one of each key; those within 30 seconds of the one before are the same one."""
    rows = dumps([asdict(strike) for strike in strikes])
    await session.execute(_STRIKE_AGAIN, {"rows": rows})
    await session.execute(_STRIKE_FIRST, {"rows": rows})


async def forgive(session: AsyncSession, keys: Collection[Key]) -> None:
    """Mail got through on these ways: take one strike off those that ended five minutes ago or more."""
    await session.execute(_FORGIVE, {"keys": dumps([{"vmta_id": vmta_id, "site": site} for vmta_id, site in keys])})


async def forget_ended(session: AsyncSession) -> None:
    """Delete what is over: throttles that are forgiven, and those that ended a day ago."""
    is_over = (Throttle.strikes < 1) | (Throttle.until < func.now() - KEPT_FOR)
    await session.execute(delete(Throttle).where(Throttle.until < func.now(), is_over))
