from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete

from app.accounts.models import User
from tests.accounts.helpers import assert_problem, change_user, mint, register

KEYS = "/api/v1/api-keys"


def as_header(secret):
    return {"X-API-Key": secret}


def in_hours(hours):
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat()


async def post(client, headers, **fields):
    return await client.post(KEYS, headers=headers, json={"name": "a key", **fields})


async def test_create_get_list_delete(client):
    account = await register(client)
    response = await post(
        client,
        account.headers,
        name="  Mailer ",
        scopes=["send", "messages", "send"],
        domains=["mail.example.com", "Mail.Example.COM", "bücher.example"],
        source_addresses=["192.0.2.7", "2001:DB8::/32"],
        expires_at="2099-01-02T03:04:05+02:00",
    )
    assert response.status_code == 201
    assert response.headers["cache-control"] == "no-store"
    key = response.json()["data"]["api_key"]
    assert key["name"] == "Mailer"
    assert key["scopes"] == ["messages", "send"]
    assert key["domains"] == ["mail.example.com", "xn--bcher-kva.example"]
    assert key["source_addresses"] == ["192.0.2.7/32", "2001:db8::/32"]
    assert key["expires_at"] == "2099-01-02T01:04:05.000Z"
    assert key["last_used_at"] is None
    assert key["created_by"] == str(account.user_id)
    assert "secret" not in key

    one = await client.get(f"{KEYS}/{key['id']}", headers=account.headers)
    assert one.json() == {"status": "success", "data": {"api_key": key}}
    listed = (await client.get(KEYS, headers=account.headers)).json()["data"]
    assert listed["api_keys"] == [key]

    deleted = await client.delete(f"{KEYS}/{key['id']}", headers=account.headers)
    assert (deleted.status_code, deleted.content) == (204, b"")
    for again in (client.get, client.delete):
        assert_problem(await again(f"{KEYS}/{key['id']}", headers=account.headers), 404, "api_key_not_found")


async def test_without_scopes_a_key_has_those_of_its_creator(client, database):
    account = await register(client)
    await change_user(database, account, role="developer")
    key, _ = await mint(client, account.headers)
    assert "send" in key["scopes"]
    assert not {"users", "billing"} & set(key["scopes"])


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": "nul\x00"}, "/name"),
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["everything"]}, "/scopes/0"),
        ({"scopes": ["send"] * 50}, "/scopes"),
        ({"domains": []}, "/domains"),
        ({"domains": ["not a domain"]}, "/domains/0"),
        ({"domains": ["example.com"] * 101}, "/domains"),
        ({"source_addresses": ["10.0.0.1/8"]}, "/source_addresses/0"),
        ({"source_addresses": ["::ffff:10.0.0.0/104"]}, "/source_addresses/0"),
        ({"source_addresses": ["host.example"]}, "/source_addresses/0"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"expires_at": "2099-01-01T00:00:00"}, "/expires_at"),
        ({"expiry": None}, "/expiry"),
    ],
)
async def test_bad_bodies_point_at_what_is_wrong(client, fields, pointer):
    account = await register(client)
    response = await post(client, account.headers, **fields)
    assert response.status_code == 422, response.text
    assert pointer in [flaw["pointer"] for flaw in response.json()["errors"]]


async def test_nobody_gives_a_scope_that_they_lack(client, database):
    account = await register(client)
    await change_user(database, account, role="developer")
    assert_problem(await post(client, account.headers, scopes=["send", "billing"]), 403, "scope_exceeded")
    _, secret = await mint(client, account.headers, scopes=["keys", "send"])
    assert_problem(await post(client, as_header(secret), scopes=["send", "stats"]), 403, "scope_exceeded")
    narrower, _ = await mint(client, as_header(secret), scopes=["send"])
    assert narrower["scopes"] == ["send"]
    equal, _ = await mint(client, as_header(secret))
    assert equal["scopes"] == ["keys", "send"]
    assert equal["created_by"] == str(account.user_id)


@pytest.mark.parametrize(
    ("restriction", "wider", "narrower"),
    [
        (
            {"domains": ["a.example", "b.example"]},
            [{}, {"domains": ["c.example"]}, {"domains": ["a.example", "c.example"]}],
            [{"domains": ["b.example"]}, {"domains": ["b.example", "A.example"]}],
        ),
        (
            {"source_addresses": ["127.0.0.0/8", "2001:db8::/32"]},
            [{}, {"source_addresses": ["0.0.0.0/0"]}, {"source_addresses": ["127.0.0.1", "2001:db9::1"]}],
            [{"source_addresses": ["127.0.0.1"]}, {"source_addresses": ["127.1.0.0/16", "2001:db8::/48"]}],
        ),
        (
            {"expires_at": in_hours(2)},
            [{}, {"expires_at": in_hours(3)}],
            [{"expires_at": in_hours(1)}],
        ),
    ],
)
async def test_a_restricted_key_mints_only_narrower_ones(client, restriction, wider, narrower):
    account = await register(client)
    _, secret = await mint(client, account.headers, **restriction)
    for fields in wider:
        assert_problem(await post(client, as_header(secret), **fields), 403, "scope_exceeded")
    for fields in narrower:
        await mint(client, as_header(secret), **fields)


async def test_a_deleted_key_mints_nothing_even_while_it_is_remembered(client):
    account = await register(client)
    key, secret = await mint(client, account.headers)
    await mint(client, as_header(secret))
    await client.delete(f"{KEYS}/{key['id']}", headers=account.headers)
    assert_problem(await post(client, as_header(secret)), 401, "invalid_api_key")


async def test_a_removed_user_mints_nothing_even_while_remembered(client, database):
    account = await register(client)
    await mint(client, account.headers)
    async with database.transaction() as session:
        await session.execute(delete(User).where(User.org_id == account.org_id, User.id == account.user_id))
    assert_problem(await post(client, account.headers), 401, "invalid_token")
    who = await client.get("/api/v1/auth/me", headers=account.headers)
    assert_problem(who, 401, "credentials_withdrawn")


async def test_keys_of_another_organization_do_not_exist(client):
    ours, theirs = await register(client), await register(client)
    key, secret = await mint(client, theirs.headers)
    for method in (client.get, client.delete):
        assert_problem(await method(f"{KEYS}/{key['id']}", headers=ours.headers), 404, "api_key_not_found")
    assert (await client.get(KEYS, headers=ours.headers)).json()["data"]["api_keys"] == []
    still_there = await client.get("/api/v1/auth/me", headers=as_header(secret))
    assert still_there.status_code == 200


async def test_pages_forth_and_back(client):
    account = await register(client)
    made = [(await mint(client, account.headers, name=f"key {n}"))[0]["id"] for n in range(5)]
    newest_first = made[::-1]

    async def page(**query):
        response = await client.get(KEYS, headers=account.headers, params={"limit": 2, **query})
        assert response.status_code == 200
        data = response.json()["data"]
        return [key["id"] for key in data["api_keys"]], data["pagination"]

    first, at_first = await page()
    second, at_second = await page(after=at_first["next"])
    third, at_third = await page(after=at_second["next"])
    assert first + second + third == newest_first
    assert (at_first["has_more"], at_first["previous"]) == (True, None)
    assert (at_third["has_more"], at_third["next"]) == (False, None)
    back, _ = await page(before=at_third["previous"])
    assert back == second


async def test_a_bad_id_or_cursor_is_no_server_error(client):
    account = await register(client)
    assert (await client.get(f"{KEYS}/not-an-id", headers=account.headers)).status_code == 422
    bad = await client.get(KEYS, headers=account.headers, params={"after": "!"})
    assert_problem(bad, 422, "invalid_cursor")


async def test_a_repeat_under_one_idempotency_key_gives_the_same_secret(client):
    account = await register(client)
    headers = account.headers | {"Idempotency-Key": "create-the-ci-key"}
    body = {"name": "CI", "scopes": ["send"]}
    first = await client.post(KEYS, headers=headers, json=body)
    again = await client.post(KEYS, headers=headers, json=body)
    other = await client.post(KEYS, headers=headers, json=body | {"name": "Other"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert_problem(other, 422, "idempotency_key_reused")
    assert len((await client.get(KEYS, headers=account.headers)).json()["data"]["api_keys"]) == 1
