"""SQL of messages: accepting in one statement, reading back with the status summed up."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import ColumnElement, Text, and_, case, exists, func, insert, or_, select, text
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, array
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.selectable import LateralFromClause

from app.core import ids
from app.core.db import dumps, insert_json
from app.core.pagination import Page
from app.events.models import Event
from app.messages.models import Attachment, Delivery, Message, MessageBody, QueuedDelivery
from app.messages.schemas import Filters
from app.messages.status import PRECEDENCE, Status, sources

_TABLES = {
    "messages": Message,
    "bodies": MessageBody,
    "deliveries": Delivery,
    "queue": QueuedDelivery,
    "events": Event,
}


def _accept(parameters: Sequence[str]) -> str:
    """One round trip for all rows of all tables."""
    inserts = [insert_json(model, parameter) for model, parameter in zip(_TABLES.values(), parameters, strict=True)]
    return f"WITH {', '.join(f't{number} AS ({insert})' for number, insert in enumerate(inserts[1:]))} {inserts[0]}"


_ACCEPT = text(_accept([f":{name}" for name in _TABLES]))
_ACCEPT_BARE = _accept([f"${number}" for number in range(1, len(_TABLES) + 1)])
# COPY costs two round trips a table, and from here on less for each row than anything else.
_COPY_FROM = 12

_CLOCKS_APART = timedelta(hours=1)

Rows = list[dict[str, Any]]


async def accept(session: AsyncSession, tables: dict[str, Rows]) -> None:
    """Store accepted messages: rows of `messages bodies deliveries queue events`, whole, and of `attachments`."""
    attachments = tables.pop("attachments")
    await session.execute(_ACCEPT, {name: dumps(rows) for name, rows in tables.items()})
    if attachments:
        await session.execute(insert(Attachment), attachments)


async def store(connection: asyncpg.Connection, tables: dict[str, Rows]) -> None:
    """As `accept`, on the driver's own connection and in a transaction of its own. Rows of a table have equal keys."""
    attachments = tables["attachments"]
    if len(tables["messages"]) < _COPY_FROM and not attachments:
        await connection.execute(_ACCEPT_BARE, *(dumps(tables[name]) for name in _TABLES))
        return
    async with connection.transaction():
        for name, model in (*_TABLES.items(), ("attachments", Attachment)):
            if rows := tables[name]:
                records = [tuple(row.values()) for row in rows]
                await connection.copy_records_to_table(model.__tablename__, records=records, columns=list(rows[0]))


def _effective_status() -> ColumnElement[str]:
    """A delivery's status as of now: due at infinity it is `held`, a live lease is `sending`, a schedule that has come
    is `queued`.
    """
    due = QueuedDelivery.next_attempt_at <= func.now()
    return case(
        (QueuedDelivery.next_attempt_at == text("'infinity'"), Status.HELD.value),
        (and_(QueuedDelivery.lease_token.is_not(None), ~due), Status.SENDING.value),
        (and_(Delivery.status == Status.PENDING.value, due), Status.QUEUED.value),
        else_=Delivery.status,
    )


def _with_queue(statement: Any) -> Any:
    on = and_(QueuedDelivery.org_id == Delivery.org_id, QueuedDelivery.delivery_id == Delivery.id)
    return statement.select_from(Delivery).outerjoin(QueuedDelivery, on)


def _summary() -> LateralFromClause:
    """Of the message that it stands beside: the rank of its status, when it was settled, its first recipient."""
    precedence = array([status.value for status in PRECEDENCE], type_=ARRAY(Text))
    recipients = func.array_agg(aggregate_order_by(Delivery.recipient, Delivery.id), type_=ARRAY(Text))
    statement = select(
        func.min(func.array_position(precedence, _effective_status())).label("rank"),
        func.max(Delivery.settled_at).label("settled_at"),
        recipients[1].label("first_recipient"),
    )
    mine = and_(Delivery.org_id == Message.org_id, Delivery.message_id == Message.id)
    found: LateralFromClause = _with_queue(statement).where(mine).correlate(Message).lateral("summary")
    return found


def _select_messages() -> tuple[Any, LateralFromClause]:
    summary = _summary()
    columns = (summary.c.rank, summary.c.settled_at, summary.c.first_recipient)
    return select(Message, *columns).join(summary, text("true")), summary


async def limit_time(session: AsyncSession) -> None:
    """Let this transaction's statements take a few seconds at most: filters that find little read a lot."""
    await session.execute(text("SET LOCAL statement_timeout = '4s'"))


async def page(
    session: AsyncSession, org_id: UUID, wanted: Page, filters: Filters, only_domains: Sequence[str] | None
) -> Sequence[Any]:
    """Messages of a page with (rank of status, settled_at, first recipient); one more than asked if there is one."""
    statement, summary = _select_messages()
    statement = statement.where(Message.org_id == org_id, *_conditions(filters, only_domains))
    if filters.status is not None:
        statement = statement.where(summary.c.rank == PRECEDENCE.index(filters.status) + 1)
    rows: Sequence[Any] = (await session.execute(wanted.select(statement, Message.id))).all()
    return rows


def _conditions(filters: Filters, only_domains: Sequence[str] | None) -> list[ColumnElement[bool]]:
    sender = Message.sender["email"].astext
    found: list[ColumnElement[bool]] = []
    if only_domains is not None:
        found.append(func.split_part(sender, "@", -1).in_(only_domains))
    if filters.sender is not None:
        found.append(func.lower(sender) == filters.sender.lower())
    if filters.to is not None:
        found.append(_has_recipient(func.lower(Delivery.recipient) == filters.to.lower()))
    if filters.tag is not None:
        found.append(Message.tags.contains([filters.tag]))
    if filters.batch_id is not None:
        found.append(Message.batch_id == filters.batch_id)
    if filters.domain_id is not None:
        found.append(Message.domain_id == filters.domain_id)
    if filters.created_from is not None:
        found.append(Message.id >= ids.floor(filters.created_from))
    if filters.created_to is not None:
        found.append(Message.id < ids.floor(filters.created_to))
    if filters.pattern is not None:
        like = filters.pattern
        found.append(
            or_(Message.subject.ilike(like), sender.ilike(like), _has_recipient(Delivery.recipient.ilike(like)))
        )
    return found


def _has_recipient(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(Delivery.org_id == Message.org_id, Delivery.message_id == Message.id, condition)


async def get(session: AsyncSession, org_id: UUID, message_id: UUID, only_domains: Sequence[str] | None) -> Any:
    """One message as in `page`."""
    statement, _ = _select_messages()
    conditions = _conditions(Filters(), only_domains)
    found = await session.execute(statement.where(Message.org_id == org_id, Message.id == message_id, *conditions))
    return found.one_or_none()


async def deliveries(session: AsyncSession, org_id: UUID, message_id: UUID) -> Sequence[Any]:
    """A message's deliveries in the order given, each with (status as of now, when it is tried again)."""
    statement = _with_queue(
        select(Delivery, _effective_status(), QueuedDelivery.next_attempt_at, QueuedDelivery.attempt)
    )
    mine = (Delivery.org_id == org_id, Delivery.message_id == message_id)
    return (await session.execute(statement.where(*mine).order_by(Delivery.id))).all()


async def events(session: AsyncSession, org_id: UUID, message_id: UUID, *, limit: int) -> list[Event]:
    """A message's events as they were written, oldest first."""
    # No event is older than its message but by the difference of two hosts' clocks: older partitions are not searched.
    oldest = ids.floor(ids.time_of(message_id) - _CLOCKS_APART)
    statement = select(Event).where(Event.org_id == org_id, Event.message_id == message_id, Event.id >= oldest)
    return list(await session.scalars(statement.order_by(Event.id).limit(limit)))


async def content(session: AsyncSession, org_id: UUID, message_id: UUID) -> tuple[bytes, Sequence[Attachment]] | None:
    """What a message says, packed, and its files in order; None when they are kept no longer."""
    packed = await session.scalar(
        select(MessageBody.content).where(MessageBody.org_id == org_id, MessageBody.message_id == message_id)
    )
    mine = (Attachment.org_id == org_id, Attachment.message_id == message_id)
    files = await session.scalars(select(Attachment).where(*mine).order_by(Attachment.position))
    return None if packed is None else (packed, files.all())


# A message's deliveries are made in its own millisecond, so both tables are read along their keys. A row that a worker
# is just claiming is waited for, and is looked at again then: either it is cancelled, or the worker has it.
_CANCEL = text(
    """
    WITH gone AS (
        DELETE FROM delivery_queue
        WHERE org_id = :org_id AND message_id = :message_id AND delivery_id BETWEEN :first AND :last
          AND (lease_token IS NULL OR next_attempt_at <= now())
        RETURNING delivery_id
    )
    UPDATE deliveries d SET status = 'cancelled', settled_at = :now
    FROM gone
    WHERE d.org_id = :org_id AND d.id = gone.delivery_id AND d.id BETWEEN :first AND :last
      AND d.status = ANY(:sources)
    RETURNING d.id, d.recipient
    """
)
# Of a UUIDv7 (RFC 9562 section 5.7).
_BELOW_TIME_BITS = 80
_TELL = text(insert_json(Event, ":events"))


async def cancel(session: AsyncSession, org_id: UUID, message_id: UUID, *, now: datetime) -> int:
    """Take a message's copies out of the queue that no worker holds, and say so; how many there were."""
    values = {
        "org_id": org_id,
        "message_id": message_id,
        "first": UUID(int=message_id.int >> _BELOW_TIME_BITS << _BELOW_TIME_BITS),
        "last": UUID(int=message_id.int | (1 << _BELOW_TIME_BITS) - 1),
        "now": now,
        "sources": sources(Status.CANCELLED),
    }
    copies = (await session.execute(_CANCEL, values)).all()
    key = {"org_id": org_id, "message_id": message_id, "type": "cancelled", "occurred_at": now, "data": {}}
    events = [{**key, "id": ids.new_id(), "delivery_id": one.id, "recipient": one.recipient} for one in copies]
    if events:
        await session.execute(_TELL, {"events": dumps(events)})
    return len(events)


@dataclass(frozen=True, slots=True)
class Later:
    """An event that is told of a copy after its attempts.

    `early` is laid over `data` within two seconds of the copy's end; `sources`: the states from which it moves the
    copy's own.
    """

    org_id: UUID
    delivery_id: UUID
    event_id: UUID
    type: str
    occurred_at: datetime
    data: dict[str, Any]
    early: dict[str, Any]
    sources: list[str] | None


# Sorted, so that two that move copies of one message do not wait for each other in a circle.
_RECORD_LATER = """
    WITH h AS MATERIALIZED (
        SELECT * FROM unnest(
            $1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::timestamptz[], $6::jsonb[], $7::jsonb[], $8::text[])
        AS h(org_id, delivery_id, id, type, occurred_at, data, early, sources)
    ), locked AS MATERIALIZED (
        SELECT h.id FROM h JOIN deliveries d ON d.org_id = h.org_id AND d.id = h.delivery_id
        WHERE h.sources IS NOT NULL AND d.status = ANY(h.sources::text[])
        ORDER BY d.org_id, d.id FOR UPDATE OF d
    ), moved AS (
        UPDATE deliveries d
        SET status = h.type, last_response = coalesce(h.data ->> 'response', d.last_response),
            category = coalesce(h.data ->> 'category', d.category), settled_at = h.occurred_at
        FROM h JOIN locked USING (id)
        WHERE d.org_id = h.org_id AND d.id = h.delivery_id
        RETURNING h.id
    ), told AS (
        INSERT INTO events (org_id, id, message_id, delivery_id, type, recipient, occurred_at, data)
        SELECT d.org_id, h.id, d.message_id, d.id, h.type, d.recipient, h.occurred_at,
               CASE WHEN h.occurred_at < coalesce(d.settled_at, 'infinity') + interval '2 seconds'
                    THEN h.data || h.early ELSE h.data END
        FROM h JOIN deliveries d ON d.org_id = h.org_id AND d.id = h.delivery_id
        WHERE h.sources IS NULL OR h.id IN (SELECT id FROM moved)
        RETURNING org_id, id, message_id, recipient
    )
    SELECT told.id, told.message_id, told.recipient, m.simulated
    FROM told JOIN messages m ON m.org_id = told.org_id AND m.id = told.message_id
    """


async def record_later(connection: asyncpg.Connection, rows: Sequence[Later]) -> dict[UUID, tuple[UUID, str, bool]]:
    """Write the events, and move the copies that may move; (message_id, recipient, simulated) of those written."""
    columns = (
        [row.org_id for row in rows],
        [row.delivery_id for row in rows],
        [row.event_id for row in rows],
        [row.type for row in rows],
        [row.occurred_at for row in rows],
        [row.data for row in rows],
        [row.early for row in rows],
        [None if row.sources is None else "{" + ",".join(row.sources) + "}" for row in rows],
    )
    found = await connection.fetch(_RECORD_LATER, *columns)
    return {identifier: (message_id, recipient, simulated) for identifier, message_id, recipient, simulated in found}


_WRITTEN_LATER = """
    SELECT e.id FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS h(org_id, delivery_id, id)
    JOIN deliveries d ON d.org_id = h.org_id AND d.id = h.delivery_id
    JOIN events e ON e.org_id = d.org_id AND e.message_id = d.message_id AND e.id = h.id
    """


async def written_later(connection: asyncpg.Connection, rows: Sequence[Later]) -> set[UUID]:
    """The ids of those among these events that are there already."""
    columns = ([row.org_id for row in rows], [row.delivery_id for row in rows], [row.event_id for row in rows])
    return {identifier for (identifier,) in await connection.fetch(_WRITTEN_LATER, *columns)}
