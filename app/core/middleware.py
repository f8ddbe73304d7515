"""What wraps every request: its id, a bound on its body, its log line, its metrics (plain ASGI: bodies pass by)."""

import re
import time

import structlog
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core import ids
from app.core.log import request_id

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_SMALL_BODY_BYTES = 2**20
_LARGE_BODY_PREFIX = "/api/v1/messages/"

REQUESTS = Counter("postroad_http_requests_total", "Requests answered.", ["method", "route", "status"])
SECONDS = Histogram("postroad_http_request_duration_seconds", "Time to answer a request.", ["method", "route"])

log = structlog.get_logger("http")


class RequestMiddleware:
    """Gives each request an id, bounds its body, and tells of its end. `large_body_bytes` bounds requests with mail."""

    def __init__(self, app: ASGIApp, *, large_body_bytes: int) -> None:
        self._app = app
        self._large_body_bytes = large_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        # Anything unusual is not echoed into logs and headers.
        identifier = given if _REQUEST_ID.fullmatch(given) else str(ids.new_id())
        token = request_id.set(identifier)
        scope.setdefault("state", {})["request_id"] = identifier
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-ID"] = identifier
                out["X-Content-Type-Options"] = "nosniff"
                for name, value in scope["state"].get("rate_limit_headers", {}).items():
                    out.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, self._bounded(scope, headers, receive), send_with_headers)
        finally:
            _tell(scope, status, time.perf_counter() - started)
            request_id.reset(token)

    def _bounded(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """`receive` that raises 413 once the body has passed its bound, whatever its Content-Length claims."""
        large = scope["path"].startswith(_LARGE_BODY_PREFIX)
        bound = self._large_body_bytes if large else _SMALL_BODY_BYTES
        claimed = headers.get("content-length", "")[:20]
        seen = int(claimed) if claimed.isascii() and claimed.isdigit() and int(claimed) > bound else 0

        async def bounded_receive() -> Message:
            nonlocal seen
            if seen <= bound:
                message = await receive()
                seen += len(message.get("body", b""))
            if seen > bound:
                raise HTTPException(413, f"The request body is larger than {bound:,} bytes.")
            return message

        return bounded_receive


def _tell(scope: Scope, status: int, seconds: float) -> None:
    route = getattr(scope.get("route"), "path", None) or "unmatched"
    method = scope["method"] if scope["method"] in _METHODS else "OTHER"
    REQUESTS.labels(method, route, status).inc()
    SECONDS.labels(method, route).observe(seconds)
    level = log.warning if status >= 500 else log.debug if route in _QUIET else log.info
    level("request", method=method, route=route, path=scope["path"][:200], status=status, ms=round(seconds * 1000, 1))


_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"}
_QUIET = {"/health", "/metrics"}
