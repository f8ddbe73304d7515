"""Attempts to be led elsewhere by a link of ours: none leads anywhere but to what was signed."""

import base64
import hashlib
from collections.abc import Callable
from urllib.parse import quote

from app.core.crypto import derive_key
from tests.tracking.conftest import Copy, Recipients

GOOD = "https://shop.example/sale"
EVIL = "https://evil.example/"


def encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def decoded(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def signed(copy: Copy, url: bytes, *, key: bytes | None = None, octets: int = 12) -> str:
    """A token as we sign them, for what we would not."""
    ids = b"\x01" + copy.org_id.bytes + copy.id.bytes
    key = derive_key("track click") if key is None else key
    tag = hashlib.blake2b(ids + url, digest_size=12, key=key).digest()
    return encoded(ids + tag[:octets] + url)


def with_target(token: str, url: bytes) -> str:
    return encoded(decoded(token)[:45] + url)


ATTEMPTS: dict[str, Callable[[str, Copy], str]] = {
    # Another target behind a good tag
    "another host": lambda token, _: with_target(token, EVIL.encode()),
    "an extended host": lambda token, _: with_target(token, b"https://shop.example.evil.example/sale"),
    "userinfo before the host": lambda token, _: with_target(token, b"https://shop.example@evil.example/sale"),
    "an extended path": lambda token, _: encoded(decoded(token) + b"/../../evil"),
    "a truncated target": lambda token, _: encoded(decoded(token)[:-4]),
    "no target": lambda token, _: encoded(decoded(token)[:45]),
    "another scheme": lambda token, _: with_target(token, b"javascript:alert(1)//shop.example"),
    "no scheme": lambda token, _: with_target(token, b"//evil.example/"),
    "a backslash": lambda token, _: with_target(token, b"https:\\\\evil.example/"),
    "upper case": lambda token, _: with_target(token, b"HTTPS://SHOP.EXAMPLE/SALE"),
    "a slash more": lambda token, _: encoded(decoded(token) + b"/"),
    "line breaks": lambda token, _: encoded(decoded(token) + b"\r\nLocation: https://evil.example/"),
    # Another spelling of a good token
    "padded": lambda token, _: token + "=" * (-len(token) % 4 or 4),
    "standard base64": lambda token, _: base64.b64encode(decoded(token)).decode(),
    "swapped case": lambda token, _: token.swapcase(),
    "a dot at the end": lambda token, _: f"{token}.",
    "a slash at the end": lambda token, _: f"{token}/",
    "encoded twice": lambda token, _: quote(quote(f"{token}/", safe=""), safe=""),
    "with a query in the path": lambda token, _: f"{token}%3Furl={EVIL}",
    "with a target beside it": lambda token, _: f"{token}/{EVIL}",
    "with a zero": lambda token, _: f"{token}%00",
    "with line breaks": lambda token, _: f"{token}%0d%0aLocation:%20{EVIL}",
    "in full width": lambda token, _: quote("".join(chr(ord(one) + 0xFEE0) for one in token)),
    "one letter that looks alike": lambda token, _: quote(token.replace("A", "\u0410", 1)),
    "spread over two segments": lambda token, _: f"{token[:60]}/{token[60:]}",
    "only the target": lambda token, _: encoded(EVIL.encode()),
    "the target as it is": lambda token, _: EVIL,
    # Another's tag
    "another delivery's": lambda token, _: encoded(decoded(token)[:17] + bytes(16) + decoded(token)[33:]),
    "another organization's": lambda token, _: encoded(b"\x01" + bytes(16) + decoded(token)[17:]),
    "an open's tag": lambda _, copy: encoded(decoded(copy.pixel.rpartition("/")[2]) + EVIL.encode()),
    "an unsubscription's tag": lambda _, copy: encoded(decoded(copy.unsubscribe.rpartition("/")[2]) + EVIL.encode()),
    "a token for opens": lambda _, copy: copy.pixel.rpartition("/")[2],
    "a key of nothing": lambda _, copy: signed(copy, EVIL.encode(), key=b""),
    "a key that is known": lambda _, copy: signed(copy, EVIL.encode(), key=hashlib.sha256(b"track click").digest()),
    "a shorter tag": lambda _, copy: signed(copy, EVIL.encode(), octets=8),
    "no tag": lambda _, copy: signed(copy, EVIL.encode(), octets=0),
    "another version": lambda token, _: encoded(b"\x00" + decoded(token)[1:]),
    # What we would have to have signed
    "signed: script": lambda _, copy: signed(copy, b"javascript:alert(1)"),
    "signed: data": lambda _, copy: signed(copy, b"data:text/html,<script>alert(1)</script>"),
    "signed: no scheme": lambda _, copy: signed(copy, b"//evil.example"),
    "signed: no host": lambda _, copy: signed(copy, b"https:///evil.example"),
    "signed: line breaks": lambda _, copy: signed(copy, b"https://shop.example/\r\nSet-Cookie: a=b"),
    "signed: no ASCII": lambda _, copy: signed(copy, "https://shop.example/ü".encode()),
    "signed: blanks before it": lambda _, copy: signed(copy, b" https://evil.example"),
    "signed: too long": lambda _, copy: signed(copy, b"https://evil.example/" + b"x" * 3000),
}


async def test_none_of_them_leads_anywhere(recipients: Recipients) -> None:
    assert len(ATTEMPTS) >= 30
    copy = await recipients.copy()
    good = copy.link(GOOD)
    token = good.rpartition("/")[2]
    assert signed(copy, GOOD.encode()) == token, "the attempts are made as tokens are"
    led = {}
    for name, attempt in ATTEMPTS.items():
        for method in ("GET", "HEAD"):
            answer = await recipients.get(f"/track/click/{attempt(token, copy)}", method=method)
            if answer.status_code != 404 or "Location" in answer.headers:
                led[name] = (method, answer.status_code, answer.headers.get("Location"))
            elif method == "GET":
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert answer.json()["code"] == "link_not_found"
    assert led == {}
    # What comes beside the token is not looked at.
    for beside in (f"?url={EVIL}", f"?{EVIL}", "#x"):
        answer = await recipients.get(f"{good}{beside}", Host="evil.example", X_Forwarded_Host="evil.example")
        assert (answer.status_code, answer.headers["Location"]) == (302, GOOD)
    assert {event["url"] for event in await recipients.events(copy, "clicked")} == {GOOD}
