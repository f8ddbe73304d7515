"""The people of an organization: who they are, what role they have, and their leaving.

Errors: Conflict (`last_owner`), Forbidden (`owner_required`, `scope_exceeded`, `insufficient_scope`), NotFound,
Unauthenticated.

Whoever changes an organization's people first locks it, and looks then at who asks and who is meant: what the caller
was a moment ago does not count, and two owners cannot take each other's place away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import key_queries, queries, token_queries
from app.accounts.models import User
from app.accounts.principal import Principal
from app.accounts.scopes import ROLE_SCOPES, Role, Scope
from app.core.errors import Conflict, Forbidden, NotFound, Unauthenticated
from app.core.pagination import Page, Pagination


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes an organization's people, as they are at this moment. `role` is None for an API key."""

    user_id: UUID | None
    role: Role | None
    scopes: frozenset[Scope]
    is_restricted: bool

    def must_stand_above(self, *roles: Role) -> None:
        """Raises Forbidden unless the actor may give each of these roles, and take it away.

        Owners are made and unmade by owners alone; nobody gives what they do not have.
        """
        for role in roles:
            if role is Role.OWNER and self.role is not Role.OWNER:
                raise Forbidden("owner_required", "Only an owner may make, change or remove an owner.")
            if not ROLE_SCOPES[role] <= self.scopes:
                raise Forbidden("scope_exceeded", f"The role `{role}` may do more than you.")

    def must_be_unrestricted(self) -> None:
        """Raises Forbidden for a key that is bound in some way, since users are not."""
        if self.is_restricted:
            raise Forbidden("scope_exceeded", "Your key is restricted, and a user would not be.")


async def actor(session: AsyncSession, principal: Principal) -> Actor:
    """Who the principal is now, with the organization locked. Raises Unauthenticated, Forbidden."""
    await queries.lock_organization(session, principal.org_id)
    if principal.key_id is not None:
        key = await key_queries.key_to_mint_by(session, principal.org_id, principal.key_id)
        if key is None:
            raise Unauthenticated("invalid_api_key", "The API key is unknown or has been deleted.")
        return Actor(None, None, frozenset(map(Scope, key.scopes)), key.is_restricted)
    user = await queries.user_now(session, principal.org_id, principal.user_id) if principal.user_id else None
    if user is None:
        raise Unauthenticated("invalid_token", "The access token has been withdrawn; log in again.")
    role = Role(user.role)
    if Scope.USERS not in ROLE_SCOPES[role]:
        raise Forbidden("insufficient_scope", f"This needs the scope `{Scope.USERS}`.")
    return Actor(user.id, role, ROLE_SCOPES[role], False)


async def page(session: AsyncSession, org_id: UUID, wanted: Page) -> tuple[Sequence[User], Pagination]:
    """One page of the organization's users, newest first."""
    return wanted.cut(await queries.users(session, org_id, wanted), lambda user: user.id)


async def set_role(session: AsyncSession, principal: Principal, user_id: UUID, role: Role) -> User:
    """Give a user another role; it holds within two seconds in every process.

    What they have invited is withdrawn. Raises NotFound, Forbidden, Conflict, Unauthenticated.
    """
    by = await actor(session, principal)
    user = await _target(session, principal.org_id, user_id)
    by.must_be_unrestricted()
    by.must_stand_above(Role(user.role), role)
    if role is Role(user.role):
        return user
    await _keep_an_owner(session, user)
    await token_queries.delete_invitations_of(session, user.org_id, user.id)
    user.role = role.value
    await session.flush()
    return user


async def remove(session: AsyncSession, principal: Principal, user_id: UUID) -> None:
    """Remove a user; their sessions end at once and their access tokens within two seconds. Their keys stay.

    Raises NotFound, Forbidden, Conflict, Unauthenticated.
    """
    by = await actor(session, principal)
    user = await _target(session, principal.org_id, user_id)
    by.must_stand_above(Role(user.role))
    await _keep_an_owner(session, user)
    await queries.delete_user(session, user.org_id, user.id)


async def _target(session: AsyncSession, org_id: UUID, user_id: UUID) -> User:
    user = await queries.user_now(session, org_id, user_id)
    if user is None:
        raise NotFound("user")
    return user


async def _keep_an_owner(session: AsyncSession, leaving: User) -> None:
    if Role(leaving.role) is Role.OWNER and await queries.count_owners(session, leaving.org_id) == 1:
        raise Conflict("last_owner", "An organization keeps at least one owner: make someone else one first.")
