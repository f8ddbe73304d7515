"""Every failure as one problem document: our own, validation, the framework's, the database's, the unforeseen."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import asyncpg
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from app.core.db import is_away
from app.core.errors import Flaw, Invalid, PostroadError, problem
from app.core.idempotency import Replay
from app.core.middleware import shown_path

MAX_FLAWS = 50
_CODES = {
    400: "bad_request",
    404: "route_not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
    503: "busy",
}
_BAD_TEXT = ("22021", "22P05")

log = structlog.get_logger(__name__)


def install(app: FastAPI) -> None:
    """Register the handlers on an application."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)


async def answer(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in this error, where the application's own handlers do not come by."""
    handler = next(_HANDLERS[kind] for kind in type(error).__mro__ if kind in _HANDLERS)
    return await handler(request, error)


def respond(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    flaws: Sequence[Flaw] = (),
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """A problem document as a response; `extra` are members of its own (RFC 9457 section 3.2)."""
    request_id = request.scope.get("state", {}).get("request_id")
    body = problem(status, code, detail, request_id=request_id, flaws=flaws) | dict(extra or {})
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def _postroad_error(request: Request, error: Any) -> Response:
    return respond(
        request, error.status, error.code, error.detail, flaws=error.flaws, headers=error.headers, extra=error.extra
    )


async def _replay(_: Request, replay: Any) -> Response:
    # The answer may hold a secret (RFC 6749 §5.1).
    headers = {"Idempotency-Replayed": "true", "Cache-Control": "no-store"}
    return Response(replay.body, replay.status, headers, media_type="application/json")


async def _validation_error(request: Request, error: Any) -> Response:
    found = invalid(error.errors())
    return respond(request, found.status, found.code, found.detail, flaws=found.flaws)


def invalid(items: Sequence[Mapping[str, Any]]) -> Invalid:
    """What pydantic found wrong with a request, each place with its location before it, as an error of our own."""
    flaws = [_flaw(item) for item in items[:MAX_FLAWS]]
    if any(item["type"] == "json_invalid" for item in items):
        return Invalid("invalid_json", "The request body is not valid JSON.", flaws=flaws)
    where = f"{flaws[0].pointer or 'the body'}: {flaws[0].detail}" if flaws else "it is malformed"
    return Invalid("invalid_request", f"The request is not valid: {where}.", flaws=flaws)


def _flaw(item: Mapping[str, Any]) -> Flaw:
    location, *path = item["loc"]
    if item["type"] == "json_invalid":
        # Its location is an offset in the text, not a place in the document.
        return Flaw("", f"JSON decode error: {item['ctx']['error']}")
    # JSON Pointer escapes (RFC 6901 section 3). pydantic puts "[key]" after a mapping's key that is itself wrong.
    steps = [str(step).replace("~", "~0").replace("/", "~1") for step in path if step != "[key]"]
    pointer = _encodable("".join(f"/{step[:200]}" for step in steps))
    detail = _encodable(str(item["msg"]).removeprefix("Value error, ").rstrip("."))
    return Flaw(pointer, detail, location if location in {"body", "query", "path", "header"} else "body")


def _encodable(text: str) -> str:
    # A name or value with a lone surrogate must not break the answer that tells of it.
    return text.encode("utf-8", "replace").decode()


async def _http_exception(request: Request, error: Any) -> Response:
    code = _CODES.get(error.status_code, "http_error")
    return respond(request, error.status_code, code, str(error.detail), headers=error.headers)


async def _database_error(request: Request, error: Any) -> Response:
    state = str(getattr(getattr(error, "orig", error), "sqlstate", None) or "")
    if state == "57014":
        log.warning("query_too_slow", path=shown_path(request.scope))
        return respond(request, 503, "query_too_slow", "That took too long: narrow it, for example by created_from.")
    is_broken = getattr(error, "connection_invalidated", False) or isinstance(error, InterfaceError | OperationalError)
    if is_broken or is_away(error):
        return await _unavailable(request, error)
    if state in _BAD_TEXT:
        return respond(request, 422, "invalid_text", "The request contains characters that cannot be stored.")
    return await _unforeseen(request, error)


async def _unavailable(request: Request, error: Any) -> Response:
    log.error("database_unavailable", error=f"{type(error).__name__}: {str(error)[:200]}")
    headers = {"Retry-After": "5"}
    return respond(request, 503, "database_unavailable", "The database cannot be reached; try again.", headers=headers)


async def _unforeseen(request: Request, error: Any) -> Response:
    log.error("unforeseen_error", path=shown_path(request.scope), exc_info=error)
    # Starlette answers these outside of all middleware, so the usual headers would be missing.
    headers = {"X-Request-ID": request.scope["state"]["request_id"], "X-Content-Type-Options": "nosniff"}
    detail = "Something went wrong on our side; it has been logged."
    return respond(request, 500, "internal_error", detail, headers=headers)


_HANDLERS: dict[type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    PostroadError: _postroad_error,
    Replay: _replay,
    RequestValidationError: _validation_error,
    HTTPException: _http_exception,
    DBAPIError: _database_error,
    asyncpg.PostgresError: _database_error,
    PoolTimeout: _unavailable,
    asyncpg.InterfaceError: _unavailable,
    asyncpg.InternalClientError: _unavailable,
    OSError: _unavailable,
    TimeoutError: _unavailable,
    Exception: _unforeseen,
}
