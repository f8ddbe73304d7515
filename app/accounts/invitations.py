"""Invitations: asking people by mail to join an organization, and their joining.

Errors: Conflict (`email_taken`, `too_many_invitations`), Forbidden, Invalid (`invalid_one_time_token`,
`password_too_common`), NotFound, TooManyRequests, Unavailable (`busy`, `system_mail_not_configured`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import letters, onetime, queries, service, token_queries, users
from app.accounts.models import Invitation
from app.accounts.notices import Mailer
from app.accounts.passwords import hash_password, refuse_common
from app.accounts.principal import Principal, suspended
from app.accounts.scopes import Role
from app.accounts.service import LoggedIn
from app.core.config import Settings
from app.core.crypto import digest
from app.core.db import Database
from app.core.errors import Conflict, Invalid, NotFound
from app.core.ids import new_id
from app.core.pagination import Page, Pagination
from app.core.ratelimit import Limit, RateLimiter

LIFETIME = timedelta(days=7)

_OPEN_MAX = 100
# Invitations go to whom the organization names: Postroad's own good name is spent on them.
_MAILS_PER_DAY = 200
_DAY_SECONDS = 86_400


async def invite(
    session: AsyncSession,
    principal: Principal,
    mailer: Mailer,
    limiter: RateLimiter,
    settings: Settings,
    *,
    email: str,
    role: Role,
    name: str | None,
) -> Invitation:
    """Invite someone and post the mail; an earlier invitation to the same address is void.

    Raises Unavailable, Forbidden, Conflict, TooManyRequests.
    """
    await mailer.check(session)
    by = await users.actor(session, principal)
    by.must_be_unrestricted()
    by.must_stand_above(role)
    if await queries.user_by_email(session, email) is not None:
        raise service.email_taken()
    if await token_queries.count_invitations(session, principal.org_id) >= _OPEN_MAX:
        detail = f"An organization may have {_OPEN_MAX} open invitations; withdraw some first."
        raise Conflict("too_many_invitations", detail)
    await limiter.take([Limit("invitations", str(principal.org_id), _MAILS_PER_DAY, _DAY_SECONDS)])
    token = onetime.new_token()
    values = {
        "id": new_id(),
        "email": email,
        "name": name,
        "role": role.value,
        "token_hash": digest(token),
        "invited_by": by.user_id,
    }
    made = await token_queries.insert_invitation(session, principal.org_id, values, lifetime=LIFETIME)
    organization = await queries.organization(session, principal.org_id)
    notice = letters.invitation(
        email,
        token,
        organization=organization.name,
        role=role.value,
        public_url=settings.public_url,
        lifetime=LIFETIME,
    )
    await mailer.post(session, notice)
    return made


async def page(session: AsyncSession, org_id: UUID, wanted: Page) -> tuple[Sequence[Invitation], Pagination]:
    """One page of the organization's invitations that were neither accepted nor withdrawn, newest first."""
    return wanted.cut(await token_queries.invitations(session, org_id, wanted), lambda one: one.id)


async def get(session: AsyncSession, org_id: UUID, invitation_id: UUID) -> Invitation:
    """One invitation. Raises NotFound."""
    found = await token_queries.invitation(session, org_id, invitation_id)
    if found is None:
        raise NotFound("invitation")
    return found


async def withdraw(session: AsyncSession, org_id: UUID, invitation_id: UUID) -> None:
    """Withdraw an invitation; its token is void. Raises NotFound."""
    if not await token_queries.delete_invitation(session, org_id, invitation_id):
        raise NotFound("invitation")


async def accept(database: Database, *, token: str, name: str | None, password: str, address: str) -> LoggedIn:
    """Make a user of whom the token was mailed to, and log them in; `address` is the client's.

    Their e-mail address is verified, since the token came there. Raises Invalid, Forbidden
    (`organization_suspended`), Conflict, Unavailable.
    """
    refuse_common(password)
    async with database.transaction() as session:
        invitation = await token_queries.invitation_by_hash(session, digest(token))
        if invitation is None:
            raise onetime.refused()
        organization = await queries.organization(session, invitation.org_id)
    if organization.suspension_reason is not None:
        raise suspended(organization.suspension_reason)
    name = name or invitation.name
    if name is None:
        raise Invalid.at("/name", "Say what you are called; the invitation does not.")
    password_hash = await hash_password(password)
    async with database.transaction() as session:
        taken = await token_queries.take_invitation(session, digest(token))
        if taken is None:
            raise onetime.refused()
        values = {
            "org_id": taken.org_id,
            "id": new_id(),
            "email": taken.email,
            "name": name,
            "password_hash": password_hash,
            "role": taken.role,
            "email_verified_at": datetime.now(UTC),
        }
        user = await queries.insert_user(session, values)
        if user is None:
            raise service.email_taken()
        await service.remember_address(session, user, address)
        return await service.open_session(session, user)
