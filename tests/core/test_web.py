"""One connection to where a tenant points: real sockets, and whatever a host may say on them."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from app.core.config import Settings
from app.core.web import Connection, Web, WebError, read
from tests.core.test_fetch import Names

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Host:
    """Says the same to each request, and then ends the connection if it is to."""

    def __init__(self) -> None:
        self.said = OK
        self.then: Callable[[asyncio.StreamWriter], None] | None = None
        self.heard: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while heard := await reader.read(2**16):
                self.heard.append(heard)
                writer.write(self.said)
                await writer.drain()
                if self.then is not None:
                    self.then(writer)
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    found = Host()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    yield found
    server.close()


@pytest.fixture
async def connection(settings: Settings, host: Host) -> AsyncIterator[Connection]:
    web = Web(settings.model_copy(update={"webhook_allow_private_networks": True}), Names())
    found = await web.connect(web.check(f"http://127.0.0.1:{host.port}/a?b"), timeout_seconds=5)
    yield found
    found.close()


async def exchange(connection: Connection, max_bytes: int = 1000) -> tuple[int, bytes]:
    async with asyncio.timeout(5):
        request = connection.target.request("POST", {"X-Y": "z"}, b"content")
        response = await connection.handle_async_request(request)
        return response.status_code, await read(response, max_bytes)


async def test_one_exchange_after_the_other(connection: Connection, host: Host) -> None:
    for said in (OK, INTERIM * 3 + OK, CHUNKED + b"1;x=y\r\nh\r\n1\r\ni\r\n0\r\nA: b\r\n\r\n"):
        host.said = said
        assert await exchange(connection) == (200, b"hi")
        assert connection.is_reusable
    assert len(host.heard) == 3
    head, _, content = host.heard[0].partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    assert (first, content) == (b"POST /a?b HTTP/1.1", b"content")
    assert dict(field.split(b": ") for field in fields) == {
        b"Host": b"127.0.0.1:%d" % host.port,
        b"Content-Length": b"7",
        b"Accept-Encoding": b"identity",
        b"User-Agent": b"Postroad",
        b"X-Y": b"z",
    }


@pytest.mark.parametrize(
    "said",
    [
        *(b"", b"\0", OK[:-1], INTERIM, INTERIM * 1000 + OK, b"HTTP/1.1 101 Upgrade\r\n\r\n", b"HTTP/2 200\r\n\r\n"),
        *(
            CHUNKED + b"z\r\n",
            CHUNKED + b"5\r\nhello",
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 400_000,
            b"HTTP/1.1 000 \r\n\r\n",
        ),
        *(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n" + OK[17:]),
    ],
)
@pytest.mark.parametrize("is_reset", [False, True])
async def test_what_is_no_answer(connection: Connection, host: Host, said: bytes, is_reset: bool) -> None:
    host.said = said
    host.then = (lambda writer: writer.transport.abort()) if is_reset else (lambda writer: writer.close())
    with pytest.raises(WebError):
        await exchange(connection)
    assert not connection.is_reusable


async def test_what_ends_with_the_connection(connection: Connection, host: Host) -> None:
    host.said = b"HTTP/1.1 200 OK\r\n\r\nhello"
    host.then = lambda writer: writer.close()
    assert await exchange(connection) == (200, b"hello")
    assert not connection.is_reusable


@pytest.mark.parametrize("said", [OK + b"HTTP", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"])
async def test_what_cannot_be_used_again(connection: Connection, host: Host, said: bytes) -> None:
    host.said = said
    assert await exchange(connection) == (200, b"hi")
    assert not connection.is_reusable


async def test_no_more_is_read_than_wanted(connection: Connection, host: Host) -> None:
    for size in (10, 2**20):
        host.said = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
        _, content = await exchange(connection, 100)
        assert content[:101] == b"x" * min(size, 101)
    assert not connection.is_reusable


async def test_a_kept_connection_that_the_host_has_ended(connection: Connection, host: Host) -> None:
    host.then = lambda writer: writer.close()
    await exchange(connection)
    async with asyncio.timeout(5):
        while connection.is_reusable:
            await asyncio.sleep(0.01)
    with pytest.raises(WebError):
        await exchange(connection)
    assert not connection.was_heard
