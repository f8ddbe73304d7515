from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import pytest
from fastapi.routing import APIRoute

from app.core.log import request_id


@pytest.fixture
async def echo(app, client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """The application with a route that tells the request's id as logs see it, and one that breaks."""

    async def look() -> dict[str, str | None]:
        return {"request_id": request_id.get()}

    async def fail() -> None:
        raise RuntimeError("SELECT secret FROM users")

    before = list(app.router.routes)
    app.router.routes[:0] = [APIRoute("/test/echo", look), APIRoute("/test/fail", fail)]
    yield client
    app.router.routes[:] = before


@pytest.mark.parametrize("given", ["a", "req_1.2-3", "a/b:c+d=", "x" * 128, "01a1fbbd-40f2-77ec-972a-79f9adafd582"])
async def test_a_request_id_is_taken_over(echo: httpx.AsyncClient, given: str):
    response = await echo.get("/test/echo", headers={"X-Request-ID": given})
    assert response.headers.get_list("X-Request-ID") == [given]
    assert response.json() == {"request_id": given}


@pytest.mark.parametrize("given", [None, "", " ", "a b", "x" * 129, "a\tb", "é", '{"a"}', "<b>", "a,b", "a\x1b[31m"])
async def test_an_odd_one_is_replaced(echo: httpx.AsyncClient, given: str | None):
    headers = {} if given is None else {"X-Request-ID": given.encode()}
    response = await echo.get("/test/echo", headers=headers)
    identifier = response.headers["X-Request-ID"]
    assert UUID(identifier).version == 7
    assert response.json() == {"request_id": identifier}


async def test_each_request_has_its_own_and_none_stays_behind(echo: httpx.AsyncClient):
    identifiers = {(await echo.get("/test/echo")).headers["X-Request-ID"] for _ in range(5)}
    assert len(identifiers) == 5
    assert request_id.get() is None


@pytest.mark.parametrize("path", ["/test/echo", "/no-such-route", "/api/v1/auth/me", "/health", "/metrics"])
async def test_every_answer_has_one(echo: httpx.AsyncClient, path: str):
    response = await echo.get(path, headers={"X-Request-ID": "mine"})
    assert response.headers["X-Request-ID"] == "mine"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_failure_of_ours_tells_nothing_but_its_id(echo: httpx.AsyncClient):
    response = await echo.get("/test/fail", headers={"X-Request-ID": "mine"})
    assert response.status_code == 500
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Request-ID"] == "mine"
    assert (response.json()["code"], response.json()["request_id"]) == ("internal_error", "mine")
    for secret in ("SELECT", "RuntimeError", "Traceback"):
        assert secret not in response.text
