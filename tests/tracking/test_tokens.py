"""Tokens say what they were made for, in one spelling, and nothing else is one."""

import base64
import string
from uuid import UUID

import pytest

from app.core.config import Settings
from app.core.ids import new_id
from app.tracking import tokens

BASE = "https://links.example.com"
TARGET = "https://shop.example/a?b=c&d=%20e#f"


@pytest.fixture(autouse=True)
def secret(settings: Settings) -> None:
    """Keys derive from the environment's secret."""


def token_of(url: str) -> str:
    return url.rpartition("/")[2]


def made() -> tuple[UUID, UUID, dict[str, str]]:
    org_id, delivery_id = new_id(), new_id()
    click = tokens.Links(BASE, org_id, delivery_id).click(TARGET)
    assert click is not None
    urls = {
        "open": tokens.Links(BASE, org_id, delivery_id).open(),
        "click": click,
        "unsubscribe": tokens.Links(BASE, org_id, delivery_id).unsubscribe(),
    }
    for kind, url in urls.items():
        assert url.startswith(f"{BASE}/track/{kind}/")
    return org_id, delivery_id, {kind: token_of(url) for kind, url in urls.items()}


READ = {"open": tokens.read_open, "click": tokens.read_click, "unsubscribe": tokens.read_unsubscribe}


def test_each_kind_reads_its_own_and_no_other() -> None:
    org_id, delivery_id, found = made()
    for kind, read in READ.items():
        for other, token in found.items():
            said = (org_id, delivery_id, TARGET) if kind == "click" else (org_id, delivery_id)
            assert read(token) == (said if other == kind else None)
    assert len(found["open"]) == len(found["unsubscribe"]) == 60


def test_there_is_one_spelling_and_no_character_may_change() -> None:
    _, _, found = made()
    alphabet = string.ascii_letters + string.digits + "-_"
    for kind, token in found.items():
        assert set(token) <= set(alphabet)
        for place in range(len(token)):
            for other in ("A", "B", "_", "=", " ", "/", "é", "\x00"):
                changed = token[:place] + other + token[place + 1 :]
                assert changed == token or READ[kind](changed) is None, (kind, place, other)
        # The last character has bits to spare where the length is no multiple of three octets.
        for last in alphabet:
            assert (READ[kind](token[:-1] + last) is None) == (last != token[-1])
        for changed in (
            f"{token}=",
            f"{token}==",
            f"{token}A",
            f" {token}",
            f"{token}\n",
            token[:-1],
            token.swapcase(),
        ):
            assert READ[kind](changed) is None
        assert READ[kind](token.replace("-", "+").replace("_", "/") + "====") is None


@pytest.mark.parametrize("text", ["", "A", "AAAA", "A" * 60, "A" * 100, "A" * 5000, "é" * 60, "=" * 60, "\x00" * 60])
def test_what_was_never_signed_is_no_token(text: str) -> None:
    assert [read(text) for read in READ.values()] == [None] * 3


def test_the_version_is_signed() -> None:
    _, _, found = made()
    for kind, token in found.items():
        octets = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        assert octets[0] == 1
        changed = base64.urlsafe_b64encode(b"\x02" + octets[1:]).rstrip(b"=").decode()
        assert READ[kind](changed) is None


@pytest.mark.parametrize(
    "target",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "ftp://example.com/",
        "mailto:a@b.example",
        "//example.com",
        "/x",
        "",
        "https:example.com",
        "https:/example.com",
        "https://",
        "https:///example.com",
        "https://\\example.com",
        "https://?x",
        "https://example.com/\r\nX: y",
        "https://example.com/\x00",
        "https://example.com/\x7f",
        " https://example.com",
        "view-source:https://example.com",
        f"https://example.com/{'x' * 2000}",
        f"https://example.com/{'ü' * 400}",
    ],
)
def test_only_http_urls_of_some_length_are_targets(target: str) -> None:
    assert tokens.Links(BASE, new_id(), new_id()).click(target) is None


@pytest.mark.parametrize(
    ("target", "followed"),
    [
        ("HTTP://Example.COM/Path", "HTTP://Example.COM/Path"),
        ("https://example.com/a b", "https://example.com/a%20b"),
        ("https://example.com/ü?ö=%41#ä", "https://example.com/%C3%BC?%C3%B6=%41#%C3%A4"),
        ("https://user:ü@bücher.example:8443/", "https://user:%C3%BC@xn--bcher-kva.example:8443/"),
        ("https://ÖBB.example", "https://xn--bb-eka.example"),
        ("https://[2001:db8::1]:8080/ü", "https://[2001:db8::1]:8080/%C3%BC"),
        ("https://example.com/{x}|y", "https://example.com/{x}|y"),
    ],
)
def test_targets_are_kept_in_ascii(target: str, followed: str) -> None:
    org_id, delivery_id = new_id(), new_id()
    url = tokens.Links("", org_id, delivery_id).click(target)
    assert url is not None
    assert tokens.read_click(token_of(url)) == (org_id, delivery_id, followed)


def test_the_longest_target_makes_a_url_that_all_readers_take() -> None:
    url = tokens.Links(BASE, new_id(), new_id()).click(f"https://example.com/{'x' * 1980}")
    assert url is not None
    assert len(url) < 4096 - 1000
    assert tokens.read_click(token_of(url)) is not None


@pytest.mark.parametrize(
    ("public_url", "host", "base"),
    [
        ("https://mail.postroad.test", None, "https://mail.postroad.test"),
        ("https://mail.postroad.test", "links.example.com", "https://links.example.com"),
        ("http://mail.postroad.test:8000", "links.example.com", "http://links.example.com:8000"),
        ("https://mail.postroad.test/below", "links.example.com", "https://links.example.com/below"),
    ],
)
def test_the_senders_own_host_has_scheme_and_port_of_public_url(public_url: str, host: str | None, base: str) -> None:
    assert tokens.links_base(public_url, host) == base
