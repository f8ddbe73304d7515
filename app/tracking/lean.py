"""Pixels and links without the framework's detours: there may be thousands a second, and each is a few lines of work.

The routes are declared like any other, and stand in the OpenAPI document. Left out is only the way to them.
"""

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core import problems
from app.tracking import routes, tokens

_METHODS = frozenset({"GET", "HEAD"})
_Endpoint = Callable[[str, Request], Awaitable[Response]]


class TrackPaths:
    """Leads requests for pixels and links past the router; all others go on to the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        declared = {route.endpoint: route for route in routes.router.routes if isinstance(route, APIRoute)}
        self._ways: tuple[tuple[str, _Endpoint, APIRoute], ...] = (
            (tokens.OPEN_PATH, routes.open_pixel, declared[routes.open_pixel]),
            (tokens.CLICK_PATH, routes.follow_link, declared[routes.follow_link]),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in _METHODS:
            path: str = scope["path"]
            for prefix, endpoint, route in self._ways:
                if path.startswith(prefix):
                    scope["route"] = route
                    await self._answer(endpoint, path[len(prefix) :], Request(scope, receive), send)
                    return
        await self._app(scope, receive, send)

    async def _answer(self, endpoint: _Endpoint, token: str, request: Request, send: Send) -> None:
        try:
            response = await endpoint(token, request)
        except Exception as error:
            response = await problems.answer(request, error)
        await response(request.scope, request.receive, send)
