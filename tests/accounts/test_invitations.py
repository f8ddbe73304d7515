"""Invitations: from the mail to the new colleague, and all who are not invited."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.accounts.models import Invitation
from tests.accounts.helpers import (
    PASSWORD,
    assert_problem,
    colleague,
    log_in,
    mails_to,
    me,
    mint,
    new_email,
    register,
    token_in,
)

INVITATIONS = "/api/v1/users/invitations"
pytestmark = pytest.mark.usefixtures("post_office")


async def invite(client, headers, **fields):
    body = {"email": new_email(), "role": "developer", **fields}
    return await client.post(INVITATIONS, headers=headers, json=body)


async def invited(client, headers, **fields):
    answer = await invite(client, headers, **fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["data"]["invitation"]


async def accept(client, token, **fields):
    body = {"token": token, "name": "Charles", "password": PASSWORD, **fields}
    return await client.post("/api/v1/auth/invitations/accept", json=body)


async def token_to(database, email):
    return token_in((await mails_to(database, email))[-1][1])


async def test_from_invitation_to_colleague(client, database):
    owner = await register(client, organization_name="Engines\u202e & <b>Co</b> www.evil.example/?x")
    invitation = await invited(client, owner.headers, email=new_email().upper(), role="analyst", name="Charles B.")
    assert (invitation["role"], invitation["name"]) == ("analyst", "Charles B.")
    assert invitation["invited_by"] == str(owner.user_id)
    ((subject, body),) = await mails_to(database, invitation["email"])
    assert subject == "Invitation to join Engines & b Co b www evil example x"
    assert "Charles" not in body
    assert "evil.example" not in body

    one = await client.get(f"{INVITATIONS}/{invitation['id']}", headers=owner.headers)
    listed = await client.get(INVITATIONS, headers=owner.headers)
    assert one.json()["data"]["invitation"] == listed.json()["data"]["invitations"][0] == invitation
    assert "token" not in one.text

    answer = await accept(client, token_in(body), name=None)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    data = answer.json()["data"]
    assert data["organization"]["id"] == str(owner.org_id)
    user = data["user"]
    assert (user["name"], user["role"], user["email_verified"]) == ("Charles B.", "analyst", True)
    assert (await me(client, {"Authorization": f"Bearer {data['access_token']}"})).status_code == 200
    assert (await log_in(client, invitation["email"])).status_code == 200
    assert_problem(await accept(client, token_in(body)), 422, "invalid_one_time_token")
    assert (await client.get(INVITATIONS, headers=owner.headers)).json()["data"]["invitations"] == []


async def test_of_parallel_acceptances_one_succeeds(client, database):
    owner = await register(client)
    invitation = await invited(client, owner.headers)
    token = await token_to(database, invitation["email"])
    answers = await asyncio.gather(*(accept(client, token) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 422, 422, 422]


async def test_withdrawn_replaced_and_expired_invitations_are_void(client, database):
    owner = await register(client)
    first = await invited(client, owner.headers)
    withdrawn = await token_to(database, first["email"])
    gone = await client.delete(f"{INVITATIONS}/{first['id']}", headers=owner.headers)
    assert (gone.status_code, gone.content) == (204, b"")
    missing = await client.get(f"{INVITATIONS}/{first['id']}", headers=owner.headers)
    assert_problem(missing, 404, "invitation_not_found")

    second = await invited(client, owner.headers)
    replaced = await token_to(database, second["email"])
    third = await invited(client, owner.headers, email=second["email"])
    assert third["id"] != second["id"]
    expired = await token_to(database, second["email"])
    async with database.transaction() as session:
        aged = update(Invitation).where(Invitation.org_id == owner.org_id)
        await session.execute(aged.values(expires_at=Invitation.expires_at - timedelta(days=7)))
    for token in (withdrawn, replaced, expired):
        assert_problem(await accept(client, token), 422, "invalid_one_time_token")


async def test_an_address_with_an_account_is_refused_at_both_ends(client, database):
    owner, other = await register(client), await register(client)
    assert_problem(await invite(client, owner.headers, email=other.email), 409, "email_taken")
    invitation = await invited(client, owner.headers)
    token = await token_to(database, invitation["email"])
    await register(client, email=invitation["email"])
    assert_problem(await accept(client, token), 409, "email_taken")


async def test_nobody_invites_above_themselves(client, database):
    owner = await register(client)
    admin = await colleague(database, owner, "admin")
    assert_problem(await invite(client, admin.headers, role="owner"), 403, "owner_required")
    for role in ("admin", "developer", "analyst", "billing"):
        await invited(client, admin.headers, role=role)
    await invited(client, owner.headers, role="owner")
    for role in ("developer", "analyst", "billing"):
        user = await colleague(database, owner, role)
        assert_problem(await invite(client, user.headers, role="analyst"), 403, "insufficient_scope")
    _, everything = await mint(client, owner.headers)
    _, narrow = await mint(client, owner.headers, scopes=["users", "stats", "messages"])
    assert_problem(await invite(client, {"X-API-Key": everything}, role="owner"), 403, "owner_required")
    assert_problem(await invite(client, {"X-API-Key": narrow}, role="developer"), 403, "scope_exceeded")
    by_key = await invited(client, {"X-API-Key": narrow}, role="analyst")
    assert by_key["invited_by"] is None
    for bound in ({"domains": ["a.example"]}, {"expires_at": "2099-01-01T00:00:00Z"}, {"test": True}):
        _, secret = await mint(client, owner.headers, **bound)
        assert_problem(await invite(client, {"X-API-Key": secret}, role="analyst"), 403, "scope_exceeded")


@pytest.mark.parametrize("end", ["removed", "demoted"])
async def test_what_someone_invited_is_void_once_they_are(client, database, end):
    owner = await register(client)
    admin = await colleague(database, owner, "admin")
    invitation = await invited(client, admin.headers, role="admin")
    if end == "removed":
        await client.delete(f"/api/v1/users/{admin.user_id}", headers=owner.headers)
    else:
        await client.put(f"/api/v1/users/{admin.user_id}/role", headers=owner.headers, json={"role": "analyst"})
    token = await token_to(database, invitation["email"])
    assert_problem(await accept(client, token), 422, "invalid_one_time_token")


async def test_invitations_of_another_organization_do_not_exist(client):
    owner, stranger = await register(client), await register(client)
    invitation = await invited(client, owner.headers)
    for method in (client.get, client.delete):
        answer = await method(f"{INVITATIONS}/{invitation['id']}", headers=stranger.headers)
        assert_problem(answer, 404, "invitation_not_found")
    assert (await client.get(INVITATIONS, headers=stranger.headers)).json()["data"]["invitations"] == []


async def test_an_organization_has_a_hundred_open_invitations(client, database):
    owner = await register(client)
    async with database.transaction() as session:
        connection = await session.connection()
        await connection.exec_driver_sql(
            "INSERT INTO invitations (org_id, id, email, role, token_hash, expires_at) SELECT $1, gen_random_uuid(), "
            "n || '@x.example', 'analyst', sha256(gen_random_uuid()::text::bytea), now() + interval '1 day' "
            "FROM generate_series(1, 100) n",
            (owner.org_id,),
        )
    assert_problem(await invite(client, owner.headers), 409, "too_many_invitations")


async def test_a_repeat_under_one_idempotency_key_mails_once(client, database):
    owner = await register(client)
    headers = owner.headers | {"Idempotency-Key": "invite-charles"}
    email = new_email()
    first, again = [await invite(client, headers, email=email) for _ in range(2)]
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert len(await mails_to(database, email)) == 1


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"email": "no-at-sign"}, "/email"),
        ({"email": "a@example.com\r\nBcc: b@example.com"}, "/email"),
        ({"role": "operator"}, "/role"),
        ({"name": " "}, "/name"),
        ({"password": PASSWORD}, "/password"),
    ],
)
async def test_bad_invitations_point_at_what_is_wrong(client, fields, pointer):
    owner = await register(client)
    answer = await invite(client, owner.headers, **fields)
    assert answer.status_code == 422
    assert pointer in [flaw["pointer"] for flaw in answer.json()["errors"]]


async def test_who_accepts_needs_a_name_and_a_decent_password(client, database):
    owner = await register(client)
    invitation = await invited(client, owner.headers)
    token = await token_to(database, invitation["email"])
    nameless = await accept(client, token, name=None)
    assert (nameless.status_code, nameless.json()["errors"][0]["pointer"]) == (422, "/name")
    assert_problem(await accept(client, token, password="Password123"), 422, "password_too_common")
    assert (await accept(client, token)).status_code == 201
