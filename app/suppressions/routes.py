"""/api/v1/suppressions"""

from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.accounts.principal import Principal, Requires, Route, Scope
from app.core.db import Database, Transaction, database
from app.core.errors import Flaw, Invalid, responses
from app.core.idempotency import OnceKey
from app.core.pagination import PageQuery
from app.core.schemas import Envelope
from app.suppressions import schemas, service

router = APIRouter(prefix="/api/v1/suppressions", tags=["Suppressions"], route_class=Route)

Caller = Annotated[Principal, Depends(Requires(Scope.SUPPRESSIONS))]
Wanted = Annotated[schemas.Filters, Query()]

_CSV = "text/csv"
_SHEET = """address,reason,tag,detail
gone@example.com,hard_bounce,,550 5.1.1 No such user
no.more@example.com,unsubscribe,news,
"""


class Csv(StreamingResponse):
    """A CSV file (RFC 4180)."""

    media_type = _CSV


@router.post(
    "",
    status_code=201,
    operation_id="create_suppression",
    summary="Suppress an address",
    responses={
        200: {"description": "It was suppressed already.", "model": Envelope[schemas.SuppressionData]},
        **responses(401, 403, 409, 413, 422, 429, 503),
    },
)
async def create(
    body: schemas.NewSuppression, principal: Caller, session: Transaction, once: OnceKey, response: Response
) -> Envelope[schemas.SuppressionData]:
    """Send no more mail to an address, or no more that carries a tag. What is accepted for it from now on ends as
    `suppressed`, and so does what waits to be sent, once it is due; only what is with a worker at this moment may
    still go out. The other recipients of a mail get theirs. Simulated mail is not held back.

    Hard bounces of the address itself, complaints and unsubscribes suppress by themselves. The list is the whole
    organization's, also for keys that are restricted to domains and for test keys. An address that is suppressed
    already, under the same tag, stays as it is, with the reason of the first time: the answer is 200 then.
    """
    await once.begin(principal.org_id, principal.id)
    suppression, is_new = await service.add(session, principal.org_id, body)
    response.status_code = 201 if is_new else 200
    data = schemas.SuppressionData(suppression=suppression)
    return await once.remember(response.status_code, Envelope(data=data))


@router.get(
    "",
    operation_id="list_suppressions",
    summary="List suppressions",
    responses=responses(401, 403, 422, 429, 503),
)
async def list_suppressions(
    filters: Wanted, principal: Caller, session: Transaction, wanted: PageQuery
) -> Envelope[schemas.SuppressionsData]:
    """The organization's suppressions, newest first. Filters are combined: every one given must hold."""
    found, pagination = await service.page(session, principal.org_id, wanted, filters)
    return Envelope(data=schemas.SuppressionsData(suppressions=found, pagination=pagination))


@router.delete(
    "",
    status_code=204,
    operation_id="delete_suppression_by_address",
    summary="Delete an address's suppression",
    responses=responses(401, 403, 404, 422, 429, 503),
)
async def delete_by_address(one: Annotated[schemas.One, Query()], principal: Caller, session: Transaction) -> None:
    """Let mail go to the address again: without `tag` its suppression for all mail is deleted, with one that of the
    tag; any other stays. Who complained or unsubscribed should have asked for it.
    """
    await service.delete_of(session, principal.org_id, one.address, one.tag)


@router.post(
    "/bulk",
    operation_id="create_suppressions",
    summary="Suppress up to 1,000 addresses",
    responses=responses(401, 403, 409, 413, 422, 429, 503),
)
async def bulk(
    body: schemas.BulkRequest, principal: Caller, session: Transaction, once: OnceKey
) -> Envelope[schemas.BulkData]:
    """Suppress many at once. The valid items are suppressed, and `results` has one entry for each item, in its order:
    `added`, `already_suppressed` (it stays as it was), or `rejected` with what is wrong. When no item is valid the
    answer is a 422 `no_valid_address`.
    """
    await once.begin(principal.org_id, principal.id)
    data = await service.add_many(session, principal.org_id, body.items)
    return await once.remember(200, Envelope(data=data))


@router.post(
    "/import",
    operation_id="import_suppressions",
    summary="Import suppressions from CSV",
    responses=responses(401, 403, 409, 413, 422, 429, 503),
    openapi_extra={
        "requestBody": {"required": True, "content": {_CSV: {"schema": {"type": "string", "examples": [_SHEET]}}}}
    },
)
async def import_csv(
    request: Request, principal: Caller, session: Transaction, once: OnceKey
) -> Envelope[schemas.ImportData]:
    """Suppress what a CSV file names: the file itself is the body, in UTF-8, up to 1 MiB and 10,000 lines. Each line is
    `address[,reason[,tag[,detail]]]`; further cells are passed over, so that what `export` wrote can be imported. A
    header may stand above, an empty reason is `manual`, and an empty tag means all mail.

    The valid lines are imported, and `errors` says what is wrong with each of the others. When no line is valid the
    answer is a 422 `no_valid_line`, with the same under `lines`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _CSV:
        detail = "Send the file itself as the body, with Content-Type: text/csv."
        raise Invalid("invalid_csv", detail, flaws=[Flaw("/Content-Type", "must be text/csv", "header")])
    await once.begin(principal.org_id, principal.id)
    data = await service.import_csv(session, principal.org_id, await request.body())
    return await once.remember(200, Envelope(data=data))


@router.get(
    "/export",
    operation_id="export_suppressions",
    summary="Export suppressions as CSV",
    response_class=Csv,
    responses={
        200: {"content": {_CSV: {"schema": {"type": "string", "examples": [_SHEET]}}}},
        **responses(401, 403, 422, 429, 503),
    },
)
async def export_csv(filters: Wanted, principal: Caller, store: Annotated[Database, Depends(database)]) -> Csv:
    """All suppressions, or those that the filters let through, newest first: `address,reason,tag,detail,message_id,
    created_at` in UTF-8. A cell that begins with `=`, `+`, `-`, `@` or an apostrophe has an apostrophe before it, so
    that no spreadsheet takes it for a formula; `import` takes it away again.
    """
    pieces = service.export_csv(store, principal.org_id, filters)
    # With the first one at hand a database that is away can still be told of.
    first = await anext(pieces)

    async def content() -> AsyncIterator[str]:
        yield first
        async for piece in pieces:
            yield piece

    return Csv(content(), headers={"Content-Disposition": 'attachment; filename="suppressions.csv"'})


@router.get(
    "/check",
    operation_id="check_suppression",
    summary="Check an address",
    responses=responses(401, 403, 422, 429, 503),
)
async def check(
    wanted: Annotated[schemas.CheckQuery, Query()], principal: Caller, session: Transaction
) -> Envelope[schemas.CheckData]:
    """Whether a mail to the address, with these tags if any are given, would be held back, and by what."""
    (found,) = await service.check(session, principal.org_id, [wanted.address], wanted.tag)
    return Envelope(data=schemas.CheckData(check=found))


@router.post(
    "/check",
    operation_id="check_suppressions",
    summary="Check up to 1,000 addresses",
    responses=responses(401, 403, 413, 422, 429, 503),
)
async def check_many(
    body: schemas.CheckRequest, principal: Caller, session: Transaction
) -> Envelope[schemas.ChecksData]:
    """As the check of one address, for each of many, in their order. Changes nothing."""
    checks = await service.check(session, principal.org_id, body.addresses, body.tags)
    return Envelope(data=schemas.ChecksData(checks=checks))


@router.get(
    "/{suppression_id}",
    operation_id="get_suppression",
    summary="Get a suppression",
    responses=responses(401, 403, 404, 422, 429, 503),
)
async def get(suppression_id: UUID, principal: Caller, session: Transaction) -> Envelope[schemas.SuppressionData]:
    """One suppression, and what it was learnt from."""
    found = await service.get(session, principal.org_id, suppression_id)
    return Envelope(data=schemas.SuppressionData(suppression=found))


@router.delete(
    "/{suppression_id}",
    status_code=204,
    operation_id="delete_suppression",
    summary="Delete a suppression",
    responses=responses(401, 403, 404, 422, 429, 503),
)
async def delete(suppression_id: UUID, principal: Caller, session: Transaction) -> None:
    """Let mail go to the address again. Who complained or unsubscribed should have asked for it."""
    await service.delete(session, principal.org_id, suppression_id)
