import time

import pytest

from app.accounts.passwords import hash_password, verify_password
from tests.accounts.helpers import PASSWORD, assert_problem, me, new_email, one_window, register, registration

REGISTER = "/api/v1/auth/register"
LOGIN = "/api/v1/auth/login"


async def test_register_answers_with_tokens_that_work(client):
    email = new_email()
    response = await client.post(REGISTER, json=registration(email=email.upper()))
    assert response.status_code == 201
    assert response.headers["cache-control"] == "no-store"
    assert response.json()["status"] == "success"
    data = response.json()["data"]
    assert (data["token_type"], data["expires_in"]) == ("Bearer", 900)
    assert data["user"]["email"] == email
    assert data["user"]["role"] == "owner"
    assert data["user"]["email_verified"] is False
    assert data["user"]["created_at"].endswith("Z")
    assert data["organization"]["name"] == "Engines"

    found = (await me(client, {"Authorization": f"Bearer {data['access_token']}"})).json()["data"]
    assert found["kind"] == "user"
    assert found["api_key"] is None
    assert found["user"] == data["user"]
    assert found["organization"] == data["organization"]
    assert {"send", "users", "billing", "keys"} <= set(found["scopes"])


async def test_an_address_registers_once_whatever_its_case(client):
    account = await register(client)
    response = await client.post(REGISTER, json=registration(email=account.email.upper()))
    assert_problem(response, 409, "email_taken")


async def test_a_refused_registration_leaves_no_organization(client, database):
    account = await register(client)
    name = f"Twice {account.email}"
    await client.post(REGISTER, json=registration(email=account.email, organization_name=name))
    async with database.transaction() as session:
        connection = await session.connection()
        found = await connection.exec_driver_sql("SELECT count(*) FROM organizations WHERE name = $1", (name,))
        assert found.scalar_one() == 0


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"email": "no-at-sign"}, "/email"),
        ({"email": "a@b"}, "/email"),
        ({"email": "a@example.com\r\nBcc: x@example.com"}, "/email"),
        ({"email": "a" * 400 + "@example.com"}, "/email"),
        ({"password": "short"}, "/password"),
        ({"password": "x" * 257}, "/password"),
        ({"password": "with\x00nul-in-it"}, "/password"),
        ({"password": "Password123"}, "/password"),
        ({"name": "   "}, "/name"),
        ({"name": "n" * 201}, "/name"),
        ({"organization_name": ""}, "/organization_name"),
        ({"is_operator": True}, "/is_operator"),
    ],
)
async def test_bad_registrations_point_at_what_is_wrong(client, fields, pointer):
    response = await client.post(REGISTER, json=registration(**fields))
    assert response.status_code == 422
    assert pointer in [flaw["pointer"] for flaw in response.json()["errors"]]


async def test_log_in_with_the_address_in_any_case_and_the_password_in_any_normal_form(client):
    account = await register(client, password="pässwörter zählen")
    response = await client.post(
        LOGIN, json={"email": account.email.title(), "password": "pa\u0308sswo\u0308rter za\u0308hlen"}
    )
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    data = response.json()["data"]
    assert data["user"]["last_login_at"] is not None
    assert (await me(client, {"Authorization": f"Bearer {data['access_token']}"})).status_code == 200


async def test_a_one_time_code_without_a_second_factor_changes_nothing(client):
    account = await register(client)
    body = {"email": account.email, "password": PASSWORD, "otp": "123456"}
    assert (await client.post(LOGIN, json=body)).status_code == 200


async def test_wrong_password_and_unknown_account_are_told_apart_by_nothing(client):
    account = await register(client)
    wrong = await client.post(LOGIN, json={"email": account.email, "password": "not the password"})
    unknown = await client.post(LOGIN, json={"email": new_email(), "password": "not the password"})
    assert_problem(wrong, 401, "invalid_credentials")
    ignored = {"request_id"}
    assert {k: v for k, v in wrong.json().items() if k not in ignored} == {
        k: v for k, v in unknown.json().items() if k not in ignored
    }
    assert wrong.headers["www-authenticate"] == unknown.headers["www-authenticate"] == "Bearer"


async def test_an_unknown_account_costs_as_much_time_as_a_known_one():
    password_hash = await hash_password(PASSWORD)

    async def quickest_seconds(against):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            assert not await verify_password("not the password", against)
            times.append(time.perf_counter() - start)
        return min(times)

    known, unknown = await quickest_seconds(password_hash), await quickest_seconds(None)
    assert 0.4 < unknown / known < 2.5


async def test_guessing_at_one_account_is_throttled_and_others_are_not(client):
    account, other = await register(client), await register(client)
    body = {"email": account.email, "password": "a wrong guess"}
    await one_window()
    codes = [(await client.post(LOGIN, json=body)).status_code for _ in range(12)]
    assert codes == [401] * 10 + [429] * 2
    right = await client.post(LOGIN, json=body | {"password": PASSWORD})
    assert_problem(right, 429, "rate_limited")
    assert 1 <= int(right.headers["retry-after"]) <= 60
    assert (await client.post(LOGIN, json={"email": other.email, "password": PASSWORD})).status_code == 200
