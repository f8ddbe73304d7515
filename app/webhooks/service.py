"""Webhooks: made, changed, their secrets rotated, tried out, and what they were sent looked up and sent again.

PostroadError
├── Conflict   too_many_webhooks, webhook_disabled, too_many_pending
├── Invalid    url_not_allowed, invalid_cursor
└── NotFound   webhook_not_found, delivery_not_found
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.notices import Mailer
from app.core import ids
from app.core.config import Settings
from app.core.db import Database
from app.core.errors import Conflict, Invalid, NotFound
from app.core.pagination import Page, Pagination
from app.core.web import WebError, check_url
from app.messages import feed
from app.webhooks import documented, notices, payload, queries, schemas, signing
from app.webhooks.models import Webhook, WebhookDelivery
from app.webhooks.schemas import DisabledReason

MAX_WEBHOOKS = 50
# Of what waits for one webhook, this much may have been asked for by hand.
MAX_PENDING = 100_000
_REPLAY_BATCH = 1000
_REPLAY_SCAN = 5000
# Events of one moment are stored within this time, clocks' differences included; see `replay`.
_LATE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Overview:
    """How delivering does: what waits, for how long the oldest has been due, attempts ever by outcome."""

    pending: int
    oldest_due_seconds: float
    attempts: dict[str, int]


async def create(
    session: AsyncSession, org_id: UUID, new: schemas.NewWebhook, settings: Settings
) -> schemas.WebhookSecretData:
    """Make a webhook, which gets the events from now on; with its secret. Raises Invalid, Conflict."""
    _check_url(new.url, settings)
    if await queries.count(session, org_id) >= MAX_WEBHOOKS:
        raise Conflict("too_many_webhooks", f"An organization may have {MAX_WEBHOOKS} webhooks.")
    secret = signing.make_secret()
    row = await queries.add(
        session,
        {
            "org_id": org_id,
            "id": ids.new_id(),
            "url": new.url,
            "description": new.description,
            "event_types": _stored(new.events),
            "since_tx": await queries.follow(session, org_id),
            "secret": signing.seal(secret),
        },
    )
    return schemas.WebhookSecretData(webhook=_show(row), secret=secret)


async def get(session: AsyncSession, org_id: UUID, webhook_id: UUID) -> schemas.Webhook:
    """One webhook. Raises NotFound."""
    return _show(await _load(session, org_id, webhook_id))


async def page(session: AsyncSession, org_id: UUID, wanted: Page) -> tuple[list[schemas.Webhook], Pagination]:
    """A page of the organization's webhooks, newest first."""
    rows, pagination = wanted.cut(await queries.page(session, org_id, wanted), lambda row: row.id)
    return list(map(_show, rows)), pagination


async def update(
    session: AsyncSession, org_id: UUID, webhook_id: UUID, changes: schemas.WebhookChanges, settings: Settings
) -> schemas.Webhook:
    """Change what is given; processes that deliver know within seconds. Raises NotFound, Invalid."""
    row = await _load(session, org_id, webhook_id, lock=True)
    if changes.url is not None:
        _check_url(changes.url, settings)
        row.url = changes.url
    if changes.events is not None:
        row.event_types = _stored(changes.events)
    if changes.description is not None:
        row.description = changes.description
    if changes.enabled and row.disabled_at is not None:
        row.since_tx = await queries.follow(session, org_id)
        row.disabled_at = row.disabled_reason = row.failing_since = None
    elif changes.enabled is False and row.disabled_at is None:
        row.disabled_at, row.disabled_reason = datetime.now(UTC), "manual"
    await session.flush()
    return _show(row)


async def delete(session: AsyncSession, org_id: UUID, webhook_id: UUID) -> None:
    """Forget a webhook; what waits for it is cancelled. Raises NotFound."""
    await session.delete(await _load(session, org_id, webhook_id, lock=True))


async def rotate(
    session: AsyncSession, org_id: UUID, webhook_id: UUID, overlap_seconds: int
) -> schemas.WebhookSecretData:
    """Give a webhook a new secret, beside which the old one signs for that long. Raises NotFound."""
    row = await _load(session, org_id, webhook_id, lock=True)
    secret = signing.make_secret()
    row.previous_secret = row.secret if overlap_seconds else None
    row.previous_expires_at = datetime.now(UTC) + timedelta(seconds=overlap_seconds) if overlap_seconds else None
    row.secret = signing.seal(secret)
    await session.flush()
    return schemas.WebhookSecretData(webhook=_show(row), secret=secret)


async def give_up(
    session: AsyncSession, mailer: Mailer, org_id: UUID, webhook_id: UUID, reason: DisabledReason
) -> None:
    """Disable a webhook that wants nothing, or takes nothing, and tell the owners; once."""
    row = await queries.disable(session, org_id, webhook_id, reason)
    if row is not None:
        await notices.tell_disabled(session, mailer, row, reason)


async def test(session: AsyncSession, org_id: UUID, webhook_id: UUID, type: str) -> schemas.DeliveryDetail:
    """Queue a made-up event of this type for a webhook, whichever types it gets. Raises NotFound, Conflict."""
    row = await _load_ready(session, org_id, webhook_id)
    event_id = ids.new_id()
    data = documented.example(type)["data"] | {"event_id": str(event_id), "test": True}
    text = payload.render(type, datetime.now(UTC), data)
    (queued,) = await _queue(session, row, [(event_id, type, None, text)], is_replay=False)
    return await delivery(session, org_id, webhook_id, queued)


async def deliveries(
    session: AsyncSession, org_id: UUID, webhook_id: UUID, wanted: Page, status: schemas.DeliveryStatus | None
) -> tuple[list[schemas.Delivery], Pagination]:
    """A page of what a webhook was sent, or is to be, newest first. Raises NotFound."""
    await _load(session, org_id, webhook_id)
    rows = await queries.deliveries(session, org_id, webhook_id, wanted, status)
    found, pagination = wanted.cut(rows, lambda row: row.id)
    return [schemas.Delivery(**_delivery(row)) for row in found], pagination


async def delivery(session: AsyncSession, org_id: UUID, webhook_id: UUID, delivery_id: UUID) -> schemas.DeliveryDetail:
    """One delivery with its payload. Raises NotFound."""
    await _load(session, org_id, webhook_id)
    row = await _load_delivery(session, org_id, webhook_id, delivery_id)
    return schemas.DeliveryDetail(**_delivery(row), payload=row.payload)


async def replay_one(
    session: AsyncSession, org_id: UUID, webhook_id: UUID, delivery_id: UUID
) -> schemas.DeliveryDetail:
    """Queue the same payload once more, under the same `webhook-id`. Raises NotFound, Conflict."""
    webhook = await _load_ready(session, org_id, webhook_id)
    row = await _load_delivery(session, org_id, webhook_id, delivery_id)
    again = (row.event_id, row.event_type, row.message_id, row.payload)
    (queued,) = await _queue(session, webhook, [again], is_replay=True)
    return await delivery(session, org_id, webhook_id, queued)


async def replay(
    session: AsyncSession, database: Database, org_id: UUID, webhook_id: UUID, asked: schemas.ReplayRange
) -> schemas.Replay:
    """Queue the events of a time range once more, a bounded number of them. Raises NotFound, Conflict, Invalid."""
    webhook = await _load_ready(session, org_id, webhook_id)
    until = asked.until or datetime.now(UTC)
    types: Sequence[str] = asked.types or webhook.event_types
    wanted = feed.Wanted(
        limit=_REPLAY_BATCH,
        scan=_REPLAY_SCAN,
        types=[name.removeprefix(payload.PREFIX) for name in types] or None,
        since=asked.since,
    )
    position = feed.START if asked.after is None else feed.decode(asked.after)
    async with database.bare() as connection:
        horizon, is_whole = await feed.horizon_of_now(connection)
        found = await feed.read(connection, org_id, position, horizon, wanted)
    end = ids.floor(until)
    events = [event for event in found.events if event.id < end]
    again = [(event.id, payload.type_of(event), event.message_id, payload.of_event(event)) for event in events]
    await _queue(session, webhook, again, is_replay=True)
    # Ids are in the order of time but for what was stored late: behind one that is much later there are none.
    has_more = found.has_more and found.next.event_id < ids.floor(until + _LATE)
    # What has happened may lie behind a transaction that takes long.
    has_more = has_more or not is_whole
    return schemas.Replay(queued=len(events), next=feed.encode(found.next) if has_more else None)


async def overview(session: AsyncSession) -> Overview:
    """How delivering does, all organizations together."""
    return Overview(*await queries.overview(session))


async def _queue(
    session: AsyncSession, webhook: Webhook, events: Sequence[tuple[UUID, str, UUID | None, str]], *, is_replay: bool
) -> list[UUID]:
    """Deliveries of (event id, type, message id, payload) for a webhook, due at once; their ids."""
    delivery_ids = [ids.new_id() for _ in events]
    rows = [
        {
            "org_id": webhook.org_id,
            "id": delivery_id,
            "webhook_id": webhook.id,
            "event_id": event_id,
            "event_type": type,
            "message_id": message_id,
            "payload": text,
            "is_replay": is_replay,
        }
        for delivery_id, (event_id, type, message_id, text) in zip(delivery_ids, events, strict=True)
    ]
    if rows:
        await queries.queue(session, rows)
    return delivery_ids


async def _load(session: AsyncSession, org_id: UUID, webhook_id: UUID, *, lock: bool = False) -> Webhook:
    row = await queries.get(session, org_id, webhook_id, lock=lock)
    if row is None:
        raise NotFound("webhook")
    return row


async def _load_ready(session: AsyncSession, org_id: UUID, webhook_id: UUID) -> Webhook:
    """A webhook to which something may be sent that was asked for by hand."""
    row = await _load(session, org_id, webhook_id)
    if row.disabled_at is not None:
        raise Conflict("webhook_disabled", "The webhook is disabled: enable it first.")
    if await queries.pending(session, org_id, webhook_id, limit=MAX_PENDING) >= MAX_PENDING:
        raise Conflict("too_many_pending", f"{MAX_PENDING:,} deliveries wait for this webhook already.")
    return row


async def _load_delivery(session: AsyncSession, org_id: UUID, webhook_id: UUID, delivery_id: UUID) -> WebhookDelivery:
    row = await queries.delivery(session, org_id, webhook_id, delivery_id)
    if row is None:
        raise NotFound("delivery")
    return row


def _check_url(url: str, settings: Settings) -> None:
    try:
        check_url(url, allow_private=settings.webhook_allow_private_networks)
    except WebError as error:
        raise Invalid.at("/url", str(error), code="url_not_allowed") from error


def _stored(events: Sequence[str]) -> list[str]:
    return [] if "*" in events else list(dict.fromkeys(events))


def _show(row: Webhook) -> schemas.Webhook:
    is_rotating = row.previous_expires_at is not None and row.previous_expires_at > datetime.now(UTC)
    return schemas.Webhook(
        id=row.id,
        url=row.url,
        description=row.description,
        events=row.event_types or ["*"],
        enabled=row.disabled_at is None,
        disabled_at=row.disabled_at,
        disabled_reason=row.disabled_reason,
        failing_since=row.failing_since,
        last_success_at=row.last_success_at,
        previous_secret_expires_at=row.previous_expires_at if is_rotating else None,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _delivery(row: WebhookDelivery) -> dict[str, Any]:
    return {
        "id": row.id,
        "event_id": row.event_id,
        "event_type": row.event_type,
        "message_id": row.message_id,
        "status": row.status,
        "attempts": row.attempts,
        "next_attempt_at": None if row.lease_token else row.next_attempt_at,
        "is_replay": row.is_replay,
        "created_at": row.created_at,
        "settled_at": row.settled_at,
    }
