"""What a caller may do: scopes, and the roles that bundle them."""

from enum import StrEnum


class Scope(StrEnum):
    """One area of the API."""

    SEND = "send"
    MESSAGES = "messages"
    STATS = "stats"
    DOMAINS = "domains"
    VMTAS = "vmtas"
    WEBHOOKS = "webhooks"
    SUPPRESSIONS = "suppressions"
    TEMPLATES = "templates"
    CREDITS = "credits"
    BILLING = "billing"
    SECURITY = "security"
    USERS = "users"
    KEYS = "keys"
    QUEUES = "queues"


class Role(StrEnum):
    """What a user is in an organization."""

    OWNER = "owner"
    ADMIN = "admin"
    DEVELOPER = "developer"
    ANALYST = "analyst"
    BILLING = "billing"


ROLE_SCOPES: dict[Role, frozenset[Scope]] = {
    Role.OWNER: frozenset(Scope),
    Role.ADMIN: frozenset(Scope),
    Role.DEVELOPER: frozenset(Scope) - {Scope.USERS, Scope.BILLING},
    Role.ANALYST: frozenset({Scope.MESSAGES, Scope.STATS}),
    Role.BILLING: frozenset({Scope.BILLING, Scope.CREDITS, Scope.STATS}),
}
