"""The structure of mails that others made."""

import base64

import pytest

from app.mail.mime import MAX_TEXT_CHARACTERS, Entity, own_text, parse


def _shape(entity: Entity) -> object:
    return [_shape(part) for part in entity.parts] or entity.body.decode()


def _multipart(body: str, content_type: str = "multipart/mixed; boundary=b") -> Entity:
    return parse(f"Content-Type: {content_type}\n\n{body}".replace("\n", "\r\n").encode())


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("--b\n\none\n--b\n\ntwo\n--b--\n", ["one", "two"]),
        ("preamble\n--b\n\none\n--b--\nepilogue\n--b\n\nthree", ["one"]),
        ("--b\n\none\n--b\n\nno end", ["one", "no end"]),
        ("--b  \t\n\none\n--b--", ["one"]),
        ("--b\n\none\n--bb\ntwo\n--b-\n--b--", ["one\n--bb\ntwo\n--b-"]),
        ("--b\n\n--b\n\n--b--", ["", ""]),
        ("--b\n--b--", [""]),
        ("--b", [""]),
        ("nothing", "nothing"),
        ("--B\n\none\n--B--", "--B\n\none\n--B--"),
    ],
)
def test_parts_stand_between_boundaries(body: str, shape: object) -> None:
    assert _shape(_multipart(body)) == shape


def test_a_part_ends_where_its_multipart_does() -> None:
    inner = "Content-Type: multipart/alternative; boundary=c\n\n--c\n\none\n--b\n\ntwo\n--c--\n--b--"
    assert _shape(_multipart(f"--b\n{inner}")) == [["one"], "two\n--c--"]


def test_what_a_message_holds_is_not_its_carriers() -> None:
    mail = _multipart(
        "--b\nContent-Type: message/rfc822\n\nContent-Type: multipart/mixed; boundary=c\n\n--c\n\nx\n--b--"
    )
    (part,) = mail.parts
    assert part.content_type == "message/rfc822"
    assert part.parts == ()
    digest = _multipart("--b\n\nFrom: a@example.org\n\nx\n--b--", "multipart/digest; boundary=b")
    assert [part.content_type for part in digest.parts] == ["message/rfc822"]
    assert own_text(digest) == own_text(mail) == ""


@pytest.mark.parametrize(
    ("value", "content_type", "parameters"),
    [
        ('TEXT/Plain; Charset="UTF-8"', "text/plain", {"charset": "UTF-8"}),
        ("multipart/mixed;\r\n boundary*=utf-8''a%20b", "multipart/mixed", {"boundary": "a b"}),
        ("multipart/mixed; boundary*0=a; boundary*1=b", "multipart/mixed", {"boundary": "ab"}),
        ("text/html; charset*=a; charset*0=b", "text/html", {}),  # the library fails at this
        ("text/html; charset=a; charset=b", "text/html", {"charset": "a"}),
        ("text", "text/plain", {}),
        ("a/b/c", "text/plain", {}),
        (";;;", "text/plain", {"": ""}),
        ("", "text/plain", {}),
    ],
)
def test_content_types(value: str, content_type: str, parameters: dict[str, str]) -> None:
    mail = parse(f"Content-Type: {value}\r\n\r\n.".encode())
    assert mail.content_type == content_type
    assert {key: each for key, each in mail.parameters.items() if key} == {k: v for k, v in parameters.items() if k}


@pytest.mark.parametrize(
    ("octets", "fields"),
    [
        (b"A: b\r\nC:d\r\n\r\nE: f", (("a", "b"), ("c", "d"))),
        (b"A: b\r\n c\r\n\td\r\n", (("a", "b c d"),)),
        (b"no field\r\nA: b\r\n: c\r\nA : d", (("a", "b"), ("a", "d"))),
        (b"From x@example.org Mon\r\nA: b\r\n", (("a", "b"),)),
        (b"\r\n\r\nA: \xff\xc3\xa9\r\n", (("a", "\ufffdé"),)),
        (b"A: b: c\r\n \r\n d\r\n", (("a", "b: c  d"),)),
        (b"", ()),
    ],
)
def test_fields(octets: bytes, fields: tuple[tuple[str, str], ...]) -> None:
    found = parse(octets).header.fields
    assert [(name, " ".join(value.split())) for name, value in found] == [(n, " ".join(v.split())) for n, v in fields]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("=?utf-8?q?caf=C3=A9?= x", "café x"),
        ("=?iso-2022-jp?B?GyRCJUYlOSVIGyhC?=", "テスト"),
        ("=?utf-8?b?4pyT?= =?utf-8?b?4pyT?=", "✓✓"),
        ("=?no-such-charset?q?abc?=", "abc"),
        ("=?utf-8?b?a?=", "=?utf-8?b?a?="),  # no base64
        ("=?utf-8?q?", "=?utf-8?q?"),
    ],
)
def test_encoded_words(value: str, text: str) -> None:
    assert parse(f"Subject: {value}\r\n\r\n.".encode()).header.text("subject") == text


@pytest.mark.parametrize(
    ("fields", "body", "text"),
    [
        ("X: y", b"plain", "plain"),
        ("Content-Type: text/plain; charset=iso-8859-1", "Größe".encode("latin-1"), "Größe"),
        ("Content-Type: text/plain; charset=koi8-r", "письмо".encode("koi8-r"), "письмо"),
        ("Content-Type: text/plain; charset=gb2312", "退信".encode("gb18030"), "退信"),
        ("Content-Type: text/plain; charset=iso-2022-jp", "不在".encode("iso-2022-jp"), "不在"),
        ("Content-Type: text/plain; charset=idna", b"a", "a"),
        ("Content-Type: text/plain; charset=cp999", b"a", "a"),
        ("Content-Type: text/plain; charset=\x00", b"a", "a"),
        ("Content-Type: text/plain; charset=utf-8*en", b"\xc3\xa9", "é"),
        ("X: y", b"\xff", "\ufffd"),
        ("Content-Transfer-Encoding: Base64", base64.encodebytes("Größe".encode()), "Größe"),
        ("Content-Transfer-Encoding: base64", b"YWJ", "ab"),
        ("Content-Transfer-Encoding: base64", b"YWJjY", "abc"),
        ("Content-Transfer-Encoding: base64", b"Y!W=J j", "abc"),
        ("Content-Transfer-Encoding: base64", b"!", ""),
        ("Content-Transfer-Encoding: quoted-printable", b"a=3D=\r\nb=ZZ=", "a=b=ZZ"),
        ("Content-Type: text/html", b"a<p>b &amp; c</p><br>d<b>e</b>", "a\nb & c\n\nde"),
        ("Content-Type: text/html", b"<style>x</style>a<script>y</SCRIPT >b<!-- z > -->c", "abc"),
        ("Content-Type: text/html", b"a <style>never ends", "a "),
        ("Content-Type: text/html", b"1 < 2 &lt;a@example.org&gt; &#xD800; &nbsp;.", "1 < 2 <a@example.org> \ufffd  ."),
    ],
)
def test_texts(fields: str, body: bytes, text: str) -> None:
    assert parse(fields.encode() + b"\r\n\r\n" + body).text() == text


def test_texts_are_bounded() -> None:
    assert len(parse(b"\n" + b"a\n" * 100_000).text()) <= MAX_TEXT_CHARACTERS
    assert len(parse(b"Content-Type: text/html\n\n" + b"&nbsp;\n" * 100_000).text()) <= MAX_TEXT_CHARACTERS


def test_the_own_text_is_the_first_that_says_anything() -> None:
    parts = [
        "Content-Disposition: attachment\n\nattached",
        "Content-Type: text/plain\n\n  \n",
        "Content-Type: text/html\n\n<p>shown</p>",
        "Content-Type: text/plain\n\nlater",
    ]
    assert own_text(_multipart("".join(f"--b\n{part}\n" for part in parts) + "--b--")).strip() == "shown"
    carried = ["Content-Type: message/rfc822\n\nSubject: x\n\ncarried", "Content-Type: text/plain\n\nlater"]
    assert own_text(_multipart("".join(f"--b\n{part}\n" for part in carried) + "--b--")) == ""
    report = "multipart/report; report-type=X; boundary=b"
    assert own_text(_multipart("--b\n\nfirst\n--b\n\nsecond\n--b--", report)) == "first"
    assert own_text(_multipart("--b\nContent-Type: message/delivery-status\n\nx\n--b\n\nsecond\n--b--", report)) == ""
