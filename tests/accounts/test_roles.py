"""Every role at every route: who gets through, and who is told 403."""

import pytest
from fastapi import FastAPI

from app.accounts.principal import Scope
from app.core.ids import new_id
from tests.accounts.helpers import Account, client_from, colleague, register
from tests.test_routes import GUARDED, Operation, contexts, requires

ALL = {"owner", "admin", "developer", "analyst", "billing"}
# Written out by hand: what the roles are for, and not what the code makes of it.
ALLOWED = {
    "send": {"owner", "admin", "developer"},
    "messages": {"owner", "admin", "developer", "analyst"},
    "stats": {"owner", "admin", "developer", "analyst", "billing"},
    "domains": {"owner", "admin", "developer"},
    "vmtas": {"owner", "admin", "developer"},
    "webhooks": {"owner", "admin", "developer"},
    "suppressions": {"owner", "admin", "developer"},
    "templates": {"owner", "admin", "developer"},
    "credits": {"owner", "admin", "developer", "billing"},
    "billing": {"owner", "admin", "billing"},
    "security": {"owner", "admin", "developer"},
    "users": {"owner", "admin"},
    "keys": {"owner", "admin", "developer"},
    "queues": {"owner", "admin", "developer"},
}
SCOPES = {
    "/api/v1/api-keys": "keys",
    "/api/v1/domains": "domains",
    "/api/v1/messages": "messages",
    "/api/v1/queues": "queues",
    "/api/v1/users": "users",
    "/api/v1/vmtas": "vmtas",
}
EXCEPTIONS = {
    "POST /api/v1/messages/send": "send",
    "POST /api/v1/messages/batch": "send",
    "POST /api/v1/messages/simulate-delivery": "send",
    "POST /api/v1/messages/{message_id}/cancel": "send",
}


@pytest.fixture(scope="module")
async def people(client, database) -> dict[str, Account]:
    owner = await register(client)
    return {role: await colleague(database, owner, role) for role in sorted(ALL)}


def test_every_scope_is_in_the_table():
    assert ALLOWED.keys() == set(Scope)


@pytest.mark.parametrize("role", sorted(ALL))
@pytest.mark.parametrize("operation", GUARDED, ids=str)
async def test_role_at_route(app: FastAPI, people, operation: Operation, role: str):
    group = "/".join(operation.path.split("/")[:4])
    scope = requires(contexts(app)[operation].dependant)[0].scope
    expected = EXCEPTIONS.get(str(operation), SCOPES.get(group))
    if expected is not None:
        assert scope == expected, f"{operation} asks for {scope}"
    ids = {name: str(new_id()) for name in operation.parameters}
    async with client_from(app, "127.60.0.3") as there:
        answer = await there.request(operation.method, operation.path.format(**ids), headers=people[role].headers)
    is_refused = answer.status_code == 403 and answer.json()["code"] == "insufficient_scope"
    assert is_refused == (scope is not None and role not in ALLOWED[scope]), answer.text
