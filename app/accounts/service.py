"""Organizations, users and their sessions.

Errors: Conflict (`email_taken`), Invalid (`password_too_common`), NotFound, Unauthenticated
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

from app.accounts import queries, tokens
from app.accounts.models import Organization, Session, User
from app.accounts.passwords import hash_password, refuse_common, verify_password
from app.accounts.scopes import Role
from app.core.crypto import digest
from app.core.db import Database
from app.core.errors import Conflict, NotFound, Unauthenticated
from app.core.ids import new_id

REFRESH_LIFETIME = timedelta(days=30)

_REFRESH_PREFIX = "pmrt_"

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
    password_hash = await hash_password(password)
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
        raise Conflict("email_taken", "There is an account with this e-mail address already.")
    return organization, user


async def log_in(database: Database, *, email: str, password: str) -> LoggedIn:
    """Tokens for who knows the password. Raises Unauthenticated, the same whether or not the account exists.

    Takes the database, not a session, because no connection may be held while a password is hashed.
    """
    async with database.transaction() as session:
        user = await queries.user_by_email(session, email)
    refused = Unauthenticated("invalid_credentials", "The e-mail address or the password is wrong.")
    if not await verify_password(password, user.password_hash if user else None) or user is None:
        raise refused
    async with database.transaction() as session:
        current = await queries.mark_login(session, user.org_id, user.id, password_hash=user.password_hash)
        if current is None:
            raise refused
        await queries.delete_expired_sessions(session, user.org_id, user.id)
        return await open_session(session, current)


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
        raise Unauthenticated("invalid_refresh_token", "The refresh token is no longer good; log in again.")
    return logged_in


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
    password_hash = await hash_password(password)
    if not await queries.change_password(session, org_id, user_id, password_hash=password_hash):
        raise NotFound("user")
    await queries.revoke_sessions(session, org_id, user_id)


async def verify_email(session: AsyncSession, email: str) -> User:
    """Note that the user of that (normalised) address reads mail there. Raises NotFound."""
    user = await queries.mark_verified(session, email)
    if user is None:
        raise NotFound("user")
    return user


async def get_user(session: AsyncSession, org_id: UUID, user_id: UUID) -> User:
    """One user. Raises NotFound."""
    user = await queries.user(session, org_id, user_id)
    if user is None:
        raise NotFound("user")
    return user


async def get_organization(session: AsyncSession, org_id: UUID) -> Organization:
    """The organization of a principal."""
    return await queries.organization(session, org_id)
