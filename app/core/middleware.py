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
# Parsed, a body takes several times its size; one at least is always let in.
_LARGE_BODIES_BYTES = 128 * 2**20
_LARGE_BODY_PREFIX = "/api/v1/messages/"

REQUESTS = Counter("postroad_http_requests_total", "Requests answered.", ["method", "route", "status"])
SECONDS = Histogram("postroad_http_request_duration_seconds", "Time to answer a request.", ["method", "route"])

log = structlog.get_logger("http")


class RequestMiddleware:
    """Gives each request an id, bounds its body, and tells of its end. `large_body_bytes` bounds requests with mail."""

    def __init__(self, app: ASGIApp, *, large_body_bytes: int) -> None:
        self._app = app
        self._large_body_bytes = large_body_bytes
        self._reserved_bytes = 0

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

        bound, claimed = self._bound(scope), _claimed_bytes(headers)
        # A body without a stated length may become as large as any.
        reserved = 0 if claimed <= _SMALL_BODY_BYTES else min(claimed, bound)
        crowded = bool(reserved and self._reserved_bytes and self._reserved_bytes + reserved > _LARGE_BODIES_BYTES)
        self._reserved_bytes += reserved
        try:
            await self._app(scope, _bounded(receive, bound, claimed, crowded=crowded), send_with_headers)
        finally:
            self._reserved_bytes -= reserved
            _tell(scope, status, time.perf_counter() - started)
            request_id.reset(token)

    def _bound(self, scope: Scope) -> int:
        return self._large_body_bytes if scope["path"].startswith(_LARGE_BODY_PREFIX) else _SMALL_BODY_BYTES


def _claimed_bytes(headers: Headers) -> int:
    """How large the body says it is; more than any bound when it does not say."""
    if "transfer-encoding" in headers:
        return 2**62
    claimed = headers.get("content-length", "0")[:20]
    return int(claimed) if claimed.isascii() and claimed.isdigit() else 2**62


def _bounded(receive: Receive, bound: int, claimed: int, *, crowded: bool) -> Receive:
    """`receive` that raises 413 once the body has passed its bound, or 503 when others fill the memory for bodies."""
    seen = claimed if bound < claimed < 2**62 else 0

    async def bounded_receive() -> Message:
        nonlocal seen
        if crowded and seen <= bound:
            detail = "Too many large messages are being received at the moment; try again."
            raise HTTPException(503, detail, {"Retry-After": "2"})
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
    is_quiet = route in _QUIET or route.startswith(_TRACK_PREFIX)
    level = log.warning if status >= 500 else log.debug if is_quiet else log.info
    level("request", method=method, route=route, path=shown_path(scope), status=status, ms=round(seconds * 1000, 1))


def shown_path(scope: Scope) -> str:
    """The path as a log may show it: tokens in it can be used by whoever reads them."""
    path: str = scope["path"]
    return f"{_TRACK_PREFIX}…" if path.startswith(_TRACK_PREFIX) else path[:200]


_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"}
_QUIET = {"/health", "/metrics"}
# Counted, but not logged one by one: there may be thousands a second.
_TRACK_PREFIX = "/track/"
