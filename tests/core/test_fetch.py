"""Fetching what a tenant points at: real HTTPS on loopback, and every way to be led where one should not go."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.core.config import Settings
from app.core.fetch import Fetched, Fetcher
from app.core.web import WebError
from tests.certificates import Certificate, make_authority, self_signed
from tests.httpd import HttpServer, answer

ACCEPT = ("text/plain",)


class Names:
    """A resolver whose answers a test changes, and that counts the questions."""

    def __init__(self, **known: list[str]) -> None:
        self.known = dict(known)
        self.asked: list[str] = []

    async def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        return self.known.get(host, [])


@pytest.fixture(scope="module")
def authority() -> Certificate:
    return make_authority()


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """As in production: nothing inside may be asked."""
    return settings.model_copy(update={"webhook_allow_private_networks": False})


@pytest.fixture(scope="module")
def trusting(settings: Settings, authority: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings that trust the test's authority and allow what tests need: loopback."""
    path: Path = tmp_path_factory.mktemp("ca") / "ca.pem"
    path.write_bytes(authority.pem)
    return settings.model_copy(update={"webhook_allow_private_networks": True, "outbound_tls_ca_file": path})


@pytest.fixture
async def web(authority: Certificate) -> AsyncIterator[HttpServer]:
    async with HttpServer(authority.issue("web.example", "xn--bcher-kva.example", "127.0.0.1")) as server:
        server.put("/", b"hello", "text/plain; charset=utf-8")
        yield server


@pytest.fixture
def names() -> Names:
    return Names(**{"web.example": ["127.0.0.1"], "xn--bcher-kva.example": ["127.0.0.1"]})


async def get(settings: Settings, names: Names, url: str, *, max_bytes: int = 100, seconds: float = 3) -> Fetched:
    fetcher = Fetcher(settings, names)
    return await fetcher.fetch(url, max_bytes=max_bytes, timeout_seconds=seconds, accept=ACCEPT)


async def test_a_file_by_name_address_and_international_name(trusting, web, names):
    for host in ("web.example", "WEB.example", "bücher.example", "127.0.0.1"):
        assert await get(trusting, names, f"https://{host}:{web.port}/") == Fetched(b"hello", "text/plain")
    assert names.asked == ["web.example", "web.example", "xn--bcher-kva.example"]
    hosts = [line for head in web.requests for line in head.split("\r\n") if line.startswith("Host: ")]
    assert hosts == [
        f"Host: {host}:{web.port}" for host in ("web.example", "web.example", "xn--bcher-kva.example", "127.0.0.1")
    ]
    assert "accept-encoding: identity" in web.requests[0].lower()


async def test_the_name_is_resolved_once_and_the_address_kept(trusting, web, names):
    """What a rebinding DNS says at a second look cannot matter, because there is none."""
    await get(trusting, names, f"https://web.example:{web.port}/")
    assert names.asked == ["web.example"]


async def test_the_next_address_is_tried(trusting, web, names):
    names.known["web.example"] = ["127.0.0.9", "127.0.0.1"]
    assert (await get(trusting, names, f"https://web.example:{web.port}/")).content == b"hello"


async def test_tls_is_verified_against_the_name(trusting, settings, web, names, authority):
    names.known["other.example"] = ["127.0.0.1"]
    with pytest.raises(WebError, match="certificate is not valid"):
        await get(trusting, names, f"https://other.example:{web.port}/")
    async with HttpServer(self_signed("web.example")) as impostor:
        with pytest.raises(WebError, match="certificate is not valid"):
            await get(trusting, names, f"https://web.example:{impostor.port}/")
    strangers = settings.model_copy(update={"webhook_allow_private_networks": True})
    with pytest.raises(WebError, match="certificate is not valid"):
        await get(strangers, names, f"https://web.example:{web.port}/")
    assert not web.requests


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "x.localhost", "localhost.", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
        *(
            "169.254.169.254",
            "[fd00:ec2::254]",
            "[64:ff9b::a9fe:a9fe]",
            "[2002:7f00:1::]",
            "100.100.100.200",
            "0.0.0.0",
        ),
        *(
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0x7f.0.0.1",
            "127.0.0.1.",
            "127。0。0。1",
            "017700000001",
        ),
        *(
            "private.example",
            "cgnat.example",
            "mapped.example",
            "PRIVATE.example.",
            "[fe80::1%25lo]",
            "%31%32%37.0.0.1",
        ),
    ],
)
async def test_no_way_leads_inside(settings, web, host):
    """The server is there, so that a connection would be seen."""
    names = Names(
        **{
            "private.example": ["127.0.0.1", "::1"],
            "cgnat.example": ["100.64.0.1"],
            "mapped.example": ["::ffff:127.0.0.1"],
            "%31%32%37.0.0.1": ["127.0.0.1"],
        }
    )
    with pytest.raises(WebError):
        await get(settings, names, f"https://{host}:{web.port}/")
    assert web.connections == 0


async def test_all_of_several_addresses_are_checked(settings, web, names):
    names.known["mixed.example"] = ["127.0.0.1", "192.0.2.1"]
    with pytest.raises(WebError, match="no public address"):
        await get(settings, names, f"https://mixed.example:{web.port}/")
    assert web.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        *("http://web.example/", "ftp://web.example/", "file:///etc/passwd", "gopher://web.example/", "//web.example/"),
        *("web.example", "", "https://", "https:///x", "https://user:secret@web.example/", "https://user@web.example/"),
        *(
            "https://web.example:99999/",
            "https://web.example:0/",
            "https://web.example:x/",
            "https://[::1/",
            "https://xn--a/",
            "https://xn--\x80/",
            "https://a\x80b/",
            "https://a\r\nb/",
        ),
        *("https://web.example/\x00", "javascript:alert(1)", "https://" + "a" * 3000 + ".example/"),
    ],
)
async def test_refused_urls(settings, names, url):
    with pytest.raises(WebError):
        await get(settings, names, url)
    assert names.asked == []


async def test_plain_http_only_where_private_networks_are_allowed(trusting, settings):
    names = Names()
    async with HttpServer() as plain:
        plain.put("/", b"hello", "text/plain")
        url = f"http://localhost:{plain.port}/"
        assert (await get(trusting, names, url)).content == b"hello"
        with pytest.raises(WebError, match="must begin with https"):
            await get(settings, names, url)
    assert names.asked == []


async def test_redirects_are_not_followed(trusting, web, names):
    for status in ("301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"):
        web.answers["/away"] = answer(b"", status=status, headers={"Location": "/"})
        with pytest.raises(WebError, match="answered 30"):
            await get(trusting, names, f"https://web.example:{web.port}/away")
    assert not [head for head in web.requests if head.startswith("GET / ")]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (answer(b"x" * 101), "larger than 100 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 10_000_000, "larger than 100 bytes"),
        (answer(b"x", "text/html"), "media type 'text/html'"),
        (b"HTTP/1.1 200 OK\r\n\r\nx", "media type ''"),
        (answer(b"x" * 50, headers={"Content-Encoding": "gzip"}), "compressed"),
        (answer(b"x", headers={"Content-Length": "50"}), "could not be read"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "malformed"),
        (b"", "malformed"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n", "malformed"),
        (answer(b"x", status="204 No Content"), "answered 204"),
        (answer(b"x", status="500 Oops"), "answered 500"),
    ],
)
async def test_refused_answers(trusting, web, names, said, sentence):
    web.answers["/"] = said
    with pytest.raises(WebError, match=sentence):
        await get(trusting, names, f"https://web.example:{web.port}/")


async def test_a_slow_host_costs_a_bounded_time(trusting, web, names):
    web.pause_seconds = 0.05
    started = time.monotonic()
    with pytest.raises(WebError, match="did not answer in full"):
        await get(trusting, names, f"https://web.example:{web.port}/", seconds=0.5)
    assert time.monotonic() - started < 1.5


async def test_nobody_there(trusting, names):
    names.known["closed.example"] = ["127.0.0.1"]
    for url, sentence in (
        ("https://closed.example:1/", "cannot be reached"),
        ("https://unknown.example/", "No address"),
    ):
        with pytest.raises(WebError, match=sentence):
            await get(trusting, names, url)
