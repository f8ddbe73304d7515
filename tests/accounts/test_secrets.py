"""Secrets are nowhere but in the answer that first shows them."""

import logging

from tests.accounts.helpers import PASSWORD, mails_to, me, mint, new_email, register, token_in

TABLES = (
    *("organizations", "users", "sessions", "api_keys", "idempotency_keys"),
    *("one_time_tokens", "invitations", "known_addresses"),
)


async def test_no_secret_in_the_database_or_the_logs(client, database, post_office, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    account = await register(client)
    headers = account.headers | {"Idempotency-Key": "shown-once"}
    _, secret = await mint(client, headers)
    await me(client, {"X-API-Key": secret})
    flipped = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    await me(client, {"X-API-Key": flipped})
    await client.post("/api/v1/auth/login", json={"email": account.email, "password": PASSWORD + "!"})
    refreshed = await client.post("/api/v1/auth/refresh", json={"refresh_token": account.refresh_token})
    successor = refreshed.json()["data"]["refresh_token"]
    # Reuse is logged: the warning must be there, the token not.
    await client.post("/api/v1/auth/refresh", json={"refresh_token": account.refresh_token})
    await client.post("/api/v1/auth/password/forgot", json={"email": account.email})
    invitation = {"email": new_email(), "role": "analyst"}
    await client.post("/api/v1/users/invitations", headers=headers, json=invitation)
    mails = [*await mails_to(database, account.email), *await mails_to(database, invitation["email"])]
    mailed = [token_in(body) for _, body in mails]
    assert len(mailed) == 3
    await client.post("/api/v1/auth/verify-email", json={"token": mailed[0]})

    stored = ""
    async with database.transaction() as session:
        connection = await session.connection()
        for table in TABLES:
            rows = await connection.exec_driver_sql(f"SELECT t::text FROM {table} t")
            stored += "\n".join(row[0] for row in rows)
    assert str(account.user_id) in stored
    out, err = capfd.readouterr()
    logged = caplog.text + out + err
    assert "refresh_token_reused" in logged

    secrets = (PASSWORD, secret, secret.rsplit("_", 1)[1], flipped, account.refresh_token, successor)
    for value in (*secrets, *mailed, account.access_token):
        assert value not in logged
        assert value not in stored
        assert value.encode().hex() not in stored


async def test_passwords_are_argon2id_with_64_mebibytes(client, database):
    account = await register(client)
    async with database.transaction() as session:
        connection = await session.connection()
        found = await connection.exec_driver_sql("SELECT password_hash FROM users WHERE email = $1", (account.email,))
        assert found.scalar_one().startswith("$argon2id$v=19$m=65536,t=3,p=4$")
