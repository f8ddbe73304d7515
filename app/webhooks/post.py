"""One attempt: a payload posted to an endpoint, and what came of it, which is always a value."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from app.core.schemas import rfc3339
from app.core.web import Connection, Web, WebError, read

TIMEOUT_SECONDS = 15.0
MAX_RETRY_AFTER_SECONDS = 86_400.0

_READ_BYTES = 16 * 1024
_KEPT_BYTES = 1024
_GONE = 410
_JSON = {"Content-Type": "application/json"}


@dataclass(slots=True)
class Attempt:
    """How one attempt ended. `response` is the beginning of the answer's body, `error` a sentence.

    `retry_after_seconds`: what the endpoint asked for, at most MAX_RETRY_AFTER_SECONDS.
    """

    started_at: datetime
    latency_ms: int = 0
    status_code: int | None = None
    response: str = ""
    error: str | None = None
    retry_after_seconds: float | None = None

    @property
    def has_succeeded(self) -> bool:
        """Whether the endpoint has said that it has the event."""
        return self.status_code is not None and 200 <= self.status_code < 300

    @property
    def is_gone(self) -> bool:
        """Whether the endpoint has said that it wants nothing any more."""
        return self.status_code == _GONE

    def entry(self, number: int) -> dict[str, Any]:
        """The attempt as it is logged."""
        return {
            "number": number,
            "started_at": rfc3339(self.started_at),
            "status_code": self.status_code,
            "latency_ms": self.latency_ms,
            "response": self.response,
            "error": self.error,
        }


class Lines:
    """The connections to one endpoint, kept open between attempts for as long as it lets us."""

    def __init__(self, web: Web, url: str) -> None:
        self.url = url
        self._web = web
        self._idle: list[Connection] = []
        self._is_closed = False

    async def post(self, headers: Mapping[str, str], payload: bytes) -> Attempt:
        """Post a payload; TIMEOUT_SECONDS at most, whatever the endpoint does."""
        attempt = Attempt(datetime.now(UTC))
        began = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._exchange(_JSON | dict(headers), payload, attempt)
        except WebError as error:
            attempt.error = str(error)
        except TimeoutError:
            attempt.error = f"It did not answer in full within {TIMEOUT_SECONDS:g} seconds."
        attempt.latency_ms = round(1000 * (time.perf_counter() - began))
        if attempt.status_code is not None:
            # It has decided by then, however the rest of its answer went.
            attempt.error = _judged(attempt.status_code)
        return attempt

    def close(self) -> None:
        """Keep no connection open any more. What is under way goes on."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    async def _exchange(self, headers: Mapping[str, str], payload: bytes, attempt: Attempt) -> None:
        connection, response = await self._ask(headers, payload)
        attempt.status_code = response.status_code
        if not attempt.has_succeeded and not attempt.is_gone:
            attempt.retry_after_seconds = retry_after_seconds(
                response.headers.get("Retry-After", ""), attempt.started_at
            )
        content = await read(response, _READ_BYTES)
        attempt.response = _storable(content[:_KEPT_BYTES])
        if connection.is_reusable and not self._is_closed:
            self._idle.append(connection)
        else:
            connection.close()

    async def _ask(self, headers: Mapping[str, str], payload: bytes) -> tuple[Connection, httpx.Response]:
        """The head of the answer, on a connection that was kept or on a new one. Raises WebError."""
        while self._idle:
            kept = self._idle.pop()
            if not kept.is_reusable:
                kept.close()
                continue
            try:
                return kept, await _posted(kept, headers, payload)
            except WebError:
                # Ended by the host in the moment that it was used again.
                if kept.was_heard:
                    raise
                break
        connection = await self._web.connect(self._web.check(self.url), timeout_seconds=TIMEOUT_SECONDS)
        return connection, await _posted(connection, headers, payload)


async def _posted(connection: Connection, headers: Mapping[str, str], payload: bytes) -> httpx.Response:
    return await connection.handle_async_request(connection.target.request("POST", headers, payload))


def _judged(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"It answered {status}, and redirects are not followed."
    return f"It answered {status}; only 2xx is a success."


def retry_after_seconds(retry_after: str, now: datetime) -> float | None:
    """A Retry-After in seconds or as a date (RFC 9110 §10.2.3); None when it is neither."""
    if retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after[:10]), MAX_RETRY_AFTER_SECONDS)
    try:
        moment = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _storable(content: bytes) -> str:
    return content.decode("utf-8", "replace").replace("\x00", "\ufffd")
