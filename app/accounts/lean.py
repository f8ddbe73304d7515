"""The routes that all mail comes in by, without the framework's detours, which would cost several times the work.

A LeanRoute is declared like any other, and so it stands in the OpenAPI document and does the same. What is left out is
only the way there: LeanPaths finds it by its path, and it is handed its arguments by name.
"""

import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.accounts.principal import Requires, Route
from app.core import problems
from app.core.body import StrictRequest, parse, received
from app.core.db import Database
from app.core.idempotency import Once

_JSON = b"application/json"


class LeanRoute(Route):
    """A route whose endpoint takes `body`, `principal`, `session`, `once` and `request`, and nothing else."""

    def lean_handler(self) -> Callable[[StrictRequest], Coroutine[Any, Any, Response]]:
        """What answers a request that carries JSON and no Idempotency-Key. Raises what the endpoint does."""
        endpoint: Callable[..., Awaitable[BaseModel]] = self.endpoint
        adapter: TypeAdapter[Any] = TypeAdapter(get_type_hints(endpoint)["body"])
        (requires,) = (one.call for one in self.dependant.dependencies if isinstance(one.call, Requires))
        status = self.status_code or 200

        async def handle(request: StrictRequest) -> Response:
            principal = await requires.admit(request, _bearer(request), request.headers.get("x-api-key") or None)
            body = _validated(adapter, await received(request))
            database: Database = request.app.state.database
            async with database.transaction() as session:
                once = Once(session, request, None)
                answer = await endpoint(body=body, principal=principal, session=session, once=once, request=request)
            return Response(answer.model_dump_json(by_alias=True), status, media_type="application/json")

        return handle


def _bearer(request: Request) -> str | None:
    scheme, credentials = get_authorization_scheme_param(request.headers.get("authorization"))
    return credentials if scheme.lower() == "bearer" and credentials else None


def _validated(adapter: TypeAdapter[Any], octets: bytes) -> Any:
    try:
        if not octets:
            raise RequestValidationError(
                [{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}]
            )
        return adapter.validate_python(parse(octets), from_attributes=True)
    except json.JSONDecodeError as error:
        flaw = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error"}
        raise RequestValidationError([{**flaw, "input": {}, "ctx": {"error": error.msg}}]) from error
    except ValidationError as error:
        flaws = error.errors(include_url=False)
        raise RequestValidationError([{**flaw, "loc": ("body", *flaw["loc"])} for flaw in flaws]) from error


class LeanPaths:
    """Leads requests to lean routes past the router; all others go on to the application."""

    def __init__(self, app: ASGIApp, *, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes: Mapping[str, tuple[LeanRoute, Callable[[StrictRequest], Coroutine[Any, Any, Response]]]] = {
            route.path: (route, route.lean_handler()) for route in routes if isinstance(route, LeanRoute)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None or not _is_plain(scope["headers"]):
            await self._app(scope, receive, send)
            return
        scope["route"], handle = found
        request = StrictRequest(scope, receive)
        try:
            response = await handle(request)
        except Exception as error:
            response = await problems.answer(request, error)
        await response(scope, receive, send)


def _is_plain(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    is_json = False
    for name, value in headers:
        if name == b"idempotency-key":
            return False
        if name == b"content-type":
            is_json = value.partition(b";")[0].strip().lower() == _JSON
    return is_json
