import base64
import dataclasses
import re
from datetime import UTC, datetime, timedelta, timezone
from email.message import MIMEPart
from email.utils import format_datetime

import pytest

from app.mail.address import Address, parse
from app.mail.compose import Part, compose, needs_smtputf8
from app.mail.headers import HeaderError
from tests.mail.reader import PLAIN, body, mailboxes, read


def test_a_plain_mail_to_the_octet() -> None:
    assert compose(PLAIN) == (
        b"From: Jane Doe <jane@example.com>\r\n"
        b"To: joe@example.org\r\n"
        b"Subject: Hello\r\n"
        b"Date: Sun, 01 Mar 2026 12:34:56 +0000\r\n"
        b"Message-ID: <0190c0de@mail.example.com>\r\n"
        b"MIME-Version: 1.0\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: 7bit\r\n"
        b"\r\n"
        b"Hello Joe,\r\n\r\nyours Jane\r\n"
    )


def test_date_is_given_in_utc() -> None:
    date = datetime(2026, 3, 1, 1, 0, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    message = read(dataclasses.replace(PLAIN, date=date))
    assert message["date"].datetime == date
    assert message["date"] == format_datetime(date.astimezone(UTC))


SUBJECTS = [
    "",
    "Hello",
    "Grüße aus Köln",
    "👩‍👩‍👧‍👦 family & 🇩🇪 flags",
    "שלום עולם",
    "مرحبا بالعالم",
    "请查收您的订单确认" * 20,
    "a" * 900,
    "a" * 2000,
    "é" * 500,
    "word " * 190 + "end",
    ("w" * 70 + " ") * 10 + "end",
    "double  blanks   stay",
    " leading",
    "trailing ",
    "   ",
    "=?utf-8?q?not_decoded?=",
    "what =?utf-8?b?SGVsbG8=?= literally",
    "=? half",
    "half ?=",
    "100% = 1_000 ?",
    'a:b;c,d<e>f(g)h[i]"j"\\k',
    "\u2028line\u2029separators\u00a0and\u200bblanks",
    "x" * 67,
    "x" * 68,
    "x " * 33 + "xx",
]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_subjects(subject: str) -> None:
    assert str(read(dataclasses.replace(PLAIN, subject=subject))["subject"]) == subject


@pytest.mark.parametrize("subject", SUBJECTS)
def test_encoded_words_are_whole_and_short(subject: str) -> None:
    content = compose(dataclasses.replace(PLAIN, subject=subject, sender=Address("a", "example.com", subject)))
    head = content.partition(b"\r\n\r\n")[0].decode()
    for line in head.split("\r\n"):
        words = re.findall(r"=\?utf-8\?([qb])\?([^?]*)\?=", line)
        assert not words or len(line) <= 76
        for encoding, text in words:
            assert len(f"=?utf-8?q?{text}?=") <= 75
            raw = (
                base64.b64decode(text)
                if encoding == "b"
                else re.sub(rb"=(..)", lambda match: bytes.fromhex(match[1].decode()), text.encode())
            )
            raw.decode()  # no character is split


NAMES = [
    "Jane Doe",
    "Jane Q. Doe",
    "Doe, Jane",
    'Jane "JD" Doe',
    "back\\slash",
    "a@b.example, c@d.example",
    "(comment) <x@y.example>; group:",
    "Zoë",
    "Müller & Söhne GmbH",
    'Ünï, "cödé" <x>',
    "👋 Support",
    "山田 太郎",
    "שלום",
    "=?utf-8?q?literally?=",
    "a =?utf-8?q?b?= c",
    "double  blanks",
    "ä" * 256,
    "a" * 256,
    "word " * 50 + "end",
    "'single'",
    ".",
]


@pytest.mark.parametrize("name", NAMES)
def test_display_names(name: str) -> None:
    sender = Address("jane", "example.com", name)
    others = (Address("a", "x.test"), Address("b", "x.test", name), Address("c", "x.test", name))
    mail = dataclasses.replace(PLAIN, sender=sender, to=others, cc=others[1:], reply_to=(sender,))
    assert mailboxes(mail, "from") == [(name, "jane@example.com")]
    assert mailboxes(mail, "to") == [("", "a@x.test"), (name, "b@x.test"), (name, "c@x.test")]
    assert mailboxes(mail, "cc") == [(name, "b@x.test"), (name, "c@x.test")]
    assert mailboxes(mail, "reply-to") == [(name, "jane@example.com")]


def test_many_recipients_fold_within_76() -> None:
    to = tuple(parse(f"Recipient Number {n} <recipient.number.{n}@example.org>") for n in range(50))
    mail = dataclasses.replace(PLAIN, to=to)
    assert mailboxes(mail, "to") == [(address.name, address.email) for address in to]
    assert max(map(len, compose(mail).split(b"\r\n"))) <= 76


def test_without_visible_recipients() -> None:
    message = read(dataclasses.replace(PLAIN, to=()))
    assert message["to"] == "undisclosed-recipients:;"
    assert message["to"].addresses == ()
    assert read(dataclasses.replace(PLAIN, to=(), cc=PLAIN.to))["to"] is None


def test_smtputf8_only_for_non_ascii_local_parts() -> None:
    mail = dataclasses.replace(
        PLAIN, to=(parse("Jürgen <jürgen@bücher.example>"), parse("用户@example.org")), subject="Grüße"
    )
    assert needs_smtputf8(mail)
    assert b"j\xc3\xbcrgen@xn--bcher-kva.example" in compose(mail)
    assert mailboxes(mail, "to") == [
        ("Jürgen", "jürgen@xn--bcher-kva.example"),
        ("", "用户@example.org"),
    ]
    assert needs_smtputf8(dataclasses.replace(PLAIN, cc=mail.to))
    assert needs_smtputf8(dataclasses.replace(PLAIN, reply_to=mail.to))
    assert needs_smtputf8(dataclasses.replace(PLAIN, sender=mail.to[0]))
    assert not needs_smtputf8(dataclasses.replace(PLAIN, to=(parse("Jürgen <j@bücher.example>"),)))


def test_own_headers() -> None:
    headers = (
        ("X-Custom", "value"),
        ("X-Custom", "again"),
        ("List-Unsubscribe", "<https://example.com/u/" + "x" * 300 + ">, <mailto:u@example.com>"),
        ("X-Unicode", "Grüße 👋 " * 30),
        ("X-Literal", "=?utf-8?q?x?="),
        ("X-Empty", ""),
        ("X-" + "n" * 74, "é" * 100),
        ("References", " ".join(f"<{n}.{'x' * 60}@example.com>" for n in range(20))),
    )
    mail = dataclasses.replace(PLAIN, headers=headers)
    message = read(mail)
    names = {name for name, _ in headers}
    assert [(name, str(value)) for name, value in message.items() if name in names] == list(headers)
    assert b"<https://example.com/u/" + b"x" * 300 + b">," in compose(mail)


FILENAMES = [
    "report.pdf",
    "with blanks.txt",
    'quo"ted.txt',
    "back\\slash.txt",
    "semi;colon=equals'quote%41.txt",
    " edges ",
    "Rechnung März 2026.pdf",
    "请查收.pdf",
    "😀" * 100,
    "x" * 255,
    "ä" * 255,
    "long name " * 25,
    "=?utf-8?q?x?=.txt",
    "utf-8''x.txt",
    ".",
]


@pytest.mark.parametrize("filename", FILENAMES)
def test_filenames(filename: str) -> None:
    message = read(dataclasses.replace(PLAIN, attachments=(Part(filename, "application/pdf", b"%PDF"),)))
    _, attachment = message.iter_parts()
    assert attachment.get_content_disposition() == "attachment"
    assert attachment["content-disposition"].params["filename"] == filename
    assert attachment.get_content_type() == "application/pdf"
    assert attachment.get_payload(decode=True) == b"%PDF"


def shape(part: MIMEPart) -> object:
    if part.is_multipart():
        return (part.get_content_type(), [shape(sub) for sub in part.iter_parts()])
    return part.get_content_type()


PIXEL = Part("pixel.gif", "image/gif", bytes(range(256)) * 10, "pixel@example.com")
FILE = Part("data.bin", "application/octet-stream", b"\r\n--=_\x00" * 100)


@pytest.mark.parametrize(
    ("text", "html", "parts", "expected"),
    [
        ("t", None, (), "text/plain"),
        (None, "h", (), "text/html"),
        (None, None, (), "text/plain"),
        ("t", "h", (), ("multipart/alternative", ["text/plain", "text/html"])),
        ("t", None, (FILE,), ("multipart/mixed", ["text/plain", "application/octet-stream"])),
        (None, None, (FILE,), ("multipart/mixed", ["application/octet-stream"])),
        (None, "h", (PIXEL,), ("multipart/related", ["text/html", "image/gif"])),
        ("t", None, (PIXEL,), ("multipart/mixed", ["text/plain", "image/gif"])),
        (
            "t",
            "h",
            (FILE, PIXEL, FILE, PIXEL),
            (
                "multipart/mixed",
                [
                    (
                        "multipart/alternative",
                        ["text/plain", ("multipart/related", ["text/html", "image/gif", "image/gif"])],
                    ),
                    "application/octet-stream",
                    "application/octet-stream",
                ],
            ),
        ),
    ],
)
def test_structure(text: str | None, html: str | None, parts: tuple[Part, ...], expected: object) -> None:
    message = read(dataclasses.replace(PLAIN, text=text, html=html, attachments=parts))
    assert shape(message) == expected
    by_name = {part.get_filename(): part for part in message.walk() if part.get_filename()}
    for part in parts:
        found = by_name[part.filename]
        assert found.get_payload(decode=True) == part.content
        if part.content_id is not None:
            assert found["content-id"] == f"<{part.content_id}>"
            assert found.get_content_disposition() == ("inline" if html is not None else "attachment")


def test_the_html_part_is_the_root_of_related() -> None:
    message = read(
        dataclasses.replace(PLAIN, text=None, html="<img src='cid:pixel@example.com'>", attachments=(PIXEL,))
    )
    assert message.get_param("type") == "text/html"
    assert body(message.get_body(("html",))) == "<img src='cid:pixel@example.com'>"  # type: ignore[arg-type]


@pytest.mark.parametrize("content_type", ["message/rfc822", "message/partial", "multipart/mixed", "Message/RFC822"])
def test_types_that_forbid_base64_arrive_as_octets(content_type: str) -> None:
    inner = compose(PLAIN)
    message = read(dataclasses.replace(PLAIN, attachments=(Part("inner.eml", content_type, inner),)))
    _, attachment = message.iter_parts()
    assert attachment.get_content_type() == "application/octet-stream"
    assert attachment.get_payload(decode=True) == inner


@pytest.mark.parametrize("size", [0, 1, 2, 3, 56, 57, 58, 114, 115, 1_000_003])
def test_attachment_sizes(size: int) -> None:
    content = bytes(n % 251 for n in range(size))
    message = read(dataclasses.replace(PLAIN, attachments=(Part("a", "image/png", content), FILE)))
    _, first, second = message.iter_parts()
    assert first.get_payload(decode=True) == content
    assert second.get_payload(decode=True) == FILE.content


EVIL = "x\r\nBcc: victim@example.com"


@pytest.mark.parametrize(
    "change",
    [
        {"subject": EVIL},
        {"subject": "x\ny"},
        {"subject": "x\x00"},
        {"sender": Address("a", "example.com", EVIL)},
        {"to": (Address("a" + EVIL, "example.com"),)},
        {"cc": (Address("a", "example.com" + EVIL),)},
        {"reply_to": (Address("a", "example.com", "é" + EVIL),)},
        {"headers": (("X-A", EVIL),)},
        {"headers": (("X-A", "é" + EVIL),)},
        {"headers": (("X-A\r\nBcc", "x"),)},
        {"headers": (("X A", "x"),)},
        {"headers": (("", "x"),)},
        {"headers": (("subject", "twice"),)},
        {"headers": (("Content-Type", "text/evil"),)},
        {"message_id": "a@b>\r\nBcc: x"},
        {"message_id": ""},
        {"attachments": (Part(EVIL, "a/b", b""),)},
        {"attachments": (Part("é" + EVIL, "a/b", b""),)},
        {"attachments": (Part("a", "a/b" + EVIL, b""),)},
        {"attachments": (Part("a", "a/b; x=y", b""),)},
        {"attachments": (Part("a", "a/b", b"", "x>" + EVIL),)},
    ],
)
def test_nothing_can_be_injected(change: dict[str, object]) -> None:
    with pytest.raises(HeaderError):
        compose(dataclasses.replace(PLAIN, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"date": PLAIN.date.replace(tzinfo=None)}, {"subject": "\ud800"}, {"text": "\ud800"}]
)
def test_what_cannot_be_written_is_a_value_error(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        compose(dataclasses.replace(PLAIN, **change))  # type: ignore[arg-type]
