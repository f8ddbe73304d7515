"""An organization's people: roles, and who may change them; leaving."""

import asyncio

import pytest

from app.accounts.scopes import Role
from tests.accounts.helpers import assert_problem, colleague, me, mint, register

USERS = "/api/v1/users"
ROLES = [role.value for role in Role]


async def set_role(client, by, user, role):
    return await client.put(f"{USERS}/{user.user_id}/role", headers=by.headers, json={"role": role})


async def remove(client, by, user):
    return await client.delete(f"{USERS}/{user.user_id}", headers=by.headers)


async def test_list_and_get(client, database):
    owner = await register(client)
    people = [owner] + [await colleague(database, owner, role) for role in ("admin", "analyst")]
    listed = (await client.get(USERS, headers=owner.headers, params={"limit": 2})).json()["data"]
    rest = await client.get(USERS, headers=owner.headers, params={"after": listed["pagination"]["next"]})
    found = listed["users"] + rest.json()["data"]["users"]
    assert [one["id"] for one in found] == [str(one.user_id) for one in reversed(people)]
    assert [one["role"] for one in found] == ["analyst", "admin", "owner"]
    one = await client.get(f"{USERS}/{owner.user_id}", headers=owner.headers)
    assert one.json()["data"]["user"] == found[-1]
    assert "password" not in one.text


async def test_users_of_another_organization_do_not_exist(client, database):
    owner, stranger = await register(client), await register(client)
    answers = [
        await client.get(f"{USERS}/{stranger.user_id}", headers=owner.headers),
        await set_role(client, owner, stranger, "analyst"),
        await remove(client, owner, stranger),
    ]
    for answer in answers:
        assert_problem(answer, 404, "user_not_found")
    assert (await me(client, stranger.headers)).json()["data"]["user"]["role"] == "owner"


async def test_a_role_holds_within_two_seconds_in_every_process(client, database, neighbour):
    owner = await register(client)
    user = await colleague(database, owner, "developer")
    everywhere = (client, neighbour)
    for process in everywhere:
        assert (await process.get("/api/v1/api-keys", headers=user.headers)).status_code == 200
    changed = await set_role(client, owner, user, "analyst")
    assert changed.json()["data"]["user"]["role"] == "analyst"
    await asyncio.sleep(2)
    for process in everywhere:
        refused = await process.get("/api/v1/api-keys", headers=user.headers)
        assert_problem(refused, 403, "insufficient_scope")


@pytest.mark.parametrize("role", ROLES)
async def test_an_owner_gives_every_role(client, database, role):
    owner = await register(client)
    user = await colleague(database, owner, "developer")
    changed = await set_role(client, owner, user, role)
    assert (changed.status_code, changed.json()["data"]["user"]["role"]) == (200, role)


async def test_an_admin_neither_makes_nor_touches_owners(client, database):
    owner = await register(client)
    admin, other, user = [await colleague(database, owner, role) for role in ("admin", "owner", "developer")]
    answers = [
        await set_role(client, admin, admin, "owner"),
        await set_role(client, admin, user, "owner"),
        await set_role(client, admin, other, "analyst"),
        await set_role(client, admin, other, "owner"),
        await remove(client, admin, other),
    ]
    for answer in answers:
        assert_problem(answer, 403, "owner_required")
    assert (await set_role(client, admin, user, "admin")).status_code == 200
    assert (await set_role(client, admin, user, "billing")).status_code == 200
    assert (await remove(client, admin, user)).status_code == 204


@pytest.mark.parametrize("role", ["developer", "analyst", "billing"])
async def test_others_change_nobody(client, database, role):
    owner = await register(client)
    user = await colleague(database, owner, role)
    for answer in (await set_role(client, user, user, "owner"), await remove(client, user, owner)):
        assert_problem(answer, 403, "insufficient_scope")


async def test_the_last_owner_stays(client, database):
    owner = await register(client)
    await colleague(database, owner, "admin")
    for answer in (await set_role(client, owner, owner, "admin"), await remove(client, owner, owner)):
        assert_problem(answer, 409, "last_owner")
    assert (await set_role(client, owner, owner, "owner")).status_code == 200
    second = await colleague(database, owner, "owner")
    assert (await set_role(client, second, owner, "admin")).status_code == 200
    assert_problem(await remove(client, second, second), 409, "last_owner")


@pytest.mark.parametrize("way", ["demote", "remove", "mixed"])
async def test_owners_who_turn_on_each_other_at_once_leave_one(client, database, way):
    first = await register(client)
    owners = [first] + [await colleague(database, first, "owner") for _ in range(3)]

    async def turn_on(number, by, whom):
        if way == "demote" or (way == "mixed" and number % 2):
            return await set_role(client, by, whom, "admin")
        return await remove(client, by, whom)

    pairs = [(by, whom) for by in owners for whom in owners]
    answers = await asyncio.gather(*(turn_on(number, by, whom) for number, (by, whom) in enumerate(pairs)))
    assert {answer.status_code for answer in answers} <= {200, 204, 401, 403, 404, 409}
    async with database.transaction() as session:
        connection = await session.connection()
        found = await connection.exec_driver_sql(
            "SELECT count(*) FROM users WHERE org_id = $1 AND role = 'owner'", (first.org_id,)
        )
        assert found.scalar_one() == 1


async def test_who_was_just_demoted_acts_as_what_they_are_now(client, database):
    owner = await register(client)
    admin, user = await colleague(database, owner, "admin"), await colleague(database, owner, "analyst")
    # Remembered as an admin from here on, for a moment.
    assert (await client.get(USERS, headers=admin.headers)).status_code == 200
    assert (await set_role(client, owner, admin, "developer")).status_code == 200
    for answer in (await set_role(client, admin, user, "admin"), await remove(client, admin, user)):
        assert_problem(answer, 403, "insufficient_scope")
    wide = await client.post("/api/v1/api-keys", headers=admin.headers, json={"name": "k", "scopes": ["users"]})
    assert_problem(wide, 403, "scope_exceeded")
    key, _ = await mint(client, admin.headers)
    assert "users" not in key["scopes"]


async def test_a_removed_user_is_out_in_every_process_and_their_keys_stay(client, database, neighbour):
    owner = await register(client)
    user = await colleague(database, owner, "developer")
    key, secret = await mint(client, user.headers)
    for process in (client, neighbour):
        assert (await me(process, user.headers)).status_code == 200
    assert (await remove(client, owner, user)).status_code == 204
    await asyncio.sleep(2)
    for process in (client, neighbour):
        assert_problem(await me(process, user.headers), 401, "invalid_token")
        assert (await me(process, {"X-API-Key": secret})).status_code == 200
    shown = await client.get(f"/api/v1/api-keys/{key['id']}", headers=owner.headers)
    assert shown.json()["data"]["api_key"]["created_by"] is None


async def test_removal_ends_the_sessions_at_once_and_frees_the_address(client, database):
    account = await register(client)
    heir = await colleague(database, account, "owner")
    assert (await remove(client, heir, account)).status_code == 204
    body = {"refresh_token": account.refresh_token}
    assert_problem(await client.post("/api/v1/auth/refresh", json=body), 401, "invalid_refresh_token")
    anew = await register(client, email=account.email)
    assert anew.org_id != account.org_id


async def test_refreshing_and_removal_at_once(client, database):
    """Both touch user and sessions, in one order: neither fails for the other."""
    for _ in range(3):
        account = await register(client)
        heir = await colleague(database, account, "owner")
        body = {"refresh_token": account.refresh_token}
        answers = await asyncio.gather(
            client.post("/api/v1/auth/refresh", json=body),
            client.post("/api/v1/auth/logout", json=body | {"everywhere": True}),
            remove(client, heir, account),
        )
        assert answers[0].status_code in {200, 401}
        assert answers[1].status_code in {204, 401}
        assert answers[2].status_code == 204
        again = await client.post("/api/v1/auth/refresh", json=body)
        assert_problem(again, 401, "invalid_refresh_token")


async def test_a_key_gives_roles_within_its_scopes_and_never_owner(client, database):
    owner = await register(client)
    user = await colleague(database, owner, "analyst")
    admin = await colleague(database, owner, "admin")

    async def by_key(secret, whom, role):
        path = f"{USERS}/{whom.user_id}/role"
        return await client.put(path, headers={"X-API-Key": secret}, json={"role": role})

    _, everything = await mint(client, owner.headers)
    assert_problem(await by_key(everything, user, "owner"), 403, "owner_required")
    assert_problem(await by_key(everything, owner, "admin"), 403, "owner_required")
    assert (await by_key(everything, user, "billing")).status_code == 200
    _, narrow = await mint(client, owner.headers, scopes=["users", "messages", "stats"])
    assert_problem(await by_key(narrow, user, "analyst"), 403, "scope_exceeded")
    assert_problem(await by_key(narrow, admin, "analyst"), 403, "scope_exceeded")
    gone = await client.delete(f"{USERS}/{admin.user_id}", headers={"X-API-Key": narrow})
    assert_problem(gone, 403, "scope_exceeded")
    for bound in ({"domains": ["a.example"]}, {"source_addresses": ["127.0.0.0/8"]}, {"test": True}):
        _, secret = await mint(client, owner.headers, **bound)
        assert_problem(await by_key(secret, user, "analyst"), 403, "scope_exceeded")


@pytest.mark.parametrize("body", [{}, {"role": "operator"}, {"role": "OWNER"}, {"role": None}, {"role": "x", "y": 1}])
async def test_bad_roles(client, body):
    owner = await register(client)
    answer = await client.put(f"{USERS}/{owner.user_id}/role", headers=owner.headers, json=body)
    assert answer.status_code == 422
