"""Unsubscribing: asked for by GET, done by POST, told once."""

import asyncio
import re
from dataclasses import replace

import httpx
import pytest
from fastapi import FastAPI

from app.core.ids import new_id
from app.tracking import pages_html, tokens
from tests.accounts import helpers
from tests.tracking.conftest import BROWSER, Copy, Recipients

ONE_CLICK = {"List-Unsubscribe": "One-Click"}


async def post(recipients: Recipients, path: str, **fields: str) -> httpx.Response:
    return await recipients.client.post(path, data=fields, headers={"User-Agent": BROWSER})


def check_page(answer: httpx.Response, status: int = 200) -> str:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert answer.headers["X-Robots-Tag"] == "noindex, nofollow"
    assert (answer.headers["Referrer-Policy"], answer.headers["Cache-Control"]) == ("no-referrer", "no-store")
    assert not {"set-cookie", "ratelimit"} & set(answer.headers)
    assert "<script" not in answer.text
    # Nothing from elsewhere, and no way to elsewhere.
    assert not re.search(r"\b(src|href|action)=", answer.text)
    return answer.text


async def test_looking_at_the_page_changes_nothing(recipients: Recipients) -> None:
    copy = await recipients.copy("ada.lovelace@there.example")
    page = check_page(await recipients.get(copy.unsubscribe))
    assert page.count("<button") == 1
    assert ">Unsubscribe</button>" in page
    assert f"hello@{recipients.sender.domain}" in page
    assert "a***@there.example" in page
    assert "lovelace" not in page
    assert 'type="radio"' not in page
    head = await recipients.get(copy.unsubscribe, method="HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert await recipients.suppressions() == []
    assert await recipients.events(copy, "unsubscribed") == []


async def test_the_page_unsubscribes_from_all(recipients: Recipients) -> None:
    copy = await recipients.copy("Ada@There.example", tags=["news"])
    page = check_page(await post(recipients, copy.unsubscribe, tag=""))
    assert "You are unsubscribed" in page
    assert await recipients.suppressions() == [("ada@there.example", "", "unsubscribe", copy.message_id)]
    (event,) = await recipients.events(copy, "unsubscribed")
    assert event.items() >= {"method": "page", "user_agent": BROWSER, "ip": "203.0.113.0/24"}.items()
    assert not {"tag", "is_bot", "agent"} & set(event)
    assert (await recipients.sender.message(copy.message_id))["status"] == "delivered"


async def test_or_from_one_kind_and_later_from_more(recipients: Recipients) -> None:
    copy = await recipients.copy(tags=["news", '"><script>alert(1)</script>'])
    page = check_page(await recipients.get(copy.unsubscribe))
    assert page.count('type="radio"') == 3
    assert 'name="tag" value="news"' in page
    check_page(await post(recipients, copy.unsubscribe, tag='"><script>alert(1)</script>'))
    check_page(await post(recipients, copy.unsubscribe, tag="news"))
    check_page(await post(recipients, copy.unsubscribe, tag="news"))
    check_page(await post(recipients, copy.unsubscribe, **ONE_CLICK))
    # What follows is part of it already.
    check_page(await post(recipients, copy.unsubscribe, tag="news"))
    address, reason = "ada@there.example", "unsubscribe"
    assert await recipients.suppressions() == [
        (address, tag, reason, copy.message_id) for tag in ("", '"><script>alert(1)</script>', "news")
    ]
    events = await recipients.events(copy, "unsubscribed")
    assert [event.get("tag") for event in events] == ['"><script>alert(1)</script>', "news", None]


async def test_a_tag_that_the_mail_does_not_have_is_refused(recipients: Recipients) -> None:
    copy = await recipients.copy(tags=["news"])
    check_page(await post(recipients, copy.unsubscribe, tag="other"), 400)
    assert await recipients.suppressions() == []
    assert await recipients.events(copy, "unsubscribed") == []


def multipart(copy: Copy) -> httpx.Request:
    return httpx.Request("POST", copy.unsubscribe, files={"List-Unsubscribe": (None, "One-Click")})


def form(copy: Copy) -> httpx.Request:
    return httpx.Request("POST", copy.unsubscribe, data=ONE_CLICK)


def nothing(copy: Copy) -> httpx.Request:
    return httpx.Request("POST", copy.unsubscribe)


@pytest.mark.parametrize(("make", "method"), [(form, "one_click"), (multipart, "one_click"), (nothing, "page")])
async def test_one_click(recipients: Recipients, make: object, method: str) -> None:
    copy = await recipients.copy(tags=["news"])
    built = make(copy)
    headers = {name: value for name, value in built.headers.items() if name in {"content-type", "content-length"}}
    answer = await recipients.client.post(copy.unsubscribe, content=built.read(), headers=headers)
    check_page(answer)
    assert await recipients.suppressions() == [("ada@there.example", "", "unsubscribe", copy.message_id)]
    (event,) = await recipients.events(copy, "unsubscribed")
    assert event["method"] == method


async def test_twenty_at_once_are_told_once(recipients: Recipients) -> None:
    copy = await recipients.copy()
    answers = await asyncio.gather(*(post(recipients, copy.unsubscribe, **ONE_CLICK) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(await recipients.suppressions()) == 1
    assert len(await recipients.events(copy, "unsubscribed")) == 1


async def test_each_copy_tells_of_its_own(recipients: Recipients) -> None:
    first, second = await recipients.copy(), await recipients.copy()
    for copy in (first, second):
        check_page(await post(recipients, copy.unsubscribe, **ONE_CLICK))
        assert len(await recipients.events(copy, "unsubscribed")) == 1
    # The address is spared since the first.
    assert await recipients.suppressions() == [("ada@there.example", "", "unsubscribe", first.message_id)]


@pytest.mark.parametrize("tag", ["", "news"])
async def test_who_gets_mail_again_and_unsubscribes_again_is_told_of_again(recipients: Recipients, tag: str) -> None:
    copy = await recipients.copy(tags=["news"])
    check_page(await post(recipients, copy.unsubscribe, tag=tag))
    sender = recipients.sender
    lifted = {"address": copy.recipient, **({"tag": tag} if tag else {})}
    answer = await sender.client.delete("/api/v1/suppressions", params=lifted, headers=sender.user)
    assert answer.status_code == 204
    for _ in range(2):
        check_page(await post(recipients, copy.unsubscribe, tag=tag))
    assert await recipients.suppressions() == [("ada@there.example", tag, "unsubscribe", copy.message_id)]
    assert len(await recipients.events(copy, "unsubscribed")) == 2


async def test_what_is_simulated_is_told_once_and_suppresses_nobody(recipients: Recipients) -> None:
    sender = recipients.sender
    _, test_key = await helpers.mint(sender.client, sender.user, test=True)
    simulated = replace(recipients, sender=replace(sender, key={"X-API-Key": test_key}))
    copy = await simulated.copy()
    for _ in range(2):
        check_page(await post(simulated, copy.unsubscribe, **ONE_CLICK))
    assert len(await simulated.events(copy, "unsubscribed")) == 1
    assert await recipients.suppressions() == []


async def test_links_that_are_none(recipients: Recipients) -> None:
    copy = await recipients.copy()
    token = copy.unsubscribe.rpartition("/")[2]
    gone = tokens.Links("", copy.org_id, new_id()).unsubscribe().rpartition("/")[2]
    pixel, click = copy.pixel.rpartition("/")[2], copy.link("https://shop.example/").rpartition("/")[2]
    for bad in ("", "x", token[:-1], f"{token}A", token.swapcase(), f"{token}/", "%00", "é", pixel, click, gone):
        for answer in (
            await recipients.get(f"/track/unsubscribe/{bad}"),
            await post(recipients, f"/track/unsubscribe/{bad}", **ONE_CLICK),
        ):
            assert "This link is not valid" in check_page(answer, 404)
    assert await recipients.suppressions() == []


async def test_forms_are_bounded(recipients: Recipients) -> None:
    copy = await recipients.copy()
    many = await post(recipients, copy.unsubscribe, **{f"f{number}": "x" for number in range(100)})
    large = await recipients.client.post(copy.unsubscribe, content=b"x" * (2**20 + 1))
    assert [many.status_code, large.status_code] == [400, 413]
    garbage = await recipients.client.post(copy.unsubscribe, content=b"\xff\x00=&&;%zz")
    assert garbage.status_code == 200


async def test_a_client_that_goes_away_amid_its_form_is_no_failure_of_ours(
    app: FastAPI, recipients: Recipients
) -> None:
    copy = await recipients.copy()
    said = iter([{"type": "http.request", "body": b"List", "more_body": True}, {"type": "http.disconnect"}])
    answers = []

    async def receive() -> object:
        return next(said)

    async def send(message: dict[str, object]) -> None:
        answers.append(message)

    path = copy.unsubscribe
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await app({**scope, "headers": [(b"content-length", b"100")], "client": ("127.0.0.1", 1)}, receive, send)
    assert answers[0]["status"] == 400
    assert await recipients.suppressions() == []


@pytest.mark.parametrize(
    ("email", "shown"),
    [("ada@a.example", "a***@a.example"), ("ab@a.example", "***@a.example"), ("дарья@a.example", "д***@a.example")],
)
def test_masks(email: str, shown: str) -> None:
    assert pages_html.masked(email) == shown
