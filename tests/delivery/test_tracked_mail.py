"""Mail with links that lead back to us, as its recipients get it by SMTP, and what they do with it."""

import asyncio
import re
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.delivery.engine import Engine
from app.messages.body import UNSUBSCRIBE_URL
from tests.accounts import helpers
from tests.accounts.helpers import client_from
from tests.delivery.conftest import settled
from tests.dnsd import DnsServer
from tests.factories.post_office import post_office
from tests.factories.senders import Sender, make_sender
from tests.mail.verifier import verdicts_by_dns
from tests.smtpd import SmtpServer

BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"}
TARGETS = ["https://shop.example/order?id=1042&lang=de", "http://shop.example/?q=%C3%BC#top"]
HTML = f"""<html><body><p>Danke! <a href="{TARGETS[0].replace("&", "&amp;")}">Your order</a>,
<a href='{TARGETS[1]}'>more</a>, <a href="mailto:help@shop.example">help</a>, <a href="#top">top</a>,
<a href="{UNSUBSCRIBE_URL}">unsubscribe</a>, <a data-postroad-track="off" href="https://shop.example/off">plain</a>.</p>
</body></html>
"""
TEXT = f"Danke! Your order: {TARGETS[0]} and more: <{TARGETS[1]}>.\nNo more mail: {UNSUBSCRIBE_URL}\n"


def read(content: bytes) -> tuple[EmailMessage, str, str]:
    """The mail as the standard library reads it, its text and its HTML."""
    mail = message_from_bytes(content, policy=policy.default)
    assert isinstance(mail, EmailMessage)
    assert not mail.defects
    parts = {
        part.get_content_type(): part.get_content().replace("\r\n", "\n")
        for part in mail.walk()
        if not part.is_multipart()
    }
    return mail, parts.get("text/plain", ""), parts.get("text/html", "")


def links(html: str) -> list[str]:
    return [found.replace("&amp;", "&") for found in re.findall(r"""href=["']([^"']*)["']""", html)]


def pixel(html: str) -> str:
    (found,) = re.findall(r'<img src="([^"]*)" width="1" height="1"', html)
    return str(found)


async def follow(app: FastAPI, url: str, **request: Any) -> httpx.Response:
    """Ask the host of the URL as a stranger does: it is this API, by whatever name."""
    async with client_from(app, "198.51.100.9") as client:
        return await client.request(request.pop("method", "GET"), url, headers=BROWSER, **request)


async def delivered(sender: Sender, mx: SmtpServer, to: Any, **fields: Any) -> tuple[str, list[bytes]]:
    """Send, and wait until all copies have come: the message and the copies in the order of their recipients."""
    message_id = await sender.send(to, **fields)
    await settled(sender, message_id, "delivered")
    mails = {mail.rcpt_to: mail.content for mail in mx.mails}
    return message_id, [mails[one] for one in ([to] if isinstance(to, str) else to)]


async def told(sender: Sender, message_id: str, *types: str) -> list[dict[str, Any]]:
    return [event for event in await sender.events(message_id) if event["type"] in types]


async def test_every_link_leads_back_to_where_it_led(
    app: FastAPI, sender: Sender, engine: Engine, mx: SmtpServer, site: str, dns: DnsServer
) -> None:
    fields = {"html": HTML, "text": TEXT, "track_opens": True, "track_clicks": "html_and_text"}
    message_id, (content,) = await delivered(sender, mx, f"ada@{site}", **fields)
    assert (await sender.message(message_id))["track_clicks"] == "html_and_text"
    assert await asyncio.to_thread(verdicts_by_dns, content, dns) == [True, True]
    mail, plain, html = read(content)
    first, second, mailto, anchor, unsubscribe, off = links(html)
    assert (mailto, anchor, off) == ("mailto:help@shop.example", "#top", "https://shop.example/off")
    assert mail["List-Unsubscribe"] == f"<{unsubscribe}>"
    assert unsubscribe in plain
    in_text = re.findall(r"https?://\S+/track/click/[\w-]+", plain)
    # Under the sender's own name, as its record has been seen.
    assert {urlsplit(url).netloc for url in (first, *in_text, unsubscribe, pixel(html))} == {f"links.{sender.domain}"}
    for url, target in zip((first, second, *in_text), TARGETS * 2, strict=True):
        answer = await follow(app, url)
        assert (answer.status_code, answer.headers["Location"]) == (302, target)
    assert [event["url"] for event in await told(sender, message_id, "clicked")] == TARGETS * 2
    assert (await follow(app, pixel(html))).headers["Content-Type"] == "image/gif"
    (opened,) = await told(sender, message_id, "opened")
    assert (opened["recipient"], opened["is_bot"]) == (f"ada@{site}", False)
    # But for what is tracked the mail is the one that was handed in.
    for url, target in zip((first, second), TARGETS, strict=True):
        html = html.replace(url, target.replace("&", "&amp;"))
    html = re.sub(r"<img [^>]*>", "", html).replace(unsubscribe, UNSUBSCRIBE_URL)
    assert html == HTML


async def test_one_click_from_the_header_stops_the_next_mail(
    app: FastAPI, sender: Sender, engine: Engine, mx: SmtpServer, site: str, dns: DnsServer
) -> None:
    message_id, (content,) = await delivered(sender, mx, f"ada@{site}", tags=["news"])
    mail, plain, _ = read(content)
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    signatures = [value.replace(" ", "").lower() for value in mail.get_all("DKIM-Signature")]
    # Signed, and named once more, so that nobody can put another before it.
    for signature in signatures:
        names = re.search(r";h=([^;]*);", signature)
        assert names is not None
        for name in ("list-unsubscribe", "list-unsubscribe-post"):
            assert names[1].split(":").count(name) == 2
    assert await asyncio.to_thread(verdicts_by_dns, content, dns) == [True, True]
    changed = content.replace(b"/track/unsubscribe/A", b"/track/unsubscribe/B", 1)
    assert changed != content
    assert await asyncio.to_thread(verdicts_by_dns, changed, dns) == [False, False]
    assert "/track/" not in plain
    assert b"news" not in content
    url = mail["List-Unsubscribe"].strip("<>")
    answer = await follow(app, url, method="POST", data={"List-Unsubscribe": "One-Click"})
    assert answer.status_code == 200
    (event,) = await told(sender, message_id, "unsubscribed")
    assert (event["recipient"], event["method"], event["tags"]) == (f"ada@{site}", "one_click", ["news"])
    next_id = await sender.send([f"ada@{site}", f"grace@{site}"])
    message = await settled(sender, next_id, "delivered")
    assert {one["email"]: one["status"] for one in message["recipients"]} == {
        f"ada@{site}": "suppressed",
        f"grace@{site}": "delivered",
    }
    (suppressed,) = await told(sender, next_id, "suppressed")
    assert (suppressed["recipient"], suppressed["reason"]) == (f"ada@{site}", "unsubscribe")
    assert len([mail for mail in mx.mails if mail.rcpt_to == f"ada@{site}"]) == 1


async def test_who_wants_no_mail_of_one_kind_gets_the_others(
    app: FastAPI, sender: Sender, engine: Engine, mx: SmtpServer, site: str
) -> None:
    recipient = f"ada@{site}"
    _, (content,) = await delivered(sender, mx, recipient, tags=["news", "sale"])
    url = read(content)[0]["List-Unsubscribe"].strip("<>")
    assert (await follow(app, url, method="POST", data={"tag": "news"})).status_code == 200
    await settled(sender, await sender.send(recipient, tags=["order", "news"]), "suppressed")
    await settled(sender, await sender.send(recipient, tags=["sale"]), "delivered")


@pytest.mark.parametrize("fields", [{}, {"html": HTML, "track_opens": True, "track_clicks": True}])
async def test_every_recipient_has_links_of_their_own(
    app: FastAPI, sender: Sender, engine: Engine, mx: SmtpServer, site: str, dns: DnsServer, fields: dict[str, Any]
) -> None:
    recipients = [f"user{number}@{site}" for number in range(5)]
    message_id, contents = await delivered(sender, mx, recipients, **fields)
    unsubscribe, pixels, clicks = set(), set(), set()
    for content in contents:
        assert await asyncio.to_thread(verdicts_by_dns, content, dns) == [True, True]
        mail, _, html = read(content)
        unsubscribe.add(mail["List-Unsubscribe"])
        if fields:
            pixels.add(pixel(html))
            clicks.add(links(html)[0])
            await follow(app, pixel(html))
            await follow(app, links(html)[0])
    assert len(unsubscribe) == 5
    events = await told(sender, message_id, "opened", "clicked")
    assert [event["recipient"] for event in events] == [one for one in recipients for _ in range(2) if fields]
    if fields:
        assert len(pixels) == len(clicks) == 5
    else:
        # What they share is composed once: below the fields of each its own they are the same.
        assert len({content.partition(b"\r\nFrom: ")[2] for content in contents}) == 1


async def test_a_senders_own_way_to_unsubscribe_is_theirs_alone(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str
) -> None:
    own = "<mailto:leave@shop.example>, < https://shop.example/leave?u=1&l=2 >"
    leave, other = "https://shop.example/leave?u=1&l=2", "https://shop.example/leave?u=1"
    body = {
        "html": f'<a href="{leave.replace("&", "&amp;")}">leave</a> <a href="{other}">other</a>',
        "text": f"Leave: {leave}\nOther: {other}\n",
    }
    _, (content,) = await delivered(
        sender, mx, f"ada@{site}", headers={"list-unsubscribe": own}, **body, track_clicks="html_and_text"
    )
    mail, plain, html = read(content)
    assert mail.get_all("List-Unsubscribe") == [own]
    assert mail["List-Unsubscribe-Post"] is None
    # In the bodies it is no more than in the header the way over us.
    assert links(html)[0] == leave
    assert plain.startswith(f"Leave: {leave}\n")
    assert "/track/click/" in links(html)[1]
    assert plain.count("/track/click/") == 1


async def test_what_is_not_asked_for_is_not_tracked(sender: Sender, engine: Engine, mx: SmtpServer, site: str) -> None:
    body = {
        "html": HTML.replace(UNSUBSCRIBE_URL, "https://shop.example/leave"),
        "text": TEXT.replace(UNSUBSCRIBE_URL, ""),
    }
    _, (content,) = await delivered(sender, mx, f"a@{site}", **body)
    assert read(content)[1:] == (body["text"], body["html"])
    _, (content,) = await delivered(sender, mx, f"b@{site}", **body, track_opens=True)
    _, plain, html = read(content)
    assert (plain, re.sub(r"<img [^>]*>", "", html)) == (body["text"], body["html"])
    _, (content,) = await delivered(sender, mx, f"c@{site}", **body, track_clicks=True)
    _, plain, html = read(content)
    assert plain == body["text"]
    assert "<img" not in html
    assert html.count("/track/click/") == 3


async def test_postroads_own_mail_has_nothing_of_it(
    app: FastAPI, client: httpx.AsyncClient, engine: Engine, mx: SmtpServer, site: str, dns: DnsServer
) -> None:
    async with post_office(app, client, dns):
        email = f"ada@{site}"
        await helpers.register(client, email=email)
        (mail,) = await mx.mails_expected(1)
    read_mail, plain, _ = read(mail.content)
    assert mail.rcpt_to == email
    assert "verify" in plain
    assert read_mail["List-Unsubscribe"] is None
    assert "/track/" not in plain


async def test_without_an_own_record_links_lead_to_public_url(
    client: httpx.AsyncClient,
    sender: Sender,
    engine: Engine,
    mx: SmtpServer,
    site: str,
    database: Database,
    settings: Settings,
) -> None:
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE domains SET checks = checks - 'tracking' WHERE org_id = :org"), {"org": sender.org_id}
        )
    _, (content,) = await delivered(sender, mx, f"ada@{site}")
    assert read(content)[0]["List-Unsubscribe"].startswith(f"<{settings.public_url}/track/unsubscribe/")


async def test_another_tenants_copy_is_another(
    app: FastAPI, client: httpx.AsyncClient, sender: Sender, engine: Engine, mx: SmtpServer, site: str, dns: DnsServer
) -> None:
    """The same address unsubscribes from one of two organizations."""
    other = await make_sender(client, dns)
    recipient = f"ada@{site}"
    _, (content,) = await delivered(sender, mx, recipient)
    await follow(app, read(content)[0]["List-Unsubscribe"].strip("<>"), method="POST")
    message_id, _ = await delivered(other, mx, recipient)
    assert await told(other, message_id, "unsubscribed") == []


async def test_a_large_mail_is_composed_for_each_apart(
    sender: Sender, engine: Engine, mx: SmtpServer, site: str, dns: DnsServer
) -> None:
    html = HTML + "<p>" + "lorem ipsum " * 40_000
    recipients = [f"user{number}@{site}" for number in range(3)]
    for fields in ({"track_opens": True}, {}):
        _, contents = await delivered(sender, mx, recipients, html=html, **fields)
        assert len(set(contents)) == 3
        for content in contents:
            assert len(content) > 480_000
            assert await asyncio.to_thread(verdicts_by_dns, content, dns) == [True, True]
        mx.mails.clear()
