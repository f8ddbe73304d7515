"""The list by the API: adding, finding, checking, deleting, and who sees it."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from app.core.db import Database
from app.core.ids import new_id
from tests.accounts import helpers
from tests.suppressions.helpers import Keeper


async def test_one_is_added_once(keeper: Keeper) -> None:
    body = {"address": "Ada <Ada.L@Example.COM>", "reason": "unsubscribe", "detail": "on the phone"}
    first = await keeper.ask("POST", json=body)
    assert first.status_code == 201
    suppression = first.json()["data"]["suppression"]
    assert suppression == {
        "id": suppression["id"],
        "address": "ada.l@example.com",
        "tag": None,
        "reason": "unsubscribe",
        "message_id": None,
        "detail": "on the phone",
        "created_at": suppression["created_at"],
    }
    again = await keeper.ask("POST", json={"address": "ada.l@example.com", "reason": "manual"})
    assert (again.status_code, again.json()["data"]["suppression"]) == (200, suppression)
    tagged = await keeper.suppress("ada.l@example.com", tag="news")
    assert (tagged["tag"], tagged["reason"]) == ("news", "manual")
    assert (await keeper.get(f"/{suppression['id']}"))["suppression"] == suppression
    assert len((await keeper.get())["suppressions"]) == 2


SPELLINGS = [
    ("Ada@Example.com", "ada@example.COM"),
    ("ada@bücher.example", "ADA@xn--bcher-kva.example"),
    ("ÄDA@example.com", "äda@example.com"),
    ("a\u0308da@example.com", "\u00e4da@example.com"),
]


async def test_spellings_of_one_mailbox(keeper: Keeper) -> None:
    for one, other in SPELLINGS:
        await _are_one(keeper, one, other)


async def _are_one(keeper: Keeper, one: str, other: str) -> None:
    suppression = await keeper.suppress(one)
    assert (await keeper.suppress(other))["id"] == suppression["id"]
    assert (await keeper.get("/check", address=other))["check"]["suppressed"]
    assert await keeper.addresses(address=other) == [suppression["address"]]
    assert (await keeper.ask("DELETE", params={"address": other})).status_code == 204
    assert not (await keeper.get("/check", address=one))["check"]["suppressed"]


async def test_those_who_add_the_same_at_once_all_get_it(keeper: Keeper) -> None:
    answers = await asyncio.gather(*(keeper.ask("POST", json={"address": "a@example.com"}) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["data"]["suppression"]["id"] for answer in answers}) == 1


async def test_bulk_tells_of_each_in_order(keeper: Keeper) -> None:
    await keeper.suppress("there@example.com", reason="complaint")
    items: list[Any] = [
        {"address": "new@example.com", "reason": "hard_bounce"},
        {"address": "no address"},
        {"address": "THERE@example.com"},
        {"address": "New@example.com"},
        {"address": "new@example.com", "tag": "news"},
        {"address": "x@example.com", "reason": "boredom", "note": 1},
        "x@example.com",
    ]
    data = await keeper.post({"suppressions": items}, "/bulk")
    assert (data["added"], data["already_suppressed"], data["rejected"]) == (2, 2, 3)
    results = data["results"]
    assert [one["index"] for one in results] == list(range(7))
    expected = ["added", "rejected", "already_suppressed", "already_suppressed", "added", "rejected", "rejected"]
    assert [one["status"] for one in results] == expected
    assert (results[2]["suppression"]["reason"], results[0]["suppression"]["reason"]) == ("complaint", "hard_bounce")
    assert results[3]["suppression"] == results[0]["suppression"]
    assert [flaw["pointer"] for flaw in results[1]["errors"]] == ["/address"]
    assert {flaw["pointer"] for flaw in results[5]["errors"]} == {"/reason", "/note"}
    assert (results[6]["suppression"], [flaw["pointer"] for flaw in results[6]["errors"]]) == (None, [""])
    assert sorted(await keeper.addresses()) == ["new@example.com", "new@example.com", "there@example.com"]


async def test_bulk_without_a_valid_one_is_refused(keeper: Keeper) -> None:
    response = await keeper.ask("POST", "/bulk", json={"suppressions": [{"address": "no"}, {}]})
    helpers.assert_problem(response, 422, "no_valid_address")
    assert [flaw["pointer"] for flaw in response.json()["errors"]] == [
        "/suppressions/0/address",
        "/suppressions/1/address",
    ]


async def test_a_thousand_at_once_and_no_more(keeper: Keeper) -> None:
    items = [{"address": f"u{number}@example.com"} for number in range(1001)]
    assert (await keeper.ask("POST", "/bulk", json={"suppressions": items})).status_code == 422
    assert (await keeper.post({"suppressions": items[:1000]}, "/bulk"))["added"] == 1000
    addresses = [one["address"] for one in items]
    assert (await keeper.ask("POST", "/check", json={"addresses": addresses})).status_code == 422
    checks = (await keeper.post({"addresses": [*addresses[1:], "U0@example.com"][:1000]}, "/check"))["checks"]
    assert [one["address"] for one in checks[:2]] == ["u1@example.com", "u2@example.com"]
    assert [one["suppressed"] for one in checks] == [True] * 999 + [False]


async def test_check_asks_as_a_mail_would(keeper: Keeper) -> None:
    await keeper.suppress("a@example.com", tag="news")
    await keeper.suppress("b@example.com", reason="complaint")
    await keeper.suppress("b@example.com", tag="news")
    addresses = ["b@example.com", "a@example.com", "c@example.com", "A@example.com"]
    plain = (await keeper.post({"addresses": addresses}, "/check"))["checks"]
    assert [one["suppressed"] for one in plain] == [True, False, False, False]
    tagged = (await keeper.post({"addresses": addresses, "tags": ["sale", "news"]}, "/check"))["checks"]
    assert [one["suppressed"] for one in tagged] == [True, True, False, True]
    assert [one["tag"] for one in tagged[0]["suppressions"]] == [None, "news"]
    one = (await keeper.get("/check", address="A@example.com", tag=["sale", "news"]))["check"]
    assert (one["address"], one["suppressed"], len(one["suppressions"])) == ("a@example.com", True, 1)


async def test_filters_and_pages(keeper: Keeper) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    for number, reason in enumerate(["manual", "complaint", "hard_bounce", "unsubscribe"]):
        await keeper.suppress(f"u_{number}@example.com", reason=reason)
    await keeper.suppress("ux4@other.example", tag="news")
    everyone = ["ux4@other.example", *(f"u_{number}@example.com" for number in (3, 2, 1, 0))]
    assert await keeper.addresses() == everyone
    assert await keeper.addresses(reason="complaint") == ["u_1@example.com"]
    assert await keeper.addresses(tag="news") == everyone[:1]
    assert await keeper.addresses(tag="") == everyone[1:]
    assert await keeper.addresses(address="U_2@Example.com") == ["u_2@example.com"]
    assert await keeper.addresses(address_prefix="U_") == everyone[1:], "wildcards are taken literally"
    assert await keeper.addresses(address_prefix="u", reason="manual") == [everyone[0], everyone[4]]
    second = (await keeper.get())["suppressions"][3]
    assert await keeper.addresses(created_from=second["created_at"]) == everyone[:4]
    assert await keeper.addresses(created_to=second["created_at"]) == everyone[4:]
    assert await keeper.addresses(created_to=before.isoformat()) == []
    page = await keeper.get(limit=2)
    assert page["pagination"]["has_more"]
    older = await keeper.get(limit=2, after=page["pagination"]["next"])
    assert [one["address"] for one in older["suppressions"]] == everyone[2:4]
    newer = await keeper.get(limit=2, before=older["pagination"]["previous"])
    assert newer["suppressions"] == page["suppressions"]


async def test_deleting_by_address_takes_the_one_that_is_named(keeper: Keeper) -> None:
    await keeper.suppress("a@example.com", tag="news")
    assert (await keeper.ask("DELETE", params={"address": "a@example.com"})).status_code == 404
    suppression = await keeper.suppress("a@example.com")
    assert (await keeper.ask("DELETE", params={"address": "a@example.com", "tag": "sale"})).status_code == 404
    assert (await keeper.ask("DELETE", params={"address": "a@example.com", "tag": "news"})).status_code == 204
    assert [one["id"] for one in (await keeper.get())["suppressions"]] == [suppression["id"]]
    assert (await keeper.ask("DELETE", f"/{suppression['id']}")).status_code == 204
    assert (await keeper.ask("DELETE", f"/{suppression['id']}")).status_code == 404
    assert await keeper.addresses() == []


async def test_others_see_and_change_nothing_of_it(keeper: Keeper, stranger: Keeper) -> None:
    suppression = await keeper.suppress("a@example.com", reason="complaint")
    assert (await stranger.get())["suppressions"] == []
    assert not (await stranger.get("/check", address="a@example.com"))["check"]["suppressed"]
    assert (await stranger.ask("GET", "/export")).text.count("\r\n") == 1
    assert (await stranger.ask("DELETE", params={"address": "a@example.com"})).status_code == 404
    theirs = await stranger.ask("POST", json={"address": "a@example.com"})
    assert theirs.status_code == 201
    assert theirs.json()["data"]["suppression"]["id"] != suppression["id"]
    assert (await keeper.get())["suppressions"] == [suppression]


async def test_the_list_is_the_whole_organizations(keeper: Keeper) -> None:
    """A key that is restricted to domains sees all of it."""
    suppression = await keeper.suppress("a@example.com")
    _, secret = await helpers.mint(keeper.client, keeper.user, scopes=["suppressions"], domains=["mail.example.com"])
    restricted = replace(keeper, key={"X-API-Key": secret})
    assert (await restricted.get())["suppressions"] == [suppression]


async def test_repeats_with_an_idempotency_key(keeper: Keeper) -> None:
    headers = {"Idempotency-Key": str(new_id())}
    items = {"suppressions": [{"address": "a@example.com"}]}
    answers = [await keeper.ask("POST", "/bulk", json=items, headers=headers) for _ in range(2)]
    assert [answer.json()["data"]["added"] for answer in answers] == [1, 1]
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    headers = {"Idempotency-Key": str(new_id()), "Content-Type": "text/csv"}
    answers = [await keeper.ask("POST", "/import", content="b@example.com", headers=headers) for _ in range(2)]
    assert [answer.json()["data"]["added"] for answer in answers] == [1, 1]
    other = await keeper.ask("POST", "/import", content="c@example.com", headers=headers)
    helpers.assert_problem(other, 422, "idempotency_key_reused")


async def test_who_is_suspended_may_only_read(keeper: Keeper, database: Database) -> None:
    suspend = text("UPDATE organizations SET suspended_at = now(), suspension_reason = 'spam' WHERE id = :id")
    async with database.transaction() as session:
        await session.execute(suspend, {"id": keeper.org_id})
    answer = await keeper.ask("POST", json={"address": "a@example.com"})
    helpers.assert_problem(answer, 403, "organization_suspended")
    assert (await keeper.ask("DELETE", params={"address": "a@example.com"})).status_code == 403
    assert await keeper.addresses() == []
    assert (await keeper.ask("GET", "/export")).status_code == 200


BAD_BODIES: list[Any] = [
    {},
    {"address": ""},
    {"address": "a"},
    {"address": "a@b@c.example, d@e.example"},
    {"address": "a@example.com\r\nBcc: x@example.com"},
    {"address": "a\x00@example.com"},
    {"address": 5},
    {"address": {"email": "a@example.com"}},
    {"address": "a@" + "b" * 1000 + ".com"},
    {"address": "a@example.com", "tag": ""},
    {"address": "a@example.com", "tag": "x" * 129},
    {"address": "a@example.com", "tag": "\x00"},
    {"address": "a@example.com", "reason": "because"},
    {"address": "a@example.com", "detail": "two\nlines"},
    {"address": "a@example.com", "detail": "x" * 1001},
    {"address": "a@example.com", "message_id": str(new_id())},
    {"address": "a@example.com", "unknown": 1},
    [],
    None,
]
BAD_QUERIES = [
    "?reason=none",
    "?address=nobody",
    "?address_prefix=",
    "?address_prefix=%00",
    "?tag=%00",
    "?created_from=yesterday",
    "?created_to=0000-01-01T00:00:00Z",
    "?limit=0",
    "?after=x",
    "/export?reason=none",
    "/check",
    "/check?address=",
    "/check?address=a@example.com&tag=",
    "/check?address=a@example.com" + "&tag=x" * 11,
]


async def test_what_is_no_suppression(keeper: Keeper) -> None:
    contents = [json.dumps(body).encode() for body in BAD_BODIES]
    contents += [b'{"address": "\\ud800@example.com"}', b'{"address": "a@example.com", "address": 1}', b"\xff"]
    headers = {"Content-Type": "application/json"}
    taken = [one for one in contents if (await keeper.ask("POST", content=one, headers=headers)).status_code != 422]
    assert taken == []
    assert await keeper.addresses() == []


async def test_what_cannot_be_asked(keeper: Keeper) -> None:
    assert [query for query in BAD_QUERIES if (await keeper.ask("GET", query)).status_code != 422] == []
    assert (await keeper.ask("DELETE")).status_code == 422
