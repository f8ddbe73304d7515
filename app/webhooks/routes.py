"""/api/v1/webhooks"""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Query, Request

from app.accounts.principal import Principal, Requires, Route, Scope
from app.core import errors
from app.core.db import Database, Transaction, database
from app.core.idempotency import OnceKey
from app.core.pagination import PageQuery
from app.core.schemas import Envelope
from app.webhooks import schemas, service

router = APIRouter(prefix="/api/v1/webhooks", tags=["Webhooks"], route_class=Route)

# An endpoint is told of all mail, so a key that may see some of it only has no say in it.
Caller = Annotated[Principal, Depends(Requires(Scope.WEBHOOKS, all_domains=True))]

_CREATE = """An endpoint is told of each event within about a second by a POST, signed after Standard Webhooks
(`webhook-id`, `webhook-timestamp`, `webhook-signature`). `secret` is shown in this answer only. What is sent is
described under `webhooks` in this document.

Only an answer of 2xx within 15 seconds is a success. Anything else is tried again after 5 seconds, 5 and 30 minutes, 2,
5, 10, 14, 20 and 24 hours, and later if the answer (429 or 503) has a `Retry-After`; redirects are not followed. 410
disables the webhook at once, and so do five days without a success; the owners are told by mail.

Events may come in another order than they happened, and in rare cases twice, under the same `webhook-id`; `sequence`
tells the order of a message's events. Nobody needs to trust webhooks alone: see `GET /api/v1/events`."""


@router.post(
    "",
    status_code=201,
    operation_id="create_webhook",
    summary="Create a webhook endpoint",
    description=_CREATE,
    responses=errors.responses(401, 403, 409, 413, 422, 429),
)
async def create_webhook(
    body: schemas.NewWebhook, principal: Caller, session: Transaction, once: OnceKey, request: Request
) -> Envelope[schemas.WebhookSecretData]:
    await once.begin(principal.org_id, principal.id)
    created = await service.create(session, principal.org_id, body, request.app.state.settings)
    return await once.remember(201, Envelope(data=created))


@router.get(
    "",
    operation_id="list_webhooks",
    summary="List all webhooks",
    description="The organization's webhooks, newest first.",
    responses=errors.responses(401, 403, 422, 429),
)
async def list_webhooks(principal: Caller, session: Transaction, page: PageQuery) -> Envelope[schemas.WebhooksData]:
    webhooks, pagination = await service.page(session, principal.org_id, page)
    return Envelope(data=schemas.WebhooksData(webhooks=webhooks, pagination=pagination))


@router.get(
    "/{webhook_id}",
    operation_id="get_webhook",
    summary="Get webhook details",
    description="One webhook, as it is set, and how it does.",
    responses=errors.responses(401, 403, 404, 422, 429),
)
async def get_webhook(webhook_id: UUID, principal: Caller, session: Transaction) -> Envelope[schemas.WebhookData]:
    return Envelope(data=schemas.WebhookData(webhook=await service.get(session, principal.org_id, webhook_id)))


@router.put(
    "/{webhook_id}",
    operation_id="update_webhook",
    summary="Update webhook configuration",
    description="Changes the fields that are given; the others stay as they are. What is under way goes to the old "
    "address still, for some seconds. While a webhook is disabled no event is queued for it, and what waited is "
    "cancelled; `replay` brings both after it was enabled again.",
    responses=errors.responses(401, 403, 404, 413, 422, 429),
)
async def update_webhook(
    webhook_id: UUID, body: schemas.WebhookChanges, principal: Caller, session: Transaction, request: Request
) -> Envelope[schemas.WebhookData]:
    webhook = await service.update(session, principal.org_id, webhook_id, body, request.app.state.settings)
    return Envelope(data=schemas.WebhookData(webhook=webhook))


@router.delete(
    "/{webhook_id}",
    status_code=204,
    operation_id="delete_webhook",
    summary="Delete a webhook",
    description="Nothing is sent to it any more, but for what is under way; what waits is cancelled.",
    responses=errors.responses(401, 403, 404, 422, 429),
)
async def delete_webhook(webhook_id: UUID, principal: Caller, session: Transaction) -> None:
    await service.delete(session, principal.org_id, webhook_id)


@router.post(
    "/{webhook_id}/rotate-secret",
    status_code=201,
    operation_id="rotate_webhook_secret",
    summary="Give a webhook a new secret",
    description="The new secret is shown in this answer only. For `overlap_seconds` (a day unless given) payloads "
    "bear two signatures, so that a receiver which knows one of the two secrets can verify them. Rotating again "
    "within that time ends the older of the two.",
    responses=errors.responses(401, 403, 404, 409, 413, 422, 429),
)
async def rotate_secret(
    webhook_id: UUID,
    body: Annotated[schemas.RotateSecret, Body(default_factory=schemas.RotateSecret)],
    principal: Caller,
    session: Transaction,
    once: OnceKey,
) -> Envelope[schemas.WebhookSecretData]:
    await once.begin(principal.org_id, principal.id)
    rotated = await service.rotate(session, principal.org_id, webhook_id, body.overlap_seconds)
    return await once.remember(201, Envelope(data=rotated))


@router.post(
    "/{webhook_id}/test",
    status_code=202,
    operation_id="test_webhook",
    summary="Send test event to webhook",
    description="Queues a made-up event, marked `test` in its data, whichever types the webhook gets. Look at the "
    "delivery in the answer to see what came of it. 409 `webhook_disabled` while it is off.",
    responses=errors.responses(401, 403, 404, 409, 413, 422, 429),
)
async def test_webhook(
    webhook_id: UUID,
    body: Annotated[schemas.TestEvent, Body(default_factory=schemas.TestEvent)],
    principal: Caller,
    session: Transaction,
    once: OnceKey,
) -> Envelope[schemas.DeliveryData]:
    await once.begin(principal.org_id, principal.id)
    queued = await service.test(session, principal.org_id, webhook_id, body.type)
    return await once.remember(202, Envelope(data=schemas.DeliveryData(delivery=queued)))


@router.post(
    "/{webhook_id}/replay",
    status_code=202,
    operation_id="replay_webhook",
    summary="Send the events of a time range again",
    description="Queues what was recorded from `from` to `to`, whether or not it was sent before, at most 1,000 events "
    "a call: `queued` of them, and with `next` as `after` the same call goes on. An event keeps its `webhook-id` and "
    "its payload. 409 `webhook_disabled` while it is off, `too_many_pending` when 100,000 deliveries wait already.",
    responses=errors.responses(401, 403, 404, 409, 413, 422, 429, 503),
)
async def replay_webhook(
    webhook_id: UUID,
    body: schemas.ReplayRange,
    principal: Caller,
    session: Transaction,
    once: OnceKey,
    store: Annotated[Database, Depends(database)],
) -> Envelope[schemas.ReplayData]:
    await once.begin(principal.org_id, principal.id)
    replay = await service.replay(session, store, principal.org_id, webhook_id, body)
    return await once.remember(202, Envelope(data=schemas.ReplayData(replay=replay)))


@router.get(
    "/{webhook_id}/deliveries",
    operation_id="list_webhook_deliveries",
    summary="Get webhook delivery logs",
    description="What the webhook was sent, or is to be, newest first, with every attempt. Kept as long as messages.",
    responses=errors.responses(401, 403, 404, 422, 429, 503),
)
async def list_deliveries(
    webhook_id: UUID,
    principal: Caller,
    session: Transaction,
    page: PageQuery,
    status: Annotated[schemas.DeliveryStatus | None, Query(description="Only those of this status.")] = None,
) -> Envelope[schemas.DeliveriesData]:
    found, pagination = await service.deliveries(session, principal.org_id, webhook_id, page, status)
    return Envelope(data=schemas.DeliveriesData(deliveries=found, pagination=pagination))


@router.get(
    "/{webhook_id}/deliveries/{delivery_id}",
    operation_id="get_webhook_delivery",
    summary="Get a delivery with its payload and attempts",
    description="One delivery: the very text that is sent, and every attempt.",
    responses=errors.responses(401, 403, 404, 422, 429),
)
async def get_delivery(
    webhook_id: UUID, delivery_id: UUID, principal: Caller, session: Transaction
) -> Envelope[schemas.DeliveryData]:
    found = await service.delivery(session, principal.org_id, webhook_id, delivery_id)
    return Envelope(data=schemas.DeliveryData(delivery=found))


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/replay",
    status_code=202,
    operation_id="replay_webhook_delivery",
    summary="Send one delivery again",
    description="Queues the same payload under the same `webhook-id` as a delivery of its own, whatever became of the "
    "first one. 409 `webhook_disabled` while the webhook is off.",
    responses=errors.responses(401, 403, 404, 409, 422, 429),
)
async def replay_delivery(
    webhook_id: UUID, delivery_id: UUID, principal: Caller, session: Transaction, once: OnceKey
) -> Envelope[schemas.DeliveryData]:
    await once.begin(principal.org_id, principal.id)
    queued = await service.replay_one(session, principal.org_id, webhook_id, delivery_id)
    return await once.remember(202, Envelope(data=schemas.DeliveryData(delivery=queued)))
