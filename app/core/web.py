"""HTTP to where tenants point us, without being led into our own network (SSRF), or kept there.

The name is resolved once for a connection, the address checked, and the connection made to that very address, while
TLS is verified against the name: what the DNS says a moment later changes nothing. No redirects, no proxies, no
compression, bounded bytes; whoever asks bounds the time.

Connections are httpx's own (httpcore's), used without its pools and client: those take ten times the processor time.
"""

import asyncio
import ipaddress
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

import httpcore
import httpx

from app.core.config import Settings
from app.core.networks import is_public

MAX_URL_CHARACTERS = 2048

_ADDRESSES_MAX = 3
_PORTS = {"http": 80, "https": 443}
# A last label of digits makes some readers take the whole for an IPv4 address in another spelling (WHATWG URL §3.5).
_NUMERIC_END = re.compile(r"(^|\.)(0x[0-9a-f]*|[0-9]+)$", re.IGNORECASE)
# Of what came and was not asked for yet.
_BUFFER_BYTES = 2**18
_FAILURES = (httpcore.ProtocolError, httpcore.NetworkError, OSError)

Resolve = Callable[[str], Awaitable[Sequence[str]]]


class WebError(Exception):
    """The URL is not allowed, or no answer came from it; the message is a sentence for whoever gave it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was checked. `host` is as people write it, `name` as the DNS and TLS do."""

    url: httpcore.URL
    host: str
    name: str
    port: int
    is_tls: bool
    host_header: bytes


def check_url(url: str, *, allow_private: bool) -> Target:
    """Take a tenant's URL apart. `allow_private`: it may be plain http, and name an address inside.

    What a name leads to is found out when it is connected to. Raises WebError.
    """
    parsed = _parsed(url)
    if parsed.scheme not in ({"https", "http"} if allow_private else {"https"}):
        raise WebError("The URL must begin with https://.")
    if not parsed.host:
        raise WebError("The URL names no host.")
    if parsed.port is not None and not 0 < parsed.port < 65_536:
        raise WebError("The URL's port does not exist.")
    if parsed.userinfo:
        raise WebError("The URL must not contain a user name or password.")
    port = parsed.port or _PORTS[parsed.scheme]
    name = parsed.raw_host.decode("ascii").rstrip(".").lower()
    known = _known_addresses(name)
    if known is not None:
        _allowed(known, parsed.host, allow_private=allow_private)
    return Target(
        url=httpcore.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=port, target=parsed.raw_path),
        host=parsed.host,
        name=name,
        port=port,
        is_tls=parsed.scheme == "https",
        host_header=parsed.netloc,
    )


def _parsed(url: str) -> httpx.URL:
    if len(url) > MAX_URL_CHARACTERS:
        raise WebError(f"The URL is longer than {MAX_URL_CHARACTERS} characters.")
    try:
        parsed = httpx.URL(url)
        # A-labels are decoded, and found wrong, only when they are read.
        _ = parsed.host
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise WebError("The URL is not valid.") from error
    return parsed


def _known_addresses(name: str) -> list[str] | None:
    """The addresses, in their one plain spelling, of what is never a question for the DNS; None: it is one."""
    try:
        return [str(ipaddress.ip_address(name))]
    except ValueError:
        if _NUMERIC_END.search(name):
            raise WebError("The host is neither a name nor an IP address in its usual form.") from None
    # RFC 6761 §6.3.
    return ["127.0.0.1", "::1"] if name == "localhost" or name.endswith(".localhost") else None


def _allowed(addresses: Sequence[str], host: str, *, allow_private: bool) -> list[str]:
    if not addresses:
        raise WebError(f"No address could be found for {host}.")
    allowed = [address for address in addresses if allow_private or is_public(address)]
    if not allowed:
        raise WebError(f"{host} has no public address.")
    return allowed[:_ADDRESSES_MAX]


class Web:
    """Connects by HTTPS to public addresses only; with WEBHOOK_ALLOW_PRIVATE_NETWORKS to any, and by HTTP too.

    `resolve` gives a host name's addresses, none when there are none. Belongs to one event loop.
    """

    def __init__(self, settings: Settings, resolve: Resolve) -> None:
        self._resolve = resolve
        self._allow_private = settings.webhook_allow_private_networks
        ca_file = settings.outbound_tls_ca_file
        self._tls = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2

    def check(self, url: str) -> Target:
        """As `check_url`, by the settings."""
        return check_url(url, allow_private=self._allow_private)

    async def connect(self, target: Target, *, timeout_seconds: float) -> "Connection":
        """Connect to the first of the target's addresses that lets us. Raises WebError.

        `timeout_seconds` is what the caller has in all: an address that swallows everything leaves time for the
        others, and for an answer.
        """
        found = _known_addresses(target.name)
        addresses = _allowed(
            await self._resolve(target.name) if found is None else found,
            target.host,
            allow_private=self._allow_private,
        )
        failure: Exception | None = None
        for address in addresses:
            try:
                async with asyncio.timeout(timeout_seconds / (len(addresses) + 1)):
                    return Connection(target, await self._open(target, address))
            except OSError as error:
                failure = error
        raise WebError(f"{target.host} cannot be reached: {_reason(failure)}.") from failure

    async def _open(self, target: Target, address: str) -> "_Wire":
        _, wire = await asyncio.get_running_loop().create_connection(
            _Wire,
            address,
            target.port,
            ssl=self._tls if target.is_tls else None,
            server_hostname=target.name if target.is_tls else None,
        )
        return wire


@dataclass(slots=True)
class Answer:
    """The head of an answer, names of fields in lower case; the rest is read by `Connection.read`."""

    status: int
    headers: dict[str, str]
    response: httpcore.Response = field(repr=False)


class Connection:
    """One connection, for one exchange after the other: `ask`, then `read`. Whoever does not read closes it."""

    def __init__(self, target: Target, wire: "_Wire") -> None:
        self.target = target
        self._wire = wire
        self._http = httpcore.AsyncHTTP11Connection(target.url.origin, wire)

    @property
    def is_reusable(self) -> bool:
        """Whether another exchange may follow: the last answer was read to its end, and the host holds the line."""
        return self._http.is_idle() and not self._http.has_expired()

    @property
    def was_heard(self) -> bool:
        """Whether anything came back since the last question."""
        return self._wire.was_heard

    async def ask(self, method: str, headers: Mapping[str, str], content: bytes = b"") -> Answer:
        """Send a request and return the head of the answer. Raises WebError."""
        fields = {"Host": self.target.host_header, "Accept-Encoding": b"identity", "User-Agent": b"Postroad"}
        fields |= {name: value.encode("ascii") for name, value in headers.items()}
        if content:
            fields["Content-Length"] = b"%d" % len(content)
        request = httpcore.Request(
            method, self.target.url, headers=cast(Any, list(_encoded(fields))), content=content or None
        )
        self._wire.was_heard = False
        try:
            response = await self._http.handle_async_request(request)
        except _FAILURES as error:
            raise self._unread(error) from error
        head = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        return Answer(response.status, head, response)

    async def read(self, answer: Answer, max_bytes: int) -> bytes:
        """The answer's body, or its beginning: more than `max_bytes` when it is longer. Raises WebError."""
        content = bytearray()
        try:
            # It is a generator, which is to be closed when it is left before its end.
            stream = cast(AsyncGenerator[bytes, None], answer.response.aiter_stream())
            async with aclosing(stream):
                async for chunk in stream:
                    content += chunk
                    if len(content) > max_bytes:
                        break
        except _FAILURES as error:
            raise self._unread(error) from error
        finally:
            await answer.response.aclose()
        return bytes(content)

    def close(self) -> None:
        """Drop the connection at once, whatever is under way."""
        self._wire.drop()

    def _unread(self, error: Exception) -> WebError:
        self.close()
        return WebError(f"{self.target.host} could not be read: {_reason(error)}.")


def _encoded(fields: Mapping[str, bytes]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value) for name, value in fields.items()]


class _Wire(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """The octets of one connection, as httpcore wants them. Time-outs are the caller's."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._is_paused = False
        self._ended = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.was_heard = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.was_heard = True
        self._received += data
        if len(self._received) > _BUFFER_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._failure = exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's own name
        while not self._received and not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if not self._received and self._failure is not None:
            raise self._failure
        data = bytes(self._received[:max_bytes])
        del self._received[:max_bytes]
        if self._is_paused and not self._ended and len(self._received) <= _BUFFER_BYTES:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's own name
        # What is sent is small, so it may wait in the transport for as long as the whole exchange may take.
        if self._ended:
            raise httpcore.WriteError
        self._transport.write(buffer)

    async def aclose(self) -> None:
        self.drop()

    def drop(self) -> None:
        """End the connection without waiting for anybody."""
        self._transport.abort()

    def get_extra_info(self, info: str) -> Any:
        # httpcore asks so whether an idle connection was ended, or has said something unasked.
        return bool(self._received) or self._ended if info == "is_readable" else None


def _reason(error: BaseException | None) -> str:
    cause = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid ({cause.verify_message})"
        if isinstance(cause, ssl.SSLError):
            return "TLS failed"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, TimeoutError):
        return "it does not answer"
    return (
        "its answer is malformed, or missing" if isinstance(error, httpcore.ProtocolError) else "the connection failed"
    )
