"""SQL of accounts. Who calls is found by a secret or an address; everything else takes org_id first."""

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import ApiKey, Organization, Session, User
from app.core.pagination import Page


async def user_by_email(session: AsyncSession, email: str) -> User | None:
    """The user of that (normalised) address."""
    return (await session.scalars(select(User).where(User.email == email))).one_or_none()


async def insert_user(session: AsyncSession, user: Mapping[str, object]) -> User | None:
    """A new user, or None when the address is taken already."""
    statement = insert(User).values(**user).on_conflict_do_nothing(index_elements=[User.email]).returning(User)
    return (await session.scalars(statement)).one_or_none()


async def user(session: AsyncSession, org_id: UUID, user_id: UUID) -> User | None:
    """One user."""
    return await session.get(User, (org_id, user_id))


async def user_to_mint_by(session: AsyncSession, org_id: UUID, user_id: UUID) -> User | None:
    """One user, locked so that they cannot be removed before what they mint is there."""
    statement = select(User).where(User.org_id == org_id, User.id == user_id)
    return (await session.scalars(statement.with_for_update(read=True, key_share=True))).one_or_none()


async def organization(session: AsyncSession, org_id: UUID) -> Organization:
    """The organization itself, which must exist."""
    return await session.get_one(Organization, org_id)


async def mark_login(session: AsyncSession, org_id: UUID, user_id: UUID, *, password_hash: str) -> User | None:
    """Note a log-in; None when the user is gone or the password is no longer the one that was checked."""
    statement = (
        update(User)
        .where(User.org_id == org_id, User.id == user_id, User.password_hash == password_hash)
        .values(last_login_at=func.now())
        .returning(User)
        .execution_options(populate_existing=True)
    )
    return (await session.scalars(statement)).one_or_none()


async def change_password(session: AsyncSession, org_id: UUID, user_id: UUID, *, password_hash: str) -> bool:
    """Set the password and void every access token; False when there is no such user."""
    statement = (
        update(User)
        .where(User.org_id == org_id, User.id == user_id)
        .values(password_hash=password_hash, token_epoch=User.token_epoch + 1)
        .returning(User.id)
    )
    return (await session.scalars(statement)).one_or_none() is not None


async def mark_verified(session: AsyncSession, email: str) -> User | None:
    """Note that the user reads mail at that address; an earlier note stays."""
    statement = (
        update(User)
        .where(User.email == email)
        .values(email_verified_at=func.coalesce(User.email_verified_at, func.now()))
        .returning(User)
        .execution_options(populate_existing=True)
    )
    return (await session.scalars(statement)).one_or_none()


async def operators(session: AsyncSession, *, limit: int) -> list[tuple[User, Organization]]:
    """Users with the operator flag, oldest first."""
    statement = (
        select(User, Organization)
        .join(Organization, Organization.id == User.org_id)
        .where(User.is_operator)
        .order_by(User.id)
        .limit(limit)
    )
    return [(one, org) for one, org in await session.execute(statement)]


async def session_by_hash(session: AsyncSession, token_hash: bytes) -> tuple[Session, bool] | None:
    """The refresh token of that digest, locked, and whether it has expired."""
    statement = (
        select(Session, Session.expires_at <= func.now()).where(Session.token_hash == token_hash).with_for_update()
    )
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else (row[0], row[1])


async def mark_session_used(session: AsyncSession, org_id: UUID, session_id: UUID) -> None:
    """Note that a refresh token was exchanged for the next."""
    await session.execute(
        update(Session).where(Session.org_id == org_id, Session.id == session_id).values(used_at=func.now())
    )


async def revoke_family(session: AsyncSession, org_id: UUID, family_id: UUID) -> None:
    """Revoke every refresh token that descends from one log-in."""
    await session.execute(
        update(Session)
        .where(Session.org_id == org_id, Session.family_id == family_id, Session.revoked_at.is_(None))
        .values(revoked_at=func.now())
    )


async def revoke_sessions(session: AsyncSession, org_id: UUID, user_id: UUID) -> None:
    """Revoke every refresh token of a user."""
    await session.execute(
        update(Session)
        .where(Session.org_id == org_id, Session.user_id == user_id, Session.revoked_at.is_(None))
        .values(revoked_at=func.now())
    )


async def delete_expired_sessions(session: AsyncSession, org_id: UUID, user_id: UUID) -> None:
    """Forget the refresh tokens of a user that have expired."""
    await session.execute(
        delete(Session).where(Session.org_id == org_id, Session.user_id == user_id, Session.expires_at <= func.now())
    )


async def key_by_prefix(session: AsyncSession, prefix: str) -> tuple[ApiKey, bool] | None:
    """The key of that prefix, and whether its creator's address is verified.

    A key whose creator was removed is as good as any verified user of its organization.
    """
    verified = exists().where(
        User.org_id == ApiKey.org_id,
        User.email_verified_at.is_not(None),
        or_(ApiKey.created_by.is_(None), User.id == ApiKey.created_by),
    )
    row = (await session.execute(select(ApiKey, verified).where(ApiKey.prefix == prefix))).one_or_none()
    return None if row is None else (row[0], row[1])


async def insert_key(session: AsyncSession, org_id: UUID, key: Mapping[str, object]) -> ApiKey | None:
    """A new key, or None when its prefix is taken."""
    statement = (
        insert(ApiKey)
        .values(org_id=org_id, **key)
        .on_conflict_do_nothing(index_elements=[ApiKey.prefix])
        .returning(ApiKey)
    )
    return (await session.scalars(statement)).one_or_none()


async def key(session: AsyncSession, org_id: UUID, key_id: UUID) -> ApiKey | None:
    """One key."""
    return await session.get(ApiKey, (org_id, key_id))


async def key_to_mint_by(session: AsyncSession, org_id: UUID, key_id: UUID) -> ApiKey | None:
    """One key, locked so that it cannot be deleted before what it mints is there."""
    statement = select(ApiKey).where(ApiKey.org_id == org_id, ApiKey.id == key_id).with_for_update(read=True)
    return (await session.scalars(statement)).one_or_none()


async def keys(session: AsyncSession, org_id: UUID, page: Page) -> list[ApiKey]:
    """The rows of one page of an organization's keys, as `Page.cut` wants them."""
    return list(await session.scalars(page.select(select(ApiKey).where(ApiKey.org_id == org_id), ApiKey.id)))


async def delete_key(session: AsyncSession, org_id: UUID, key_id: UUID) -> bool:
    """Delete a key; False when there is none."""
    statement = delete(ApiKey).where(ApiKey.org_id == org_id, ApiKey.id == key_id).returning(ApiKey.id)
    return (await session.scalars(statement)).one_or_none() is not None


async def mark_keys_used(session: AsyncSession, used: Mapping[tuple[UUID, UUID], datetime]) -> None:
    """Note when keys, by (org_id, id), were last used; a later note stays."""
    connection = await session.connection()
    table = ApiKey.__table__.c
    await connection.execute(
        update(ApiKey.__table__)  # type: ignore[arg-type]
        .where(
            table.org_id == bindparam("of_org"),
            table.id == bindparam("of_key"),
            or_(table.last_used_at.is_(None), table.last_used_at < bindparam("at")),
        )
        .values(last_used_at=bindparam("at")),
        # In one order in every process, so that two of them cannot lock each other out.
        [{"of_org": org_id, "of_key": key_id, "at": at} for (org_id, key_id), at in sorted(used.items())],
    )
