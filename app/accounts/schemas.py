"""Bodies and answers of registration, sessions, users, invitations and API keys."""

import ipaddress
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool

from app.accounts.passwords import MAX_CHARACTERS, MIN_CHARACTERS
from app.accounts.scopes import Role, Scope
from app.core.pagination import Pagination
from app.core.schemas import Body, Text, Timestamp, TimestampInput
from app.mail import address

_RESTRICTIONS_MAX = 100
_OVERLAP_MAX_SECONDS = 7 * 86_400
_EXAMPLE_TOKEN = "pmot_Zk3TqYvXn8sUj2LwR6bGc0eHd5aMf9iPo1xVy4CtBzE"  # noqa: S105
_EXAMPLE_ID = "0197a3f0-5a3c-7c52-9d1e-2f6b8f1c0a11"


def normalised_email(value: str) -> str:
    """The form in which users' addresses are kept and found. Raises app.mail.address.AddressError."""
    return address.build(value).email.lower()


def _normalised_network(value: str) -> str:
    network = ipaddress.ip_network(value)
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError("give an IPv4 network in its own notation")
    return str(network)


Email = Annotated[Text, Field(max_length=320), AfterValidator(normalised_email)]
Name = Annotated[Text, AfterValidator(str.strip), Field(min_length=1, max_length=200)]
NewPassword = Annotated[
    Text,
    Field(
        min_length=MIN_CHARACTERS,
        max_length=MAX_CHARACTERS,
        description="8 to 256 characters; the commonest passwords are refused.",
    ),
]
MailedToken = Annotated[Text, Field(min_length=1, max_length=200, description="The token from the mail.")]
DomainName = Annotated[Text, Field(max_length=253), AfterValidator(address.parse_domain)]
Network = Annotated[Text, Field(max_length=49), AfterValidator(_normalised_network)]


class RegisterBody(Body):
    """A new organization and its owner."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "email": "ada@example.com",
                    "password": "correct horse battery staple",
                    "name": "Ada Lovelace",
                    "organization_name": "Analytical Engines",
                }
            ]
        }
    )

    email: Email = Field(description="Becomes the user's log-in name; kept in lower case.")
    password: NewPassword
    name: Name
    organization_name: Name


class LoginBody(Body):
    """What a user proves themselves by."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"email": "ada@example.com", "password": "correct horse battery staple"}]}
    )

    email: Email
    password: Text = Field(min_length=1, max_length=MAX_CHARACTERS)
    otp: Annotated[str, Field(pattern=r"^[0-9]{6,8}$")] | None = Field(
        default=None,
        description="The one-time code, for users with a second factor; of no effect for others.",
    )


class RefreshBody(Body):
    """The refresh token to exchange."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"refresh_token": "pmrt_Zk3TqYvXn8sUj2LwR6bGc0eHd5aMf9iPo1xVy4CtBzE"}]}
    )

    refresh_token: Text = Field(min_length=1, max_length=1000)


class LogoutBody(Body):
    """The session to end."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"refresh_token": "pmrt_Zk3TqYvXn8sUj2LwR6bGc0eHd5aMf9iPo1xVy4CtBzE", "everywhere": False}]
        }
    )

    refresh_token: Text = Field(min_length=1, max_length=1000)
    everywhere: StrictBool = Field(default=False, description="End all sessions of the user, access tokens included.")


class VerifyEmailBody(Body):
    """The proof that the user reads mail at their address."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"token": _EXAMPLE_TOKEN}]})

    token: MailedToken


class ForgotPasswordBody(Body):
    """Whose password is forgotten."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"email": "ada@example.com"}]})

    email: Email


class ResetPasswordBody(Body):
    """A new password, and the proof that the user may set it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"token": _EXAMPLE_TOKEN, "password": "another horse battery staple"}]}
    )

    token: MailedToken
    password: NewPassword


class ChangePasswordBody(Body):
    """A new password, and the present one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"current_password": "correct horse battery staple", "password": "another horse battery staple"}
            ]
        }
    )

    current_password: Text = Field(min_length=1, max_length=MAX_CHARACTERS)
    password: NewPassword


class RoleBody(Body):
    """What a user shall be."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"role": "developer"}]})

    role: Role


class InvitationBody(Body):
    """Whom to invite, and as what."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"email": "charles@example.com", "role": "developer", "name": "Charles Babbage"}]
        }
    )

    email: Email
    role: Role = Field(description="Never more than your own; `owner` only by owners.")
    name: Name | None = Field(default=None, description="What they are called, unless they say otherwise.")


class AcceptInvitationBody(Body):
    """The proof of being invited, and the new user's name and password."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"token": _EXAMPLE_TOKEN, "password": "correct horse battery staple", "name": "Charles Babbage"}
            ]
        }
    )

    token: MailedToken
    password: NewPassword
    name: Name | None = Field(default=None, description="Required if the invitation does not say it.")


class OrganizationView(BaseModel):
    """A tenant."""

    id: UUID = Field(examples=[_EXAMPLE_ID])
    name: str = Field(examples=["Analytical Engines"])
    created_at: Timestamp
    suspended_at: Timestamp | None = Field(description="Since when it may only read; null when all is well.")
    suspension_reason: str | None


class UserView(BaseModel):
    """A user."""

    id: UUID = Field(examples=[_EXAMPLE_ID])
    email: str = Field(examples=["ada@example.com"])
    name: str = Field(examples=["Ada Lovelace"])
    role: Role
    email_verified: bool
    created_at: Timestamp
    last_login_at: Timestamp | None


class UserData(BaseModel):
    """One user."""

    user: UserView


class UsersView(BaseModel):
    """A page of users, newest first."""

    users: list[UserView]
    pagination: Pagination


class MailedView(BaseModel):
    """Where a mail goes, if there is reason for one."""

    email: str = Field(examples=["ada@example.com"])


class InvitationView(BaseModel):
    """An invitation that was neither accepted nor withdrawn."""

    id: UUID = Field(examples=[_EXAMPLE_ID])
    email: str = Field(examples=["charles@example.com"])
    name: str | None
    role: Role
    invited_by: UUID | None = Field(description="The user who invited; null when it was an API key.")
    created_at: Timestamp
    expires_at: Timestamp


class InvitationData(BaseModel):
    """One invitation."""

    invitation: InvitationView


class InvitationsView(BaseModel):
    """A page of invitations, newest first."""

    invitations: list[InvitationView]
    pagination: Pagination


class SessionView(BaseModel):
    """Tokens of a logged-in user."""

    access_token: str = Field(description="Send it as `Authorization: Bearer …`.")
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - RFC 6750's name of the kind of token
    expires_in: int = Field(description="Seconds until the access token expires.", examples=[900])
    refresh_token: str = Field(description="Good for one exchange at `/auth/refresh` within 30 days.")
    user: UserView
    organization: OrganizationView


class ApiKeyBody(Body):
    """A new API key. It can never do more than the caller."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "Production mailer", "scopes": ["send", "messages"]}]}
    )

    name: Name
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))] | None = Field(
        default=None, description="What the key may do; left out, all that the caller may."
    )
    domains: Annotated[list[DomainName], Field(min_length=1, max_length=_RESTRICTIONS_MAX)] | None = Field(
        default=None,
        description="Sender domains that the key is restricted to.",
        examples=[["mail.example.com"]],
    )
    source_addresses: Annotated[list[Network], Field(min_length=1, max_length=_RESTRICTIONS_MAX)] | None = Field(
        default=None,
        description="Addresses or CIDR networks from which alone the key may be used.",
        examples=[["192.0.2.0/24", "2001:db8::7"]],
    )
    expires_at: TimestampInput | None = Field(default=None, description="When the key ceases to work.")
    test: StrictBool = Field(default=False, description="A test key, `pmta_test_…`: it never sends real mail.")


class RotateApiKeyBody(Body):
    """How to go over from one secret to the next."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_seconds": 3600}]})

    overlap_seconds: int = Field(
        default=86_400, strict=True, ge=0, le=_OVERLAP_MAX_SECONDS, description="How long the present secret works on."
    )


class ApiKeyView(BaseModel):
    """An API key, without its secret."""

    id: UUID = Field(examples=[_EXAMPLE_ID])
    name: str = Field(examples=["Production mailer"])
    prefix: str = Field(description="The part of the key that may be shown.", examples=["pmta_a1b2c3d4"])
    test: bool = Field(description="Whether it is a test key.")
    scopes: list[Scope]
    domains: list[str] | None
    source_addresses: list[str] | None
    expires_at: Timestamp | None
    previous_expires_at: Timestamp | None = Field(
        description="Until when the secret from before the last rotation works; null when it was never rotated."
    )
    last_used_at: Timestamp | None = Field(description="Up to ten seconds late.")
    created_by: UUID | None = Field(description="The user who made it; null once that user is gone.")
    created_at: Timestamp


class CreatedApiKeyView(BaseModel):
    """An API key with its new secret."""

    api_key: ApiKeyView
    secret: str = Field(
        description="The whole key, shown this once.",
        examples=["pmta_a1b2c3d4_0123456789ABCDEFGHIJKLMNOPQRSTUV"],
    )


class ApiKeyData(BaseModel):
    """One API key."""

    api_key: ApiKeyView


class ApiKeysView(BaseModel):
    """A page of API keys, newest first."""

    api_keys: list[ApiKeyView]
    pagination: Pagination


class MeView(BaseModel):
    """Who the credentials of the request speak for: a user, or an API key."""

    kind: Literal["user", "api_key"]
    user: UserView | None
    api_key: ApiKeyView | None
    organization: OrganizationView
    scopes: list[Scope]
