"""SQL of webhooks as the API and the operator see them; delivering has its own in `due` and `fanout`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.pagination import Page
from app.messages.feed import Horizon
from app.webhooks.due import WAITING
from app.webhooks.models import Webhook, WebhookCount, WebhookDelivery

_BELOW = text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
# Where others are on, the organization's place is theirs.
_FOLLOW = text(
    """
    INSERT INTO webhook_cursors AS c (org_id, tx, event_id) VALUES (:org_id, :tx, :event_id)
    ON CONFLICT (org_id) DO UPDATE SET tx = :tx, event_id = :event_id
    WHERE NOT EXISTS (SELECT FROM webhooks WHERE org_id = :org_id AND disabled_at IS NULL)
    """
)
# Bounded, as it is asked for metrics. A delivery that somebody holds is due at the end of its lease, so it counts once
# that has ended.
_OVERVIEW = text(
    f"""
    WITH RECURSIVE {WAITING}, oldest AS (
        SELECT min(first.next_attempt_at) AS due_at FROM waiting w CROSS JOIN LATERAL (
            SELECT d.next_attempt_at FROM webhook_deliveries d
            WHERE d.org_id = w.org_id AND d.webhook_id = w.webhook_id AND d.next_attempt_at <= now()
            ORDER BY d.next_attempt_at LIMIT 1
        ) first
    )
    SELECT (SELECT count(*) FROM (SELECT FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL LIMIT 1000000) b),
           coalesce(extract(epoch FROM now() - (SELECT due_at FROM oldest)), 0)
    """  # noqa: S608 - a query of our own
)


async def count(session: AsyncSession, org_id: UUID) -> int:
    """How many webhooks an organization has."""
    return await session.scalar(select(func.count()).select_from(Webhook).where(Webhook.org_id == org_id)) or 0


async def follow(session: AsyncSession, org_id: UUID) -> int:
    """Make ready to hand events on to one more webhook; the transaction from which on they are for it."""
    below = int(await session.scalar(_BELOW) or 0)
    position = Horizon(below, below).position
    await session.execute(_FOLLOW, {"org_id": org_id, "tx": position.tx, "event_id": position.event_id})
    return below


async def add(session: AsyncSession, values: Mapping[str, Any]) -> Webhook:
    """Store a webhook."""
    row = Webhook(**values)
    session.add(row)
    await session.flush()
    return row


async def get(session: AsyncSession, org_id: UUID, webhook_id: UUID, *, lock: bool = False) -> Webhook | None:
    """One webhook."""
    statement = select(Webhook).where(Webhook.org_id == org_id, Webhook.id == webhook_id)
    found: Webhook | None = await session.scalar(statement.with_for_update() if lock else statement)
    return found


async def page(session: AsyncSession, org_id: UUID, wanted: Page) -> Sequence[Webhook]:
    """A page of the organization's webhooks."""
    statement = wanted.select(select(Webhook).where(Webhook.org_id == org_id), Webhook.id)
    return (await session.scalars(statement)).all()


async def disable(session: AsyncSession, org_id: UUID, webhook_id: UUID, reason: str) -> Webhook | None:
    """Turn a webhook off; None when it was off already, or is gone."""
    statement = (
        update(Webhook)
        .where(Webhook.org_id == org_id, Webhook.id == webhook_id, Webhook.disabled_at.is_(None))
        .values(disabled_at=datetime.now(UTC), disabled_reason=reason)
        .returning(Webhook)
    )
    found: Webhook | None = await session.scalar(statement)
    return found


async def deliveries(
    session: AsyncSession, org_id: UUID, webhook_id: UUID, wanted: Page, status: str | None
) -> Sequence[WebhookDelivery]:
    """A page of a webhook's deliveries; bounded in time, as those of one status may be far between."""
    await session.execute(text("SET LOCAL statement_timeout = '4s'"))
    statement = select(WebhookDelivery).where(
        WebhookDelivery.org_id == org_id, WebhookDelivery.webhook_id == webhook_id
    )
    if status is not None:
        statement = statement.where(WebhookDelivery.status == status)
    return (await session.scalars(wanted.select(statement, WebhookDelivery.id))).all()


async def delivery(session: AsyncSession, org_id: UUID, webhook_id: UUID, delivery_id: UUID) -> WebhookDelivery | None:
    """One of a webhook's deliveries."""
    found: WebhookDelivery | None = await session.scalar(
        select(WebhookDelivery).where(
            WebhookDelivery.org_id == org_id,
            WebhookDelivery.id == delivery_id,
            WebhookDelivery.webhook_id == webhook_id,
        )
    )
    return found


async def queue(session: AsyncSession, rows: Sequence[dict[str, Any]]) -> None:
    """Store deliveries that are due at once. Rows have equal keys."""
    await session.execute(insert(WebhookDelivery).values(next_attempt_at=func.now()), rows)


async def pending(session: AsyncSession, org_id: UUID, webhook_id: UUID, *, limit: int) -> int:
    """How many deliveries wait for a webhook, counted up to `limit`."""
    waiting = (
        select(WebhookDelivery.id)
        .where(
            WebhookDelivery.org_id == org_id,
            WebhookDelivery.webhook_id == webhook_id,
            WebhookDelivery.next_attempt_at.is_not(None),
        )
        .limit(limit)
    )
    return await session.scalar(select(func.count()).select_from(waiting.subquery())) or 0


async def overview(session: AsyncSession) -> tuple[int, float, dict[str, int]]:
    """(pending, seconds that the oldest due one has waited, attempts ever by outcome)."""
    waiting, oldest = (await session.execute(_OVERVIEW)).one()
    counts = await session.execute(select(WebhookCount.outcome, WebhookCount.count))
    return waiting, float(oldest), {outcome: number for outcome, number in counts}
