"""A small real nameserver for loopback: UDP and TCP on one port, answers from a function.

The local mode publishes its own domains through it and the tests use it as their DNS. It neither recurses nor
loads zone files: what a name holds is decided by the function it is given.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import structlog

log = structlog.get_logger(__name__)

Answer = Callable[[dns.message.Message], dns.message.Message | Awaitable[dns.message.Message | None] | None]
"""Query in, response out; None leaves the query without any answer. May be a coroutine function."""

MAX_PENDING_QUERIES = 1000
MAX_TCP_CONNECTIONS = 100
MAX_QUERIES_PER_TCP_CONNECTION = 1000
TCP_IDLE_SECONDS = 10.0
MIN_QUERY_OCTETS = 12  # the header alone, RFC 1035 §4.1.1
BIND_TRIES = 20


class Nameserver:
    """Answers DNS queries on one address by the given function.

    Malformed packets and responses are dropped, an exception of the function becomes SERVFAIL. UDP responses
    larger than the query's EDNS size (512 octets without EDNS) go out truncated with TC set (RFC 6891,
    RFC 7766), so that the client asks again by TCP.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._pending: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.StreamWriter] = set()
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self.host = ""
        self.port = 0

    async def start(self, host: str, port: int = 0) -> None:
        """Bind UDP and TCP to the same port; 0 lets the system choose, `port` then tells.

        Raises OSError when the port cannot be had.
        """
        for left in range(BIND_TRIES if port == 0 else 1, 0, -1):
            tcp = await asyncio.start_server(self._serve_tcp, host, port, backlog=MAX_TCP_CONNECTIONS)
            chosen: int = tcp.sockets[0].getsockname()[1]
            try:
                udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                    lambda: _Datagrams(self), local_addr=(host, chosen)
                )
            except OSError:
                tcp.close()
                # The port that TCP was given may be taken for UDP: let the system choose again.
                if left == 1:
                    raise
                continue
            self._tcp, self._udp = tcp, udp
            self.host, self.port = host, chosen
            return

    async def stop(self) -> None:
        """Close the sockets and abandon what is still being answered."""
        if self._tcp is not None:
            self._tcp.close()
        if self._udp is not None:
            self._udp.close()
        for writer in list(self._connections):
            writer.transport.abort()
        tasks = list(self._pending)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._tcp is not None:
            await self._tcp.wait_closed()
        self._tcp = self._udp = None

    async def respond(self, packet: bytes, *, udp: bool) -> bytes | None:
        """The response packet to a query packet, or None when it deserves no answer."""
        query = _parse(packet)
        if query is None:
            return None
        limit = 65535
        if udp:
            limit = max(512, query.payload) if query.edns >= 0 else 512
        try:
            response: dns.message.Message | None
            if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
                response = _refusal(query, dns.rcode.NOTIMP)
            else:
                answered = self._answer(query)
                response = await answered if inspect.isawaitable(answered) else answered
            return None if response is None else response.to_wire(max_size=limit, prefer_truncation=True)
        except Exception:
            log.exception("nameserver_answer_failed")
            return _refusal(query, dns.rcode.SERVFAIL).to_wire()

    def receive_datagram(self, packet: bytes, peer: tuple[str, int]) -> None:
        """Start answering one UDP packet; beyond MAX_PENDING_QUERIES it is dropped, as by a full socket."""
        if len(self._pending) >= MAX_PENDING_QUERIES:
            return
        task = asyncio.get_running_loop().create_task(self._answer_datagram(packet, peer))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _answer_datagram(self, packet: bytes, peer: tuple[str, int]) -> None:
        response = await self.respond(packet, udp=True)
        if response is not None and self._udp is not None:
            self._udp.sendto(response, peer)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_TCP_CONNECTIONS:
            writer.transport.abort()
            return
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections.add(writer)
        self._pending.add(task)
        try:
            for _ in range(MAX_QUERIES_PER_TCP_CONNECTION):
                async with asyncio.timeout(TCP_IDLE_SECONDS):
                    length = int.from_bytes(await reader.readexactly(2))
                    packet = await reader.readexactly(length)
                response = await self.respond(packet, udp=False)
                if response is not None:
                    async with asyncio.timeout(TCP_IDLE_SECONDS):
                        writer.write(len(response).to_bytes(2) + response)
                        await writer.drain()
        except (OSError, EOFError, TimeoutError):
            pass  # the client went away or idles: nothing is owed to it
        except asyncio.CancelledError:
            # stop() cancels; asyncio's stream server would log a connection handler that ends cancelled.
            pass
        finally:
            self._connections.discard(writer)
            self._pending.discard(task)
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: Nameserver) -> None:
        self._server = server

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.receive_datagram(data, (addr[0], addr[1]))


def _parse(packet: bytes) -> dns.message.Message | None:
    if len(packet) < MIN_QUERY_OCTETS:
        return None
    try:
        message = dns.message.from_wire(packet)
    except (dns.exception.DNSException, ValueError):
        return None
    # Two servers that answered each other's responses would never stop.
    return None if message.flags & dns.flags.QR else message


def _refusal(query: dns.message.Message, code: dns.rcode.Rcode) -> dns.message.Message:
    response = dns.message.make_response(query)
    response.set_rcode(code)
    return response
