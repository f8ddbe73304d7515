import asyncio
import socket
from collections.abc import AsyncIterator

import dns.asyncquery
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rrset
import pytest

from app.local import nameserver
from app.local.nameserver import Nameserver


def answer(query: dns.message.Message) -> dns.message.Message | None:
    name = query.question[0].name.to_text()
    if name == "silent.test.":
        return None
    if name == "broken.test.":
        raise RuntimeError("broken on purpose")
    response = dns.message.make_response(query)
    values = [f"{number:03d}" + "x" * 97 for number in range(30 if name == "long.test." else 1)]
    response.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", *(f'"{value}"' for value in values)))
    return response


@pytest.fixture
async def server() -> AsyncIterator[Nameserver]:
    server = Nameserver(answer)
    await server.start("127.0.0.1")
    yield server
    await server.stop()


async def ask(server: Nameserver, query: dns.message.Message, *, tcp: bool = False) -> dns.message.Message:
    way = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return await way(query, server.host, port=server.port, timeout=2)


async def test_udp_and_tcp_share_a_port(server: Nameserver) -> None:
    query = dns.message.make_query("short.test.", "TXT")
    assert len((await ask(server, query)).answer[0]) == 1
    assert len((await ask(server, query, tcp=True)).answer[0]) == 1


@pytest.mark.parametrize(("edns_octets", "truncated"), [(None, True), (1232, True), (4096, False)])
async def test_long_udp_answers_are_truncated_at_the_size_the_client_takes(
    server: Nameserver, edns_octets: int | None, truncated: bool
) -> None:
    query = dns.message.make_query("long.test.", "TXT")
    if edns_octets is not None:
        query.use_edns(0, payload=edns_octets)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendto(client, query.to_wire(), (server.host, server.port))
        packet = await asyncio.wait_for(loop.sock_recv(client, 65535), 2)
    assert len(packet) <= (edns_octets or 512)
    assert bool(dns.message.from_wire(packet).flags & dns.flags.TC) is truncated
    assert len((await ask(server, query, tcp=True)).answer[0]) == 30


async def test_many_queries_on_one_tcp_connection(server: Nameserver) -> None:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    for name in ("a.test.", "silent.test.", "b.test."):
        packet = dns.message.make_query(name, "TXT").to_wire()
        writer.write(len(packet).to_bytes(2) + packet)
    names = []
    for _ in range(2):
        length = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), 2))
        names.append(dns.message.from_wire(await reader.readexactly(length)).question[0].name.to_text())
    assert names == ["a.test.", "b.test."]
    writer.close()


async def test_what_is_no_query_gets_no_answer(server: Nameserver) -> None:
    response = dns.message.make_response(dns.message.make_query("short.test.", "TXT")).to_wire()
    good = dns.message.make_query("short.test.", "TXT").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        for packet in (b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", good[:-3], good + b"junk", response):
            await loop.sock_sendto(client, packet, (server.host, server.port))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.sock_recv(client, 65535), 0.2)
        await loop.sock_sendto(client, good, (server.host, server.port))
        assert await asyncio.wait_for(loop.sock_recv(client, 65535), 2)


async def test_a_failing_function_is_servfail(server: Nameserver) -> None:
    response = await ask(server, dns.message.make_query("broken.test.", "TXT"))
    assert response.rcode() == dns.rcode.SERVFAIL


async def test_other_opcodes_are_not_implemented(server: Nameserver) -> None:
    query = dns.message.make_query("short.test.", "TXT")
    query.set_opcode(dns.opcode.NOTIFY)
    assert (await ask(server, query)).rcode() == dns.rcode.NOTIMP


async def test_tcp_connections_are_bounded(server: Nameserver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nameserver, "MAX_TCP_CONNECTIONS", 1)
    first = await asyncio.open_connection(server.host, server.port)
    query = dns.message.make_query("short.test.", "TXT").to_wire()
    first[1].write(len(query).to_bytes(2) + query)
    await asyncio.wait_for(first[0].readexactly(2), 2)
    second = await asyncio.open_connection(server.host, server.port)
    with pytest.raises((EOFError, ConnectionError)):
        await asyncio.wait_for(second[0].readexactly(1), 2)
    first[1].close()
    second[1].close()


async def test_idle_tcp_connections_are_closed(server: Nameserver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nameserver, "TCP_IDLE_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(b"\x00")
    assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()


async def test_stop_frees_the_port() -> None:
    server = Nameserver(answer)
    await server.start("127.0.0.1")
    port = server.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await server.stop()
    with pytest.raises((EOFError, ConnectionError)):
        await asyncio.wait_for(reader.readexactly(1), 2)
    writer.close()
    again = Nameserver(answer)
    await again.start("127.0.0.1", port)
    assert len((await ask(again, dns.message.make_query("short.test.", "TXT"))).answer) == 1
    await again.stop()
