"""Handing events on: from an organization's log to a delivery for each of its webhooks that wants them.

The deliveries and the place up to which events were handed on commit together, so a crash leaves out and repeats
nothing. What an endpoint has room for is written under a lease of this process, which so need not claim it again.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from app.core import ids
from app.core.db import plan_anew
from app.messages import feed
from app.messages.feed import FeedEvent
from app.webhooks import payload
from app.webhooks.due import EndpointRow, Job
from app.webhooks.endpoint import Endpoint, Endpoints

BATCH = 500
# Events of types that nobody wants are passed over this many at a time.
_SCAN = 2000
_ORGANIZATIONS = 200
# A position that is older than this is moved on even if nothing was told: then only the latest partitions need to be
# looked into for all of them.
_STALE = timedelta(days=1)
_LATE = timedelta(days=9)

_HORIZON = "(SELECT pg_snapshot_{end}(pg_current_snapshot())::text::bigint)"
_NEWS = f"""
    SELECT c.org_id, n.count FROM webhook_cursors c
    CROSS JOIN LATERAL (
        SELECT count(*)::int FROM webhooks w WHERE w.org_id = c.org_id AND w.disabled_at IS NULL
    ) n
    WHERE n.count > 0
      AND (c.event_id < $1::uuid OR c.tx >= {_HORIZON.format(end="xmax")}
           OR EXISTS (SELECT FROM events e WHERE e.org_id = c.org_id AND (e.tx, e.id) > (c.tx, c.event_id)
                        AND e.tx < {_HORIZON.format(end="xmin")} AND e.id >= $2::uuid))
    ORDER BY random() LIMIT $3::int
    """  # noqa: S608 - a query of our own
# The horizon is older than the webhooks read after it: one that is not seen yet is owed only what lies beyond it.
_LOCK = f"""
    SELECT tx, event_id, now(), {_HORIZON.format(end="xmin")}, {_HORIZON.format(end="xmax")}
    FROM webhook_cursors WHERE org_id = $1::uuid FOR UPDATE SKIP LOCKED
    """  # noqa: S608 - a query of our own
_WEBHOOKS = """
    SELECT org_id, id, url, secret, previous_secret, previous_expires_at, failing_since, event_types, since_tx
    FROM webhooks WHERE org_id = $1::uuid AND disabled_at IS NULL
    """
_MOVE = "UPDATE webhook_cursors SET tx = $2::bigint, event_id = $3::uuid WHERE org_id = $1::uuid"
_COLUMNS = (
    *("org_id", "id", "webhook_id", "event_id", "event_type", "message_id", "payload"),
    *("created_at", "next_attempt_at", "lease_token"),
)


@dataclass(frozen=True, slots=True)
class Handed:
    """What came of handing on one batch: deliveries in this process's hands, how many others wait in the database for
    each endpoint, whether there are more events, and how old the first of these was.
    """

    jobs: list[tuple[Endpoint, Job]]
    left: Counter[Endpoint]
    has_more: bool
    age: timedelta


_NOTHING = Handed([], Counter(), has_more=False, age=timedelta())


@dataclass(frozen=True, slots=True)
class _Subscriber:
    endpoint: Endpoint
    types: frozenset[str]
    since_tx: int

    def wants(self, event: FeedEvent) -> bool:
        return event.tx >= self.since_tx and (not self.types or payload.type_of(event) in self.types)


async def organizations_with_news(connection: asyncpg.Connection) -> list[tuple[UUID, int]]:
    """Organizations with events for their webhooks, some of them when there are very many; how many webhooks are on."""
    now = datetime.now(UTC)
    rows = await connection.fetch(_NEWS, ids.floor(now - _STALE), ids.floor(now - _LATE), _ORGANIZATIONS)
    return [(org_id, count) for org_id, count in rows]


async def hand_on(
    connection: asyncpg.Connection, org_id: UUID, endpoints: Endpoints, *, limit: int, budget: int, lease_seconds: float
) -> Handed:
    """Hand on an organization's next events, at most `limit`: a delivery for each webhook that wants one.

    Up to `budget` of them are in this process's hands then, the others are due. Nothing while another process is
    about it. Raises DATABASE_ERRORS.
    """
    leased_until = time.monotonic() + lease_seconds
    async with connection.transaction():
        await plan_anew(connection)
        locked = await connection.fetchrow(_LOCK, org_id)
        if locked is None:
            return _NOTHING
        tx, event_id, now, below, unborn = locked
        rows = await connection.fetch(_WEBHOOKS, org_id)
        subscribers = [_subscriber(row, endpoints, unborn) for row in rows]
        if not subscribers:
            return _NOTHING
        wanted = feed.Wanted(limit, _SCAN, types=_types(subscribers))
        page = await feed.read(connection, org_id, feed.Position(tx, event_id), feed.Horizon(below, unborn), wanted)
        deliveries = _Deliveries(org_id, now, budget, timedelta(seconds=lease_seconds), leased_until)
        for event in page.events:
            deliveries.add(event, subscribers)
        if deliveries.records:
            table = "webhook_deliveries"
            await connection.copy_records_to_table(table, records=deliveries.records, columns=_COLUMNS)
        await connection.execute(_MOVE, org_id, page.next.tx, page.next.event_id)
    age = now - page.events[0].occurred_at if page.events else timedelta()
    return Handed(deliveries.jobs, deliveries.left, page.has_more, age)


def _subscriber(row: asyncpg.Record, endpoints: Endpoints, unborn: int) -> _Subscriber:
    *columns, types, since_tx = row
    # In a restored database it may bear a number that has not been reached; see `app.messages.feed`.
    since_tx = since_tx if since_tx < unborn else 0
    return _Subscriber(endpoints.know(EndpointRow(*columns)), frozenset(types), since_tx)


def _types(subscribers: Sequence[_Subscriber]) -> list[str] | None:
    """The types of events that any of them wants; None: all."""
    if not all(one.types for one in subscribers):
        return None
    return sorted({name.removeprefix(payload.PREFIX) for one in subscribers for name in one.types})


class _Deliveries:
    """The rows of one batch, and which of them are in this process's hands."""

    def __init__(self, org_id: UUID, now: datetime, budget: int, lease: timedelta, leased_until: float) -> None:
        self.records: list[tuple[Any, ...]] = []
        self.jobs: list[tuple[Endpoint, Job]] = []
        self.left: Counter[Endpoint] = Counter()
        self._org_id = org_id
        self._now = now
        self._budget = budget
        self._lease = lease
        self._leased_until = leased_until
        self._token = ids.new_id()
        self._taken: dict[Endpoint, int] = {}

    def add(self, event: FeedEvent, subscribers: Sequence[_Subscriber]) -> None:
        interested = [one.endpoint for one in subscribers if one.wants(event)]
        if not interested:
            return
        text = payload.of_event(event)
        for endpoint in interested:
            _, webhook_id = endpoint.key
            delivery_id = ids.new_id()
            key = (self._org_id, delivery_id, webhook_id, event.id, payload.type_of(event), event.message_id, text)
            if not self._takes(endpoint):
                self.left[endpoint] += 1
                self.records.append((*key, self._now, self._now, None))
                continue
            self.records.append((*key, self._now, self._now + self._lease, self._token))
            job = Job(self._org_id, delivery_id, webhook_id, event.id, text, 0, self._token, self._leased_until)
            self.jobs.append((endpoint, job))

    def _takes(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint has room for one more; what waits for it in the database goes first."""
        taken = self._taken.get(endpoint, 0)
        if endpoint.has_backlog or len(self.jobs) >= self._budget or taken >= endpoint.room:
            return False
        self._taken[endpoint] = taken + 1
        return True
