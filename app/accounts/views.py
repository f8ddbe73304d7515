"""Rows as the API shows them."""

from fastapi import Response

from app.accounts import tokens
from app.accounts.models import ApiKey, Invitation, Organization, User
from app.accounts.schemas import ApiKeyView, InvitationView, OrganizationView, SessionView, UserView
from app.accounts.service import LoggedIn
from app.core.schemas import Envelope


def no_store(response: Response) -> None:
    """Dependency of routes whose answer carries a secret, which is not for caches (RFC 6749 §5.1)."""
    response.headers["Cache-Control"] = "no-store"


def session(logged_in: LoggedIn) -> Envelope[SessionView]:
    """The answer to a log-in."""
    view = SessionView(
        access_token=logged_in.access_token,
        expires_in=tokens.ACCESS_SECONDS,
        refresh_token=logged_in.refresh_token,
        user=user(logged_in.user),
        organization=organization(logged_in.organization),
    )
    return Envelope(data=view)


def organization(row: Organization) -> OrganizationView:
    """A tenant."""
    return OrganizationView.model_validate(row, from_attributes=True)


def user(row: User) -> UserView:
    """A user."""
    return UserView(
        id=row.id,
        email=row.email,
        name=row.name,
        role=row.role,
        email_verified=row.email_verified_at is not None,
        created_at=row.created_at,
        last_login_at=row.last_login_at,
    )


def invitation(row: Invitation) -> InvitationView:
    """An invitation."""
    return InvitationView.model_validate(row, from_attributes=True)


def api_key(row: ApiKey) -> ApiKeyView:
    """An API key."""
    return ApiKeyView(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        test=row.is_test,
        scopes=row.scopes,
        domains=row.domains,
        source_addresses=row.source_addresses,
        expires_at=row.expires_at,
        previous_expires_at=row.previous_expires_at,
        last_used_at=row.last_used_at,
        created_by=row.created_by,
        created_at=row.created_at,
    )
