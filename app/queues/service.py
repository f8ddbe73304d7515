"""Queues as an organization sees them, and what it can do to them.

PostroadError
├── NotFound      queue_not_found, vmta_not_found
├── Conflict      too_many_holds
└── Unavailable   too_many_searches
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.principal import Principal
from app.core.db import Database
from app.core.errors import Conflict, NotFound, Unavailable
from app.core.pagination import Pagination
from app.queues import hold_queries, queries, schemas
from app.queues.pages import QueuePage
from app.queues.queries import DEFAULT_WAY, QueueRow, Wanted

MAX_HOLDS = 1000
MAX_SITE_LENGTH = 500
# Rows moved in one transaction: a fifth of a second, and locks that nobody waits for.
CHUNK = 10_000

_SITE = re.compile(rf"[a-z0-9_][a-z0-9._+-]{{0,{MAX_SITE_LENGTH - 1}}}")
_FLUSH_CHUNKS = 10
_FLUSH_SECONDS = 5.0
_FULLEST = 25
# Looks of one process at once: each may read a million rows, and sending must not wait behind them.
_looks = asyncio.Semaphore(2)
_LOOK_WAIT_SECONDS = 10

Action = Literal["flush", "hold", "release"]


@dataclass(frozen=True, slots=True)
class QueueId:
    """A way out (a vMTA's id, or the nil UUID) and a site."""

    way: UUID
    site: str


def parse_id(text: str) -> QueueId:
    """A queue's id as the API writes it. Raises NotFound: a malformed one names no queue."""
    name, at, site = text.partition("@")
    if not at or _SITE.fullmatch(site) is None:
        raise NotFound("queue")
    if name == "default":
        return QueueId(DEFAULT_WAY, site)
    try:
        way = UUID(name)
    except ValueError as error:
        raise NotFound("queue") from error
    if str(way) != name or way == DEFAULT_WAY:
        raise NotFound("queue")
    return QueueId(way, site)


async def page(
    session: AsyncSession, org_id: UUID, where: QueuePage, filters: schemas.Filters
) -> tuple[list[schemas.Queue], bool, Pagination]:
    """(a page of queues in the order of their ids, whether the counts are approximate, where the page stands).

    Raises Unavailable.
    """
    way = DEFAULT_WAY if filters.vmta_id == "default" else filters.vmta_id
    async with _looking(session):
        rows, is_approximate = await queries.page(session, org_id, Wanted(way, filters.site, filters.state), where)
    found, pagination = where.cut(rows, lambda row: row.id)
    return [_show(row) for row in found], is_approximate, pagination


async def get(session: AsyncSession, org_id: UUID, queue_id: str) -> schemas.Queue:
    """One queue, be it empty. Raises NotFound and Unavailable."""
    return await _get(session, org_id, await _known(session, org_id, queue_id))


async def status(session: AsyncSession, org_id: UUID) -> schemas.Totals:
    """All queues of the organization summed up. Raises Unavailable."""
    async with _looking(session):
        return schemas.Totals(**_sum(await queries.totals(session, org_id, Wanted())))


async def of_vmta(session: AsyncSession, org_id: UUID, vmta_id: UUID) -> schemas.VmtaLoad:
    """A vMTA's queues summed up. Raises NotFound and Unavailable."""
    vmta = await queries.vmta(session, org_id, vmta_id)
    if vmta is None or vmta.deleted_at is not None:
        raise NotFound("vmta")
    wanted = Wanted(way=vmta_id)
    async with _looking(session):
        totals = await queries.totals(session, org_id, wanted)
        rows = await queries.fullest(session, org_id, wanted, limit=_FULLEST)
    return schemas.VmtaLoad(
        **_sum(totals),
        vmta=schemas.QueueVmta(id=vmta.id, name=vmta.name),
        paused=vmta.paused_at is not None,
        fullest=[_show(row) for row in rows],
    )


async def flush(database: Database, principal: Principal, queue_id: str) -> schemas.ActionData:
    """Make the deferred mail of a queue due, up to 100,000 mails; the caller rings. Raises NotFound and Unavailable.

    A queue that is held stays so, and nothing of it is moved.
    """
    org_id = principal.org_id
    async with database.transaction() as session:
        queue = await _known(session, org_id, queue_id)
        is_held = await hold_queries.is_held(session, org_id, queue.way, queue.site)
    mails = 0
    ends_at = time.monotonic() + _FLUSH_SECONDS
    for _ in range(0 if is_held else _FLUSH_CHUNKS):
        async with database.transaction() as session:
            moved = await hold_queries.flush(session, org_id, queue.way, queue.site, limit=CHUNK)
        mails += moved
        if moved < CHUNK or time.monotonic() > ends_at:
            break
    return await _acted(database, org_id, queue, "flush", mails, is_complete=is_held or moved < CHUNK)


async def hold(database: Database, principal: Principal, queue_id: str) -> schemas.ActionData:
    """Let nothing more of a queue be transmitted until it is released. Raises NotFound, Conflict and Unavailable.

    The hold is committed first. Workers then put aside what they claim, so here only a first chunk is moved.
    """
    org_id = principal.org_id
    async with database.transaction() as session:
        queue = await _known(session, org_id, queue_id)
        is_held = await hold_queries.is_held(session, org_id, queue.way, queue.site)
        if not is_held and await hold_queries.count(session, org_id) >= MAX_HOLDS:
            raise Conflict("too_many_holds", f"An organization may hold {MAX_HOLDS} queues.")
        await hold_queries.add(session, org_id, queue.way, queue.site, created_by=principal.id)
    async with database.transaction() as session:
        moved = await hold_queries.park(session, org_id, queue.way, queue.site, limit=CHUNK)
    return await _acted(database, org_id, queue, "hold", moved, is_complete=moved < CHUNK)


async def release(database: Database, principal: Principal, queue_id: str) -> schemas.ActionData:
    """End the hold of a queue and make its held mail due; the caller rings. Raises NotFound and Unavailable.

    What is beyond a first chunk, and what workers put aside meanwhile, is left to `control.wake`.
    """
    org_id = principal.org_id
    async with database.transaction() as session:
        queue = await _known(session, org_id, queue_id)
        await hold_queries.remove(session, org_id, queue.way, queue.site)
    async with database.transaction() as session:
        moved = await hold_queries.release(session, org_id, queue.way, queue.site, limit=CHUNK)
    return await _acted(database, org_id, queue, "release", moved, is_complete=moved < CHUNK)


async def _acted(
    database: Database, org_id: UUID, queue: QueueId, action: Action, mails: int, *, is_complete: bool
) -> schemas.ActionData:
    async with database.transaction() as session:
        shown = await _get(session, org_id, queue)
    return schemas.ActionData(queue=shown, action=action, mails=mails, complete=is_complete)


async def _known(session: AsyncSession, org_id: UUID, queue_id: str) -> QueueId:
    queue = parse_id(queue_id)
    if queue.way != DEFAULT_WAY and await queries.vmta(session, org_id, queue.way) is None:
        raise NotFound("queue")
    return queue


async def _get(session: AsyncSession, org_id: UUID, queue: QueueId) -> schemas.Queue:
    async with _looking(session):
        return _show(await queries.one(session, org_id, queue.way, queue.site))


@asynccontextmanager
async def _looking(session: AsyncSession) -> AsyncIterator[None]:
    try:
        await asyncio.wait_for(_looks.acquire(), _LOOK_WAIT_SECONDS)
    except TimeoutError as error:
        raise Unavailable("too_many_searches", "Too many searches run at the moment; try again.") from error
    try:
        await queries.limit_time(session)
        yield
    finally:
        _looks.release()


def _show(row: QueueRow) -> schemas.Queue:
    return schemas.Queue(
        id=row.id,
        vmta=None if row.vmta_id is None else schemas.QueueVmta(id=row.vmta_id, name=row.vmta_name or ""),
        site=row.site,
        provider=row.provider,
        state=schemas.State(row.state),
        reason=row.reason,
        until=row.until,
        counts=_counts(row),
        oldest_due_seconds=row.oldest_due_seconds,
        next_attempt_at=row.next_at,
        domains=row.domains,
    )


def _counts(row: Any) -> schemas.Counts:
    deferred = row.total - row.waiting - row.held - row.sending
    return schemas.Counts(waiting=row.waiting, deferred=deferred, sending=row.sending, held=row.held, total=row.total)


def _sum(rows: Sequence[Any]) -> dict[str, Any]:
    """The fields of Totals from one row for each state."""
    counts = [_counts(row) for row in rows]
    return {
        "queues": sum(row.queues for row in rows),
        "states": schemas.StateCounts(**{row.state: row.queues for row in rows}),
        "counts": schemas.Counts(
            **{name: sum(getattr(one, name) for one in counts) for name in schemas.Counts.model_fields}
        ),
        "oldest_due_seconds": _best(max, [row.oldest_due_seconds for row in rows]),
        "next_attempt_at": _best(min, [row.next_at for row in rows]),
        "approximate": any(row.is_met for row in rows),
    }


def _best(choose: Callable[[list[Any]], Any], values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    return choose(known) if known else None
