"""The mailbox's pages: what hostile mails become there, and what the DKIM marks say by real look-ups."""

import base64
import html
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.core.config import Settings
from app.local import mailstore, pages
from app.local.mailstore import Mailstore
from app.mail import dkim
from tests.dnsd import DnsServer

SCRIPT = "<script>alert(1)</script>"
NAME = '"><img src=x onerror=alert(1)>.html'


@dataclass(frozen=True, slots=True)
class Mailbox:
    """The pages over a store of the test's own."""

    store: Mailstore
    client: httpx.AsyncClient
    dns: DnsServer

    def deposit(self, content: bytes, rcpt_to: str = "b@example.net") -> str:
        envelope = mailstore.Envelope("a@example.com", (rcpt_to,), mailstore.now(), "127.0.0.1", "x", "TLSv1.3")
        return self.store.deposit(envelope, content)

    async def page(self, path: str) -> str:
        answer = await self.client.get(f"/local/mailbox{path}")
        assert answer.status_code == 200, answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "script-src" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        return answer.text

    async def listed(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = (await self.client.get("/local/mailbox.json")).json()["messages"]
        return messages


@pytest.fixture
async def mailbox(tmp_path: Path) -> AsyncIterator[Mailbox]:
    async with DnsServer() as dns:
        settings = Settings(
            POSTROAD_MODE="local",
            data_dir=tmp_path,
            dns_nameservers=dns.setting,
            _env_file=None,
        )
        app = FastAPI()
        app.include_router(pages.router(settings))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://mailbox.test") as client:
            yield Mailbox(Mailstore(tmp_path / "mailbox" / "new"), client, dns)


def tags(page: str) -> set[str]:
    """The names of all elements, those inside the frame's attribute not counted: quotes are honoured."""
    return {name.lower() for name in re.findall(r"<([a-zA-Z]+)(?:\s+(?:[^\"'>]|\"[^\"]*\"|'[^']*')*)?/?>", page)}


async def test_a_hostile_mail_stays_text(mailbox: Mailbox) -> None:
    encoded = f"=?utf-8?b?{base64.b64encode(SCRIPT.encode()).decode()}?="
    content = (
        f"From: {encoded} <a@example.com>\r\nTo: b@example.net\r\nSubject: {encoded} {SCRIPT}\r\n"
        f"X-{SCRIPT}: {SCRIPT}\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        f"--b\r\nContent-Type: text/plain\r\n\r\n{SCRIPT}\r\n"
        f"--b\r\nContent-Type: text/html\r\n\r\n{SCRIPT}\"></iframe>{SCRIPT}<p>it's</p>\r\n"
        f"--b\r\nContent-Type: text/html{SCRIPT}\r\nContent-Disposition: attachment;\r\n"
        f' filename="{NAME.replace(chr(34), chr(92) + chr(34))}"\r\n\r\n{SCRIPT}\r\n--b--\r\n'
    ).encode()
    mail_id = mailbox.deposit(content, rcpt_to=f"{SCRIPT}@example.net")
    for path in ("", f"/{mail_id}"):
        page = await mailbox.page(path)
        assert "alert(1)" in page
        assert not tags(page) & {"script", "img", "object", "embed", "link", "base"}
        assert "<script" not in page.lower()
        assert html.escape(SCRIPT) in page
    frames = re.findall(r"<iframe ([^>]*?)srcdoc=\"([^\"]*)\"></iframe>", page)
    assert len(frames) == 1
    attributes, document = frames[0]
    assert 'sandbox=""' in attributes
    assert "allow-" not in attributes
    shown = html.unescape(document)
    assert shown.startswith('<meta http-equiv="Content-Security-Policy" content="default-src \'none\';')
    assert shown.endswith(f"{SCRIPT}\"></iframe>{SCRIPT}<p>it's</p>")


async def test_attachments_are_for_saving_only(mailbox: Mailbox) -> None:
    mail_id = mailbox.deposit(
        b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
        b"--b\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: attachment;"
        b" filename*=UTF-8''..%2F%0d%0aSet-Cookie%3A%20x%22%C3%BC.html\r\n\r\nPGI+aGk8L2I+\r\n--b--\r\n"
    )
    page = await mailbox.page(f"/{mail_id}")
    (path,) = re.findall(r'href="(/local/mailbox/[^"]*/parts/\d+)"', page)
    answer = await mailbox.client.get(path)
    assert answer.content == b"<b>hi</b>"
    assert answer.headers["content-type"] == "application/octet-stream"
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith("attachment; filename*=UTF-8''")
    assert re.fullmatch(r"[\x21-\x7e ]*", disposition)
    assert '"' not in disposition
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "set-cookie" not in answer.headers
    raw = await mailbox.client.get(f"/local/mailbox/{mail_id}.eml")
    assert raw.content.endswith(b"--b--\r\n")
    assert raw.headers["content-disposition"].startswith("attachment;")
    for missing in (f"/{mail_id}/parts/0", f"/{mail_id}/parts/99", "/nothing.eml", "/..%2f..%2fsecret_key"):
        assert (await mailbox.client.get(f"/local/mailbox{missing}")).status_code == 404


async def test_inline_images_come_with_the_page(mailbox: Mailbox) -> None:
    mail_id = mailbox.deposit(
        b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: multipart/related; boundary=b\r\n\r\n"
        b'--b\r\nContent-Type: text/html\r\n\r\n<img src="cid:logo@x"><img src="cid:other"><img src="http://x/">\r\n'
        b"--b\r\nContent-Type: image/png\r\nContent-ID: <logo@x>\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        b"iVBORw0KGgo=\r\n--b--\r\n"
    )
    page = await mailbox.page(f"/{mail_id}")
    assert html.escape('<img src="data:image/png;base64,iVBORw0KGgo=">') in page
    assert html.escape('<img src="cid:other">') in page


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe",
        b"no header at all",
        b"Subject: =?utf-8?b?####?=\r\nFrom: =?bogus-charset?q?=FF?=\r\n\r\n",
        b"Subject: \xff\xfe raw \xf0\x9f\x98\x80\r\n\r\nbody \xff",
        b"Content-Type: text/plain; charset=no-such\r\n\r\nhello",
        b"Content-Type: multipart/mixed\r\n\r\nno boundary",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 5000,
        b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(2000)),
        b"Content-Type: message/rfc822\r\n\r\n" * 500,
        b"Content-Disposition: attachment; filename*=x''%\r\nContent-Type: application/x\r\n\r\n\x00",
        b"Content-Type: text/html; charset=utf-16\r\n\r\nodd",
        b"Content-Transfer-Encoding: base64\r\nContent-Type: text/html\r\n\r\n!!!not base64",
        b"Subject: a\r\n" * 20_000 + b"\r\n",
        b"DKIM-Signature: garbage\r\n\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=example.com; s=x; h=from; bh=!; b=!\r\n\r\n",
        b"DKIM-Signature: v=1; a=ed25519-sha256; d=\xff; s=..; h=from; bh=AAAA; b=AAAA\r\nFrom: a@b\r\n\r\n",
    ],
)
async def test_broken_mails_are_shown_nevertheless(mailbox: Mailbox, content: bytes) -> None:
    mail_id = mailbox.deposit(content)
    assert mail_id in await mailbox.page("")
    assert "Source" in await mailbox.page(f"/{mail_id}")
    assert (await mailbox.listed())[0]["id"] == mail_id


async def test_the_list_is_newest_first_and_pages_on(mailbox: Mailbox) -> None:
    ids = [mailbox.deposit(b"Subject: number %d\r\n\r\n" % number) for number in range(60)]
    first = await mailbox.page("")
    assert first.index("number 59") < first.index("number 58") < first.index("number 10")
    assert "number 9<" not in first
    (older,) = re.findall(r'href="/local/mailbox(\?before=[^"]*)"', first)
    second = await mailbox.page(older)
    assert "number 9<" in second
    assert "number 10<" not in second
    assert [row["id"] for row in await mailbox.listed()] == ids[:9:-1]
    everything = await mailbox.client.get("/local/mailbox.json", params={"limit": 1000})
    assert len(everything.json()["messages"]) == 60


async def test_programs_get_the_decoded_headers(mailbox: Mailbox) -> None:
    mailbox.deposit(
        b"From: =?utf-8?q?J=C3=BCrgen?= <j@example.com>\r\nTo: b@example.net\r\nMessage-ID: <1@example.com>\r\n"
        b"Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n =?utf-8?q?_heute?=\r\n\r\nhello\r\n"
    )
    (row,) = await mailbox.listed()
    assert row["subject"] == "Grüße heute"
    assert row["from"] == "Jürgen <j@example.com>"
    assert row["to"] == "b@example.net"
    assert row["message_id"] == "<1@example.com>"
    assert row["mail_from"] == "a@example.com"
    assert row["rcpt_to"] == ["b@example.net"]
    assert row["tls"] == "TLSv1.3"
    assert row["dkim"] == []


async def test_both_signatures_verify_by_look_up_until_something_changes(mailbox: Mailbox) -> None:
    content = b"From: a@example.com\r\nTo: b@example.net\r\nSubject: signed\r\n\r\nhello\r\n"
    signers = []
    algorithms: tuple[dkim.Algorithm, ...] = ("rsa-sha256", "ed25519-sha256")
    for algorithm in algorithms:
        private, public = dkim.generate(algorithm)
        selector = algorithm.split("-")[0]
        signers.append(dkim.load("example.com", selector, algorithm, private))
        mailbox.dns.add(f"{selector}._domainkey.example.com", "TXT", dkim.record(algorithm, public))
    signed = dkim.sign(content, signers, timestamp=int(time.time())) + content
    mailbox.deposit(signed)
    mailbox.deposit(signed.replace(b"hello", b"hullo"))
    mailbox.deposit(signed.replace(b"Subject: signed", b"Subject: forged"))
    forged_subject, forged_body, good = await mailbox.listed()
    assert [(one["algorithm"], one["result"]) for one in good["dkim"]] == [
        ("rsa-sha256", "pass"),
        ("ed25519-sha256", "pass"),
    ]
    assert [one["domain"] for one in good["dkim"]] == ["example.com", "example.com"]
    assert [one["result"] for one in forged_body["dkim"]] == ["fail", "fail"]
    assert "body hash mismatch" in forged_body["dkim"][0]["detail"]
    assert [one["result"] for one in forged_subject["dkim"]] == ["fail", "fail"]
    page = await mailbox.page(f"/{good['id']}")
    assert page.count("<td class=pass>pass</td>") == 2

    mailbox.dns.replace("ed25519._domainkey.example.com", "TXT", dkim.record(*other_key()))
    mailbox.dns.remove("rsa._domainkey.example.com")
    mailbox.deposit(signed)
    rsa, ed25519 = (await mailbox.listed())[0]["dkim"]
    assert rsa["result"] == "error"
    assert "does not exist: rsa._domainkey.example.com" in rsa["detail"]
    assert ed25519["result"] == "fail"


def other_key() -> tuple[dkim.Algorithm, str]:
    return "ed25519-sha256", dkim.generate("ed25519-sha256")[1]


async def test_deleting_everything_is_for_the_page_itself(mailbox: Mailbox) -> None:
    mailbox.deposit(b"Subject: x\r\n\r\n")
    foreign = await mailbox.client.post("/local/mailbox/clear", headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    assert len(await mailbox.listed()) == 1
    own = await mailbox.client.post("/local/mailbox/clear", headers={"Origin": "http://mailbox.test"})
    assert own.status_code == 303
    assert await mailbox.listed() == []
    assert "No mail yet" in await mailbox.page("")


async def test_the_page_says_when_delivery_is_real(mailbox: Mailbox, tmp_path: Path) -> None:
    assert "delivery is real" in await mailbox.page("")
    (tmp_path / "mailbox" / pages.SERVING).touch()
    assert "delivery is real" not in await mailbox.page("")
