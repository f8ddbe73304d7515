"""The lean way answers as the framework's does. That one is taken by what both read as JSON and only it is led past."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender

SEND, BATCH = "/api/v1/messages/send", "/api/v1/messages/batch"
LEAN, LONG = "application/json; charset=utf-8", "application/problem+json; charset=utf-8"
# What differs between two answers by its nature.
_OWN = ("request_id", "id", "created_at")


@pytest.fixture(scope="module")
async def sender(client: httpx.AsyncClient, dns: DnsServer) -> Sender:
    return await make_sender(client, dns)


Case = Callable[[Sender], tuple[str, bytes, dict[str, str]]]


def _case(path: str, body: Any, **headers: str) -> Case:
    def make(sender: Sender) -> tuple[str, bytes, dict[str, str]]:
        found = body(sender) if callable(body) else body
        octets = found if isinstance(found, bytes) else json.dumps(found).encode()
        return path, octets, sender.key | {name.replace("_", "-"): value for name, value in headers.items()}

    return make


def _mail(**fields: Any) -> Callable[[Sender], Any]:
    return lambda sender: sender.mail("ada@there.example", **fields)


CASES: dict[str, Case] = {
    "accepted": _case(SEND, _mail()),
    "scheduled": _case(SEND, _mail(scheduled_at="2026-12-01T10:00:00.5+02:00")),
    "a batch": _case(BATCH, lambda sender: {"messages": [sender.mail("a@b.example"), sender.mail("c@d.example")]}),
    "a batch in part": _case(
        BATCH, lambda sender: {"mode": "permissive", "messages": [sender.mail("a@b.example"), {"to": 1}]}
    ),
    "nothing": _case(SEND, b""),
    "blanks": _case(SEND, b"  "),
    "null": _case(SEND, b"null"),
    "false": _case(SEND, b"false"),
    "an array": _case(SEND, b"[]"),
    "a string": _case(SEND, b'"x"'),
    "no JSON": _case(SEND, b"{"),
    "no UTF-8": _case(SEND, b'{"from": "\xff"}'),
    "an empty object": _case(SEND, b"{}"),
    "a strange field": _case(SEND, _mail(**{"a/b~c": 1})),
    "a field below": _case(SEND, lambda sender: sender.mail(["a@b.example", "nobody"])),
    "a wrong key": _case(SEND, _mail(), X_API_Key="pmta_00000000_" + "0" * 32),
    "an empty key": _case(SEND, _mail(), X_API_Key=""),
    "Basic": _case(SEND, _mail(), Authorization="Basic x"),
    "two credentials": _case(SEND, _mail(), Authorization="Bearer x"),
    "a bearer of nothing": _case(SEND, _mail(), Authorization="Bearer "),
    "a strange request id": _case(SEND, _mail(), X_Request_ID="a b"),
    "another's domain": _case(SEND, _mail(**{"from": "a@elsewhere.example"})),
    "no vMTA of this name": _case(SEND, _mail(vmta="nowhere")),
}


async def _ask(client: httpx.AsyncClient, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any, Any]:
    answer = await client.post(path, content=body, headers=headers)
    fields = {name: value for name, value in answer.headers.items() if name not in ("content-length", "x-request-id")}
    for name, value in fields.items():
        if name == "ratelimit":
            fields[name] = value.partition(";")[0]
    assert answer.headers["x-request-id"]
    return answer.status_code, fields, _without(answer.json(), _OWN)


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {name: _without(one, names) for name, one in value.items() if name not in names}
    return [_without(one, names) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", CASES)
async def test_both_ways_answer_alike(client: httpx.AsyncClient, sender: Sender, name: str) -> None:
    path, body, headers = CASES[name](sender)
    lean = await _ask(client, path, body, headers | {"Content-Type": LEAN})
    assert lean == await _ask(client, path, body, headers | {"Content-Type": LONG})


async def test_an_empty_key_beside_a_bearer_is_no_key(client: httpx.AsyncClient, sender: Sender) -> None:
    path, body, headers = _case(SEND, _mail())(sender)
    headers = {"X-API-Key": "", "Authorization": f"Bearer {headers['X-API-Key']}"}
    lean = await _ask(client, path, body, headers | {"Content-Type": LEAN})
    assert lean == await _ask(client, path, body, headers | {"Content-Type": LONG})
    assert lean[0] == 202


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
async def test_other_methods_are_the_routers(client: httpx.AsyncClient, sender: Sender, method: str) -> None:
    answer = await client.request(method, SEND, headers=sender.key)
    assert answer.status_code == (422 if method == "GET" else 405)


@pytest.mark.parametrize("content_type", [LEAN, LONG])
async def test_a_client_that_goes_away_amid_its_body_is_no_failure_of_ours(
    app: FastAPI, sender: Sender, content_type: str
) -> None:
    said = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    answers = []

    async def receive() -> Any:
        return next(said)

    async def send(message: Any) -> None:
        answers.append(message)

    headers = [(b"x-api-key", sender.key["X-API-Key"].encode()), (b"content-type", content_type.encode())]
    scope = {"type": "http", "method": "POST", "path": SEND, "raw_path": SEND.encode(), "query_string": b""}
    await app({**scope, "headers": [*headers, (b"content-length", b"100")], "client": ("127.0.0.1", 1)}, receive, send)
    assert answers[0]["status"] == 400
