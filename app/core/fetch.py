"""Fetching what tenants point us at: a file of known kind and bounded size, within a bounded time."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

import httpx

from app.core.config import Settings
from app.core.web import Connection, Resolve, Target, Web, WebError, read

MAX_FETCHES_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Fetched:
    """The body of a 200 answer, and its media type in lower case without parameters ("" when none was named)."""

    content: bytes
    media_type: str


class Fetcher:
    """Fetches by the rules of `app.core.web`.

    `at_once`: fetches under way; others wait, and their time runs. Belongs to one event loop.
    """

    def __init__(self, settings: Settings, resolve: Resolve, *, at_once: int = MAX_FETCHES_AT_ONCE) -> None:
        self._web = Web(settings, resolve)
        self._slots = asyncio.Semaphore(at_once)

    async def fetch(self, url: str, *, max_bytes: int, timeout_seconds: float, accept: Collection[str]) -> Fetched:
        """GET the URL. `accept` names the media types that will do; `timeout_seconds` is for all of it.

        Raises WebError: for a URL, a host or an address that is not allowed, any answer but 200, another media
        type, a body of more than `max_bytes`, and whatever goes wrong on the way.
        """
        target = self._web.check(url)
        try:
            async with asyncio.timeout(timeout_seconds), self._slots:
                connection = await self._web.connect(target, timeout_seconds=timeout_seconds)
                try:
                    return await _fetch(connection, max_bytes=max_bytes, accept=accept)
                finally:
                    connection.close()
        except TimeoutError as error:
            raise WebError(f"{target.host} did not answer in full within {timeout_seconds:g} seconds.") from error


async def _fetch(connection: Connection, *, max_bytes: int, accept: Collection[str]) -> Fetched:
    request = connection.target.request("GET", {"Accept": ", ".join(accept), "Connection": "close"})
    response = await connection.handle_async_request(request)
    media_type = _checked_type(connection.target, response, accept)
    content = await read(response, max_bytes)
    if len(content) > max_bytes:
        raise WebError(f"It is larger than {max_bytes:,} bytes.")
    return Fetched(content, media_type)


def _checked_type(target: Target, response: httpx.Response, accept: Collection[str]) -> str:
    if response.status_code != 200:
        raise WebError(f"{target.host} answered {response.status_code}; only 200 will do.")
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise WebError(f"{target.host} sent a compressed answer, which was not asked for.")
    media_type: str = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in accept and "*/*" not in accept:
        raise WebError(f"{target.host} sent the media type {media_type[:100]!r}, not {' or '.join(accept)}.")
    return media_type
