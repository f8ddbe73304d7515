"""Proofs by mail, and passwords: verifying an address, forgetting, resetting and changing a password.

Errors: Conflict (`already_verified`, `password_changed`), Invalid (`invalid_one_time_token`, `password_too_common`,
`wrong_password`), TooManyRequests, Unauthenticated, Unavailable (`busy`, `system_mail_not_configured`).
"""

import asyncio
import time

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import letters, onetime, queries, service, throttle
from app.accounts.models import User
from app.accounts.notices import Mailer
from app.accounts.onetime import LIFETIMES, Purpose
from app.accounts.passwords import hash_password, refuse_common, verify_password
from app.accounts.principal import Principal
from app.accounts.service import LoggedIn
from app.core.config import Settings
from app.core.db import Database
from app.core.errors import Conflict, Invalid, TooManyRequests, Unauthenticated, Unavailable
from app.core.ratelimit import RateLimiter

# Longer than accepting a mail takes, so that no answer tells whether one was accepted.
_FORGOT_SECONDS = 0.25

log = structlog.get_logger(__name__)


async def welcome(session: AsyncSession, mailer: Mailer, settings: Settings, user: User) -> None:
    """Post the verification mail of a new user, if there is a way to: nobody fails to register for lack of it."""
    if not mailer.is_configured:
        return
    try:
        await mailer.check(session)
        await _post_verification(session, mailer, settings, user)
    except Unavailable as error:
        log.warning("verification_mail_not_posted", org_id=str(user.org_id), user_id=str(user.id), error=error.detail)


async def resend_verification(session: AsyncSession, mailer: Mailer, settings: Settings, principal: Principal) -> User:
    """Post another verification mail, which voids the one before.

    Raises Unavailable, Unauthenticated when the user is gone, Conflict (`already_verified`), and TooManyRequests after
    five an hour.
    """
    await mailer.check(session)
    user = await _user(session, principal)
    if user.email_verified_at is not None:
        raise Conflict("already_verified", "Your e-mail address is verified already.")
    if not await _post_verification(session, mailer, settings, user):
        headers = {"Retry-After": "3600"}
        raise TooManyRequests("rate_limited", "That is enough mail for an hour; use the last one.", headers=headers)
    return user


async def _post_verification(session: AsyncSession, mailer: Mailer, settings: Settings, user: User) -> bool:
    token = await onetime.issue(session, user, Purpose.VERIFY_EMAIL)
    if token is not None:
        lifetime = LIFETIMES[Purpose.VERIFY_EMAIL]
        notice = letters.verification(user.email, token, public_url=settings.public_url, lifetime=lifetime)
        await mailer.post(session, notice)
    return token is not None


async def verify_email(session: AsyncSession, token: str) -> User:
    """Take the address for verified of whom the token was mailed to. Raises Invalid."""
    user = await onetime.use(session, token, Purpose.VERIFY_EMAIL)
    return await service.verify_email(session, user.email)


async def forgot_password(database: Database, mailer: Mailer, settings: Settings, *, email: str) -> None:
    """Mail a reset token to the address if it has an account; as long in coming if it has none.

    Raises Unavailable, whatever the address.
    """
    started = time.monotonic()
    async with database.transaction() as session:
        await mailer.check(session)
        user = await queries.user_by_email(session, email)
        token = await onetime.issue(session, user, Purpose.RESET_PASSWORD) if user else None
        if token is not None:
            lifetime = LIFETIMES[Purpose.RESET_PASSWORD]
            notice = letters.password_reset(email, token, public_url=settings.public_url, lifetime=lifetime)
            await mailer.post(session, notice)
    await asyncio.sleep(_FORGOT_SECONDS - (time.monotonic() - started))


async def reset_password(database: Database, *, token: str, password: str, address: str) -> User:
    """Set the password of whom the token was mailed to; all their sessions and access tokens end.

    They have shown that they read mail at their address, so it is verified, and `address`, the client's, is known
    from then on: an owner whom others' guesses keep out comes in again this way. Raises Invalid, Unavailable.
    """
    refuse_common(password)
    async with database.transaction() as session:
        await onetime.check(session, token, Purpose.RESET_PASSWORD)
    password_hash = await hash_password(password)
    async with database.transaction() as session:
        user = await onetime.use(session, token, Purpose.RESET_PASSWORD)
        await service.store_password(session, user.org_id, user.id, password_hash=password_hash)
        await service.remember_address(session, user, address)
        return await service.verify_email(session, user.email)


async def change_password(
    database: Database, limiter: RateLimiter, principal: Principal, *, current: str, password: str
) -> LoggedIn:
    """Set another password for a user who knows the present one; all their sessions end and a new one begins.

    Raises TooManyRequests, Invalid, Unauthenticated, Unavailable; Conflict when it was changed meanwhile.
    """
    await limiter.take([throttle.password_limit(principal.id)])
    refuse_common(password)
    async with database.transaction() as session:
        user = await _user(session, principal)
    if not await verify_password(current, user.password_hash):
        raise Invalid.at("/current_password", "This is not your present password.", code="wrong_password")
    password_hash = await hash_password(password)
    async with database.transaction() as session:
        changed = await service.store_password(
            session, user.org_id, user.id, password_hash=password_hash, instead_of=user.password_hash
        )
        if changed is None:
            raise Conflict("password_changed", "Your password was changed by another request just now.")
        return await service.open_session(session, changed)


async def _user(session: AsyncSession, principal: Principal) -> User:
    """The user that the principal is. Raises Unauthenticated when they are gone."""
    user = await queries.user_now(session, principal.org_id, principal.user_id) if principal.user_id else None
    if user is None:
        raise Unauthenticated("credentials_withdrawn", "The user was removed just now.")
    return user
