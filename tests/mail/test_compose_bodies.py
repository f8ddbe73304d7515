import dataclasses
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.mail.address import Address
from app.mail.compose import Part, compose
from tests.mail.reader import PLAIN, body, mailboxes, normalised, read

TEXTS = [
    "",
    "x",
    "no newline at the end",
    "one\n",
    "\n",
    "\n\n\n",
    "two blank lines at the end\n\n\n",
    "trailing blanks   \nand tabs\t\t\nat the end ",
    "ends in a blank line of blanks\n   \n",
    "lone\rreturns\rand\nfeeds\r\nmixed\n\r\n\r",
    ".\n..\n...\n.\n",
    ".",
    "From me\nFrom you \nfrom\n>From\nFrom\n",
    "From " + "long " * 50,
    "long\nFrom " + "x" * 200 + "\nFrom é\n",
    "x" * 76,
    "x" * 77,
    "".join(f"{'x' * length} \n{'y' * length}\t\n" for length in range(70, 80)),
    *("x" * length + "é" for length in range(70, 77)),
    *("x" * length + " " for length in range(70, 77)),
    "x" * 998,
    "x" * 5000,
    ("word " * 300 + "\n") * 5,
    "tab\tinside and = equals =3D =\n",
    "--=_boundary\n--=_\n",
    "Grüße\n",
    "émail " * 50,
    "请查收您的订单确认\n" * 50,
    "👩‍👩‍👧‍👦" * 500,
    "שלום\r\nعالم",
    "controls \x00 \x01 \x0b \x0c \x1b \x7f \x85 \u2028 end",
    "\ufeffmark",
]


@pytest.mark.parametrize("text", TEXTS)
def test_bodies_arrive_to_the_letter(text: str) -> None:
    html = f"<p>{text}"
    assert body(read(dataclasses.replace(PLAIN, text=text))) == normalised(text)
    assert body(read(dataclasses.replace(PLAIN, text=None, html=text))) == normalised(text)
    message = read(dataclasses.replace(PLAIN, text=text, html=html))
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert [body(part) for part in message.iter_parts()] == [normalised(text), normalised(html)]


@pytest.mark.parametrize("text", TEXTS)
def test_encoded_body_lines_are_short_and_safe(text: str) -> None:
    lines = compose(dataclasses.replace(PLAIN, text=text, html=None)).partition(b"\r\n\r\n")[2].split(b"\r\n")
    assert max(map(len, lines)) <= 76
    assert not any(line.startswith(b"From ") or line.endswith((b" ", b"\t")) for line in lines)


def encoding(text: str) -> str:
    return str(read(dataclasses.replace(PLAIN, text=text))["content-transfer-encoding"])


def test_the_smallest_encoding_is_chosen() -> None:
    assert encoding("short ASCII lines\n" * 10) == "7bit"
    assert encoding("a long line " * 100 + "\n") == "quoted-printable"
    assert encoding("hier und da ein ü in einem deutschen Text\n" * 10) == "quoted-printable"
    assert encoding("Кириллица вся целиком\n" * 10) == "base64"


@pytest.mark.parametrize("line", ["x" * 70, "ü" * 35, "Hier und da ein ü. " * 4, "From Jane, =_ \t"])
def test_a_megabyte_each(line: str) -> None:
    text = f"{line}\n" * (1_000_000 // len(line.encode()))
    mail = dataclasses.replace(PLAIN, text=text, html=text * 2, attachments=(Part("a", "a/b", text.encode()),))
    started = time.perf_counter()
    compose(mail)
    assert time.perf_counter() - started < 5
    message = read(mail)
    alternative, attachment = message.iter_parts()
    assert [body(part) for part in alternative.iter_parts()] == [normalised(text), normalised(text * 2)]
    assert attachment.get_payload(decode=True) == text.encode()


def test_no_body_can_end_a_part() -> None:
    plain = compose(dataclasses.replace(PLAIN, html="<p>"))
    found = re.search(rb'boundary="([^"]+)"', plain)
    assert found is not None
    forged = f"--{found[1].decode()}--\n\n--{found[1].decode()}\nContent-Type: text/html\n\nforged\n"
    message = read(dataclasses.replace(PLAIN, text=forged, html=forged))
    assert [body(part) for part in message.iter_parts()] == [normalised(forged)] * 2


HEADER_TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=200)
BODY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.lists(
    st.sampled_from(["From ", "\n", "\r\n", "\r", " ", "\t", ".", "=", "é", "word", "x" * 75, "--=_", "😀"]),
    max_size=60,
).map("".join)


@settings(max_examples=100, deadline=None)
@given(subject=HEADER_TEXT, name=HEADER_TEXT, filename=HEADER_TEXT.filter(bool), text=BODY_TEXT, html=BODY_TEXT)
def test_round_trip(subject: str, name: str, filename: str, text: str, html: str) -> None:
    mail = dataclasses.replace(
        PLAIN,
        subject=subject,
        to=(Address("a", "x.test", name), Address("b", "x.test", name)),
        headers=(("X-Text", subject),),
        text=text,
        html=html,
        attachments=(Part(filename, "application/pdf", text.encode()),),
    )
    message = read(mail)
    assert str(message["subject"]) == str(message["x-text"]) == subject
    assert mailboxes(mail, "to") == [(name, "a@x.test"), (name, "b@x.test")]
    alternative, attachment = message.iter_parts()
    assert [body(part) for part in alternative.iter_parts()] == [normalised(text), normalised(html)]
    assert attachment["content-disposition"].params["filename"] == filename
    assert attachment.get_payload(decode=True) == text.encode()
    single = dataclasses.replace(PLAIN, text=text)
    assert body(read(single)) == normalised(text)
    assert max(map(len, compose(single).partition(b"\r\n\r\n")[2].split(b"\r\n"))) <= 76
