"""Rotating API keys: the old secret works for the overlap, and within two seconds after it in no process any more."""

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.core.db import Database
from tests.accounts.helpers import assert_problem, client_from, colleague, me, mint, register
from tests.dnsd import DnsServer
from tests.factories.senders import make_sender

KEYS = "/api/v1/api-keys"
SENDERS = 8


def as_header(secret):
    return {"X-API-Key": secret}


async def rotate(client, headers, key, **fields):
    return await client.post(f"{KEYS}/{key['id']}/rotate", headers=headers, json=fields)


async def rotated(client, headers, key, **fields):
    answer = await rotate(client, headers, key, **fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["data"]["api_key"], answer.json()["data"]["secret"]


async def test_under_load_no_send_fails_within_the_overlap_and_none_succeeds_after_it(
    client: httpx.AsyncClient, app: FastAPI, neighbour: httpx.AsyncClient, dns: DnsServer, database: Database
):
    sender = await make_sender(client, dns)
    key, old = await mint(client, sender.user, scopes=["send"])
    answers: list[tuple[float, int]] = []
    until = float("inf")

    async def keep_sending(process: httpx.AsyncClient) -> None:
        while time.monotonic() < until:
            asked_at = time.monotonic()
            mail = sender.mail("ada@nowhere.invalid")
            answer = await process.post("/api/v1/messages/send", json=mail, headers=as_header(old))
            answers.append((asked_at, answer.status_code))
            # Refusals are limited for each address.
            await asyncio.sleep(0.1 if answer.status_code == 401 else 0)

    async with client_from(app, "127.60.0.2") as here:
        running = [asyncio.create_task(keep_sending(one)) for one in (here, neighbour) for _ in range(SENDERS // 2)]
        await asyncio.sleep(0.5)
        asked_at = time.monotonic()
        view, new = await rotated(client, sender.user, key, overlap_seconds=2)
        answered_at = time.monotonic()
        for process in (here, neighbour):
            mail = sender.mail("b@nowhere.invalid")
            answer = await process.post("/api/v1/messages/send", json=mail, headers=as_header(new))
            assert answer.status_code == 202, answer.text
        until = answered_at + 2 + 2 + 1
        await asyncio.gather(*running)
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :id"), {"id": sender.org_id})

    within = Counter(status for at, status in answers if at < asked_at + 1.9)
    after = Counter(status for at, status in answers if at > answered_at + 2 + 2)
    assert within.keys() == {202}, within
    assert after.keys() == {401}, after
    assert within[202] > 20
    assert after[401] > 20
    assert view["prefix"] != key["prefix"]


async def test_a_rotated_key_is_the_same_key_with_another_secret(client):
    account = await register(client)
    key, old = await mint(client, account.headers, name="CI", scopes=["send"], domains=["a.example"])
    before = datetime.now(UTC)
    answer = await rotate(client, account.headers, key)
    assert answer.headers["cache-control"] == "no-store"
    view, new = answer.json()["data"]["api_key"], answer.json()["data"]["secret"]
    ends = datetime.fromisoformat(view["previous_expires_at"])
    assert timedelta(hours=24) - timedelta(seconds=1) < ends - before < timedelta(hours=24, seconds=9)
    assert new.startswith(view["prefix"] + "_")
    same = {"prefix", "previous_expires_at", "last_used_at"}
    assert {k: v for k, v in view.items() if k not in same} == {k: v for k, v in key.items() if k not in same}
    for secret in (old, new):
        found = (await me(client, as_header(secret))).json()["data"]
        assert (found["api_key"]["id"], found["scopes"]) == (key["id"], ["send"])


async def test_an_empty_body_means_a_day(client):
    account = await register(client)
    key, _ = await mint(client, account.headers)
    answer = await client.post(f"{KEYS}/{key['id']}/rotate", headers=account.headers)
    assert answer.status_code == 201, answer.text
    assert answer.json()["data"]["api_key"]["previous_expires_at"] > datetime.now(UTC).isoformat()


async def test_after_the_overlap_the_old_secret_is_told_why(client, neighbour):
    account = await register(client)
    key, old = await mint(client, account.headers)
    for process in (client, neighbour):
        assert (await me(process, as_header(old))).status_code == 200
    _, new = await rotated(client, account.headers, key, overlap_seconds=0)
    await asyncio.sleep(2)
    for process in (client, neighbour):
        assert_problem(await me(process, as_header(old)), 401, "api_key_rotated")
        assert (await me(process, as_header(new))).status_code == 200


async def test_rotating_again_voids_the_oldest(client):
    account = await register(client)
    key, first = await mint(client, account.headers)
    _, second = await rotated(client, account.headers, key)
    _, third = await rotated(client, account.headers, key)
    assert (await me(client, as_header(second))).status_code == 200
    assert (await me(client, as_header(third))).status_code == 200
    assert_problem(await me(client, as_header(first)), 401, "invalid_api_key")


async def test_a_rotated_key_still_expires(client):
    account = await register(client)
    soon = datetime.now(UTC) + timedelta(seconds=0.8)
    key, old = await mint(client, account.headers, expires_at=soon.isoformat())
    _, new = await rotated(client, account.headers, key)
    await asyncio.sleep(0.9)
    for secret in (old, new):
        assert_problem(await me(client, as_header(secret)), 401, "api_key_expired")


async def test_a_deleted_key_is_dead_by_both_secrets(client):
    account = await register(client)
    key, old = await mint(client, account.headers)
    _, new = await rotated(client, account.headers, key)
    await client.delete(f"{KEYS}/{key['id']}", headers=account.headers)
    for secret in (old, new):
        assert_problem(await me(client, as_header(secret)), 401, "invalid_api_key")
    assert_problem(await rotate(client, account.headers, key), 404, "api_key_not_found")


async def test_nobody_gets_a_secret_that_does_more_than_they_may(client, database):
    owner = await register(client)
    developer = await colleague(database, owner, "developer")
    wide, _ = await mint(client, owner.headers)
    assert_problem(await rotate(client, developer.headers, wide), 403, "scope_exceeded")
    free, _ = await mint(client, owner.headers, scopes=["keys", "send"])
    bounds = (
        {"domains": ["a.example"]},
        {"source_addresses": ["127.0.0.0/8"]},
        {"expires_at": "2099-01-01T00:00:00Z"},
        {"test": True},
    )
    for bound in bounds:
        key, secret = await mint(client, owner.headers, scopes=["keys", "send"], **bound)
        assert_problem(await rotate(client, as_header(secret), free), 403, "scope_exceeded")
        # Itself, or what is bound as it is, it may.
        await rotated(client, as_header(secret), key)
        twin, _ = await mint(client, owner.headers, scopes=["send"], **bound)
        await rotated(client, as_header(secret), twin)
    _, lesser = await mint(client, owner.headers, scopes=["keys"])
    assert_problem(await rotate(client, as_header(lesser), free), 403, "scope_exceeded")


async def test_keys_that_rotate_each_other_at_once(client):
    account = await register(client)
    one, secret = await mint(client, account.headers)
    other, other_secret = await mint(client, account.headers)
    answers = await asyncio.gather(
        *(rotate(client, as_header(by), key) for by in (secret, other_secret) for key in (one, other) for _ in range(3))
    )
    # A secret that was rotated out twice meanwhile is refused; nothing else happens to anyone.
    assert {answer.status_code for answer in answers} <= {201, 401}
    assert [answer.status_code for answer in answers].count(201) >= 2


async def test_a_repeat_under_one_idempotency_key_rotates_once(client):
    account = await register(client)
    key, old = await mint(client, account.headers)
    headers = account.headers | {"Idempotency-Key": "rotate-it"}
    first, again = [await rotate(client, headers, key, overlap_seconds=60) for _ in range(2)]
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert (await me(client, as_header(old))).status_code == 200


@pytest.mark.parametrize("overlap", [-1, 604_801, "60", 1.5, None, True])
async def test_bad_overlaps(client, overlap):
    account = await register(client)
    key, _ = await mint(client, account.headers)
    answer = await rotate(client, account.headers, key, overlap_seconds=overlap)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/overlap_seconds"


async def test_test_keys_look_like_it_and_send_nothing(client, dns, database):
    sender = await make_sender(client, dns)
    key, secret = await mint(client, sender.user, test=True)
    assert key["test"] is True
    assert key["prefix"].startswith("pmta_test_")
    assert secret.startswith(key["prefix"] + "_")
    for headers in (as_header(secret), {"Authorization": f"Bearer {secret}"}):
        assert (await me(client, headers)).json()["data"]["api_key"]["id"] == key["id"]
        sent = await client.post("/api/v1/messages/send", headers=headers, json=sender.mail("a@b.example"))
        assert sent.json()["data"]["message"]["simulated"] is True
    listed = await client.get("/api/v1/messages", headers=as_header(secret))
    assert [one["simulated"] for one in listed.json()["data"]["messages"]] == [True, True]
    # What it mints is a test key too, whatever it asks for.
    for fields in ({}, {"test": False}):
        child, _ = await mint(client, as_header(secret), **fields)
        assert child["test"] is True
    _, new = await rotated(client, as_header(secret), key)
    assert new.startswith("pmta_test_")
