"""Mails that are refused: whole, before anything is stored, with a pointer to what is wrong."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app.core.config import Settings
from app.core.db import Database
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender, new_domain
from tests.messages.refusals import Json, Refused, difference, nothing_stored, send_json

MIB = 2**20


@pytest.fixture(scope="module")
async def sender(client: httpx.AsyncClient, dns: DnsServer) -> Sender:
    return await make_sender(client, dns)


@pytest.fixture(scope="module")
async def stranger(client: httpx.AsyncClient, dns: DnsServer) -> Sender:
    return await make_sender(client, dns)


async def refuse(database: Database, sender: Sender, bodies: dict[str, tuple[Any, Refused]]) -> None:
    """Send each body and compare; all differences are told at once."""
    wrong = {}
    async with nothing_stored(database, sender.org_id):
        for name, (body, wanted) in bodies.items():
            if found := difference(await send_json(sender, body), wanted):
                wrong[name] = f"{found}, not {wanted}"
    assert not wrong


# ── Header injection ────────────────────────────────────────────────────────────────────────────────────────────────

CONTROLS = ["\r", "\n", "\r\n", "\x00", "\t", "\x0b", "\x0c", "\x1b", "\x7f", "\x80", "\x85", "\x9f"]
RAW = [f"Hi{control}Bcc: evil@evil.example" for control in CONTROLS] + ["\r\n", "a\r\n\r\nbody", "\rx", "x\n"]


def b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def word(charset: str, text: str, encoding: str | None = None) -> str:
    return f"=?{charset}?b?{b64(text.encode(encoding or charset))}?="


ENCODED = [
    "=?utf-8?Q?Hi=0D=0ABcc:_evil@evil.example?=",
    "=?UTF-8?q?Hi=0aBcc?=",
    "=?us-ascii?Q?=0D?=",
    "=?iso-8859-1?Q?Hi=00?=",
    "=?iso-8859-1?Q?Hi=85there?=",
    "=?utf-8?Q?=C2=85?=",
    "=?utf-8?Q?=09?=",
    "=?utf-8?Q?=7F?=",
    "=?windows-1252*en?Q?=0A?=",
    "=?utf-7?Q?+AA0ACg-Bcc?=",
    "=?no-such?Q?=0D=0A?=",
    "=?no-such?B?" + b64(b"a\r\nb") + "?=",
    "=?utf-8?Q?=0D=0A",
    "=?utf-8?Q?a?= =?utf-8?Q?=0A?=",
    "=?utf-8?Q?=C2?= =?utf-8?Q?=85?=",
    "innocent =?utf-8?Q?text?= and =?utf-8?B?" + b64(b"\r\nBcc: x") + "?=",
    word("utf-8", "Hi\r\nBcc: evil@evil.example"),
    word("utf-8", "tab\there"),
    word("utf-8", "nul\x00"),
    word("iso-8859-15", "\x85"),
    word("utf-16-be", "a\r\nb"),
    word("utf-16", "a\nb"),
    word("utf-32-le", "\n"),
    word("cp037", "\x85"),
    word("koi8-r", "\r"),
    word("utf-8", word("utf-8", "\n")),
    word("utf-8", word("iso-8859-1", word("utf-8", "\r\n"))),
    "=?utf-8?Q?=3D=3Futf-8=3FQ=3F=3D0A=3F=3D?=",
    "=?utf-8?B?" + b64(b"\r\n").rstrip("=") + "?=",
    "=?utf-8?B?YQ==DQo=?=",
]

# Where a header's text comes from: how to put it there, and where an error must point.
TEXT_SLOTS: dict[str, tuple[Callable[[str, str], Json], str]] = {
    "subject": (lambda evil, _: {"subject": evil}, "/subject"),
    "from, name of its own": (lambda evil, domain: {"from": {"email": f"a@{domain}", "name": evil}}, "/from"),
    "from, one string": (lambda evil, domain: {"from": f'"{evil}" <a@{domain}>'}, "/from"),
    "to": (lambda evil, _: {"to": ["ok@b.example", {"email": "a@b.example", "name": evil}]}, "/to/1"),
    "to, one string": (lambda evil, _: {"to": f'"{evil}" <a@b.example>'}, "/to"),
    "cc": (lambda evil, _: {"cc": [f'"{evil}" <a@b.example>']}, "/cc/0"),
    "bcc": (lambda evil, _: {"bcc": [{"email": "a@b.example", "name": evil}]}, "/bcc/0"),
    "reply_to": (lambda evil, _: {"reply_to": {"email": "a@b.example", "name": evil}}, "/reply_to"),
    "a header": (lambda evil, _: {"headers": {"X-Good": "x", "X-Campaign": evil}}, "/headers/X-Campaign"),
    "a file name": (
        lambda evil, _: {"attachments": [{"filename": evil, "content": "eA=="}]},
        "/attachments/0/filename",
    ),
}


@pytest.mark.parametrize("slot", TEXT_SLOTS)
async def test_injection_through_header_texts(database: Database, sender: Sender, slot: str):
    change, pointer = TEXT_SLOTS[slot]
    evils = RAW + ENCODED
    await refuse(
        database,
        sender,
        {repr(evil): (sender.mail("a@b.example") | change(evil, sender.domain), Refused(pointer)) for evil in evils},
    )


# Tokens, where nothing but certain printable characters may stand.
TOKEN_SLOTS: dict[str, tuple[Callable[[str, str], Json], Callable[[str], str]]] = {
    "an address": (lambda evil, _: {"to": [f"a{evil}@b.example"]}, lambda _: "/to/0"),
    "a domain": (lambda evil, _: {"to": {"email": f"a@b{evil}.example"}}, lambda _: "/to"),
    "the sender's address": (lambda evil, domain: {"from": f"a{evil}@{domain}"}, lambda _: "/from"),
    "a reply address": (lambda evil, _: {"reply_to": [f"a@b.example{evil}x"]}, lambda _: "/reply_to/0"),
    "a header's name": (
        lambda evil, _: {"headers": {f"X-A{evil}": "x"}},
        lambda evil: f"/headers/X-A{evil}".replace("\ud800", "\ufffd" * 3),
    ),
    "a content type": (
        lambda evil, _: {"attachments": [{"filename": "a", "content": "eA==", "content_type": f"text/plain{evil}"}]},
        lambda _: "/attachments/0/content_type",
    ),
    "a content id": (
        lambda evil, _: {"attachments": [{"filename": "a", "content": "eA==", "content_id": f"logo{evil}@x"}]},
        lambda _: "/attachments/0/content_id",
    ),
}


@pytest.mark.parametrize("slot", TOKEN_SLOTS)
async def test_injection_through_tokens(database: Database, sender: Sender, slot: str):
    change, pointer = TOKEN_SLOTS[slot]
    evils = [*CONTROLS, *(f"{control}Bcc:x" for control in CONTROLS), " ", "\u2028", "\ud800", "<", ">"]
    if slot == "a header's name":
        evils = [evil for evil in evils if evil not in {"<", ">"}] + [":", ": x\r\nBcc", "é"]
    bodies = {
        repr(evil): (sender.mail("a@b.example") | change(evil, sender.domain), Refused(pointer(evil))) for evil in evils
    }
    await refuse(database, sender, bodies)


RESERVED = """From Sender To Cc Bcc Subject Date Message-ID Reply-To MIME-Version Content-Type Content-Transfer-Encoding
Content-Disposition Content-ID DKIM-Signature Authentication-Results ARC-Seal Received Received-SPF Return-Path
Resent-From Resent-To X-Postroad-Anything DomainKey-Signature Delivered-To"""


@pytest.mark.parametrize("change", [str, str.lower, str.upper])
async def test_reserved_headers(database: Database, sender: Sender, change: Callable[[str], str]):
    names = [change(name) for name in RESERVED.split()]
    await refuse(
        database,
        sender,
        {n: (sender.mail("a@b.example", headers={"X-Ok": "x", n: "x"}), Refused(f"/headers/{n}")) for n in names},
    )


# ── Who may be in From ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_from_that_is_not_ones_own(database: Database, sender: Sender, stranger: Sender):
    unverified = new_domain("unverified")
    await sender.client.post("/api/v1/domains", json={"domain": unverified}, headers=sender.key)
    unknown = Refused("/from", code="domain_not_found")
    domain = sender.domain
    lookalike = domain.replace("e", "\u0435", 1)  # Cyrillic
    wanted = {
        f"a@{stranger.domain}": unknown,
        "a@example.com": unknown,
        f"a@mail.{domain}": unknown,
        f"a@x{domain}": unknown,
        f"a@{domain}.example.com": unknown,
        f"a@{domain.partition('.')[2]}": Refused("/from"),  # a single label
        f"{domain} <a@{stranger.domain}>": unknown,
        f'"a@{domain}" <a@{stranger.domain}>': unknown,
        f"a@{lookalike}": unknown,
        f"a@{unverified}": Refused("/from", 403, "domain_not_verified"),
        f"a@{domain}, b@{stranger.domain}": Refused("/from"),
        f"a@{domain} <b@{stranger.domain}": Refused("/from"),
        f"<a@{domain}> <b@{stranger.domain}>": Refused("/from"),
        f"a@{stranger.domain}@{domain}": Refused("/from"),
        f"(a@{domain}) b@{stranger.domain}": Refused("/from"),
        f"a@{domain}\u0000": Refused("/from"),
        "a": Refused("/from"),
        "@": Refused("/from"),
        "": Refused("/from"),
        "<>": Refused("/from"),
        "a@[127.0.0.1]": Refused("/from"),
        "a@127.0.0.1": Refused("/from"),
    }
    async with nothing_stored(database, stranger.org_id):
        await refuse(
            database,
            sender,
            {f: (sender.mail("a@b.example", **{"from": f}), refused) for f, refused in wanted.items()},
        )


async def test_from_outside_a_keys_domains(database: Database, sender: Sender):
    _, secret = await helpers.mint(sender.client, sender.user, domains=["elsewhere.example"])
    narrow = Sender(sender.client, sender.org_id, sender.domain, sender.domain_id, sender.user, {"X-API-Key": secret})
    await refuse(
        database, narrow, {"narrow": (narrow.mail("a@b.example"), Refused("/from", 403, "domain_not_allowed"))}
    )


# ── Everything else that a mail is refused for ──────────────────────────────────────────────────────────────────────


def file(**fields: Any) -> Json:
    return {"attachments": [{"filename": "a.txt", "content": "eA==", **fields}]}


def at(**shift: float) -> str:
    return (datetime.now(UTC) + timedelta(**shift)).isoformat()


BLOCKED = [
    "x.exe",
    "x.EXE",
    "x.eXe",
    "x.exe.",
    "x.exe...",
    "x.exe ",
    "x.exe . .",
    "x.pdf.exe",
    "x.\u202efdp.exe",
    ".scr",
]
BLOCKED += ["x.bat", "x.cmd", "x.com", "x.js", "x.jse", "x.vbs", "x.ps1", "x.msi", "x.jar", "x.hta", "x.lnk", "x.iso"]
NOT_BASE64 = [
    "%%%",
    "abc",
    "ab=c",
    "=",
    "eA=",
    "eA",
    "eA==eA==",
    "eA==\n!",
    "AAAé",
    "_-_-",
    " eA==",
    "e A==",
    "data:,x",
]
NOT_TIMES: list[Any] = [0, 1e300, "", "tomorrow", "1800000000", "2027-01-01", "2027-13-01T00:00:00Z", True, [], {}]
NOT_TIMES += ["2027-01-01T00:00:00", "2027-01-01 00:00:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"]
SCHEDULE = Refused("/scheduled_at", code="invalid_schedule")
EXPIRY = Refused("/expires_at", code="invalid_schedule")
NUL = "a\x00b"

TABLE: list[tuple[Json, Refused]] = [
    # A body
    ({"text": None}, Refused("")),
    ({"text": "", "html": ""}, Refused("")),
    # NUL and lone surrogates, which no table can hold
    *(
        ({field: bad}, Refused(f"/{field}"))
        for field in ("text", "html", "batch_id", "vmta")
        for bad in (NUL, "\ud800")
    ),
    *(({"tags": ["ok", bad]}, Refused("/tags/1")) for bad in (NUL, "\udfff", "", "x" * 129)),
    *(({"metadata": {"k": bad}}, Refused("/metadata/k")) for bad in (NUL, "a\ud800", "x" * 1001)),
    ({"metadata": {NUL: "v"}}, Refused("/metadata/a\x00b")),
    ({"metadata": {"a/b~c": None}}, Refused("/metadata/a~1b~0c")),
    # Attachments
    *((file(filename=name), Refused("/attachments/0/filename", code="attachment_not_allowed")) for name in BLOCKED),
    *(
        (file(filename=bad), Refused("/attachments/0/filename"))
        for bad in ("", " ", ".", "..", "a/b", "a\\b", "x" * 256)
    ),
    *((file(content=bad), Refused("/attachments/0/content")) for bad in (*NOT_BASE64, None, 5, [], {})),
    *(
        (file(content_type=bad), Refused("/attachments/0/content_type"))
        for bad in ("", "text", "text/", "a/b; c=d", "é/x")
    ),
    *(
        (file(content_id=bad), Refused("/attachments/0/content_id"))
        for bad in ("", "<>", "a b", "é", "x" * 258, "<<a>>")
    ),
    ({"attachments": [{"filename": "a.txt", "content": "eA=="}] * 101}, Refused("/attachments")),
    # Too long, too many
    ({"subject": "é" * 999}, Refused("/subject")),
    ({"subject": "x" * 901}, Refused("/subject")),
    ({"headers": {"X-A": "x " * 2001}}, Refused("/headers/X-A")),
    ({"headers": {"X-A": "x" * 901}}, Refused("/headers/X-A")),
    ({"headers": {"X" * 77: "x"}}, Refused("/headers/" + "X" * 77)),
    ({"headers": {f"X-{number}": "x" for number in range(51)}}, Refused("/headers")),
    ({"headers": {"X-A": "x", "x-a": "y"}}, Refused("/headers")),
    ({"to": {"email": "a@b.example", "name": "x" * 257}}, Refused("/to")),
    ({"to": f"{'x' * 65}@b.example"}, Refused("/to")),
    ({"to": f"a@{'x' * 64}.example"}, Refused("/to")),
    ({"to": "x" * 100_000}, Refused("/to")),
    ({"to": [f"a{number}@b.example" for number in range(51)]}, Refused("/to")),
    ({"cc": ["a@b.example"] * 51}, Refused("/cc")),
    (
        {"to": [f"a{n}@b.example" for n in range(20)], "bcc": [f"b{n}@b.example" for n in range(31)]},
        Refused("/to", code="too_many_recipients"),
    ),
    ({"tags": ["x"] * 11}, Refused("/tags")),
    ({"metadata": {str(number): "x" for number in range(51)}}, Refused("/metadata")),
    ({"metadata": {"x" * 129: "x"}}, Refused("/metadata/" + "x" * 129)),
    ({"batch_id": "x" * 129}, Refused("/batch_id")),
    # Numbers that readers of JSON do not agree on
    *(({"metadata": {"n": n}}, Refused("/metadata/n")) for n in (2**53, -(2**53), 10**300, 10**4000)),
    # Unknown fields, at each level
    ({"bogus": 1}, Refused("/bogus")),
    ({"template": {"id": "x"}}, Refused("/template")),
    ({"sender": "a@b.example"}, Refused("/sender")),
    ({"From": "a@b.example"}, Refused("/From")),
    (file(size=1), Refused("/attachments/0/size")),
    (file(disposition="inline"), Refused("/attachments/0/disposition")),
    ({"to": [{"email": "a@b.example", "names": "x"}]}, Refused("/to/0")),
    # Wrong types
    *(({"subject": bad}, Refused("/subject")) for bad in (None, 5, True, [], {}, ["x"])),
    *(
        ({field: bad}, Refused(f"/{field}"))
        for field in ("text", "html", "batch_id")
        for bad in (5, True, [], {"a": 1})
    ),
    *(({field: bad}, Refused(f"/{field}")) for field in ("from", "to", "cc") for bad in (5, True, {}, {"name": "x"})),
    *(({"to": bad}, Refused("/to")) for bad in (None, [], "", {"email": None}, {"email": "a@b.example", "name": 5})),
    *(({"to": ["a@b.example", bad]}, Refused("/to/1")) for bad in (None, 5, [], "", "b", "a@b", ["a@b.example"])),
    ({"from": ["a@b.example"]}, Refused("/from")),
    *(({"headers": bad}, Refused("/headers")) for bad in (None, [], "X-A: b", 5, [["X-A", "b"]])),
    *(({"headers": {"X-A": bad}}, Refused("/headers/X-A")) for bad in (None, 5, True, ["x"], {})),
    *(({"attachments": bad}, Refused("/attachments")) for bad in (None, {}, "x", 5)),
    *(({"attachments": [bad]}, Refused("/attachments/0")) for bad in (None, "x", 5, [])),
    ({"attachments": [{"filename": "a.txt"}]}, Refused("/attachments/0/content")),
    ({"attachments": [{"content": "eA=="}]}, Refused("/attachments/0/filename")),
    *(({"tags": bad}, Refused("/tags")) for bad in (None, "x", 5, {})),
    *(({"tags": [bad]}, Refused("/tags/0")) for bad in (None, 5, [], {})),
    *(({"metadata": bad}, Refused("/metadata")) for bad in (None, "x", 5, [])),
    *(({"metadata": {"k": bad}}, Refused("/metadata/k")) for bad in (None, [], {}, ["x"], {"a": {"b": "c"}})),
    *(({f: bad}, Refused(f"/{f}")) for f in ("track_opens", "track_clicks") for bad in (None, 1, "yes", "true", [])),
    ({"track_opens": "html_and_text"}, Refused("/track_opens")),
    # Times
    *(({f: bad}, Refused(f"/{f}")) for f in ("scheduled_at", "expires_at") for bad in NOT_TIMES),
    ({"scheduled_at": at(days=30, hours=1)}, SCHEDULE),
    ({"scheduled_at": at(days=3000)}, SCHEDULE),
    ({"expires_at": at(seconds=-1)}, EXPIRY),
    ({"expires_at": at(days=-3000)}, EXPIRY),
    ({"scheduled_at": at(days=2), "expires_at": at(days=1)}, EXPIRY),
    # A sending address that there is not
    ({"vmta": "no-such"}, Refused("/vmta", code="vmta_not_found")),
    ({"vmta": "01a1fbbd-40f2-77ec-972a-79f9adafd582"}, Refused("/vmta", code="vmta_not_found")),
]


@pytest.mark.parametrize("field", sorted({next(iter(change)) for change, _ in TABLE}))
async def test_refused_mails(database: Database, sender: Sender, field: str):
    chosen = [(change, refused) for change, refused in TABLE if next(iter(change)) == field]
    await refuse(
        database,
        sender,
        {repr(change)[:200]: (sender.mail("a@b.example") | change, refused) for change, refused in chosen},
    )


@pytest.mark.parametrize("missing", ["from", "to", "subject"])
async def test_missing_fields(database: Database, sender: Sender, missing: str):
    body = sender.mail("a@b.example")
    del body[missing]
    await refuse(database, sender, {missing: (body, Refused(f"/{missing}"))})


async def test_every_flaw_is_told(sender: Sender):
    response = await send_json(sender, {"to": ["x", "y"], "bogus": 1})
    pointers = {flaw["pointer"] for flaw in response.json()["errors"]}
    assert pointers == {"/from", "/to/0", "/to/1", "/subject", "/bogus"}


async def test_text_and_attachments_beyond_25_mib(database: Database, sender: Sender, settings: Settings):
    limit = settings.message_max_bytes
    assert limit == 25 * MIB
    too_large = Refused(None, 413, "message_too_large")
    half = base64.b64encode(b"x" * (limit // 2)).decode()
    halves = [{"filename": "a.bin", "content": half}, {"filename": "b.bin", "content": half}]
    await refuse(
        database,
        sender,
        {
            "text": (sender.mail("a@b.example", text="x" * (limit + 1)), too_large),
            "two bytes each": (sender.mail("a@b.example", html="é" * (limit // 2), text="x"), too_large),
            "attachments": (sender.mail("a@b.example", attachments=halves, text="xx"), too_large),
        },
    )
