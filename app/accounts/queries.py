"""SQL of accounts. Who calls is found by a secret or an address; everything else takes org_id first."""

from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import KnownAddress, Organization, Session, User
from app.accounts.scopes import Role
from app.core.pagination import Page


async def user_by_email(session: AsyncSession, email: str) -> User | None:
    """The user of that (normalised) address."""
    return (await session.scalars(select(User).where(User.email == email))).one_or_none()


async def user_to_log_in(
    session: AsyncSession, email: str, *, address_hash: bytes, known_for: timedelta
) -> tuple[User | None, bool]:
    """The user of that (normalised) address, and whether they logged in from that network address not long ago."""
    is_known = (
        select(KnownAddress)
        .where(
            KnownAddress.org_id == User.org_id,
            KnownAddress.user_id == User.id,
            KnownAddress.address_hash == address_hash,
            KnownAddress.last_seen_at > func.now() - known_for,
        )
        .exists()
    )
    row = (await session.execute(select(User, is_known).where(User.email == email))).one_or_none()
    return (None, False) if row is None else (row[0], row[1])


async def remember_address(
    session: AsyncSession, org_id: UUID, user_id: UUID, *, address_hash: bytes, keep: int
) -> None:
    """Note that the user logged in from there; of their addresses only the `keep` seen last are kept."""
    now = func.clock_timestamp()
    row = insert(KnownAddress).values(org_id=org_id, user_id=user_id, address_hash=address_hash, last_seen_at=now)
    key = [KnownAddress.org_id, KnownAddress.user_id, KnownAddress.address_hash]
    await session.execute(row.on_conflict_do_update(index_elements=key, set_={"last_seen_at": now}))
    mine = (KnownAddress.org_id == org_id, KnownAddress.user_id == user_id)
    kept = select(KnownAddress.address_hash).where(*mine).order_by(KnownAddress.last_seen_at.desc()).limit(keep)
    await session.execute(delete(KnownAddress).where(*mine, KnownAddress.address_hash.not_in(kept)))


async def insert_user(session: AsyncSession, user: Mapping[str, object]) -> User | None:
    """A new user, or None when the address is taken already."""
    statement = insert(User).values(**user).on_conflict_do_nothing(index_elements=[User.email]).returning(User)
    return (await session.scalars(statement)).one_or_none()


async def user(session: AsyncSession, org_id: UUID, user_id: UUID) -> User | None:
    """One user."""
    return await session.get(User, (org_id, user_id))


async def user_with_suspension(session: AsyncSession, org_id: UUID, user_id: UUID) -> tuple[User, str | None] | None:
    """One user, and why their organization is suspended, if it is."""
    statement = (
        select(User, Organization.suspension_reason)
        .join(Organization, Organization.id == User.org_id)
        .where(User.org_id == org_id, User.id == user_id)
    )
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else (row[0], row[1])


async def user_now(session: AsyncSession, org_id: UUID, user_id: UUID, *, lock: bool = False) -> User | None:
    """One user as they are at this moment, whatever the session knew of them; locked against changes if asked."""
    statement = select(User).where(User.org_id == org_id, User.id == user_id)
    if lock:
        # FOR NO KEY UPDATE: what refers to the user may be written all the while.
        statement = statement.with_for_update(key_share=True)
    return (await session.scalars(statement.execution_options(populate_existing=True))).one_or_none()


async def users(session: AsyncSession, org_id: UUID, page: Page) -> list[User]:
    """The rows of one page of an organization's users, as `Page.cut` wants them."""
    return list(await session.scalars(page.select(select(User).where(User.org_id == org_id), User.id)))


async def count_owners(session: AsyncSession, org_id: UUID) -> int:
    """How many owners the organization has."""
    owners = select(func.count()).select_from(User).where(User.org_id == org_id, User.role == Role.OWNER.value)
    return await session.scalar(owners) or 0


async def owner_emails(session: AsyncSession, org_id: UUID, *, limit: int) -> list[str]:
    """The addresses of an organization's owners, oldest first."""
    owners = select(User.email).where(User.org_id == org_id, User.role == Role.OWNER.value)
    return list(await session.scalars(owners.order_by(User.id).limit(limit)))


async def delete_user(session: AsyncSession, org_id: UUID, user_id: UUID) -> None:
    """Delete a user with their sessions, mailed tokens and invitations; the keys they made stay."""
    await session.execute(delete(User).where(User.org_id == org_id, User.id == user_id))


async def user_to_mint_by(session: AsyncSession, org_id: UUID, user_id: UUID) -> User | None:
    """One user, locked so that they are neither removed nor given another role before what they mint is there."""
    statement = select(User).where(User.org_id == org_id, User.id == user_id)
    return (await session.scalars(statement.with_for_update(read=True))).one_or_none()


async def organization(session: AsyncSession, org_id: UUID) -> Organization:
    """The organization itself, which must exist."""
    return await session.get_one(Organization, org_id)


async def lock_organization(session: AsyncSession, org_id: UUID) -> Organization:
    """The organization as it is now, locked until the commit: whoever changes who its people are comes through here.

    Nothing else waits for this lock: sending and minting go on.
    """
    statement = select(Organization).where(Organization.id == org_id).with_for_update(key_share=True)
    return (await session.scalars(statement.execution_options(populate_existing=True))).one()


async def organizations_named(session: AsyncSession, name: str, *, limit: int) -> list[Organization]:
    """Organizations of exactly that name, oldest first."""
    statement = select(Organization).where(Organization.name == name).order_by(Organization.id).limit(limit)
    return list(await session.scalars(statement))


async def organization_by_id(session: AsyncSession, org_id: UUID) -> Organization | None:
    """The organization of that id."""
    return await session.get(Organization, org_id)


async def organizations(session: AsyncSession, *, limit: int) -> list[tuple[Organization, int]]:
    """Organizations with how many users each has; suspended ones first, then the newest."""
    users = select(func.count()).select_from(User).where(User.org_id == Organization.id).scalar_subquery()
    order = (Organization.suspended_at.is_(None), Organization.id.desc())
    return [
        (one, count) for one, count in await session.execute(select(Organization, users).order_by(*order).limit(limit))
    ]


async def operator_organizations(session: AsyncSession, *, limit: int) -> list[UUID]:
    """The organizations of operators that are not suspended, oldest first."""
    statement = (
        select(User.org_id)
        .join(Organization, Organization.id == User.org_id)
        .where(User.is_operator, Organization.suspended_at.is_(None))
        .distinct()
        .order_by(User.org_id)
        .limit(limit)
    )
    return list(await session.scalars(statement))


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


async def change_password(
    session: AsyncSession, org_id: UUID, user_id: UUID, *, password_hash: str, instead_of: str | None = None
) -> User | None:
    """Set the password and void every access token; None when there is no such user.

    With `instead_of`, also None when the present hash is not that one.
    """
    conditions = [User.org_id == org_id, User.id == user_id]
    if instead_of is not None:
        conditions.append(User.password_hash == instead_of)
    statement = (
        update(User)
        .where(*conditions)
        .values(password_hash=password_hash, token_epoch=User.token_epoch + 1)
        .returning(User)
        .execution_options(populate_existing=True)
    )
    return (await session.scalars(statement)).one_or_none()


async def void_access_tokens(session: AsyncSession, org_id: UUID, user_id: UUID) -> None:
    """Void every access token of a user that was given out so far."""
    epoch = User.token_epoch + 1
    await session.execute(update(User).where(User.org_id == org_id, User.id == user_id).values(token_epoch=epoch))


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
    """The refresh token of that digest, locked as its user is, and whether it has expired."""
    statement = select(Session, Session.expires_at <= func.now()).where(Session.token_hash == token_hash)
    row = (await session.execute(statement)).one_or_none()
    # The user before the session, as their removal does, so that the two never wait for each other in a circle.
    if row is None or await user_now(session, row[0].org_id, row[0].user_id, lock=True) is None:
        return None
    locked = statement.with_for_update().execution_options(populate_existing=True)
    row = (await session.execute(locked)).one_or_none()
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
