"""API keys over HTTP."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends

from app.accounts import keys, views
from app.accounts.principal import Principal, Requires, Route, Scope
from app.accounts.schemas import ApiKeyBody, ApiKeyData, ApiKeysView, CreatedApiKeyView, RotateApiKeyBody
from app.core.db import Transaction
from app.core.errors import responses
from app.core.idempotency import OnceKey
from app.core.pagination import PageQuery
from app.core.schemas import Envelope

router = APIRouter(prefix="/api/v1/api-keys", tags=["API keys"], route_class=Route)

KeysPrincipal = Annotated[Principal, Depends(Requires(Scope.KEYS))]


@router.post(
    "",
    status_code=201,
    response_model=Envelope[CreatedApiKeyView],
    dependencies=[Depends(views.no_store)],
    responses=responses(401, 403, 409, 413, 422, 429),
    operation_id="create_api_key",
    summary="Create an API key",
    description=(
        "The whole key is in `data.secret`, this once. "
        "A key can do no more than who creates it: a wider one is refused with 403 `scope_exceeded`. "
        "A test key (`pmta_test_…`) reads and changes like any other, but never sends real mail."
    ),
)
async def create_api_key(
    body: ApiKeyBody, principal: KeysPrincipal, session: Transaction, once: OnceKey
) -> Envelope[CreatedApiKeyView]:
    await once.begin(principal.org_id, principal.id)
    key, secret = await keys.create_api_key(
        session,
        principal,
        name=body.name,
        scopes=body.scopes,
        domains=body.domains,
        source_addresses=body.source_addresses,
        expires_at=body.expires_at,
        is_test=body.test or principal.is_test,
    )
    view = CreatedApiKeyView(api_key=views.api_key(key), secret=secret)
    return await once.remember(201, Envelope[CreatedApiKeyView](data=view))


@router.get(
    "",
    response_model=Envelope[ApiKeysView],
    responses=responses(401, 403, 422, 429),
    operation_id="list_api_keys",
    summary="List API keys",
    description="The organization's API keys, newest first.",
)
async def list_api_keys(principal: KeysPrincipal, session: Transaction, page: PageQuery) -> Envelope[ApiKeysView]:
    found, pagination = await keys.list_api_keys(session, principal.org_id, page)
    return Envelope(data=ApiKeysView(api_keys=list(map(views.api_key, found)), pagination=pagination))


@router.get(
    "/{api_key_id}",
    response_model=Envelope[ApiKeyData],
    responses=responses(401, 403, 404, 422, 429),
    operation_id="get_api_key",
    summary="Get an API key",
    description="One API key, without its secret.",
)
async def get_api_key(api_key_id: UUID, principal: KeysPrincipal, session: Transaction) -> Envelope[ApiKeyData]:
    key = await keys.get_api_key(session, principal.org_id, api_key_id)
    return Envelope(data=ApiKeyData(api_key=views.api_key(key)))


@router.post(
    "/{api_key_id}/rotate",
    status_code=201,
    response_model=Envelope[CreatedApiKeyView],
    dependencies=[Depends(views.no_store)],
    responses=responses(401, 403, 404, 409, 413, 422, 429),
    operation_id="rotate_api_key",
    summary="Rotate an API key",
    description=(
        "Gives the key a new secret, in `data.secret`, this once; its id and all it may do stay. The present secret "
        "works on for `overlap_seconds` (24 hours unless you say otherwise), then it is refused with 401 "
        "`api_key_rotated`. Rotating again during an overlap voids the oldest secret. Only who may do all that the "
        "key may can rotate it; others get 403 `scope_exceeded`."
    ),
)
async def rotate_api_key(
    api_key_id: UUID,
    principal: KeysPrincipal,
    session: Transaction,
    once: OnceKey,
    body: RotateApiKeyBody = RotateApiKeyBody(),  # noqa: B008 - frozen in effect: nobody writes to it
) -> Envelope[CreatedApiKeyView]:
    await once.begin(principal.org_id, principal.id)
    overlap = timedelta(seconds=body.overlap_seconds)
    key, secret = await keys.rotate_api_key(session, principal, api_key_id, overlap=overlap)
    view = CreatedApiKeyView(api_key=views.api_key(key), secret=secret)
    return await once.remember(201, Envelope[CreatedApiKeyView](data=view))


@router.delete(
    "/{api_key_id}",
    status_code=204,
    responses=responses(401, 403, 404, 422, 429),
    operation_id="delete_api_key",
    summary="Delete an API key",
    description="The key ceases to work within two seconds.",
)
async def delete_api_key(api_key_id: UUID, principal: KeysPrincipal, session: Transaction) -> None:
    await keys.delete_api_key(session, principal.org_id, api_key_id)
