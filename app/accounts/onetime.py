"""Tokens that are mailed: 256 random bits, kept as SHA-256, good once, for one purpose and for a while.

Errors: Invalid (`invalid_one_time_token`), the same whatever is wrong with the token.
"""

import secrets
from datetime import timedelta
from enum import StrEnum

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import queries, token_queries
from app.accounts.models import User
from app.core.crypto import digest
from app.core.errors import Invalid

_PREFIX = "pmot_"
_BYTES = 32
# Enough for whoever lost a mail, and no more than a nuisance when strangers ask.
_MAILS_PER_HOUR = 5
_FORGET_AFTER = timedelta(days=1)


class Purpose(StrEnum):
    """What a token proves."""

    VERIFY_EMAIL = "verify_email"
    RESET_PASSWORD = "reset_password"  # noqa: S105 - the name of a purpose


LIFETIMES = {Purpose.VERIFY_EMAIL: timedelta(hours=48), Purpose.RESET_PASSWORD: timedelta(hours=1)}


def new_token() -> str:
    """A token that nobody guesses."""
    return _PREFIX + secrets.token_urlsafe(_BYTES)


async def issue(session: AsyncSession, user: User, purpose: Purpose) -> str | None:
    """A token to be mailed to the user, which voids earlier ones of the same purpose.

    None when they were mailed five in the last hour, or are gone: then the last one stays good, so that strangers
    who keep asking neither flood nor disarm.
    """
    if await queries.user_now(session, user.org_id, user.id, lock=True) is None:
        return None
    sent = await token_queries.count_tokens(session, user.org_id, user.id, purpose, within=timedelta(hours=1))
    if sent >= _MAILS_PER_HOUR:
        return None
    await token_queries.forget_tokens(session, user.org_id, user.id, older_than=_FORGET_AFTER)
    await token_queries.void_tokens(session, user.org_id, user.id, purpose)
    token = new_token()
    lifetime = LIFETIMES[purpose]
    await token_queries.insert_token(
        session, user.org_id, user.id, purpose, token_hash=digest(token), lifetime=lifetime
    )
    return token


async def check(session: AsyncSession, token: str, purpose: Purpose) -> None:
    """Raises Invalid unless the token would be taken now."""
    if await token_queries.token_owner(session, digest(token), purpose) is None:
        raise refused()


async def use(session: AsyncSession, token: str, purpose: Purpose) -> User:
    """Use the token up; who was mailed it, locked until the commit. Raises Invalid."""
    token_hash = digest(token)
    owner = await token_queries.token_owner(session, token_hash, purpose)
    # The user before the token, as `issue` does, so that the two never wait for each other in a circle.
    user = await queries.user_now(session, *owner, lock=True) if owner else None
    if user is None or not await token_queries.use_token(session, token_hash, purpose):
        raise refused()
    return user


def refused() -> Invalid:
    """The one answer to every token that is not good."""
    detail = "The token is unknown, used, expired, or replaced by a later one: ask for another mail."
    return Invalid.at("/token", detail, code="invalid_one_time_token")
