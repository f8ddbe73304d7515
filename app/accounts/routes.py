"""Registration, sessions and API keys over HTTP."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import keys, service, tokens
from app.accounts.models import ApiKey, Organization, User
from app.accounts.principal import Principal, Requires, Scope, address_subject, limit_address
from app.accounts.schemas import (
    ApiKeyBody,
    ApiKeyData,
    ApiKeysView,
    ApiKeyView,
    CreatedApiKeyView,
    LoginBody,
    MeView,
    OrganizationView,
    RefreshBody,
    RegisterBody,
    SessionView,
    UserView,
)
from app.core.crypto import digest
from app.core.db import Database, Transaction, database
from app.core.errors import NotFound, Unauthenticated, responses
from app.core.idempotency import OnceKey
from app.core.pagination import PageQuery
from app.core.ratelimit import Limit
from app.core.schemas import Envelope

_LOGINS_PER_MINUTE = 10


def _no_store(response: Response) -> None:
    # RFC 6749 §5.1: what carries a secret is not for caches.
    response.headers["Cache-Control"] = "no-store"


router = APIRouter(prefix="/api/v1")

AnyPrincipal = Annotated[Principal, Depends(Requires(None))]
KeysPrincipal = Annotated[Principal, Depends(Requires(Scope.KEYS))]
DatabaseDependency = Annotated[Database, Depends(database)]


@router.post(
    "/auth/register",
    status_code=201,
    response_model=Envelope[SessionView],
    dependencies=[Depends(limit_address), Depends(_no_store)],
    responses=responses(409, 422, 429, 503),
    tags=["Authentication"],
    operation_id="register",
    summary="Register a user and an organization",
    description="Creates an organization with its owner and logs the owner in.",
)
async def register(body: RegisterBody, session: Transaction) -> Envelope[SessionView]:
    _, user = await service.register(
        session,
        email=body.email,
        password=body.password,
        name=body.name,
        organization_name=body.organization_name,
    )
    return _session(await service.open_session(session, user))


@router.post(
    "/auth/login",
    response_model=Envelope[SessionView],
    dependencies=[Depends(limit_address), Depends(_no_store)],
    responses=responses(401, 422, 429, 503),
    tags=["Authentication"],
    operation_id="login",
    summary="Log in",
    description=(
        "Answers with an access token, good for 15 minutes, and a refresh token, good for 30 days. "
        "A wrong password and an unknown address give the same 401 `invalid_credentials`."
    ),
)
async def login(body: LoginBody, request: Request, db: DatabaseDependency) -> Envelope[SessionView]:
    subject = f"{digest(body.email).hex()}:{address_subject(request)}"
    await request.app.state.rate_limiter.take([Limit("login", subject, _LOGINS_PER_MINUTE)])
    return _session(await service.log_in(db, email=body.email, password=body.password))


@router.post(
    "/auth/refresh",
    response_model=Envelope[SessionView],
    dependencies=[Depends(limit_address), Depends(_no_store)],
    responses=responses(401, 422, 429),
    tags=["Authentication"],
    operation_id="refresh_session",
    summary="Exchange a refresh token",
    description=(
        "Answers with new tokens; the refresh token that was sent is used up. "
        "Sending a used one again revokes all that descend from the same log-in."
    ),
)
async def refresh_session(body: RefreshBody, db: DatabaseDependency) -> Envelope[SessionView]:
    return _session(await service.refresh(db, body.refresh_token))


@router.get(
    "/auth/me",
    response_model=Envelope[MeView],
    responses=responses(401, 403, 429),
    tags=["Authentication"],
    operation_id="get_me",
    summary="Who am I",
    description="The user or the API key that the credentials speak for, its organization and its scopes.",
)
async def get_me(principal: AnyPrincipal, session: Transaction) -> Envelope[MeView]:
    try:
        return Envelope(data=await _me(session, principal))
    except NotFound as error:
        raise Unauthenticated("credentials_withdrawn", "The user or API key was removed just now.") from error


@router.post(
    "/api-keys",
    status_code=201,
    response_model=Envelope[CreatedApiKeyView],
    dependencies=[Depends(_no_store)],
    responses=responses(401, 403, 409, 422, 429),
    tags=["API keys"],
    operation_id="create_api_key",
    summary="Create an API key",
    description=(
        "The whole key is in `data.secret`, this once. "
        "A key can do no more than who creates it: a wider one is refused with 403 `scope_exceeded`."
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
    )
    view = CreatedApiKeyView(api_key=_key_view(key), secret=secret)
    return await once.remember(201, Envelope[CreatedApiKeyView](data=view))


@router.get(
    "/api-keys",
    response_model=Envelope[ApiKeysView],
    responses=responses(401, 403, 422, 429),
    tags=["API keys"],
    operation_id="list_api_keys",
    summary="List API keys",
    description="The organization's API keys, newest first.",
)
async def list_api_keys(principal: KeysPrincipal, session: Transaction, page: PageQuery) -> Envelope[ApiKeysView]:
    found, pagination = await keys.list_api_keys(session, principal.org_id, page)
    return Envelope(data=ApiKeysView(api_keys=[_key_view(key) for key in found], pagination=pagination))


@router.get(
    "/api-keys/{api_key_id}",
    response_model=Envelope[ApiKeyData],
    responses=responses(401, 403, 404, 422, 429),
    tags=["API keys"],
    operation_id="get_api_key",
    summary="Get an API key",
    description="One API key, without its secret.",
)
async def get_api_key(api_key_id: UUID, principal: KeysPrincipal, session: Transaction) -> Envelope[ApiKeyData]:
    key = await keys.get_api_key(session, principal.org_id, api_key_id)
    return Envelope(data=ApiKeyData(api_key=_key_view(key)))


@router.delete(
    "/api-keys/{api_key_id}",
    status_code=204,
    responses=responses(401, 403, 404, 422, 429),
    tags=["API keys"],
    operation_id="delete_api_key",
    summary="Delete an API key",
    description="The key ceases to work within two seconds.",
)
async def delete_api_key(api_key_id: UUID, principal: KeysPrincipal, session: Transaction) -> None:
    await keys.delete_api_key(session, principal.org_id, api_key_id)


async def _me(session: AsyncSession, principal: Principal) -> MeView:
    user = key = None
    if principal.user_id is not None:
        user = await service.get_user(session, principal.org_id, principal.user_id)
    if principal.key_id is not None:
        key = await keys.get_api_key(session, principal.org_id, principal.key_id)
    return MeView(
        kind="user" if user else "api_key",
        user=_user_view(user) if user else None,
        api_key=_key_view(key) if key else None,
        organization=_organization_view(await service.get_organization(session, principal.org_id)),
        scopes=sorted(principal.scopes),
    )


def _session(logged_in: service.LoggedIn) -> Envelope[SessionView]:
    view = SessionView(
        access_token=logged_in.access_token,
        expires_in=tokens.ACCESS_SECONDS,
        refresh_token=logged_in.refresh_token,
        user=_user_view(logged_in.user),
        organization=_organization_view(logged_in.organization),
    )
    return Envelope(data=view)


def _organization_view(organization: Organization) -> OrganizationView:
    return OrganizationView(id=organization.id, name=organization.name, created_at=organization.created_at)


def _user_view(user: User) -> UserView:
    return UserView(
        id=user.id,
        email=user.email,
        name=user.name,
        role=user.role,
        email_verified=user.email_verified_at is not None,
        created_at=user.created_at,
        last_login_at=user.last_login_at,
    )


def _key_view(key: ApiKey) -> ApiKeyView:
    return ApiKeyView.model_validate(key, from_attributes=True)
