"""Pixels and links by HTTP: what is answered, and what is told of it."""

import httpx
import pytest

from app.core.ids import new_id
from app.tracking import tokens
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.senders import make_sender
from tests.tracking.conftest import BROWSER, Recipients

TARGET = "https://shop.example/order?id=1042&x=%C3%BC#top"
GMAIL = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"


def check_pixel(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/gif")
    assert answer.headers["Content-Length"] == "43"
    assert answer.headers["Cache-Control"] == "no-store, no-cache, must-revalidate, private"
    assert (answer.headers["Pragma"], answer.headers["Expires"]) == ("no-cache", "0")
    assert not {"set-cookie", "etag", "last-modified", "ratelimit", "location"} & set(answer.headers)


async def test_a_fetched_pixel_is_told_each_time(recipients: Recipients) -> None:
    copy = await recipients.copy()
    first, second = await recipients.get(copy.pixel), await recipients.get(copy.pixel, User_Agent=GMAIL)
    check_pixel(first)
    assert first.content == second.content
    assert first.content.startswith(b"GIF89a\x01\x00\x01\x00")
    events = await recipients.events(copy, "opened")
    told = {"is_bot": False, "ip": "203.0.113.0/24"}
    assert events[0].items() >= {**told, "agent": "person", "user_agent": BROWSER, "recipient": copy.recipient}.items()
    assert events[1].items() >= {**told, "agent": "proxy", "client": "gmail", "user_agent": GMAIL}.items()
    assert len(events) == 2
    # What is seen of its reader does not change what became of the mail.
    assert (await recipients.sender.message(copy.message_id))["status"] == "delivered"


async def test_every_id_is_answered_alike(recipients: Recipients) -> None:
    copy = await recipients.copy()
    good = (await recipients.get(copy.pixel)).content
    token = copy.pixel.rpartition("/")[2]
    unknown = tokens.Links("", copy.org_id, new_id()).open().rpartition("/")[2]
    others = ("x", "", "a/b", "%00", "%FF", "%F0%9F%92%A3", token[:-1], f"{token}=", f"{token}/", unknown, "A" * 5000)
    for other in others:
        answer = await recipients.get(f"/track/open/{other}")
        check_pixel(answer)
        assert answer.content == good
    assert len(await recipients.events(copy, "opened")) == 1


async def test_a_followed_link_leads_to_its_target(recipients: Recipients) -> None:
    copy = await recipients.copy()
    answer = await recipients.get(copy.link(TARGET))
    assert (answer.status_code, answer.headers["Location"], answer.content) == (302, TARGET, b"")
    assert answer.headers["Cache-Control"] == "no-store, no-cache, must-revalidate, private"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    (event,) = await recipients.events(copy, "clicked")
    assert event.items() >= {"url": TARGET, "is_bot": False, "agent": "person", "ip": "203.0.113.0/24"}.items()


async def test_head_answers_as_get_does_and_is_told_as_a_scanners(recipients: Recipients) -> None:
    copy = await recipients.copy()
    pixel, link = [await recipients.get(path, method="HEAD") for path in (copy.pixel, copy.link(TARGET))]
    check_pixel(pixel)
    assert (link.status_code, link.headers["Location"]) == (302, TARGET)
    assert [pixel.content, link.content] == [b"", b""]
    events = await recipients.events(copy, "opened", "clicked")
    assert [(event["agent"], event["is_bot"]) for event in events] == [("scanner", True)] * 2


@pytest.mark.parametrize(("delivered_ago", "is_bot"), [(None, True), (-5, True), (4, False)])
async def test_clicks_sooner_than_a_person_can_read_are_told_as_a_scanners(
    recipients: Recipients, delivered_ago: float | None, is_bot: bool
) -> None:
    copy = await recipients.copy(delivered_ago=delivered_ago)
    await recipients.get(copy.link(TARGET))
    await recipients.get(copy.pixel)
    (clicked,) = await recipients.events(copy, "clicked")
    assert (clicked["is_bot"], clicked["agent"]) == ((True, "scanner") if is_bot else (False, "person"))
    # Programs that show a mail as it comes open it as soon.
    (opened,) = await recipients.events(copy, "opened")
    assert not opened["is_bot"]


async def test_what_a_client_says_of_itself_is_bounded(recipients: Recipients) -> None:
    copy = await recipients.copy()
    for user_agent in ("x" * 5000, "ü" * 1000, "bell\x07", "", "Mozilla/5.0"):
        check_pixel(await recipients.client.get(copy.pixel, headers={"User-Agent": user_agent.encode()}))
    check_pixel(await recipients.get(copy.pixel, Sec_Purpose="prefetch;prerender"))
    events = await recipients.events(copy, "opened")
    assert [event.get("user_agent") for event in events] == [
        *("x" * 400, "ü" * 400, "bell\ufffd", None, "Mozilla/5.0", BROWSER)
    ]
    assert [event["agent"] for event in events[3:]] == ["unknown", "prefetch", "prefetch"]


async def test_tenants_do_not_meet(recipients: Recipients, client: httpx.AsyncClient, dns: DnsServer) -> None:
    copy = await recipients.copy()
    other = await make_sender(client, dns)
    # Even signed by us, an id is one of its organization's.
    strange = tokens.Links("", other.org_id, copy.id).open(), tokens.Links("", other.org_id, copy.id).click(TARGET)
    for path in strange:
        assert path is not None
        assert (await recipients.get(path)).status_code in {200, 302}
    strange_unsubscribe = tokens.Links("", other.org_id, copy.id).unsubscribe()
    assert (await recipients.client.post(strange_unsubscribe)).status_code == 404
    assert await recipients.events(copy, "opened", "clicked", "unsubscribed") == []
    assert await recipients.suppressions() == []


async def test_nobody_is_told_to_slow_down(recipients: Recipients) -> None:
    copy = await recipients.copy()
    for _ in range(50):
        assert "RateLimit" not in (await recipients.get(copy.pixel)).headers
    assert len(await recipients.events(copy, "opened")) == 50


async def test_other_methods_and_paths_are_refused(recipients: Recipients) -> None:
    copy = await recipients.copy()
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        for path in (copy.pixel, copy.link(TARGET)):
            helpers.assert_problem(await recipients.get(path, method=method), 405, "method_not_allowed")
    for path in ("/track", "/track/", "/track/open", "/track/click", "/track/other/x"):
        helpers.assert_problem(await recipients.get(path), 404, "route_not_found")
    helpers.assert_problem(await recipients.get("/track/click/"), 404, "link_not_found")
