"""Organizations, users and their sessions.

Errors: Conflict (`email_taken`), Invalid (`password_too_common`), NotFound, TooManyRequests, Unauthenticated
(`invalid_credentials`, `invalid_refresh_token`), Unavailable (`busy`).

Access tokens live a quarter of an hour and are checked against the user on every request. Refresh tokens are
random, kept as SHA-256, live 30 days and are good for one exchange. Whoever brings a used one back has stolen
it, or was stolen from, so all that descend from the same log-in are revoked (RFC 9700 §4.14.2).
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import key_queries, queries, throttle, token_queries, tokens
from app.accounts.models import Organization, Session, User
from app.accounts.onetime import Purpose
from app.accounts.passwords import hash_password, refuse_common, verify_password
from app.accounts.principal import Principal
from app.accounts.scopes import Role
from app.core.crypto import digest
from app.core.db import Database
from app.core.errors import Conflict, NotFound, Unauthenticated
from app.core.ids import new_id
from app.core.ratelimit import RateLimiter

REFRESH_LIFETIME = timedelta(days=30)

_REFRESH_PREFIX = "pmrt_"
_OPERATORS_MAX = 100

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A user's fresh pair of tokens."""

    user: User
    organization: Organization
    access_token: str
    refresh_token: str


async def register(
    session: AsyncSession, *, email: str, password: str, name: str, organization_name: str
) -> tuple[Organization, User]:
    """A new organization and its owner; `email` as `schemas.normalised_email` gives it.

    Raises Conflict, Invalid, Unavailable.
    """
    refuse_common(password)
    password_hash = await hash_password(password, by_stranger=True)
    organization = Organization(name=organization_name)
    session.add(organization)
    await session.flush()
    user = await queries.insert_user(
        session,
        {
            "org_id": organization.id,
            "id": new_id(),
            "email": email,
            "name": name,
            "password_hash": password_hash,
            "role": Role.OWNER.value,
        },
    )
    if user is None:
        raise email_taken()
    return organization, user


def email_taken() -> Conflict:
    """The address has an account."""
    return Conflict("email_taken", "There is an account with this e-mail address already.")


async def log_in(database: Database, limiter: RateLimiter, *, email: str, password: str, address: str) -> LoggedIn:
    """Tokens for who knows the password; `address` is the client's, as `principal.address_subject` gives it.

    Raises TooManyRequests and Unauthenticated, either the same whether or not the account exists. Takes the
    database, not a session, because no connection may be held while a password is hashed.
    """
    hashed = throttle.address_hash(address)
    async with database.transaction() as session:
        user, is_known = await queries.user_to_log_in(session, email, address_hash=hashed, known_for=throttle.KNOWN_FOR)
    await limiter.take(throttle.login_limits(email, address, is_known=is_known))
    refused = Unauthenticated("invalid_credentials", "The e-mail address or the password is wrong.")
    stored = user.password_hash if user else None
    if not await verify_password(password, stored, by_stranger=not is_known) or user is None:
        raise refused
    async with database.transaction() as session:
        current = await queries.mark_login(session, user.org_id, user.id, password_hash=user.password_hash)
        if current is None:
            raise refused
        await queries.delete_expired_sessions(session, user.org_id, user.id)
        await remember_address(session, current, address)
        return await open_session(session, current)


async def remember_address(session: AsyncSession, user: User, address: str) -> None:
    """The user has just proved themselves from there: guessing from elsewhere will not lock that address out."""
    hashed = throttle.address_hash(address)
    await queries.remember_address(session, user.org_id, user.id, address_hash=hashed, keep=throttle.KNOWN_MAX)


async def open_session(session: AsyncSession, user: User, *, family_id: UUID | None = None) -> LoggedIn:
    """Tokens for a user who has proved themselves; `family_id` when they take the place of earlier ones."""
    refresh_token = _REFRESH_PREFIX + secrets.token_urlsafe(32)
    session.add(
        Session(
            org_id=user.org_id,
            user_id=user.id,
            family_id=family_id or new_id(),
            token_hash=digest(refresh_token),
            expires_at=datetime.now(UTC) + REFRESH_LIFETIME,
        )
    )
    await session.flush()
    organization = await queries.organization(session, user.org_id)
    access_token = tokens.issue(tokens.Claims(user.org_id, user.id, user.token_epoch))
    return LoggedIn(user, organization, access_token, refresh_token)


async def refresh(database: Database, refresh_token: str) -> LoggedIn:
    """The next pair of tokens for a refresh token. Raises Unauthenticated (`invalid_refresh_token`)."""
    async with database.transaction() as session:
        logged_in = await _exchange(session, refresh_token)
    # Raised only here: the revocation of a stolen family has to be committed.
    if logged_in is None:
        raise _not_good()
    return logged_in


async def log_out(database: Database, refresh_token: str, *, everywhere: bool) -> None:
    """End the session of a refresh token; one that is unknown, or ended, has nothing left to end (RFC 7009 §2.2).

    `everywhere` ends all sessions of its user and voids their access tokens, and only a token that is still good may
    ask for that. Raises Unauthenticated (`invalid_refresh_token`).
    """
    async with database.transaction() as session:
        found = await queries.session_by_hash(session, digest(refresh_token))
        is_good = False
        if found is not None:
            current, is_expired = found
            is_good = not is_expired and current.used_at is None and current.revoked_at is None
            await queries.revoke_family(session, current.org_id, current.family_id)
            if is_good and everywhere:
                await queries.revoke_sessions(session, current.org_id, current.user_id)
                await queries.void_access_tokens(session, current.org_id, current.user_id)
    if everywhere and not is_good:
        raise _not_good()


def _not_good() -> Unauthenticated:
    return Unauthenticated("invalid_refresh_token", "The refresh token is no longer good; log in again.")


async def _exchange(session: AsyncSession, refresh_token: str) -> LoggedIn | None:
    found = await queries.session_by_hash(session, digest(refresh_token))
    if found is None:
        return None
    current, is_expired = found
    if current.used_at is not None and current.revoked_at is None:
        log.warning("refresh_token_reused", org_id=str(current.org_id), user_id=str(current.user_id))
        await queries.revoke_family(session, current.org_id, current.family_id)
        return None
    user = await queries.user(session, current.org_id, current.user_id)
    if is_expired or current.revoked_at is not None or user is None:
        return None
    await queries.mark_session_used(session, current.org_id, current.id)
    return await open_session(session, user, family_id=current.family_id)


async def set_password(session: AsyncSession, org_id: UUID, user_id: UUID, *, password: str) -> None:
    """Change a password; every session and access token of the user ends.

    Raises NotFound, Invalid, Unavailable.
    """
    refuse_common(password)
    if await store_password(session, org_id, user_id, password_hash=await hash_password(password)) is None:
        raise NotFound("user")


async def store_password(
    session: AsyncSession, org_id: UUID, user_id: UUID, *, password_hash: str, instead_of: str | None = None
) -> User | None:
    """Put a new hash in place; every session, access token and mailed reset token of the user ends.

    None when there is no such user, or the present hash is not `instead_of`.
    """
    user = await queries.change_password(session, org_id, user_id, password_hash=password_hash, instead_of=instead_of)
    if user is not None:
        await queries.revoke_sessions(session, org_id, user_id)
        await token_queries.void_tokens(session, org_id, user_id, Purpose.RESET_PASSWORD)
    return user


async def verify_email(session: AsyncSession, email: str) -> User:
    """Note that the user of that (normalised) address reads mail there. Raises NotFound."""
    user = await queries.mark_verified(session, email)
    if user is None:
        raise NotFound("user")
    return user


async def is_verified(session: AsyncSession, principal: Principal) -> bool:
    """Whether the address of the user, or of the key's creator, is verified now, and not a moment ago."""
    if principal.key_id is not None:
        return await key_queries.is_verified(session, principal.org_id, principal.key_id)
    user = await queries.user_now(session, principal.org_id, principal.user_id) if principal.user_id else None
    return user is not None and user.email_verified_at is not None


async def get_user(session: AsyncSession, org_id: UUID, user_id: UUID) -> User:
    """One user. Raises NotFound."""
    user = await queries.user(session, org_id, user_id)
    if user is None:
        raise NotFound("user")
    return user


async def owner_emails(session: AsyncSession, org_id: UUID) -> list[str]:
    """The addresses of an organization's owners, oldest first, at most 50."""
    return await queries.owner_emails(session, org_id, limit=50)


async def get_organization(session: AsyncSession, org_id: UUID) -> Organization:
    """The organization of a principal."""
    return await queries.organization(session, org_id)


async def operator_organizations(session: AsyncSession) -> list[UUID]:
    """The organizations of the platform's operators that are not suspended, oldest first; at most a hundred."""
    return await queries.operator_organizations(session, limit=_OPERATORS_MAX)
