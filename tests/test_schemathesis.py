"""Generated requests: no answer is a 5xx, and every answer is one that the OpenAPI document describes.

EXAMPLES=300 in the environment looks longer, for times when there is time.
"""

import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from uuid import UUID

import httpx
import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.domains import service as domains
from app.main import create_app
from app.tracking import tokens
from tests.accounts import helpers

EXAMPLES = int(os.environ.get("EXAMPLES", "15"))
# The domain of `from` in the document's examples.
EXAMPLE_DOMAIN = "mail.postroad.test"
# What these say of the request's own framing is answered by the server beneath, before the application.
FRAMING = {"connection", "content-length", "expect", "host", "transfer-encoding", "upgrade"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@dataclass(frozen=True, slots=True)
class Api:
    """The API on a port of its own, a key that may do everything, and objects that it may see."""

    url: str
    key: dict[str, str]
    ids: dict[str, str]


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[tuple[str, FastAPI]]:
    """The application under uvicorn, in a thread and event loop of its own."""
    # Counted apart, so that the limits of this address neither end this test early nor the next one.
    apart = {
        "redis_url": f"{str(settings.redis_url).removesuffix('/0')}/5",
        "rate_limit_address_per_minute": 10**6,
        "system_mail_from": f"postroad@{EXAMPLE_DOMAIN}",
    }
    app = create_app(settings.model_copy(update=apart))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.started
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture(scope="module")
async def api(server: tuple[str, FastAPI], client: httpx.AsyncClient, database: Database) -> AsyncIterator[Api]:
    account = await helpers.register(client)
    created = await client.post("/api/v1/domains", json={"domain": EXAMPLE_DOMAIN}, headers=account.headers)
    domain_id = created.json()["data"]["domain"]["id"]
    async with database.transaction() as session:
        await domains.trust(session, account.org_id, UUID(domain_id))
        # Postroad's own mail leaves from the domain of an operator.
        await session.execute(text("UPDATE users SET is_operator = true WHERE org_id = :id"), {"id": account.org_id})
    view, secret = await helpers.mint(client, account.headers)
    mail = {"from": f"a@{EXAMPLE_DOMAIN}", "to": ["b@c.example"], "subject": "s", "text": "t", "metadata": {"n": 1.5}}
    sent = await client.post("/api/v1/messages/send", json=mail, headers=account.headers)
    message_id = sent.json()["data"]["message"]["id"]
    async with httpx.AsyncClient(base_url=server[0], trust_env=False) as there:
        body = {"email": helpers.new_email(), "role": "analyst"}
        invited = await there.post("/api/v1/users/invitations", json=body, headers=account.headers)
    vmta = await client.post("/api/v1/vmtas", json={"name": "mta-1"}, headers=account.headers)
    suppressed = await client.post("/api/v1/suppressions", json={"address": "gone@c.example"}, headers=account.headers)
    webhook = await client.post("/api/v1/webhooks", json={"url": "https://hooks.example.com/"}, headers=account.headers)
    webhook_id = webhook.json()["data"]["webhook"]["id"]
    tried = await client.post(f"/api/v1/webhooks/{webhook_id}/test", json={}, headers=account.headers)
    ids = {
        "domain_id": domain_id,
        "message_id": message_id,
        "api_key_id": view["id"],
        "user_id": str(account.user_id),
        "invitation_id": invited.json()["data"]["invitation"]["id"],
        "vmta_id": vmta.json()["data"]["vmta"]["id"],
        "suppression_id": suppressed.json()["data"]["suppression"]["id"],
        "queue_id": "default@c.example",
        **(await _tokens(database, account.org_id)),
        "webhook_id": webhook_id,
        "delivery_id": tried.json()["data"]["delivery"]["id"],
    }
    yield Api(server[0], {"X-API-Key": secret}, ids)
    # What was sent is not for the engines of other tests.
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :id"), {"id": account.org_id})


async def _tokens(database: Database, org_id: UUID) -> dict[str, str]:
    """Of a copy that was sent: its pixel's, and that of its unsubscribe page."""
    async with database.transaction() as session:
        found = await session.scalar(text("SELECT id FROM deliveries WHERE org_id = :id LIMIT 1"), {"id": org_id})
    made = {"id": tokens.Links("", org_id, found).open(), "token": tokens.Links("", org_id, found).unsubscribe()}
    return {name: url.rpartition("/")[2] for name, url in made.items()}


# As it is when tests are collected, before there is an environment; the document is the same in every mode.
schema = schemathesis.openapi.from_dict(create_app(Settings(POSTROAD_MODE="production", secret_key="x" * 32)).openapi())


@schema.parametrize()
@hypothesis_settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 15,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)
def test_every_operation(case: Case, api: Api):
    for name in FRAMING & {name.lower() for name in case.headers}:
        del case.headers[name]
    case.call_and_validate(base_url=api.url, headers=api.key, checks=CHECKS, timeout=20)
    # Nobody guesses an id, or whose domain it is.
    if case.method == "GET" and case.path_parameters:
        case.path_parameters.update({name: api.ids[name] for name in case.path_parameters})
    elif isinstance(case.body, dict) and "from" in case.body:
        case.body = {**case.body, "from": f"a@{EXAMPLE_DOMAIN}", "vmta": None}
    else:
        return
    case.call_and_validate(base_url=api.url, headers=api.key, checks=CHECKS, timeout=20)
