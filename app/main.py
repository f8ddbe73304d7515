"""The application: routers, handlers, and what lives as long as the process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app import health
from app.accounts import routes as accounts
from app.accounts.last_used import LAST_USED
from app.accounts.lean import LeanPaths
from app.core import problems
from app.core.config import Settings, get_settings
from app.core.db import Database
from app.core.errors import Problem
from app.core.fetch import Fetcher
from app.core.memory import collect_rarely
from app.core.middleware import RequestMiddleware
from app.core.queue import Doorbell
from app.core.ratelimit import RateLimiter
from app.core.redis import connect
from app.domains import routes as domains
from app.local import pages
from app.mail.dns import Resolver
from app.messages import feed_routes as events
from app.messages import routes as messages
from app.messages.intake import Intake
from app.messages.notices import SystemMailer
from app.queues import routes as queues
from app.suppressions import routes as suppressions
from app.tracking import routes as tracking
from app.tracking.journal import Journal
from app.tracking.lean import TrackPaths
from app.vmtas import routes as vmtas
from app.webhooks import documented
from app.webhooks import routes as webhooks

_DESCRIPTION = """
Transactional e-mail: accept, sign, deliver, and tell what became of each mail.

Every success is `{"status": "success", "data": {…}}`; every failure is an RFC 9457 problem document with a stable
`code`. Give an access token or an API key as bearer, or an API key in `X-API-Key`.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API. Settings come from the environment unless given."""
    settings = settings or get_settings()
    app = FastAPI(
        title="Postroad",
        version="0.1.0",
        description=_DESCRIPTION,
        lifespan=_lifespan,
        docs_url="/docs",
        redoc_url=None,
        openapi_url="/openapi.json",
        separate_input_output_schemas=False,
        redirect_slashes=False,
        webhooks=documented.router(),
    )
    app.state.settings = settings
    app.add_middleware(TrackPaths)
    app.add_middleware(LeanPaths, routes=messages.lean.routes)
    # Base64 is a third larger than what it holds; the rest is room for JSON around texts and recipients.
    app.add_middleware(RequestMiddleware, large_body_bytes=settings.message_max_bytes * 4 // 3 + 2**20)
    problems.install(app)
    for noun in (health, accounts, domains, vmtas, suppressions, messages, events, queues, tracking, webhooks):
        app.include_router(noun.router)
    app.include_router(messages.lean)
    if settings.mode == "local":
        app.include_router(pages.router(settings))
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    collect_rarely()
    app.state.database = Database(settings)
    app.state.redis = connect(settings)
    app.state.rate_limiter = RateLimiter(app.state.redis)
    app.state.resolver = Resolver(settings.nameservers, timeout_seconds=settings.dns_timeout_seconds)
    app.state.fetcher = Fetcher(settings, app.state.resolver.address_list)
    app.state.doorbell = Doorbell(settings)
    app.state.intake = Intake(app.state.database, app.state.doorbell.ring)
    app.state.journal = Journal(app.state.database)
    app.state.mailer = SystemMailer(settings, app.state.doorbell.ring)
    last_used = asyncio.create_task(LAST_USED.run(app.state.database))
    try:
        yield
    finally:
        last_used.cancel()
        await asyncio.gather(last_used, return_exceptions=True)
        await app.state.journal.close()
        await asyncio.to_thread(app.state.doorbell.close)
        await app.state.redis.aclose()
        await app.state.database.close()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with our problems in place of FastAPI's own validation errors."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            webhooks=app.webhooks.routes,
        )
        schemas = document["components"]["schemas"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        for operation in (one for path in document["paths"].values() for one in path.values()):
            # FastAPI adds its own where none is declared: there every text will do as a parameter.
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs"))
        schemas["Problem"] = problem
        app.openapi_schema = document
    return app.openapi_schema
