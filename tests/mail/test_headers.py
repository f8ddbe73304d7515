import base64
import time

import pytest

from app.mail.headers import (
    HeaderError,
    check_content_id,
    check_content_type,
    check_filename,
    check_name,
    check_text,
)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "plain text",
        "Grüße 👋 שלום",
        "=?utf-8?q?caf=C3=A9?=",
        "=?utf-8?q?=E2=80=85?=",  # a trailing octet that is a control character in other charsets
        "=?utf-8?b?" + base64.b64encode("naïve".encode()).decode() + "?=",
        "=?iso-8859-1?q?=E9?= =?koi8-r?q?=C1?=",
        "why =? and ?= and =0 5?",
        "a=0D=0A is no encoded word",
        "x" * 900,
        ("x" * 800 + " ") * 2,
        "é" * 998,
    ],
)
def test_text_that_may_stand(value: str) -> None:
    assert check_text(value, max_characters=2000) == value


@pytest.mark.parametrize(
    "value",
    [
        *(f"a{chr(code)}b" for code in (*range(0x20), *range(0x7F, 0xA0))),
        "\ud83d",
        "\udc80 text",
        "x" * 901,
        "x" * 2001,
        "=?utf-8?q?=0d=0aBcc:_x?=",
        "=?UTF-8?Q?=0D?=",
        "=?utf-8?q?=00?=",
        "=?utf-8?q?=7F?=",
        "=?utf-8?q?tab=09?=",
        "=?utf-8?q?=0A",  # never closed
        "=?utf-8?q?a b =0A?=",  # blanks inside
        "=?utf-8?q?why?=0A?=",  # question mark inside
        "=??q?=0a?=",  # no charset
        "=?no-such-charset?q?=0a?=",
        "=?no-such-charset?b?" + base64.b64encode(b"a\x00b").decode() + "?=",
        "=?utf-8*en?q?=C2=85?=",
        "=?iso-8859-1?q?=85?=",
        "=?utf-8?q?=C2=85?=",
        "=?utf-8?q?=C2?= =?utf-8?q?=85?=",  # a character in two words
        "=?utf-16-be?b?" + base64.b64encode("\r\n".encode("utf-16-be")).decode() + "?=",
        "=?utf-7?q?+AA0ACg-?=",
        "=?utf-8?b?" + base64.b64encode(b"a\r\nb").decode() + "?=",
        "=?utf-8?b?" + base64.b64encode(b"a\r\nbb").decode().rstrip("=") + "?=",  # without padding
        "=?utf-8?B?YQ==DQo=?=",  # padding in the middle
        "=?utf-8?b?DQ o=?=",
        "=?utf-8?b?D*Q*o*=?=",
        "=?a?b?=?utf-8?q?=C2=85?=",  # one within another's reach
        "=?utf-8?q?=3D=3Futf-8=3Fq=3F=3D0A=3F=3D?=",  # nested
        "=?utf-8?b?" + base64.b64encode(b"=?utf-8?b?" + base64.b64encode(b"\n") + b"?=").decode() + "?=",
        "ok =?utf-8?q?ok?= =?utf-8?b?" + base64.b64encode(b"\r").decode() + "?=",
        "=?utf-8?q?a?= " * 100 + "=?utf-8?q?a?= " * 101,
    ],
)
def test_text_that_may_not_stand(value: str) -> None:
    with pytest.raises(HeaderError):
        check_text(value, max_characters=2000 if len(value) < 2002 else 9000)


def test_nesting_has_an_end() -> None:
    value = "x"
    for _ in range(8):
        value = "=?utf-8?b?" + base64.b64encode(value.encode()).decode() + "?="
    with pytest.raises(HeaderError, match="nested"):
        check_text(value, max_characters=2000)


def test_hostile_encoded_words_are_refused_quickly() -> None:
    started = time.perf_counter()
    for value in ("=?a?q?" * 1600, "=?a?b?" * 199 + "A " * 4000, "=?" * 5000, "=?a?q?x " * 199 + "ü" * 8000):
        try:
            check_text(value, max_characters=10_000)
        except HeaderError:
            continue
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "name",
    ["X-Custom", "List-Unsubscribe", "In-Reply-To", "References", "Auto-Submitted", "x", "!#$%&'*+-.^_`|~"],
)
def test_names_that_may_be_given(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "From",
        "FROM",
        "sender",
        "To",
        "Cc",
        "Bcc",
        "Subject",
        "Date",
        "Message-ID",
        "message-id",
        "Reply-To",
        "MIME-Version",
        "Content-Type",
        "content-transfer-encoding",
        "Content-Anything",
        "DKIM-Signature",
        "ARC-Seal",
        "ARC-Message-Signature",
        "Authentication-Results",
        "Received",
        "Received-SPF",
        "Return-Path",
        "Resent-From",
        "Resent-Bcc",
        "DomainKey-Signature",
        "X-Postroad-Id",
        "x-postroad-x",
        "Delivered-To",
        "Errors-To",
    ],
)
def test_reserved_names(name: str) -> None:
    with pytest.raises(HeaderError, match="reserved"):
        check_name(name)


@pytest.mark.parametrize("name", ["", "a:b", "a b", "a\r\nb", "a\n", "ü", "a\x7f", "x" * 77, " From", "From "])
def test_impossible_names(name: str) -> None:
    with pytest.raises(HeaderError, match="printable"):
        check_name(name)


def test_filenames() -> None:
    for name in ("a.pdf", "Rechnung März.pdf", "...", "😀.txt", "x" * 255, "a b.c"):
        assert check_filename(name) == name
    for name in (
        "",
        " ",
        ".",
        "..",
        "a/b",
        "a\\b",
        "../x",
        "a\x00",
        "a\r\nb",
        "\ud800",
        "x" * 256,
        "=?x?q?=0a?=",
    ):
        with pytest.raises(HeaderError):
            check_filename(name)


def test_content_types_and_ids() -> None:
    for content_type in ("text/plain", "application/vnd.ms-excel", "image/svg+xml"):
        assert check_content_type(content_type) == content_type
    for content_type in (
        "",
        "text",
        "text/",
        "/x",
        "text/plain; charset=x",
        "a/b/c",
        "a/b\r\nX: y",
        "a/b\n",
        "a /b",
    ):
        with pytest.raises(HeaderError):
            check_content_type(content_type)
    for content_id in ("logo", "logo@example.com", "a$b%c"):
        assert check_content_id(content_id) == content_id
    for content_id in ("", "a b", "<a>", "a\r\nb", "ü", "x" * 256):
        with pytest.raises(HeaderError):
            check_content_id(content_id)
