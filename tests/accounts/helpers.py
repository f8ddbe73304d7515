"""Accounts to test with, made through the API itself."""

import asyncio
import itertools
import re
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from fastapi import FastAPI
from sqlalchemy import text, update

from app.accounts import tokens
from app.accounts.models import User
from app.core.db import Database
from app.core.ids import new_id
from app.core.ratelimit import WINDOW_SECONDS
from app.messages import body

PASSWORD = "correct horse battery staple"
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Account:
    """A registered user and what registration answered."""

    org_id: UUID
    user_id: UUID
    email: str
    access_token: str
    refresh_token: str

    @property
    def headers(self) -> dict[str, str]:
        """The credentials of the user."""
        return {"Authorization": f"Bearer {self.access_token}"}


def new_email() -> str:
    """An address that nobody has registered yet."""
    return f"user-{next(_numbers)}-{new_id()}@example.com"


def registration(**fields: Any) -> dict[str, Any]:
    """A valid body of `register`."""
    return {
        "email": new_email(),
        "password": PASSWORD,
        "name": "Ada Lovelace",
        "organization_name": "Engines",
        **fields,
    }


async def register(client: httpx.AsyncClient, **fields: Any) -> Account:
    """Register through the API."""
    response = await client.post("/api/v1/auth/register", json=registration(**fields))
    assert response.status_code == 201, response.text
    data = response.json()["data"]
    return Account(
        org_id=UUID(data["organization"]["id"]),
        user_id=UUID(data["user"]["id"]),
        email=data["user"]["email"],
        access_token=data["access_token"],
        refresh_token=data["refresh_token"],
    )


async def colleague(database: Database, account: Account, role: str, **values: Any) -> Account:
    """Another user of the account's organization, without the work of hashing a password: nobody logs in as them."""
    fields = {"email": new_email(), "name": role.title(), "password_hash": "none", "role": role, **values}
    async with database.transaction() as session:
        user = User(org_id=account.org_id, **fields)
        session.add(user)
        await session.flush()
    access_token = tokens.issue(tokens.Claims(user.org_id, user.id, user.token_epoch))
    return Account(user.org_id, user.id, user.email, access_token, "")


async def log_in(client: httpx.AsyncClient, email: str, password: str = PASSWORD) -> httpx.Response:
    """Try to log in."""
    return await client.post("/api/v1/auth/login", json={"email": email, "password": password})


async def mails_to(database: Database, email: str) -> list[tuple[str, str]]:
    """(subject, text) of every mail that was accepted for the address, oldest first."""
    statement = text(
        "SELECT m.subject, b.content FROM messages m "
        "JOIN message_bodies b ON b.org_id = m.org_id AND b.message_id = m.id "
        """WHERE m."to" @> jsonb_build_array(jsonb_build_object('email', CAST(:email AS text))) ORDER BY m.id"""
    )
    async with database.transaction() as session:
        rows = await session.execute(statement, {"email": email})
        return [(subject, body.unpack(content).text or "") for subject, content in rows]


def token_in(mail: str) -> str:
    """The token that a mail asks to give back."""
    found = re.search(r'"token": "(pmot_[\w-]{43})"', mail)
    assert found, mail
    return found[1]


async def mint(client: httpx.AsyncClient, headers: dict[str, str], **fields: Any) -> tuple[dict[str, Any], str]:
    """Create an API key through the API: its view and its secret."""
    response = await client.post("/api/v1/api-keys", headers=headers, json={"name": "a key", **fields})
    assert response.status_code == 201, response.text
    data = response.json()["data"]
    return data["api_key"], data["secret"]


async def me(client: httpx.AsyncClient, headers: dict[str, str]) -> httpx.Response:
    """Ask who the credentials speak for."""
    return await client.get("/api/v1/auth/me", headers=headers)


async def change_user(database: Database, account: Account, **values: Any) -> None:
    """Change the row of a user. What was authenticated in the last moments may still see the old one."""
    async with database.transaction() as session:
        await session.execute(
            update(User).where(User.org_id == account.org_id, User.id == account.user_id).values(**values)
        )


def client_from(app: FastAPI, address: str) -> httpx.AsyncClient:
    """A client of the application at a network address of its own."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=(address, 40_000)), base_url="http://postroad.test"
    )


async def one_window() -> None:
    """Wait until the rate limiter's window is not about to turn, so that a test counts within one."""
    left_seconds = WINDOW_SECONDS - time.time() % WINDOW_SECONDS
    if left_seconds < 5:
        await asyncio.sleep(left_seconds)


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    """The answer is this problem."""
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
