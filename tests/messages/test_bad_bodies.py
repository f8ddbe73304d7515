"""Bodies that are refused before they are a mail: no JSON, ambiguous JSON, too deep, too large."""

import base64
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from app.core.config import Settings
from app.core.db import Database
from tests.accounts.helpers import assert_problem
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender
from tests.messages.refusals import Refused, difference, nothing_stored, send_raw

MIB = 2**20
NOT_JSON = Refused("", code="invalid_json")
URL = "/api/v1/messages/send"


@pytest.fixture(scope="module")
async def sender(client: httpx.AsyncClient, dns: DnsServer) -> Sender:
    return await make_sender(client, dns)


def with_field(sender: Sender, field: bytes) -> bytes:
    """A valid mail with one more member, as it stands."""
    return json.dumps(sender.mail("a@b.example")).encode()[:-1] + b", " + field + b"}"


# What each says to other readers of JSON differs, or breaks them.
MEMBERS: dict[str, tuple[bytes, Refused]] = {
    "NaN": (b'"metadata": {"n": NaN}', NOT_JSON),
    "Infinity": (b'"metadata": {"n": Infinity}', NOT_JSON),
    "-Infinity": (b'"metadata": {"n": -Infinity}', NOT_JSON),
    "an infinite number": (b'"metadata": {"n": 1e999}', Refused("/metadata/n")),
    "5,000 digits": (b'"metadata": {"n": ' + b"9" * 5000 + b"}", NOT_JSON),
    "a million digits": (b'"metadata": {"n": ' + b"9" * 10**6 + b"}", NOT_JSON),
    "a field twice": (b'"text": "again"', NOT_JSON),
    "from twice": (b'"from": "a@elsewhere.example"', NOT_JSON),
    "a field twice, escaped": (b'"t\\u0065xt": "again"', NOT_JSON),
    "a header twice": (b'"headers": {"X-A": "x", "X-A": "y"}', NOT_JSON),
    "metadata twice below": (b'"metadata": {"a": 1, "a": 2}', NOT_JSON),
    "a byte that is no UTF-8": (b'"html": "\xff"', NOT_JSON),
    "an overlong NUL": (b'"html": "\xc0\x80"', NOT_JSON),
    "a surrogate in UTF-8": (b'"html": "\xed\xa0\x80"', NOT_JSON),
    "Latin-1": ('"html": "é"'.encode("latin-1"), NOT_JSON),
    "a raw line break": (b'"html": "a\nb"', NOT_JSON),
    "a raw NUL": (b'"html": "a\x00b"', NOT_JSON),
    "100,000 levels of arrays": (b'"metadata": {"k": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", NOT_JSON),
    "100,000 levels of objects": (b'"metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000, NOT_JSON),
    "500 levels": (b'"metadata": {"k": ' + b"[" * 500 + b"]" * 500 + b"}", Refused("/metadata/k")),
    "a comment": (b'/* hello */ "html": "x"', NOT_JSON),
    "a comma at the end": (b'"html": "x",', NOT_JSON),
}

BODIES: dict[str, tuple[bytes, Refused]] = {
    "nothing": (b"", Refused("")),
    "null": (b"null", Refused("")),
    "an array": (b"[]", Refused("")),
    "a string": (b'"x"', Refused("")),
    "a number": (b"5", Refused("")),
    "a number in two": (b"5 5", NOT_JSON),
    "an open object": (b'{"from": "a', NOT_JSON),
    "a byte order mark": (b"\xef\xbb\xbf{}", NOT_JSON),
    "100,000 open arrays": (b"[" * 100_000, NOT_JSON),
    "a million open objects": (b'{"a":' * 10**6, NOT_JSON),
    "spaces": (b" " * 10**6, NOT_JSON),
    "a form": (b"from=a&to=b", NOT_JSON),
}


@pytest.mark.parametrize("name", MEMBERS)
async def test_ambiguous_members(database: Database, sender: Sender, name: str):
    member, wanted = MEMBERS[name]
    async with nothing_stored(database, sender.org_id):
        assert difference(await send_raw(sender, with_field(sender, member)), wanted) == ""


@pytest.mark.parametrize("name", BODIES)
async def test_no_mail_at_all(database: Database, sender: Sender, name: str):
    body, wanted = BODIES[name]
    async with nothing_stored(database, sender.org_id):
        assert difference(await send_raw(sender, body), wanted) == ""


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
async def test_other_encodings(database: Database, sender: Sender, encoding: str):
    body = json.dumps(sender.mail("a@b.example")).encode(encoding)
    async with nothing_stored(database, sender.org_id):
        assert difference(await send_raw(sender, body), NOT_JSON) == ""


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"]
)
async def test_other_content_types(database: Database, sender: Sender, content_type: str):
    body = json.dumps(sender.mail("a@b.example")).encode()
    async with nothing_stored(database, sender.org_id):
        response = await send_raw(sender, body, **{"Content-Type": content_type})
        assert difference(response, Refused("")) == ""


async def test_a_parameter_of_the_content_type_is_no_matter(sender: Sender):
    body = json.dumps(sender.mail("a@b.example", scheduled_at="2999-01-01T00:00:00Z")).encode()
    response = await send_raw(sender, body, **{"Content-Type": "application/json; charset=utf-8"})
    assert difference(response, Refused("/scheduled_at", code="invalid_schedule")) == ""


async def test_26_mib_of_content(database: Database, sender: Sender):
    content = base64.b64encode(bytes(26 * MIB)).decode()
    body = sender.mail("a@b.example", attachments=[{"filename": "a.bin", "content": content}])
    async with nothing_stored(database, sender.org_id):
        response = await send_raw(sender, json.dumps(body).encode())
        assert difference(response, Refused(None, 413, "request_too_large")) == ""


class Chunks:
    """A body without end in sight: chunks of 1 MiB, and how many have been asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.sent = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.sent < self.count:
            self.sent += 1
            yield b" " * MIB


async def test_a_body_beyond_the_bound_without_a_length(database: Database, sender: Sender, settings: Settings):
    bound = settings.message_max_bytes * 4 // 3 + MIB
    chunks = Chunks(200)
    async with nothing_stored(database, sender.org_id):
        headers = sender.key | {"Content-Type": "application/json"}
        response = await sender.client.post(URL, content=chunks, headers=headers)
        assert_problem(response, 413, "request_too_large")
    # It is not read on once it is known to be too large.
    assert chunks.sent <= bound // MIB + 2


async def test_a_length_beyond_the_bound_is_refused_unread(sender: Sender):
    chunks = Chunks(1)
    headers = sender.key | {"Content-Type": "application/json", "Content-Length": "999999999999"}
    response = await sender.client.post(URL, content=chunks, headers=headers)
    assert_problem(response, 413, "request_too_large")


@pytest.mark.parametrize("path", ["/api/v1/domains", "/api/v1/api-keys", "/api/v1/auth/register"])
async def test_bodies_without_mail_are_bounded_lower(sender: Sender, path: str):
    response = await sender.client.post(path, content=Chunks(3), headers=sender.key)
    assert_problem(response, 413, "request_too_large")


async def test_nobody_without_credentials_is_read(sender: Sender):
    chunks = Chunks(20)
    response = await sender.client.post(URL, content=chunks, headers={"Content-Type": "application/json"})
    assert_problem(response, 401, "credentials_required")
    # httpx's ASGI transport hands out a chunk only when it is asked for one.
    assert chunks.sent == 0


QUERIES: dict[str, tuple[str, str, str]] = {
    "limit 0": ("limit=0", "/limit", "invalid_request"),
    "limit 101": ("limit=101", "/limit", "invalid_request"),
    "limit -1": ("limit=-1", "/limit", "invalid_request"),
    "no number": ("limit=ten", "/limit", "invalid_request"),
    "a huge number": ("limit=" + "9" * 5000, "/limit", "invalid_request"),
    "an empty cursor": ("after=", "/after", "invalid_cursor"),
    "a short cursor": ("after=AAAA", "/after", "invalid_cursor"),
    "a long cursor": ("before=" + "A" * 65, "/before", "invalid_request"),
    "no base64": ("before=%21%21%21", "/before", "invalid_cursor"),
    "no ASCII": ("after=%C3%A9", "/after", "invalid_cursor"),
    "no UTF-8": ("after=%FF%FE", "/after", "invalid_cursor"),
    "NUL in a cursor": ("after=%00", "/after", "invalid_cursor"),
    "an id is no cursor": ("after=01a1fbbd-40f2-77ec-972a-79f9adafd582", "/after", "invalid_cursor"),
    "both directions": ("after=AAAAAAAAAAAAAAAAAAAAAA&before=AAAAAAAAAAAAAAAAAAAAAA", "/before", "invalid_cursor"),
    "NUL in q": ("q=a%00b", "/q", "invalid_request"),
    "an empty q": ("q=", "/q", "invalid_request"),
    "a long q": ("q=" + "x" * 201, "/q", "invalid_request"),
    "NUL in from": ("from=%00", "/from", "invalid_request"),
    "NUL in to": ("to=%00", "/to", "invalid_request"),
    "NUL in tag": ("tag=%00", "/tag", "invalid_request"),
    "NUL in batch_id": ("batch_id=%00", "/batch_id", "invalid_request"),
    "a long sender": ("from=" + "x" * 255, "/from", "invalid_request"),
    "a bad domain": ("domain_id=x", "/domain_id", "invalid_request"),
    "a status that is none": ("status=lost", "/status", "invalid_request"),
    "a naive time": ("created_from=2027-01-01T00:00:00", "/created_from", "invalid_request"),
    "a number as time": ("created_to=1800000000", "/created_to", "invalid_request"),
    "before all ids": ("created_from=1970-01-01T00:00:00%2B05:00", "/created_from", "invalid_request"),
    "after all ids": ("created_to=9999-12-31T23:59:59-23:59", "/created_to", "invalid_request"),
}


@pytest.mark.parametrize("name", QUERIES)
async def test_queries(sender: Sender, name: str):
    query, pointer, code = QUERIES[name]
    response = await sender.client.get(f"/api/v1/messages?{query}", headers=sender.key)
    assert difference(response, Refused(pointer, code=code)) == ""
    assert response.json()["errors"][0]["location"] == "query"


@pytest.mark.parametrize(
    "query", ["q=%25_%5C", "q=';DROP TABLE x", "q=%FF", "tag=%ED%A0%80", "to=%F0%9F%92%A3", "limit=100"]
)
async def test_odd_but_good_queries(sender: Sender, query: str):
    response = await sender.client.get(f"/api/v1/messages?{query}", headers=sender.key)
    assert response.status_code == 200, response.text
    assert response.json()["data"]["messages"] == []
