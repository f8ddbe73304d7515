"""/health and /metrics of applications of their own: with all well, and with one thing after another gone."""

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.core.ids import new_id
from app.delivery import queries
from app.delivery.engine import Engine
from app.domains import service as domains
from app.main import create_app
from tests.accounts import helpers
from tests.factories.databases import own_database

# A port that nothing can listen on.
NOBODY = "127.0.0.1:1"


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    app = create_app(settings)
    async with app.router.lifespan_context(app), helpers.client_from(app, "127.1.0.2") as client:
        yield app, client


@pytest.fixture(scope="module")
async def own(settings: Settings) -> AsyncIterator[Settings]:
    """Settings of a database that no worker of other tests looks at."""
    async with own_database(settings) as found:
        yield found


@pytest.fixture
async def api(own: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    async with running(own) as found:
        yield found
        async with found[0].state.database.transaction() as session:
            await session.execute(text("TRUNCATE workers, delivery_queue, inbound_mails, inbound_counts"))


@pytest.fixture
def silence() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def health(client: httpx.AsyncClient, status_code: int = 200) -> dict[str, Any]:
    response = await client.get("/health")
    assert response.status_code == status_code, response.text
    body = response.json()
    assert body["status"] == ("success" if status_code == 200 else "error")
    found: dict[str, Any] = body["data"]["health"]
    return found


def failing(found: dict[str, Any]) -> set[str]:
    return {name for name, check in found["checks"].items() if check["status"] != "ok"}


async def beat(database: Database, **outcomes: int) -> UUID:
    worker_id = new_id()
    async with database.transaction() as session:
        host = 'host "one"\\\n'
        await queries.heartbeat(session, worker_id, host=host, pid=os.getpid(), in_flight=3, outcomes=outcomes)
    return worker_id


async def test_all_is_well(api):
    app, client = api
    await beat(app.state.database)
    found = await health(client)
    assert (found["status"], failing(found)) == ("ok", set())
    assert set(found["checks"]) == {"postgres", "redis", "workers", "queue", "inbound"}


async def test_a_worker_is_alive_while_its_heart_beats(api):
    app, client = api
    found = await health(client)
    assert (found["status"], failing(found)) == ("degraded", {"workers"})
    worker_id = await beat(app.state.database)
    assert (await health(client))["status"] == "ok"
    async with app.state.database.transaction() as session:
        await session.execute(text("UPDATE workers SET seen_at = now() - interval '16 seconds'"))
    assert failing(await health(client)) == {"workers"}
    async with app.state.database.transaction() as session:
        await queries.heartbeat(session, worker_id, host="h", pid=1, in_flight=0, outcomes={})
    assert (await health(client))["status"] == "ok"


async def test_an_engine_tells_of_itself_and_takes_its_leave(api, own: Settings):
    _, client = api
    engine = Engine(own)
    at_work = asyncio.create_task(engine.run())
    try:
        async with asyncio.timeout(10):
            while failing(await health(client)):
                await asyncio.sleep(0.05)
    finally:
        engine.stop()
        await at_work
    assert failing(await health(client)) == {"workers"}


async def _late_mail(app: FastAPI, client: httpx.AsyncClient) -> None:
    account = await helpers.register(client)
    created = await client.post("/api/v1/domains", json={"domain": "late.example"}, headers=account.headers)
    body = {"from": "a@late.example", "to": ["b@c.example", "d@c.example"], "subject": "s", "text": "t"}
    async with app.state.database.transaction() as session:
        await domains.trust(session, account.org_id, UUID(created.json()["data"]["domain"]["id"]))
    assert (await client.post("/api/v1/messages/send", json=body, headers=account.headers)).status_code == 202
    late = "UPDATE delivery_queue SET next_attempt_at = now() - interval '121 seconds' WHERE recipient = 'b@c.example'"
    async with app.state.database.transaction() as session:
        await session.execute(text(late))


async def test_mail_that_waits_too_long(api):
    app, client = api
    await beat(app.state.database)
    await _late_mail(app, client)
    found = await health(client)
    assert (found["status"], failing(found)) == ("degraded", {"queue"})
    assert "2 due, 2 in all" in found["checks"]["queue"]["detail"]
    samples = await metrics(client)
    assert samples["postroad_queue_deliveries"] == samples["postroad_queue_due_deliveries"] == 2
    assert 121 <= samples["postroad_queue_oldest_due_seconds"] < 180


async def test_reports_that_nobody_reads(api):
    app, client = api
    await beat(app.state.database)
    statement = (
        "INSERT INTO inbound_mails (id, client_address, helo, mail_from, recipients, content, next_attempt_at) "
        "VALUES (:id, '', '', '', '{}', '', now() - make_interval(secs => :due))"
    )
    async with app.state.database.transaction() as session:
        for due_seconds in (-60, 121):
            await session.execute(text(statement), {"id": new_id(), "due": due_seconds})
        await session.execute(text("INSERT INTO inbound_counts VALUES ('failure', 'applied', 3), ('refused', 'x', 1)"))
    found = await health(client)
    assert (found["status"], failing(found)) == ("degraded", {"inbound"})
    assert found["checks"]["inbound"]["detail"].startswith("2 to be read; due for 12")
    samples = await metrics(client)
    assert samples["postroad_inbound_unread_mails"] == 2
    assert 121 <= samples["postroad_inbound_due_seconds"] < 180
    lines = (await client.get("/metrics")).text.splitlines()
    assert 'postroad_inbound_mails_total{kind="failure",verdict="applied"} 3.0' in lines
    assert 'postroad_inbound_mails_total{kind="refused",verdict="x"} 1.0' in lines


@pytest.mark.parametrize("away", ["refused", "silent"])
async def test_redis_away(own: Settings, silence: str, away: str):
    url = f"redis://{NOBODY if away == 'refused' else silence}/0"
    async with running(own.model_copy(update={"redis_url": url})) as (app, client):
        await beat(app.state.database)
        started = time.monotonic()
        found = await health(client)
        assert (found["status"], failing(found)) == ("degraded", {"redis"})
        assert time.monotonic() - started < 3
        # Nothing else misses it: accounts, rate limits and the rest go on.
        account = await helpers.register(client)
        assert "RateLimit" in (await helpers.me(client, account.headers)).headers


@pytest.mark.parametrize("away", ["refused", "silent"])
async def test_postgres_away(own: Settings, silence: str, away: str):
    url = f"postgresql://nobody@{NOBODY if away == 'refused' else silence}/none"
    async with running(own.model_copy(update={"database_url": url})) as (_, client):
        started = time.monotonic()
        found = await health(client, 503)
        assert time.monotonic() - started < 9
        assert (found["status"], failing(found)) == ("failing", {"postgres", "workers", "queue", "inbound"})
        samples = await metrics(client)
        assert samples["postroad_database_up"] == 0
        assert "postroad_workers" not in samples
        if away == "refused":
            key = {"X-API-Key": f"pmta_00000000_{'x' * 32}"}
            response = await client.get("/api/v1/auth/me", headers=key)
            helpers.assert_problem(response, 503, "database_unavailable")
            assert int(response.headers["Retry-After"]) > 0


async def test_what_health_says_is_what_the_document_says(api):
    app, _ = api
    answers = app.openapi()["paths"]["/health"]["get"]["responses"]
    assert set(answers) == {"200", "503"}


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """The samples without labels, by the JSON form."""
    response = await client.get("/metrics", headers={"Accept": "application/json"})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert response.json()["status"] == "success"
    samples = response.json()["data"]["metrics"]
    return {sample["name"]: sample["value"] for sample in samples if not sample["labels"]}


async def test_metrics_in_both_forms(api):
    app, client = api
    await beat(app.state.database, delivered=7, deferred=2)
    await client.get("/api/v1/auth/me")
    response = await client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    lines = response.text.splitlines()
    assert "postroad_workers 1.0" in lines
    assert "postroad_database_up 1.0" in lines
    assert any(line.startswith("postroad_attempts_total{") and line.endswith(" 7.0") for line in lines)
    wanted = 'postroad_http_requests_total{method="GET",route="/api/v1/auth/me",status="401"}'
    assert any(line.startswith(wanted) for line in lines)
    samples = await metrics(client)
    assert (samples["postroad_workers"], samples["postroad_database_up"]) == (1, 1)


async def test_paths_that_do_not_exist_make_no_new_series(api):
    _, client = api
    for number in range(5):
        await client.get(f"/no-such-{number}")
        await client.request(f"VERB{number}", f"/api/v1/no-such-{number}")
    exposition = (await client.get("/metrics")).text
    assert "no-such" not in exposition
    assert "VERB" not in exposition


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_promtool_has_nothing_to_say(api):
    app, client = api
    await beat(app.state.database, delivered=1)
    exposition = (await client.get("/metrics")).content
    command = ["promtool", "check", "metrics"]
    done = await asyncio.to_thread(subprocess.run, command, input=exposition, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
