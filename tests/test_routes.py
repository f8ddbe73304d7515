"""The walk along the routing table: what holds for every route of /api/v1, those to come included.

A new route is covered by itself. What it may ask of its author: an example in its body's schema, and a factory here for
a path parameter that is new.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, iter_route_contexts
from sqlalchemy import text

from app.accounts.principal import Requires, Route, Scope
from app.core.config import Settings
from app.core.db import Database
from app.core.ids import new_id
from app.domains import service as domains
from app.main import create_app
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.post_office import post_office

PREFIX = "/api/v1"
# Who has no credentials yet gets them here.
PUBLIC = {
    "POST /api/v1/auth/register",
    "POST /api/v1/auth/login",
    "POST /api/v1/auth/refresh",
    "POST /api/v1/auth/logout",
    "POST /api/v1/auth/verify-email",
    "POST /api/v1/auth/password/forgot",
    "POST /api/v1/auth/password/reset",
    "POST /api/v1/auth/invitations/accept",
}
# The domain of `from` in the examples of the OpenAPI document.
EXAMPLE_DOMAIN = "mail.postroad.test"
ADDRESS = "127.1.0.1"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route."""

    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def parameters(self) -> list[str]:
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]


def contexts(app: FastAPI) -> dict[Operation, RouteContext]:
    return {
        Operation(method, context.path): context
        for context in iter_route_contexts(app.routes)
        if context.path and context.path.startswith(PREFIX)
        for method in context.methods or ()
    }


# The table as it is when tests are collected, before there is an environment.
TABLE = contexts(create_app(Settings(POSTROAD_MODE="production", secret_key="x" * 32)))
OPERATIONS = sorted(TABLE, key=str)
GUARDED = [operation for operation in OPERATIONS if str(operation) not in PUBLIC]
WITH_PARAMETERS = [operation for operation in GUARDED if operation.parameters]


@dataclass(slots=True)
class Organization:
    """A tenant of the walk: a user, a key that may do everything, a domain that may send, keys that lack one scope."""

    org_id: UUID
    user: dict[str, str]
    key: dict[str, str]
    lacking: dict[Scope, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class World:
    """The application, a client of it, and two organizations that must not see each other."""

    app: FastAPI
    client: httpx.AsyncClient
    database: Database
    mine: Organization
    other: Organization

    async def call(
        self, operation: Operation, *, headers: Json | None = None, content: bytes | None = None, **ids: str
    ) -> httpx.Response:
        """Call it, and check what holds for every answer."""
        typed = {"Content-Type": "application/json"} if content is not None else {}
        path = operation.path.format(**ids)
        response = await self.client.request(operation.method, path, headers=typed | (headers or {}), content=content)
        self.check(operation, response)
        return response

    def check(self, operation: Operation, response: httpx.Response) -> None:
        status = response.status_code
        assert status < 500, f"{operation} answered {status}: {response.text}"
        assert response.headers["X-Request-ID"]
        declared = self.app.openapi()["paths"][operation.path][operation.method.lower()]["responses"]
        assert str(status) in declared, f"{operation} answered {status}, which its OpenAPI entry does not declare"
        if status >= 400:
            assert response.headers["Content-Type"] == "application/problem+json"
            problem = response.json()
            assert (problem["status"], problem["request_id"]) == (status, response.headers["X-Request-ID"])
            assert problem["type"].endswith(problem["code"])
        if str(operation) not in PUBLIC:
            assert response.headers["RateLimit"]
            assert response.headers["RateLimit-Policy"]

    async def without(self, scope: Scope) -> dict[str, str]:
        """A key of mine that has every scope but this one."""
        if scope not in self.mine.lacking:
            others = [one for one in Scope if one is not scope]
            _, secret = await helpers.mint(self.client, self.mine.user, scopes=others)
            self.mine.lacking[scope] = {"X-API-Key": secret}
        return self.mine.lacking[scope]


async def _organization(client: httpx.AsyncClient, database: Database) -> Organization:
    account = await helpers.register(client)
    created = await client.post("/api/v1/domains", json={"domain": EXAMPLE_DOMAIN}, headers=account.headers)
    async with database.transaction() as session:
        await domains.trust(session, account.org_id, UUID(created.json()["data"]["domain"]["id"]))
    _, secret = await helpers.mint(client, account.headers)
    return Organization(account.org_id, account.headers, {"X-API-Key": secret})


@pytest.fixture(scope="module")
async def world(app: FastAPI, database: Database, dns: DnsServer) -> AsyncIterator[World]:
    async with helpers.client_from(app, ADDRESS) as client, post_office(app, client, dns):
        mine, other = [await _organization(client, database) for _ in range(2)]
        # All that the walk is refused is counted for one address.
        before = app.state.settings
        app.state.settings = before.model_copy(update={"rate_limit_address_per_minute": 10**6})
        yield World(app, client, database, mine, other)
        app.state.settings = before
        # What the walk has sent is not for the engines of other tests.
        async with database.transaction() as session:
            await session.execute(
                text("DELETE FROM delivery_queue WHERE org_id = ANY(:ids)"), {"ids": [mine.org_id, other.org_id]}
            )


# ── What the operations ask for ─────────────────────────────────────────────────────────────────────────────────────


def requires(dependant: Dependant) -> list[Requires]:
    """Every `Requires` among a route's dependencies, at any depth."""
    own = [dependant.call] if isinstance(dependant.call, Requires) else []
    return own + [found for below in dependant.dependencies for found in requires(below)]


def body_schema(app: FastAPI, operation: Operation) -> Json | None:
    document = app.openapi()
    entry = document["paths"][operation.path][operation.method.lower()]
    if "requestBody" not in entry:
        return None
    # A file has tests of its own.
    if "application/json" not in entry["requestBody"]["content"]:
        return None
    schema = entry["requestBody"]["content"]["application/json"]["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Json = document["components"]["schemas"][name] if name else schema
    return found


def example(app: FastAPI, operation: Operation) -> Json | None:
    """The example of the operation's body; None when it takes none."""
    schema = body_schema(app, operation)
    if schema is None:
        return None
    assert schema.get("examples"), f"{operation} takes a body: give its schema an example (json_schema_extra)."
    found: Json = schema["examples"][0]
    return found


def example_content(app: FastAPI, operation: Operation) -> bytes | None:
    body = example(app, operation)
    return None if body is None else json.dumps(body).encode()


def another_content(app: FastAPI, operation: Operation) -> bytes:
    """Another valid body: the example without one of its optional fields."""
    body, schema = example(app, operation), body_schema(app, operation)
    assert body is not None
    assert schema is not None
    optional = [name for name in body if name not in schema.get("required", ())]
    assert optional, f"The example of {operation} should show an optional field, so that it can be varied."
    return json.dumps({name: value for name, value in body.items() if name != optional[-1]}).encode()


# ── Objects to name in paths ────────────────────────────────────────────────────────────────────────────────────────


async def _make_domain(world: World, owner: Organization) -> str:
    body = {"domain": f"walk-{new_id()}.example"}
    response = await world.client.post("/api/v1/domains", json=body, headers=owner.key)
    return str(response.json()["data"]["domain"]["id"])


async def _make_message(world: World, owner: Organization) -> str:
    body = {"from": f"a@{EXAMPLE_DOMAIN}", "to": "b@walk.example", "subject": "Mine", "text": "Mine."}
    response = await world.client.post("/api/v1/messages/send", json=body, headers=owner.key)
    return str(response.json()["data"]["message"]["id"])


async def _make_api_key(world: World, owner: Organization) -> str:
    view, _ = await helpers.mint(world.client, owner.user, scopes=["send"])
    return str(view["id"])


async def _make_user(world: World, owner: Organization) -> str:
    founder = helpers.Account(owner.org_id, owner.org_id, "", "", "")
    return str((await helpers.colleague(world.database, founder, "analyst")).user_id)


async def _make_invitation(world: World, owner: Organization) -> str:
    body = {"email": helpers.new_email(), "role": "analyst"}
    response = await world.client.post("/api/v1/users/invitations", json=body, headers=owner.key)
    return str(response.json()["data"]["invitation"]["id"])


async def _make_vmta(world: World, owner: Organization) -> str:
    body = {"name": f"walk-{new_id()}"}
    response = await world.client.post("/api/v1/vmtas", json=body, headers=owner.key)
    return str(response.json()["data"]["vmta"]["id"])


async def _make_suppression(world: World, owner: Organization) -> str:
    body = {"address": f"{new_id()}@walk.example"}
    response = await world.client.post("/api/v1/suppressions", json=body, headers=owner.key)
    return str(response.json()["data"]["suppression"]["id"])


async def _make_queue(world: World, owner: Organization) -> str:
    return f"{await _make_vmta(world, owner)}@mx1+mx2.walk.example"


async def _make_webhook(world: World, owner: Organization) -> str:
    body = {"url": "https://hooks.example.com/walk"}
    response = await world.client.post("/api/v1/webhooks", json=body, headers=owner.key)
    return str(response.json()["data"]["webhook"]["id"])


async def _make_webhook_delivery(world: World, owner: Organization) -> str:
    """Of the webhook that was made for the path before it."""
    listed = await world.client.get("/api/v1/webhooks", headers=owner.key)
    (webhook, *_) = listed.json()["data"]["webhooks"]
    response = await world.client.post(f"/api/v1/webhooks/{webhook['id']}/test", json={}, headers=owner.key)
    return str(response.json()["data"]["delivery"]["id"])


@dataclass(frozen=True, slots=True)
class Factory:
    """Makes an object of an organization; `look` is the path at which its owner sees it, with its own id as `{}` and
    those before it by their names.
    """

    make: Callable[[World, Organization], Awaitable[str]]
    look: str


FACTORIES = {
    "domain_id": Factory(_make_domain, "/api/v1/domains/{}"),
    "message_id": Factory(_make_message, "/api/v1/messages/{}"),
    "api_key_id": Factory(_make_api_key, "/api/v1/api-keys/{}"),
    "user_id": Factory(_make_user, "/api/v1/users/{}"),
    "invitation_id": Factory(_make_invitation, "/api/v1/users/invitations/{}"),
    "vmta_id": Factory(_make_vmta, "/api/v1/vmtas/{}"),
    "suppression_id": Factory(_make_suppression, "/api/v1/suppressions/{}"),
    "queue_id": Factory(_make_queue, "/api/v1/queues/{}"),
    "webhook_id": Factory(_make_webhook, "/api/v1/webhooks/{}"),
    "delivery_id": Factory(_make_webhook_delivery, "/api/v1/webhooks/{webhook_id}/deliveries/{}"),
}


def factory(name: str) -> Factory:
    assert name in FACTORIES, (
        f"The path parameter {{{name}}} is new: add a factory to FACTORIES in {__name__} that makes such an object."
    )
    return FACTORIES[name]


async def make_all(world: World, operation: Operation, owner: Organization) -> dict[str, str]:
    return {name: await factory(name).make(world, owner) for name in operation.parameters}


# ── The walk ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_public_routes_exist():
    """PUBLIC names no route that is gone: its exemption would wait there for a new one."""
    assert {str(operation) for operation in OPERATIONS} >= PUBLIC


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_it_says_who_may_call(app: FastAPI, operation: Operation):
    context = contexts(app)[operation]
    # Without our own class the body is read before the caller is known.
    assert isinstance(context.original_route, Route), f"{operation}: give its APIRouter route_class=Route"
    found = requires(context.dependant)
    if str(operation) in PUBLIC:
        assert not found
    else:
        assert len(found) == 1, f"{operation} needs one Requires(scope), or an entry in PUBLIC"
        assert app.openapi()["paths"][operation.path][operation.method.lower()]["security"]


@pytest.mark.parametrize("operation", GUARDED, ids=str)
async def test_without_credentials(world: World, operation: Operation):
    ids = {name: str(new_id()) for name in operation.parameters}
    broken = {name: "%00" for name in operation.parameters}
    garbage = b'{"\xff' + b"[" * 2000
    for content in (None, example_content(world.app, operation), garbage):
        for headers in ({}, {"X-API-Key": f"pmta_00000000_{'x' * 32}"}, {"Authorization": "Bearer x.y.z"}):
            response = await world.call(operation, headers=headers, content=content, **ids)
            assert response.status_code == 401, f"{operation} {content!r} {headers}: {response.text}"
            assert response.headers["WWW-Authenticate"] == "Bearer"
    assert (await world.call(operation, **broken)).status_code == 401


@pytest.mark.parametrize("operation", sorted(PUBLIC))
async def test_public_routes_survive_garbage(world: World, operation: str):
    method, path = operation.split()
    for content in (None, b'{"\xff', b"[" * 100_000, b"[]", b"null", b'{"email": {"$ne": null}}'):
        response = await world.call(Operation(method, path), content=content)
        assert response.status_code == 422, response.text


@pytest.mark.parametrize("operation", GUARDED, ids=str)
async def test_a_key_without_the_scope(world: World, operation: Operation):
    required = requires(contexts(world.app)[operation].dependant)[0]
    scope = required.scope
    ids = await make_all(world, operation, world.mine)
    if scope is None:
        response = await world.call(operation, headers=await world.without(Scope.SEND), **ids)
        assert response.status_code == (403 if required.users_only else 200), response.text
        return
    for content in (None, example_content(world.app, operation), b'{"\xff'):
        response = await world.call(operation, headers=await world.without(scope), content=content, **ids)
        assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope"), response.text


@pytest.mark.parametrize("operation", WITH_PARAMETERS, ids=str)
async def test_ids_of_another_organization(world: World, operation: Operation):
    ids = await make_all(world, operation, world.other)
    looks = [factory(name).look.format(identifier, **ids) for name, identifier in ids.items()]
    before = [await world.client.get(look, headers=world.other.key) for look in looks]
    assert all(response.status_code == 200 for response in before)
    for headers in (world.mine.key, world.mine.user):
        response = await world.call(operation, headers=headers, content=example_content(world.app, operation), **ids)
        assert response.status_code == 404, response.text
        assert response.json()["code"].endswith("_not_found")
        assert not any(identifier in response.text for identifier in ids.values())
    after = [await world.client.get(look, headers=world.other.key) for look in looks]
    assert [response.json() for response in after] == [response.json() for response in before]


@pytest.mark.parametrize("operation", WITH_PARAMETERS, ids=str)
async def test_ids_of_nothing(world: World, operation: Operation):
    content = example_content(world.app, operation)
    for identifier in (str(new_id()), str(UUID(int=0)), str(UUID(int=2**128 - 1))):
        ids = dict.fromkeys(operation.parameters, identifier)
        response = await world.call(operation, headers=world.mine.key, content=content, **ids)
        assert response.status_code == 404, response.text
    for identifier in ("x", "%00", "1", "-1", "..%2f..", "%F0%9F%92%A3", "'%20OR%201=1--", "0" * 2000):
        ids = dict.fromkeys(operation.parameters, identifier)
        response = await world.client.request(
            operation.method, operation.path.format(**ids), headers=world.mine.key, content=content
        )
        assert response.status_code in {404, 422}, f"{identifier}: {response.text}"
        assert response.headers["Content-Type"] == "application/problem+json"


CREATING = [
    operation
    for operation in GUARDED
    if operation.method == "POST" and TABLE[operation].status_code in {201, 202} and "/auth/" not in operation.path
]


def test_something_creates():
    routes = {"POST /api/v1/messages/send", "POST /api/v1/domains", "POST /api/v1/api-keys", "POST /api/v1/vmtas"}
    assert routes <= set(map(str, CREATING))


@pytest.mark.parametrize("operation", CREATING, ids=str)
async def test_a_repeat_with_an_idempotency_key(world: World, operation: Operation):
    ids = await make_all(world, operation, world.mine)
    headers = world.mine.key | {"Idempotency-Key": str(new_id())}
    content = example_content(world.app, operation)
    first = await world.call(operation, headers=headers, content=content, **ids)
    assert first.status_code in {201, 202}, first.text
    assert "Idempotency-Replayed" not in first.headers
    for _ in range(2):
        again = await world.call(operation, headers=headers, content=content, **ids)
        assert (again.status_code, again.json()) == (first.status_code, first.json())
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.headers["Content-Type"] == first.headers["Content-Type"]
        # It may hold a secret, whatever the route.
        assert again.headers["Cache-Control"] == "no-store"
    if content is None:
        return
    other = await world.call(operation, headers=headers, content=another_content(world.app, operation), **ids)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused"), other.text


@pytest.mark.parametrize("operation", CREATING, ids=str)
@pytest.mark.parametrize("key", ["", "x" * 257, "with space", "é"])
async def test_a_bad_idempotency_key(world: World, operation: Operation, key: str):
    ids = await make_all(world, operation, world.mine)
    headers = world.mine.key | {"Idempotency-Key": key.encode()}
    response = await world.call(operation, headers=headers, content=example_content(world.app, operation), **ids)
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["location"] == "header"


async def test_no_route_and_no_method(world: World):
    nothing = await world.client.get("/api/v1/nothing-here", headers=world.mine.key)
    helpers.assert_problem(nothing, 404, "route_not_found")
    wrong = await world.client.delete("/api/v1/domains", headers=world.mine.key)
    helpers.assert_problem(wrong, 405, "method_not_allowed")
    assert set(wrong.headers["Allow"].split(", ")) <= {"GET", "POST"}
    for response in (nothing, wrong):
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.json()["request_id"] == response.headers["X-Request-ID"]
