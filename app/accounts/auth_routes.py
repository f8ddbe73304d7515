"""Registration, sessions, passwords and proofs by mail over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import invitations, keys, recovery, service, views
from app.accounts.notices import MailerDependency
from app.accounts.principal import Principal, Requires, Route, address_subject, limit_address
from app.accounts.schemas import (
    AcceptInvitationBody,
    ChangePasswordBody,
    ForgotPasswordBody,
    LoginBody,
    LogoutBody,
    MailedView,
    MeView,
    RefreshBody,
    RegisterBody,
    ResetPasswordBody,
    SessionView,
    UserData,
    VerifyEmailBody,
)
from app.core.db import Database, Transaction, database
from app.core.errors import NotFound, Unauthenticated, responses
from app.core.schemas import Envelope

router = APIRouter(prefix="/api/v1/auth", tags=["Authentication"], route_class=Route)

AnyPrincipal = Annotated[Principal, Depends(Requires(None))]
UserPrincipal = Annotated[Principal, Depends(Requires(None, users_only=True))]
DatabaseDependency = Annotated[Database, Depends(database)]

_LIMITED = [Depends(limit_address)]
_LIMITED_SECRET = [Depends(limit_address), Depends(views.no_store)]


@router.post(
    "/register",
    status_code=201,
    response_model=Envelope[SessionView],
    dependencies=_LIMITED_SECRET,
    responses=responses(409, 413, 422, 429, 503),
    operation_id="register",
    summary="Register a user and an organization",
    description=(
        "Creates an organization with its owner and logs the owner in. A mail with a token for `/auth/verify-email` "
        "goes out, where Postroad has an address to write from."
    ),
)
async def register(
    body: RegisterBody, session: Transaction, mailer: MailerDependency, request: Request
) -> Envelope[SessionView]:
    _, user = await service.register(
        session,
        email=body.email,
        password=body.password,
        name=body.name,
        organization_name=body.organization_name,
    )
    await service.remember_address(session, user, address_subject(request))
    await recovery.welcome(session, mailer, request.app.state.settings, user)
    return views.session(await service.open_session(session, user))


@router.post(
    "/login",
    response_model=Envelope[SessionView],
    dependencies=_LIMITED_SECRET,
    responses=responses(401, 413, 422, 429, 503),
    operation_id="login",
    summary="Log in",
    description=(
        "Answers with an access token, good for 15 minutes, and a refresh token, good for 30 days. "
        "A wrong password and an unknown address give the same 401 `invalid_credentials`. "
        "Tries are limited per account and per client address; guesses from elsewhere do not lock out an address from "
        "which the user has logged in within 30 days."
    ),
)
async def login(body: LoginBody, request: Request, db: DatabaseDependency) -> Envelope[SessionView]:
    limiter, address = request.app.state.rate_limiter, address_subject(request)
    return views.session(await service.log_in(db, limiter, email=body.email, password=body.password, address=address))


@router.post(
    "/refresh",
    response_model=Envelope[SessionView],
    dependencies=_LIMITED_SECRET,
    responses=responses(401, 413, 422, 429),
    operation_id="refresh_session",
    summary="Exchange a refresh token",
    description=(
        "Answers with new tokens; the refresh token that was sent is used up. "
        "Sending a used one again revokes all that descend from the same log-in."
    ),
)
async def refresh_session(body: RefreshBody, db: DatabaseDependency) -> Envelope[SessionView]:
    return views.session(await service.refresh(db, body.refresh_token))


@router.post(
    "/logout",
    status_code=204,
    dependencies=_LIMITED,
    responses=responses(401, 413, 422, 429),
    operation_id="logout",
    summary="Log out",
    description=(
        "Revokes the refresh token and all that descend from the same log-in; what is unknown or revoked already needs "
        "no revoking, so that is 204 too. Access tokens end by themselves within 15 minutes. With `everywhere` all "
        "sessions of the user end, and their access tokens within two seconds; only a refresh token that is still good "
        "may ask for that, others get 401."
    ),
)
async def logout(body: LogoutBody, db: DatabaseDependency) -> None:
    await service.log_out(db, body.refresh_token, everywhere=body.everywhere)


@router.get(
    "/me",
    response_model=Envelope[MeView],
    responses=responses(401, 403, 429),
    operation_id="get_me",
    summary="Who am I",
    description="The user or the API key that the credentials speak for, its organization and its scopes.",
)
async def get_me(principal: AnyPrincipal, session: Transaction) -> Envelope[MeView]:
    try:
        return Envelope(data=await _me(session, principal))
    except NotFound as error:
        raise Unauthenticated("credentials_withdrawn", "The user or API key was removed just now.") from error


async def _me(session: AsyncSession, principal: Principal) -> MeView:
    user = key = None
    if principal.user_id is not None:
        user = await service.get_user(session, principal.org_id, principal.user_id)
    if principal.key_id is not None:
        key = await keys.get_api_key(session, principal.org_id, principal.key_id)
    return MeView(
        kind="user" if user else "api_key",
        user=views.user(user) if user else None,
        api_key=views.api_key(key) if key else None,
        organization=views.organization(await service.get_organization(session, principal.org_id)),
        scopes=sorted(principal.scopes),
    )


@router.post(
    "/verify-email",
    response_model=Envelope[UserData],
    dependencies=_LIMITED,
    responses=responses(413, 422, 429),
    operation_id="verify_email",
    summary="Verify an e-mail address",
    description=(
        "Takes the token from the mail that follows registration. Tokens are good once, for 48 hours, and until a "
        "later one is mailed; else 422 `invalid_one_time_token`."
    ),
)
async def verify_email(body: VerifyEmailBody, session: Transaction) -> Envelope[UserData]:
    return Envelope(data=UserData(user=views.user(await recovery.verify_email(session, body.token))))


@router.post(
    "/verify-email/resend",
    status_code=202,
    response_model=Envelope[MailedView],
    responses=responses(401, 403, 409, 429, 503),
    operation_id="resend_verification",
    summary="Mail the verification once more",
    description=(
        "Mails the logged-in user another token; the one before is void. At most five an hour. 409 `already_verified`, "
        "or 503 `system_mail_not_configured`, when there is nothing to mail or no way to."
    ),
)
async def resend_verification(
    principal: UserPrincipal, session: Transaction, mailer: MailerDependency, request: Request
) -> Envelope[MailedView]:
    user = await recovery.resend_verification(session, mailer, request.app.state.settings, principal)
    return Envelope(data=MailedView(email=user.email))


@router.post(
    "/password/forgot",
    status_code=202,
    response_model=Envelope[MailedView],
    dependencies=_LIMITED,
    responses=responses(413, 422, 429, 503),
    operation_id="forgot_password",
    summary="Forget a password",
    description=(
        "Mails a token for `/auth/password/reset` if the address has an account, at most five an hour. The answer is "
        "the same, and takes as long, when it has none. 503 `system_mail_not_configured` for every address where "
        "Postroad has none to write from."
    ),
)
async def forgot_password(
    body: ForgotPasswordBody, db: DatabaseDependency, mailer: MailerDependency, request: Request
) -> Envelope[MailedView]:
    await recovery.forgot_password(db, mailer, request.app.state.settings, email=body.email)
    return Envelope(data=MailedView(email=body.email))


@router.post(
    "/password/reset",
    response_model=Envelope[UserData],
    dependencies=_LIMITED,
    responses=responses(413, 422, 429, 503),
    operation_id="reset_password",
    summary="Reset a password",
    description=(
        "Takes the token from the mail and sets the new password. All sessions of the user end, their access tokens "
        "within two seconds; log in anew. Tokens are good once, for an hour, and until a later one is mailed; else "
        "422 `invalid_one_time_token`."
    ),
)
async def reset_password(body: ResetPasswordBody, request: Request, db: DatabaseDependency) -> Envelope[UserData]:
    user = await recovery.reset_password(db, token=body.token, password=body.password, address=address_subject(request))
    return Envelope(data=UserData(user=views.user(user)))


@router.post(
    "/password/change",
    response_model=Envelope[SessionView],
    dependencies=[Depends(views.no_store)],
    responses=responses(401, 403, 409, 413, 422, 429, 503),
    operation_id="change_password",
    summary="Change a password",
    description=(
        "For a logged-in user who knows the present password, else 422 `wrong_password`. All other sessions end, "
        "access tokens within two seconds; this one goes on with the tokens in the answer."
    ),
)
async def change_password(
    body: ChangePasswordBody, principal: UserPrincipal, request: Request, db: DatabaseDependency
) -> Envelope[SessionView]:
    return views.session(
        await recovery.change_password(
            db,
            request.app.state.rate_limiter,
            principal,
            current=body.current_password,
            password=body.password,
        )
    )


@router.post(
    "/invitations/accept",
    status_code=201,
    response_model=Envelope[SessionView],
    dependencies=_LIMITED_SECRET,
    responses=responses(403, 409, 413, 422, 429, 503),
    operation_id="accept_invitation",
    summary="Accept an invitation",
    description=(
        "Takes the token from the mail, makes the user with a verified address, and logs them in. Tokens are good "
        "once, for 7 days; else 422 `invalid_one_time_token`."
    ),
)
async def accept_invitation(
    body: AcceptInvitationBody, request: Request, db: DatabaseDependency
) -> Envelope[SessionView]:
    return views.session(
        await invitations.accept(
            db, token=body.token, name=body.name, password=body.password, address=address_subject(request)
        )
    )
