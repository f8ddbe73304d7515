"""Fetching what tenants point us at, without being led into our own network (SSRF), or kept there.

The name is resolved once, the address checked, and the connection made to that very address, while TLS is verified
against the name: what the DNS says a moment later changes nothing. No redirects, no proxies, no compression, bounded
bytes and time.
"""

import asyncio
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import httpx

from app.core.config import Settings
from app.core.networks import is_public

MAX_URL_CHARACTERS = 2048
MAX_FETCHES_AT_ONCE = 50

_ADDRESSES_MAX = 3
# A last label of digits makes some readers take the whole for an IPv4 address in another spelling (WHATWG URL §3.5).
_NUMERIC_END = re.compile(r"(^|\.)(0x[0-9a-f]*|[0-9]+)$", re.IGNORECASE)

Resolve = Callable[[str], Awaitable[Sequence[str]]]


class FetchError(Exception):
    """Nothing usable came from the URL; the message is a sentence for whoever gave it."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The body of a 200 answer, and its media type in lower case without parameters ("" when none was named)."""

    content: bytes
    media_type: str


class Fetcher:
    """Fetches by HTTPS from public addresses only; with WEBHOOK_ALLOW_PRIVATE_NETWORKS from any, and by HTTP too.

    `resolve` gives a host name's addresses, none when there are none. `at_once`: fetches under way; others wait, and
    their time runs. Belongs to one event loop.
    """

    def __init__(self, settings: Settings, resolve: Resolve, *, at_once: int = MAX_FETCHES_AT_ONCE) -> None:
        self._resolve = resolve
        self._allow_private = settings.webhook_allow_private_networks
        ca_file = settings.outbound_tls_ca_file
        self._tls = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._slots = asyncio.Semaphore(at_once)

    async def fetch(self, url: str, *, max_bytes: int, timeout_seconds: float, accept: Collection[str]) -> Fetched:
        """GET the URL. `accept` names the media types that will do; `timeout_seconds` is for all of it.

        Raises FetchError: for a URL, a host or an address that is not allowed, any answer but 200, another media
        type, a body of more than `max_bytes`, and whatever goes wrong on the way.
        """
        target = self._checked(url)
        try:
            async with asyncio.timeout(timeout_seconds), self._slots:
                addresses = await self._addresses(target.raw_host.decode("ascii"))
                # An address that swallows everything must leave time for the others.
                timeout = httpx.Timeout(timeout_seconds, connect=timeout_seconds / (len(addresses) + 1))
                async with httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=timeout) as client:
                    return await _fetch_any(client, target, addresses, max_bytes=max_bytes, accept=accept)
        except TimeoutError as error:
            raise FetchError(f"{target.host} did not answer in full within {timeout_seconds:g} seconds.") from error

    def _checked(self, url: str) -> httpx.URL:
        if len(url) > MAX_URL_CHARACTERS:
            raise FetchError(f"The URL is longer than {MAX_URL_CHARACTERS} characters.")
        try:
            target = httpx.URL(url)
            # A-labels are decoded, and found wrong, only when they are read.
            is_named = bool(target.host)
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise FetchError("The URL is not valid.") from error
        schemes = {"https", "http"} if self._allow_private else {"https"}
        if target.scheme not in schemes:
            raise FetchError("The URL must begin with https://.")
        if not is_named:
            raise FetchError("The URL names no host.")
        if target.port is not None and not 0 < target.port < 65_536:
            raise FetchError("The URL's port does not exist.")
        if target.userinfo:
            raise FetchError("The URL must not contain a user name or password.")
        return target.copy_with(fragment=None)

    async def _addresses(self, host: str) -> list[str]:
        """The host's addresses in their one plain spelling, checked."""
        try:
            found: Sequence[str] = [str(ipaddress.ip_address(host))]
        except ValueError:
            name = host.rstrip(".").lower()
            if _NUMERIC_END.search(name):
                raise FetchError("The host is neither a name nor an IP address in its usual form.") from None
            # RFC 6761 §6.3: never a question for the DNS.
            local = name == "localhost" or name.endswith(".localhost")
            found = ["127.0.0.1", "::1"] if local else await self._resolve(name)
        if not found:
            raise FetchError(f"No address could be found for {host}.")
        allowed = [address for address in found if self._allow_private or is_public(address)]
        if not allowed:
            raise FetchError(f"{host} has no public address.")
        return allowed[:_ADDRESSES_MAX]


async def _fetch_any(
    client: httpx.AsyncClient, target: httpx.URL, addresses: Sequence[str], *, max_bytes: int, accept: Collection[str]
) -> Fetched:
    failure: httpx.HTTPError | None = None
    for address in addresses:
        try:
            return await _fetch_from(client, target, address, max_bytes=max_bytes, accept=accept)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failure = error
        except httpx.HTTPError as error:
            raise FetchError(f"{target.host} could not be read: {_reason(error)}.") from error
    raise FetchError(f"{target.host} cannot be reached: {_reason(failure)}.") from failure


async def _fetch_from(
    client: httpx.AsyncClient, target: httpx.URL, address: str, *, max_bytes: int, accept: Collection[str]
) -> Fetched:
    request = client.build_request(
        "GET",
        target.copy_with(host=address),
        headers={
            "Host": target.netloc.decode("ascii"),
            "Accept": ", ".join(accept),
            "Accept-Encoding": "identity",
            "User-Agent": "Postroad",
            "Connection": "close",
        },
        extensions={"sni_hostname": target.raw_host.decode("ascii")},
    )
    response = await client.send(request, stream=True, follow_redirects=False)
    try:
        if response.status_code != 200:
            raise FetchError(f"{target.host} answered {response.status_code}; only 200 will do.")
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise FetchError(f"{target.host} sent a compressed answer, which was not asked for.")
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in accept and "*/*" not in accept:
            raise FetchError(f"{target.host} sent the media type {media_type[:100]!r}, not {' or '.join(accept)}.")
        return Fetched(await _bounded(response.aiter_raw(), max_bytes), media_type)
    finally:
        await response.aclose()


async def _bounded(chunks: AsyncIterator[bytes], max_bytes: int) -> bytes:
    content = bytearray()
    async for chunk in chunks:
        content += chunk
        if len(content) > max_bytes:
            raise FetchError(f"It is larger than {max_bytes:,} bytes.")
    return bytes(content)


def _reason(error: httpx.HTTPError | None) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid ({cause.verify_message})"
        if isinstance(cause, ssl.SSLError):
            return "TLS failed"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.TimeoutException):
        return "it does not answer"
    return "its answer is malformed" if isinstance(error, httpx.ProtocolError) else "the connection failed"
