"""Suspending organizations: they can look at everything and change nothing, and their mail waits.

Errors: Conflict (`ambiguous_organization`), NotFound.
"""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import queries
from app.accounts.models import Organization
from app.core.errors import Conflict, NotFound

_NAMESAKES_MAX = 10


async def suspend(session: AsyncSession, id_or_name: str, *, reason: str) -> Organization:
    """Suspend an organization; within two seconds no process accepts mail or changes of it, and no more is sent.

    Its people are told the reason. A second time changes the reason. Raises NotFound, Conflict.
    """
    organization = await find(session, id_or_name)
    organization.suspended_at = organization.suspended_at or datetime.now(UTC)
    organization.suspension_reason = reason
    await session.flush()
    return organization


async def resume(session: AsyncSession, id_or_name: str) -> Organization:
    """End a suspension; what waited is sent now unless it has expired. Raises NotFound, Conflict."""
    organization = await find(session, id_or_name)
    organization.suspended_at = organization.suspension_reason = None
    await session.flush()
    return organization


async def suspended(session: AsyncSession) -> frozenset[UUID]:
    """The organizations that are suspended now: few, and found by an index of their own."""
    found = select(Organization.id).where(Organization.suspended_at.is_not(None))
    return frozenset(await session.scalars(found))


async def find(session: AsyncSession, id_or_name: str) -> Organization:
    """An organization by its id or exact name, locked until the commit. Raises NotFound, Conflict."""
    try:
        found = [await queries.organization_by_id(session, UUID(id_or_name))]
    except ValueError:
        found = [*await queries.organizations_named(session, id_or_name, limit=_NAMESAKES_MAX)]
    if len(found) > 1:
        ids = ", ".join(str(one.id) for one in found if one)
        raise Conflict("ambiguous_organization", f"Several organizations have that name, choose by id: {ids}.")
    if not found or found[0] is None:
        raise NotFound("organization")
    return await queries.lock_organization(session, found[0].id)
