import argparse
import asyncio

import pytest
from pydantic import ValidationError

from app.accounts import operator
from app.accounts.models import User
from app.accounts.passwords import verify_password
from app.accounts.queries import user_by_email
from app.core.errors import Conflict, NotFound
from tests.accounts.helpers import PASSWORD, new_email, register


async def create(database, **fields):
    values = {"email": new_email(), "password": PASSWORD, "name": "Op", "organization_name": "Ops", **fields}
    return await operator.create_operator(database, **values)


async def find(database, email) -> User:
    async with database.transaction() as session:
        return await user_by_email(session, email)


async def test_create_makes_a_verified_operator_who_is_then_listed(database):
    row = await create(database)
    user = await find(database, row[0])
    assert user.is_operator
    assert user.email_verified_at is not None
    assert await verify_password(PASSWORD, user.password_hash)
    assert row in await operator.list_operators(database)


async def test_create_refuses_what_registration_refuses(database):
    row = await create(database)
    with pytest.raises(Conflict):
        await create(database, email=row[0].upper())
    with pytest.raises(ValidationError):
        await create(database, password="short")


async def test_users_who_register_are_no_operators(client, database):
    account = await register(client)
    assert account.email not in [row[0] for row in await operator.list_operators(database)]


async def test_verify_email(client, database):
    account = await register(client)
    row = await operator.verify_email(database, email=f" {account.email.upper()} ".strip())
    assert row[0] == account.email
    assert (await find(database, account.email)).email_verified_at is not None
    with pytest.raises(NotFound):
        await operator.verify_email(database, email=new_email())


def run(*argv):
    parser = argparse.ArgumentParser()
    operator.add_parser(parser.add_subparsers(required=True))
    return operator.run(parser.parse_args(["operator", *argv]))


async def test_the_command_line(database, capsys):
    email = new_email()
    create = ["create", "--email", email, "--password", PASSWORD, "--name", "Op", "--organization", "Ops"]
    assert await asyncio.to_thread(run, *create) == 0
    assert await asyncio.to_thread(run, "list") == 0
    assert await asyncio.to_thread(run, "verify-email", email) == 0
    out = capsys.readouterr().out
    assert out.count(email) == 3
    assert PASSWORD not in out
    assert await asyncio.to_thread(run, *create) == 1
    assert await asyncio.to_thread(run, "verify-email", new_email()) == 1
    assert await asyncio.to_thread(run, "verify-email", "not an address") == 1
    assert "e-mail address already" in capsys.readouterr().err
