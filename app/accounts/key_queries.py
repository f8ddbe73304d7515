"""SQL of API keys."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, delete, exists, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import ApiKey, Organization, User
from app.core.pagination import Page

# Whether the address of a key's creator is verified; when they are gone, that of any user of the organization.
_VERIFIED = exists().where(
    User.org_id == ApiKey.org_id,
    User.email_verified_at.is_not(None),
    or_(ApiKey.created_by.is_(None), User.id == ApiKey.created_by),
)


async def keys_by_prefix(session: AsyncSession, prefix: str) -> Sequence[Any]:
    """(key, whether its creator's address is verified, why its organization is suspended or None) of that prefix.

    Keys whose prefix it was before their last rotation are among them.
    """
    statement = (
        select(ApiKey, _VERIFIED, Organization.suspension_reason)
        .join(Organization, Organization.id == ApiKey.org_id)
        .where(or_(ApiKey.prefix == prefix, ApiKey.previous_prefix == prefix))
    )
    return (await session.execute(statement)).all()


async def is_verified(session: AsyncSession, org_id: UUID, key_id: UUID) -> bool:
    """Whether the key's creator is verified, as in `keys_by_prefix`."""
    return bool(await session.scalar(select(_VERIFIED).where(ApiKey.org_id == org_id, ApiKey.id == key_id)))


async def insert_key(session: AsyncSession, org_id: UUID, key: Mapping[str, object]) -> ApiKey:
    """A new key."""
    return (await session.scalars(insert(ApiKey).values(org_id=org_id, **key).returning(ApiKey))).one()


async def keys_to_rotate(session: AsyncSession, org_id: UUID, key_ids: Collection[UUID]) -> dict[UUID, ApiKey]:
    """Keys as they are now, locked: of two rotations the second sees what the first has made."""
    statement = (
        select(ApiKey)
        .where(ApiKey.org_id == org_id, ApiKey.id.in_(key_ids))
        # In the order of `mark_keys_used`, so that nobody waits in a circle.
        .order_by(ApiKey.id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return {found.id: found for found in await session.scalars(statement)}


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
