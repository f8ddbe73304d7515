import asyncio
import re
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated

import pytest
from fastapi import Depends
from fastapi.routing import APIRoute
from sqlalchemy import delete, update

from app.accounts.models import ApiKey, User
from app.accounts.principal import ROLE_SCOPES, Principal, Requires, Role, Scope
from tests.accounts.helpers import (
    assert_problem,
    change_user,
    client_from,
    me,
    mint,
    new_email,
    one_window,
    register,
)

KEY = re.compile(r"pmta_[0-9a-f]{8}_[0-9A-Za-z]{32}")


def as_bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


def as_header(secret):
    return {"X-API-Key": secret}


@pytest.fixture
def principals(app):
    """The Principal that a route gets to see, through a route that only this test has."""
    seen: list[Principal] = []

    async def look(principal: Annotated[Principal, Depends(Requires(Scope.SEND))]) -> dict[str, str]:
        seen.append(principal)
        return {}

    path = "/api/v1/principal-test"
    before = list(app.router.routes)
    app.router.routes.insert(0, APIRoute(path, look))
    yield path, seen
    app.router.routes[:] = before


@contextmanager
def changed_settings(app, **values):
    """The application with some settings changed."""
    before = app.state.settings
    app.state.settings = before.model_copy(update=values)
    try:
        yield
    finally:
        app.state.settings = before


async def test_three_ways_in(client):
    account = await register(client)
    key, secret = await mint(client, account.headers, name="CI", scopes=["send"])
    assert KEY.fullmatch(secret)
    assert secret.startswith(key["prefix"] + "_")
    assert (await me(client, account.headers)).json()["data"]["kind"] == "user"
    for headers in (as_bearer(secret), as_header(secret), as_bearer(secret) | as_header(secret)):
        found = (await me(client, headers)).json()["data"]
        assert (found["kind"], found["user"], found["scopes"]) == ("api_key", None, ["send"])
        assert found["api_key"]["id"] == key["id"]
        assert found["organization"]["id"] == str(account.org_id)


async def test_two_different_credentials_are_refused(client):
    account = await register(client)
    _, secret = await mint(client, account.headers)
    _, other = await mint(client, account.headers)
    for bearer in (as_bearer(other), account.headers):
        assert_problem(await me(client, bearer | as_header(secret)), 401, "conflicting_credentials")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "credentials_required"),
        ({"Authorization": "Basic YTpi"}, "credentials_required"),
        ({"Authorization": "Bearer"}, "credentials_required"),
        ({"X-API-Key": ""}, "credentials_required"),
        ({"X-API-Key": "not-a-key"}, "invalid_api_key"),
        ({"X-API-Key": "pmta_00000000_" + "a" * 32}, "invalid_api_key"),
        ({"Authorization": "Bearer pmta_00000000_" + "a" * 32}, "invalid_api_key"),
        ({"Authorization": "Bearer pmta_"}, "invalid_api_key"),
        ({"X-API-Key": "pmta_00000000_" + "a" * 5000}, "invalid_api_key"),
        ({"X-API-Key": "pmta_é".encode()}, "invalid_api_key"),
    ],
)
async def test_no_or_bad_credentials(client, headers, code):
    response = await me(client, headers)
    assert_problem(response, 401, code)
    assert response.headers["www-authenticate"] == "Bearer"


async def test_the_prefix_alone_or_another_secret_under_it_opens_nothing(client):
    account = await register(client)
    key, secret = await mint(client, account.headers)
    flipped = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    for wrong in (key["prefix"], key["prefix"] + "_", flipped, secret + "a", secret.upper()):
        assert_problem(await me(client, as_header(wrong)), 401, "invalid_api_key")


async def test_an_access_token_is_no_api_key(client):
    account = await register(client)
    assert_problem(await me(client, as_header(account.access_token)), 401, "invalid_api_key")


@pytest.mark.parametrize("role", list(Role))
async def test_roles_bring_their_scopes(client, database, role):
    account = await register(client)
    await change_user(database, account, role=role.value)
    found = (await me(client, account.headers)).json()["data"]
    assert set(found["scopes"]) == set(ROLE_SCOPES[role])
    listing = await client.get("/api/v1/api-keys", headers=account.headers)
    assert listing.status_code == (200 if Scope.KEYS in ROLE_SCOPES[role] else 403)


async def test_a_key_without_the_scope_is_refused_and_told_which(client):
    account = await register(client)
    _, secret = await mint(client, account.headers, scopes=["send", "stats"])
    response = await client.get("/api/v1/api-keys", headers=as_header(secret))
    assert_problem(response, 403, "insufficient_scope")
    assert "`keys`" in response.json()["detail"]


async def test_what_a_route_sees_of_a_user_and_of_a_key(client, database, principals):
    path, seen = principals
    account = await register(client)
    await change_user(database, account, email_verified_at=datetime.now(UTC), is_operator=True)
    key, secret = await mint(client, account.headers, scopes=["send"], domains=["Mail.EXAMPLE.com"])
    await client.get(path, headers=account.headers)
    await client.get(path, headers=as_header(secret))
    user, by_key = seen
    assert (user.org_id, user.user_id, user.key_id) == (account.org_id, account.user_id, None)
    assert (user.role, user.domains, user.is_verified, user.is_operator) == (Role.OWNER, None, True, True)
    assert (by_key.org_id, by_key.user_id, str(by_key.key_id)) == (account.org_id, None, key["id"])
    assert (by_key.role, by_key.scopes) == (None, {Scope.SEND})
    assert by_key.domains == {"mail.example.com"}
    # A key sends as its creator may, but never runs the platform.
    assert (by_key.is_verified, by_key.is_operator) == (True, False)


async def test_a_key_is_as_verified_as_its_creator_and_outlives_them(client, database, principals):
    path, seen = principals
    account = await register(client)
    _, secret = await mint(client, account.headers)
    await client.get(path, headers=as_header(secret))
    async with database.transaction() as session:
        colleague = User(
            org_id=account.org_id,
            email=new_email(),
            name="Charles",
            password_hash="none",
            role="admin",
            email_verified_at=datetime.now(UTC),
        )
        session.add(colleague)
        await session.flush()
        await session.execute(delete(User).where(User.org_id == account.org_id, User.id == account.user_id))
    await asyncio.sleep(1.6)
    await client.get(path, headers=as_header(secret))
    assert [principal.is_verified for principal in seen] == [False, True]


async def test_a_deleted_key_is_dead_within_two_seconds(client):
    account = await register(client)
    key, secret = await mint(client, account.headers)
    assert (await me(client, as_header(secret))).status_code == 200
    response = await client.delete(f"/api/v1/api-keys/{key['id']}", headers=account.headers)
    assert response.status_code == 204
    await asyncio.sleep(2)
    assert_problem(await me(client, as_header(secret)), 401, "invalid_api_key")


async def test_a_key_answers_from_memory_for_a_moment(client, database, principals):
    path, seen = principals
    account = await register(client)
    key, secret = await mint(client, account.headers)
    assert (await client.get(path, headers=as_header(secret))).status_code == 200
    async with database.transaction() as session:
        await session.execute(delete(ApiKey).where(ApiKey.org_id == account.org_id))
    # The row is gone and yet the key is known: so no query was made.
    assert (await client.get(path, headers=as_header(secret))).status_code == 200
    assert str(seen[1].key_id) == key["id"]


async def test_an_expired_key_is_refused_even_while_it_is_remembered(client, database):
    account = await register(client)
    soon = datetime.now(UTC) + timedelta(seconds=0.8)
    key, secret = await mint(client, account.headers, expires_at=soon.isoformat())
    assert (await me(client, as_header(secret))).status_code == 200
    await asyncio.sleep(0.9)
    assert_problem(await me(client, as_header(secret)), 401, "api_key_expired")
    async with database.transaction() as session:
        stored = update(ApiKey).where(ApiKey.org_id == account.org_id).returning(ApiKey.expires_at)
        assert (await session.scalar(stored.values(name="late"))) <= datetime.now(UTC)
    assert key["expires_at"].endswith("Z")


@pytest.mark.parametrize(
    ("allowed", "address", "status"),
    [
        (["127.0.9.0/24"], "127.0.9.77", 200),
        (["127.0.9.0/24"], "127.0.10.1", 403),
        (["127.0.9.1"], "127.0.9.1", 200),
        (["127.0.9.1"], "127.0.9.2", 403),
        (["127.0.9.0/24"], "::ffff:127.0.9.77", 200),
        (["127.0.9.0/24"], "::ffff:127.0.10.1", 403),
        (["::1/128", "127.0.9.1/32"], "::1", 200),
        (["::/0"], "127.0.9.1", 403),
        (["0.0.0.0/0"], "::1", 403),
        (["0.0.0.0/0", "::/0"], "a-unix-socket", 403),
    ],
)
async def test_source_addresses(client, app, allowed, address, status):
    account = await register(client)
    _, secret = await mint(client, account.headers, source_addresses=allowed)
    async with client_from(app, address) as there:
        response = await me(there, as_header(secret))
    assert response.status_code == status, response.text
    if status == 403:
        assert_problem(response, 403, "source_address_not_allowed")


async def test_answers_carry_the_rate_limit_of_key_and_organization(client):
    account = await register(client)
    _, secret = await mint(client, account.headers)
    by_key, by_user = await me(client, as_header(secret)), await me(client, account.headers)
    assert re.fullmatch(r'"key";q=\d+;w=60, "organization";q=\d+;w=60', by_key.headers["ratelimit-policy"])
    assert by_user.headers["ratelimit-policy"].startswith('"user"')
    assert "r=" in by_key.headers["ratelimit"]


@pytest.mark.parametrize(
    ("setting", "kind"),
    [("rate_limit_key_per_minute", "key"), ("rate_limit_organization_per_minute", "organization")],
)
async def test_over_the_limit(client, app, setting, kind):
    account = await register(client)
    _, secret = await mint(client, account.headers)
    await one_window()
    with changed_settings(app, **{setting: 3}):
        responses = [await me(client, as_header(secret)) for _ in range(7)]
    assert responses[0].status_code == 200
    assert_problem(responses[-1], 429, "rate_limited")
    assert kind in responses[-1].json()["detail"]
    assert 1 <= int(responses[-1].headers["retry-after"]) <= 60


async def test_failed_authentication_is_counted_by_address(client, app):
    account = await register(client)
    await one_window()
    async with client_from(app, "127.0.77.1") as there:
        with changed_settings(app, rate_limit_address_per_minute=3):
            codes = [(await me(there, as_header("wrong"))).status_code for _ in range(7)]
            registering = await there.post("/api/v1/auth/register", json={})
            # Who has good credentials is not kept out by a neighbour who guesses.
            good = await me(there, account.headers)
    assert codes[:3] == [401] * 3
    assert codes[-1] == registering.status_code == 429
    assert good.status_code == 200


async def test_ipv6_neighbours_of_one_subscriber_share_a_limit(app):
    codes = []
    await one_window()
    with changed_settings(app, rate_limit_address_per_minute=3):
        for host in range(1, 8):
            async with client_from(app, f"fd00:0:0:77::{host}") as there:
                codes.append((await me(there, {})).status_code)
    assert (codes[0], codes[-1]) == (401, 429)


def test_openapi_declares_both_schemes_as_alternatives(app):
    document = app.openapi()
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer"
    assert (schemes["apiKey"]["in"], schemes["apiKey"]["name"]) == ("header", "X-API-Key")
    assert document["paths"]["/api/v1/auth/me"]["get"]["security"] == [{"bearer": []}, {"apiKey": []}]
    assert "security" not in document["paths"]["/api/v1/auth/login"]["post"]
