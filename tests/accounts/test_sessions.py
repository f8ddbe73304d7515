import asyncio
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select, update

from app.accounts import service
from app.accounts.models import Session
from app.core.crypto import digest
from tests.accounts.helpers import PASSWORD, assert_problem, log_in, me, register

REFRESH = "/api/v1/auth/refresh"


async def refresh(client, token):
    return await client.post(REFRESH, json={"refresh_token": token})


async def log_out(client, token, **fields):
    return await client.post("/api/v1/auth/logout", json={"refresh_token": token, **fields})


async def change_token(database, token, **values):
    async with database.transaction() as session:
        await session.execute(update(Session).where(Session.token_hash == digest(token)).values(**values))


async def test_refreshing_gives_new_tokens_that_work_and_can_be_refreshed(client):
    account = await register(client)
    first = (await refresh(client, account.refresh_token)).json()["data"]
    assert first["refresh_token"] != account.refresh_token
    assert first["user"]["email"] == account.email
    assert (await me(client, {"Authorization": f"Bearer {first['access_token']}"})).status_code == 200
    assert (await refresh(client, first["refresh_token"])).status_code == 200


async def test_reuse_of_a_used_token_ends_the_whole_family_and_no_other(client):
    account = await register(client)
    login = await client.post("/api/v1/auth/login", json={"email": account.email, "password": PASSWORD})
    other_family = login.json()["data"]["refresh_token"]
    successor = (await refresh(client, account.refresh_token)).json()["data"]["refresh_token"]
    assert_problem(await refresh(client, account.refresh_token), 401, "invalid_refresh_token")
    assert_problem(await refresh(client, successor), 401, "invalid_refresh_token")
    assert (await refresh(client, other_family)).status_code == 200


async def test_of_parallel_exchanges_one_wins_and_the_family_ends(client):
    account = await register(client)
    answers = await asyncio.gather(*(refresh(client, account.refresh_token) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401, 401]
    winner = next(answer for answer in answers if answer.status_code == 200)
    successor = winner.json()["data"]["refresh_token"]
    assert_problem(await refresh(client, successor), 401, "invalid_refresh_token")


async def test_unknown_expired_and_revoked_tokens_are_refused_alike(client, database):
    expired, revoked = await register(client), await register(client)
    await change_token(database, expired.refresh_token, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await change_token(database, revoked.refresh_token, revoked_at=datetime.now(UTC))
    for token in ("pmrt_never-given-out", expired.refresh_token, revoked.refresh_token):
        assert_problem(await refresh(client, token), 401, "invalid_refresh_token")


async def test_an_access_token_does_not_refresh_and_a_refresh_token_does_not_authenticate(client):
    account = await register(client)
    assert_problem(await refresh(client, account.access_token), 401, "invalid_refresh_token")
    assert_problem(await me(client, {"Authorization": f"Bearer {account.refresh_token}"}), 401, "invalid_token")


async def test_logging_in_forgets_expired_sessions(client, database):
    account = await register(client)
    await change_token(database, account.refresh_token, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await client.post("/api/v1/auth/login", json={"email": account.email, "password": PASSWORD})
    async with database.transaction() as session:
        count = select(func.count()).select_from(Session).where(Session.user_id == account.user_id)
        assert await session.scalar(count) == 1


async def test_logging_out_ends_the_session_and_no_other(client):
    account = await register(client)
    other = (await log_in(client, account.email)).json()["data"]
    successor = (await refresh(client, account.refresh_token)).json()["data"]["refresh_token"]
    # Any token of the family will do, and what is ended or unknown needs no ending.
    for token in (account.refresh_token, account.refresh_token, "pmrt_unknown"):
        answer = await log_out(client, token)
        assert (answer.status_code, answer.content) == (204, b"")
    assert_problem(await refresh(client, successor), 401, "invalid_refresh_token")
    assert (await refresh(client, other["refresh_token"])).status_code == 200
    assert (await me(client, account.headers)).status_code == 200


async def test_logging_out_everywhere_ends_every_session_and_access_token_in_every_process(client, neighbour):
    account, bystander = await register(client), await register(client)
    other = (await log_in(client, account.email)).json()["data"]
    for process in (client, neighbour):
        assert (await me(process, account.headers)).status_code == 200
    assert (await log_out(client, other["refresh_token"], everywhere=True)).status_code == 204
    for token in (account.refresh_token, other["refresh_token"]):
        assert_problem(await refresh(client, token), 401, "invalid_refresh_token")
    await asyncio.sleep(2)
    for process in (client, neighbour):
        assert_problem(await me(process, account.headers), 401, "invalid_token")
        assert (await me(process, bystander.headers)).status_code == 200
    assert (await refresh(client, bystander.refresh_token)).status_code == 200


async def test_only_a_good_token_logs_out_everywhere(client, database):
    account = await register(client)
    other = (await log_in(client, account.email)).json()["data"]["refresh_token"]
    used, expired = account.refresh_token, (await log_in(client, account.email)).json()["data"]["refresh_token"]
    await refresh(client, used)
    await change_token(database, expired, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    for token in (used, expired, "pmrt_unknown"):
        assert_problem(await log_out(client, token, everywhere=True), 401, "invalid_refresh_token")
    assert (await refresh(client, other)).status_code == 200
    assert (await me(client, account.headers)).status_code == 200


async def test_a_new_password_ends_every_session_and_token_and_the_new_one_works_at_once(client, database):
    account = await register(client)
    assert (await me(client, account.headers)).status_code == 200
    async with database.transaction() as session:
        await service.set_password(session, account.org_id, account.user_id, password="an altogether new one")
    assert_problem(await refresh(client, account.refresh_token), 401, "invalid_refresh_token")
    login = {"email": account.email, "password": PASSWORD}
    assert_problem(await client.post("/api/v1/auth/login", json=login), 401, "invalid_credentials")
    login["password"] = "an altogether new one"
    data = (await client.post("/api/v1/auth/login", json=login)).json()["data"]
    assert (await me(client, {"Authorization": f"Bearer {data['access_token']}"})).status_code == 200
    await asyncio.sleep(2)
    assert_problem(await me(client, account.headers), 401, "invalid_token")


async def test_verifying_an_address_is_seen_and_keeps_its_first_time(client, database):
    account = await register(client)
    async with database.transaction() as session:
        first = (await service.verify_email(session, account.email)).email_verified_at
    async with database.transaction() as session:
        second = (await service.verify_email(session, account.email)).email_verified_at
    assert first == second
    found = await me(client, account.headers)
    assert found.json()["data"]["user"]["email_verified"] is True
