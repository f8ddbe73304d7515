"""HTTP to where tenants point us, without being led into our own network (SSRF), or kept there.

The name is resolved once for a connection, the address checked, and the connection made to that very address, while
TLS is verified against the name: what the DNS says a moment later changes nothing. No redirects, no proxies, no
compression, bounded bytes; whoever asks bounds the time.

A connection is a transport of httpx's that is used without its client and pools: those take many times the processor
time of an exchange.
"""

import asyncio
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import h11
import httpx

from app.core.config import Settings
from app.core.networks import is_public

MAX_URL_CHARACTERS = 2048

_ADDRESSES_MAX = 3
_PORTS = {"http": 80, "https": 443}
# A last label of digits makes some readers take the whole for an IPv4 address in another spelling (WHATWG URL §3.5).
_NUMERIC_END = re.compile(r"(^|\.)(0x[0-9a-f]*|[0-9]+)$", re.IGNORECASE)
_HEAD_BYTES = 2**16
# Of what came and was not asked for yet.
_UNREAD_BYTES = 2**18
# Heads of an answer: interim ones (1xx), and the last.
_HEADS_MAX = 10
_DONE = {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}

Resolve = Callable[[str], Awaitable[Sequence[str]]]


class WebError(Exception):
    """The URL is not allowed, or no answer came from it; the message is a sentence for whoever gave it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was checked. `host` is as people write it, `name` as the DNS and TLS do."""

    url: httpx.URL
    host: str
    name: str
    port: int
    is_tls: bool

    def request(self, method: str, headers: Mapping[str, str], content: bytes = b"") -> httpx.Request:
        """A request that asks for no compression."""
        host = self.url.netloc.decode("ascii")
        fields = {"Host": host, "Accept-Encoding": "identity", "User-Agent": "Postroad", **headers}
        if content:
            fields["Content-Length"] = str(len(content))
        # As a stream: to look at content httpx takes longer than for all the rest.
        return httpx.Request(method, self.url, headers=fields, stream=httpx.ByteStream(content))


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
    return Target(url=parsed, host=parsed.host, name=name, port=port, is_tls=parsed.scheme == "https")


def _parsed(url: str) -> httpx.URL:
    if len(url) > MAX_URL_CHARACTERS:
        raise WebError(f"The URL is longer than {MAX_URL_CHARACTERS} characters.")
    try:
        parsed = httpx.URL(url)
        # Both are decoded, and found wrong, only when they are read.
        _ = parsed.host, parsed.raw_host
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
                    return await self._open(target, address)
            except OSError as error:
                failure = error
        raise WebError(f"{target.host} cannot be reached: {_reason(failure)}.") from failure

    async def _open(self, target: Target, address: str) -> "Connection":
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(target),
            address,
            target.port,
            ssl=self._tls if target.is_tls else None,
            server_hostname=target.name if target.is_tls else None,
        )
        return connection


class Connection(httpx.AsyncBaseTransport, asyncio.Protocol):
    """One connection, on which one exchange follows the other. Time-outs are the caller's."""

    def __init__(self, target: Target) -> None:
        self.target = target
        # Whether anything came back since the last request.
        self.was_heard = False
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
        # Of what came, what has not been made sense of.
        self._unread = 0
        self._is_paused = False
        self._has_ended = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_reusable(self) -> bool:
        """Whether another exchange may follow: the last answer was read to its end, and the host holds the line."""
        return self._http.our_state is h11.IDLE and not self._unread and not self._has_ended

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the target; its answer, of which `read` reads the body. Raises WebError."""
        self.was_heard = False
        try:
            self._send(request, await request.aread())
            for _ in range(_HEADS_MAX):
                head = await self.next_event()
                if isinstance(head, h11.Response):
                    return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=_Body(self))
            raise WebError(f"{self.target.host} does not come to its answer.")
        except BaseException:
            self.close()
            raise

    def _send(self, request: httpx.Request, content: bytes) -> None:
        # In one piece: each write is a call to the system, and a record of TLS.
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        said = [self._http.send(event) for event in (head, h11.Data(data=content), h11.EndOfMessage())]
        # It is small, so it may wait there for as long as the whole exchange may take.
        if not self._has_ended:
            self._transport.write(b"".join(filter(None, said)))

    async def next_event(self) -> object:
        """What the host says next, as h11 has it. Raises WebError."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                await self._more()
        except (h11.ProtocolError, OSError) as error:
            raise WebError(f"{self.target.host} could not be read: {_reason(error)}.") from error
        if isinstance(event, h11.EndOfMessage) and self._http.states == _DONE:
            self._unread = len(self._http.trailing_data[0])
            self._http.start_next_cycle()
        return event

    async def _more(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._unread = 0
        if self._is_paused and not self._has_ended:
            self._is_paused = False
            self._transport.resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def close(self) -> None:
        """Drop the connection at once, whatever is under way."""
        self._transport.abort()

    async def aclose(self) -> None:
        self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.was_heard = True
        self._unread += len(data)
        if self._unread > _UNREAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._http.receive_data(data)
        self._wake()

    def eof_received(self) -> None:
        self._has_ended = True
        self._http.receive_data(b"")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self.eof_received()
            return
        # An answer that lasts until the connection ends is not whole then.
        self._has_ended = True
        self._failure = exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Body(httpx.AsyncByteStream):
    """The body of an answer. One that is left before its end takes its connection along."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        event = await self._connection.next_event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self._connection.is_reusable:
            self._connection.close()


async def read(response: httpx.Response, max_bytes: int) -> bytes:
    """An answer's body, or its beginning: more than `max_bytes` when it is longer. Raises WebError."""
    content = bytearray()
    stream = cast(httpx.AsyncByteStream, response.stream)
    try:
        async for chunk in stream:
            content += chunk
            if len(content) > max_bytes:
                break
    finally:
        await stream.aclose()
    return bytes(content)


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
    return "its answer is malformed, or missing" if isinstance(error, h11.ProtocolError) else "the connection failed"
