"""/api/v1/events"""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query

from app.accounts.principal import Principal, Requires, Route
from app.accounts.scopes import Scope
from app.core.db import Database, database
from app.core.errors import responses
from app.core.schemas import Envelope, Text, TimestampInput
from app.messages import feed, schemas

router = APIRouter(prefix="/api/v1/events", tags=["Events"], route_class=Route)

# Of a page whose events are chosen among others.
_SCAN = 5000

_DESCRIPTION = """Everything that happens to the organization's mail, in an order that never changes: an event is either
behind a cursor or still to come, also when it was written late. So whoever keeps asking with `next` as `after` meets
each event once, with no need to trust webhooks alone.

`next` is always given, also with an empty page: wait a little, and ask again with it. A page may hold fewer events than
`limit`, even none, while `has_more` is true: filters are applied to a bounded number of events at a time.

`sequence` numbers a message's events from 1 in this order, and webhooks bear the same number. Events are kept for as
long as messages are; a cursor may be older."""


@router.get(
    "",
    operation_id="list_events",
    summary="Follow the events of all messages",
    description=_DESCRIPTION,
    responses=responses(401, 403, 422, 429, 503),
)
async def list_events(
    principal: Annotated[Principal, Depends(Requires(Scope.MESSAGES))],
    store: Annotated[Database, Depends(database)],
    limit: Annotated[int, Query(ge=1, le=100, description="Events on a page.")] = 25,
    after: Annotated[
        str | None,
        Query(max_length=64, description="`next` of the page before; without it, from the first event kept."),
    ] = None,
    since: Annotated[
        TimestampInput | None, Query(alias="from", description="Only events that were recorded since then.")
    ] = None,
    type: Annotated[
        list[schemas.EventType], Query(max_length=20, description="Only these; may be given several times.")
    ] = [],  # noqa: B006 - FastAPI copies it
    message_id: Annotated[UUID | None, Query(description="Only this message's.")] = None,
    recipient: Annotated[Text | None, Query(max_length=254, description="Only this address's.")] = None,
) -> Envelope[schemas.FeedData]:
    is_choosy = bool(type) or recipient is not None or principal.domains is not None
    wanted = feed.Wanted(
        limit=limit,
        scan=_SCAN if is_choosy else limit + 1,
        types=type or None,
        message_id=message_id,
        recipient=recipient,
        since=since,
        domains=None if principal.domains is None else sorted(principal.domains),
    )
    position = feed.START if after is None else feed.decode(after)
    async with store.bare() as connection:
        until = await feed.horizon(connection)
        page = await feed.read(connection, principal.org_id, position, until, wanted)
    pagination = schemas.FeedPagination(limit=limit, has_more=page.has_more, next=feed.encode(page.next))
    return Envelope(data=schemas.FeedData(events=list(map(_show, page.events)), pagination=pagination))


def _show(event: feed.FeedEvent) -> schemas.FeedEventOut:
    head = {"id": event.id, "type": event.type, "timestamp": event.occurred_at}
    return schemas.FeedEventOut(**(event.facts | head | event.told()))
