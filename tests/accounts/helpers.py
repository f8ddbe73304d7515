"""Accounts to test with, made through the API itself."""

import asyncio
import itertools
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from fastapi import FastAPI
from sqlalchemy import update

from app.accounts.models import User
from app.core.db import Database
from app.core.ids import new_id
from app.core.ratelimit import WINDOW_SECONDS

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
