"""SQL of what is mailed: one-time tokens and invitations. Both are found by the digest of their token."""

from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Invitation, OneTimeToken
from app.core.pagination import Page


async def count_tokens(session: AsyncSession, org_id: UUID, user_id: UUID, purpose: str, *, within: timedelta) -> int:
    """How many tokens the user was mailed for the purpose of late."""
    mine = (OneTimeToken.org_id == org_id, OneTimeToken.user_id == user_id, OneTimeToken.purpose == purpose)
    recent = OneTimeToken.created_at > func.now() - within
    return await session.scalar(select(func.count()).select_from(OneTimeToken).where(*mine, recent)) or 0


async def void_tokens(session: AsyncSession, org_id: UUID, user_id: UUID, purpose: str) -> None:
    """Make every token of the user for the purpose expire now."""
    mine = (OneTimeToken.org_id == org_id, OneTimeToken.user_id == user_id, OneTimeToken.purpose == purpose)
    await session.execute(
        update(OneTimeToken).where(*mine, OneTimeToken.expires_at > func.now()).values(expires_at=func.now())
    )


async def forget_tokens(session: AsyncSession, org_id: UUID, user_id: UUID, *, older_than: timedelta) -> None:
    """Delete the user's tokens that have long ceased to be good."""
    mine = (OneTimeToken.org_id == org_id, OneTimeToken.user_id == user_id)
    await session.execute(delete(OneTimeToken).where(*mine, OneTimeToken.expires_at < func.now() - older_than))


async def insert_token(
    session: AsyncSession, org_id: UUID, user_id: UUID, purpose: str, *, token_hash: bytes, lifetime: timedelta
) -> None:
    """A new token."""
    values = {"org_id": org_id, "user_id": user_id, "purpose": purpose, "token_hash": token_hash}
    await session.execute(insert(OneTimeToken).values(**values, expires_at=func.now() + lifetime))


async def token_owner(session: AsyncSession, token_hash: bytes, purpose: str) -> tuple[UUID, UUID] | None:
    """The (org_id, user_id) that the token was mailed to; None when it is not good."""
    found = select(OneTimeToken.org_id, OneTimeToken.user_id).where(*_good(token_hash, purpose))
    row = (await session.execute(found)).one_or_none()
    return None if row is None else (row[0], row[1])


async def use_token(session: AsyncSession, token_hash: bytes, purpose: str) -> bool:
    """Use the token up; False when it is not good."""
    statement = update(OneTimeToken).where(*_good(token_hash, purpose)).values(used_at=func.now())
    return (await session.scalars(statement.returning(OneTimeToken.id))).one_or_none() is not None


def _good(token_hash: bytes, purpose: str) -> tuple[ColumnElement[bool], ...]:
    return (
        OneTimeToken.token_hash == token_hash,
        OneTimeToken.purpose == purpose,
        OneTimeToken.used_at.is_(None),
        OneTimeToken.expires_at > func.now(),
    )


async def insert_invitation(
    session: AsyncSession, org_id: UUID, invitation: Mapping[str, object], *, lifetime: timedelta
) -> Invitation:
    """A new invitation; an earlier one of the organization to the same address is gone with its token."""
    await session.execute(
        delete(Invitation).where(Invitation.org_id == org_id, Invitation.email == invitation["email"])
    )
    statement = insert(Invitation).values(org_id=org_id, **invitation, expires_at=func.now() + lifetime)
    return (await session.scalars(statement.returning(Invitation))).one()


async def count_invitations(session: AsyncSession, org_id: UUID) -> int:
    """How many invitations of the organization are open."""
    open_ones = (Invitation.org_id == org_id, Invitation.expires_at > func.now())
    return await session.scalar(select(func.count()).select_from(Invitation).where(*open_ones)) or 0


async def invitations(session: AsyncSession, org_id: UUID, page: Page) -> list[Invitation]:
    """The rows of one page of an organization's invitations, as `Page.cut` wants them."""
    return list(
        await session.scalars(page.select(select(Invitation).where(Invitation.org_id == org_id), Invitation.id))
    )


async def invitation(session: AsyncSession, org_id: UUID, invitation_id: UUID) -> Invitation | None:
    """One invitation."""
    return await session.get(Invitation, (org_id, invitation_id))


async def invitation_by_hash(session: AsyncSession, token_hash: bytes) -> Invitation | None:
    """The open invitation of that token."""
    statement = select(Invitation).where(Invitation.token_hash == token_hash, Invitation.expires_at > func.now())
    return (await session.scalars(statement)).one_or_none()


async def take_invitation(session: AsyncSession, token_hash: bytes) -> Invitation | None:
    """Take the open invitation of that token out: only one can."""
    statement = (
        delete(Invitation)
        .where(Invitation.token_hash == token_hash, Invitation.expires_at > func.now())
        .returning(Invitation)
    )
    return (await session.scalars(statement)).one_or_none()


async def delete_invitation(session: AsyncSession, org_id: UUID, invitation_id: UUID) -> bool:
    """Withdraw an invitation; False when there is none."""
    statement = delete(Invitation).where(Invitation.org_id == org_id, Invitation.id == invitation_id)
    return (await session.scalars(statement.returning(Invitation.id))).one_or_none() is not None


async def delete_invitations_of(session: AsyncSession, org_id: UUID, user_id: UUID) -> None:
    """Withdraw all that a user has sent."""
    await session.execute(delete(Invitation).where(Invitation.org_id == org_id, Invitation.invited_by == user_id))
