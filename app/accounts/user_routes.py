"""Users and invitations over HTTP."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request

from app.accounts import invitations, service, users, views
from app.accounts.notices import MailerDependency
from app.accounts.principal import Principal, Requires, Route, Scope
from app.accounts.schemas import (
    InvitationBody,
    InvitationData,
    InvitationsView,
    RoleBody,
    UserData,
    UsersView,
)
from app.core.db import Transaction
from app.core.errors import responses
from app.core.idempotency import OnceKey
from app.core.pagination import PageQuery
from app.core.schemas import Envelope

router = APIRouter(prefix="/api/v1/users", tags=["Users"], route_class=Route)

UsersPrincipal = Annotated[Principal, Depends(Requires(Scope.USERS))]


@router.post(
    "/invitations",
    status_code=201,
    response_model=Envelope[InvitationData],
    responses=responses(401, 403, 409, 413, 422, 429, 503),
    operation_id="create_invitation",
    summary="Invite someone",
    description=(
        "Mails an invitation that is good for 7 days; an earlier one to the same address is void. An address that has "
        "an account already gives 409 `email_taken`. At most 100 open invitations, and 200 mails a day. 503 "
        "`system_mail_not_configured` where Postroad has no address to write from."
    ),
)
async def create_invitation(
    body: InvitationBody,
    principal: UsersPrincipal,
    session: Transaction,
    once: OnceKey,
    mailer: MailerDependency,
    request: Request,
) -> Envelope[InvitationData]:
    await once.begin(principal.org_id, principal.id)
    state = request.app.state
    made = await invitations.invite(
        session,
        principal,
        mailer,
        state.rate_limiter,
        state.settings,
        email=body.email,
        role=body.role,
        name=body.name,
    )
    return await once.remember(201, Envelope(data=InvitationData(invitation=views.invitation(made))))


@router.get(
    "/invitations",
    response_model=Envelope[InvitationsView],
    responses=responses(401, 403, 422, 429),
    operation_id="list_invitations",
    summary="List invitations",
    description="Invitations that were neither accepted nor withdrawn, newest first.",
)
async def list_invitations(
    principal: UsersPrincipal, session: Transaction, page: PageQuery
) -> Envelope[InvitationsView]:
    found, pagination = await invitations.page(session, principal.org_id, page)
    return Envelope(data=InvitationsView(invitations=list(map(views.invitation, found)), pagination=pagination))


@router.get(
    "/invitations/{invitation_id}",
    response_model=Envelope[InvitationData],
    responses=responses(401, 403, 404, 422, 429),
    operation_id="get_invitation",
    summary="Get an invitation",
    description="One invitation.",
)
async def get_invitation(
    invitation_id: UUID, principal: UsersPrincipal, session: Transaction
) -> Envelope[InvitationData]:
    found = await invitations.get(session, principal.org_id, invitation_id)
    return Envelope(data=InvitationData(invitation=views.invitation(found)))


@router.delete(
    "/invitations/{invitation_id}",
    status_code=204,
    responses=responses(401, 403, 404, 422, 429),
    operation_id="delete_invitation",
    summary="Withdraw an invitation",
    description="The token in its mail is void.",
)
async def delete_invitation(invitation_id: UUID, principal: UsersPrincipal, session: Transaction) -> None:
    await invitations.withdraw(session, principal.org_id, invitation_id)


@router.get(
    "",
    response_model=Envelope[UsersView],
    responses=responses(401, 403, 422, 429),
    operation_id="list_users",
    summary="List users",
    description="The organization's users, newest first.",
)
async def list_users(principal: UsersPrincipal, session: Transaction, page: PageQuery) -> Envelope[UsersView]:
    found, pagination = await users.page(session, principal.org_id, page)
    return Envelope(data=UsersView(users=list(map(views.user, found)), pagination=pagination))


@router.get(
    "/{user_id}",
    response_model=Envelope[UserData],
    responses=responses(401, 403, 404, 422, 429),
    operation_id="get_user",
    summary="Get a user",
    description="One user of the organization.",
)
async def get_user(user_id: UUID, principal: UsersPrincipal, session: Transaction) -> Envelope[UserData]:
    return Envelope(data=UserData(user=views.user(await service.get_user(session, principal.org_id, user_id))))


@router.put(
    "/{user_id}/role",
    response_model=Envelope[UserData],
    responses=responses(401, 403, 404, 409, 413, 422, 429),
    operation_id="set_user_role",
    summary="Change a user's role",
    description=(
        "Holds within two seconds. Only owners make and unmake owners, and nobody gives a role that may do more than "
        "they may. The last owner stays one: 409 `last_owner`. What the user has invited is withdrawn."
    ),
)
async def set_user_role(
    user_id: UUID, body: RoleBody, principal: UsersPrincipal, session: Transaction
) -> Envelope[UserData]:
    return Envelope(data=UserData(user=views.user(await users.set_role(session, principal, user_id, body.role))))


@router.delete(
    "/{user_id}",
    status_code=204,
    responses=responses(401, 403, 404, 409, 422, 429),
    operation_id="delete_user",
    summary="Remove a user",
    description=(
        "Their sessions end at once, their access tokens within two seconds. The API keys that they made stay. Only "
        "owners remove owners, and the last one stays: 409 `last_owner`."
    ),
)
async def delete_user(user_id: UUID, principal: UsersPrincipal, session: Transaction) -> None:
    await users.remove(session, principal, user_id)
