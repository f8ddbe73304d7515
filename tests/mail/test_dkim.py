import base64
import dataclasses
import email
import email.policy
import re
from datetime import UTC, datetime

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from app.mail import dkim
from app.mail.address import parse
from app.mail.compose import Mail, Part, compose
from tests.mail.verifier import verdicts

RSA_DER, RSA_PUBLIC = dkim.generate("rsa-sha256")
ED_DER, ED_PUBLIC = dkim.generate("ed25519-sha256")
SIGNERS = (
    dkim.load("example.com", "r1", "rsa-sha256", RSA_DER),
    dkim.load("example.com", "e1", "ed25519-sha256", ED_DER),
)
RECORDS = {
    "r1._domainkey.example.com": dkim.record("rsa-sha256", RSA_PUBLIC),
    "e1._domainkey.example.com": dkim.record("ed25519-sha256", ED_PUBLIC),
}
PLAIN = Mail(
    message_id="1@example.com",
    date=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
    sender=parse("Jane <jane@example.com>"),
    to=(parse("joe@example.org"),),
    subject="Hello",
    text="Hello Joe,\n\nyours Jane\n",
)


def signed(content: bytes) -> bytes:
    return dkim.sign(content, SIGNERS, timestamp=1_700_000_000) + content


MAILS = {
    "plain": PLAIN,
    "empty body": dataclasses.replace(PLAIN, text=""),
    "no body at all": dataclasses.replace(PLAIN, text=None),
    "trailing blank lines": dataclasses.replace(PLAIN, text="a\n\n\n\n\n"),
    "only blank lines": dataclasses.replace(PLAIN, text="\n\n\n"),
    "runs of blanks": dataclasses.replace(PLAIN, text="a  b \t c\n   indented  text\n\ttab\n"),
    "no newline at the end": dataclasses.replace(PLAIN, text="the end"),
    "alternative": dataclasses.replace(PLAIN, html="<p>Grüße\n\n   aus  Köln</p>" * 200),
    "folded headers": dataclasses.replace(
        PLAIN,
        subject="Überraschung " * 20,
        to=tuple(parse(f"Recipient  Number {n} <r{n}@example.org>") for n in range(50)),
        headers=(
            ("X-Long", "word " * 100 + "end"),
            ("X-Twice", "one"),
            ("x-twice", "two   blanks"),
            ("X-E", ""),
        ),
    ),
    "unsubscribe": dataclasses.replace(
        PLAIN,
        headers=(
            ("List-Unsubscribe", "<https://example.com/u/1>"),
            ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
        ),
    ),
    "smtputf8": dataclasses.replace(PLAIN, to=(parse("Jürgen <jürgen@example.org>"),)),
    "attachments": dataclasses.replace(
        PLAIN, attachments=(Part("ä" * 100 + ".bin", "application/pdf", bytes(range(256)) * 400),)
    ),
}


@pytest.mark.parametrize("mail", MAILS.values(), ids=MAILS.keys())
def test_dkimpy_verifies_both_signatures(mail: Mail) -> None:
    content = signed(compose(mail))
    assert verdicts(content, RECORDS) == [True, True]
    head = content.partition(b"\r\n\r\n")[0]
    assert max(map(len, head.split(b"\r\n"))) <= 78


@pytest.mark.parametrize(
    "content",
    [
        b"From: a@example.com\r\n\r\n",
        b"From: a@example.com\r\n\r\n\r\n\r\n",
        b"From: a@example.com\r\n\r\nno newline",
        b"From: a@example.com\r\n\r\n \t \r\n\r\n \r\n",
        b"From: a@example.com\r\n\r\na \t\r\n b\t\tc  \r\n\r\n\r\n",
        b"FROM:  \t a@example.com  \t\r\nSubject:\r\n\tfolded\r\n \t more  \r\n\r\nx\r\n",
        b"Received: from x\r\nReturn-Path: <a@b>\r\nFrom: a@example.com\r\nX: 1\r\nX: 2\r\nx: 3\r\n\r\nx\r\n",
        b"From: a@example.com\r\nSubject: with : colon :\r\nX-Utf8: \xc3\xbc  \xc3\xbc\r\n\r\n\xff\x00\r\n",
    ],
)
def test_any_mail_can_be_signed(content: bytes) -> None:
    assert verdicts(signed(content), RECORDS) == [True, True]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([b" ", b"\t", b"a", b".", b"\r\n", b"  ", b"=", b"\xc3"]), max_size=40),
    st.lists(st.sampled_from([" ", "\t", "a", ":", "\r\n ", "\r\n\t"]), max_size=20),
)
def test_canonicalisation_agrees_with_dkimpy(body: list[bytes], value: list[str]) -> None:
    content = f"From: a@example.com\r\nX-Value: x{''.join(value)}x\r\n\r\n".encode() + b"".join(body)
    # A mail ends with CRLF when it has been through SMTP; dkimpy forgets blanks on an unended line.
    content += b"\r\n"
    assert verdicts(signed(content), RECORDS) == [True, True]


TAMPERINGS = {
    "body": (b"Hello Joe", b"Hello Jim"),
    "subject": (b"Subject: Hello", b"Subject: Hallo"),
    "recipient": (b"joe@", b"jim@"),
    "custom header": (b"X-Custom: 1", b"X-Custom: 2"),
    "timestamp": (b"t=1700000000", b"t=1700000001"),
    "body appended": (b"yours Jane\r\n", b"yours Jane\r\nP.S.\r\n"),
    **{
        f"another {name.decode()}": (b"\r\nMIME-Version", b"\r\n" + name + b": x\r\nMIME-Version")
        for name in (b"From", b"To", b"Cc", b"Subject", b"Date", b"Reply-To", b"Message-ID", b"Content-Type")
    },
    "another List-Unsubscribe": (b"\r\nMIME-Version", b"\r\nList-Unsubscribe: <x>\r\nMIME-Version"),
    "another MIME-Version": (b"\r\nMIME-Version", b"\r\nMIME-Version: 1.1\r\nMIME-Version"),
}


@pytest.mark.parametrize(("old", "new"), TAMPERINGS.values(), ids=TAMPERINGS.keys())
def test_tampering_is_noticed(old: bytes, new: bytes) -> None:
    content = signed(compose(dataclasses.replace(PLAIN, headers=(("X-Custom", "1"),))))
    assert old in content
    assert verdicts(content, RECORDS) == [True, True]
    assert verdicts(content.replace(old, new), RECORDS) == [False, False]


def test_harmless_changes_on_the_way_are_not_tampering() -> None:
    content = signed(compose(PLAIN))
    refolded = content.replace(b"Subject: Hello", b"subject:  Hello ").replace(b"Jane\r\n", b"Jane \r\n")
    assert refolded != content
    assert verdicts(b"Received: from a by b\r\n" + refolded + b"\r\n\r\n", RECORDS) == [True, True]


def test_the_wrong_key_does_not_verify() -> None:
    others = {name: dkim.record(alg, dkim.generate(alg)[1]) for name, alg in zip(RECORDS, ALGORITHMS, strict=True)}
    assert verdicts(signed(compose(PLAIN)), others) == [False, False]


ALGORITHMS: tuple[dkim.Algorithm, ...] = ("rsa-sha256", "ed25519-sha256")


def test_dkimpy_as_another_signer_agrees() -> None:
    """dkimpy, signing this mail with this key, finds the same body hash, and verifies by our record."""
    content = compose(MAILS["folded headers"])
    ours = dkim.sign(content, SIGNERS[:1], timestamp=1)
    assert ours == dkim.sign(content, SIGNERS[:1], timestamp=1)
    pem = serialization.load_der_private_key(RSA_DER, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    theirs = dkimpy.sign(content, b"r1", b"example.com", pem, canonicalize=(b"relaxed", b"relaxed"))
    assert verdicts(theirs + content, RECORDS) == [True]
    body_hashes = {re.sub(rb"\s", b"", field).partition(b";bh=")[2].partition(b";")[0] for field in (ours, theirs)}
    assert len(body_hashes) == 1
    assert len(body_hashes.pop()) == 44


def test_the_field_names_what_it_signs() -> None:
    fields = email.message_from_bytes(signed(compose(MAILS["unsubscribe"])), policy=email.policy.compat32)
    tags = {}
    for tag in "".join(fields.get_all("DKIM-Signature", [])[1].split()).split(";"):
        name, _, value = tag.partition("=")
        tags[name] = value
    assert tags["v"] == "1"
    assert tags["a"] == "ed25519-sha256"
    assert tags["c"] == "relaxed/relaxed"
    assert (tags["d"], tags["s"], tags["t"]) == ("example.com", "e1", "1700000000")
    assert len(base64.b64decode(tags["b"])) == 64
    names = tags["h"].split(":")
    for present in ("from", "to", "subject", "date", "message-id", "mime-version", "content-type"):
        assert names.count(present) == 2
    for present in ("list-unsubscribe", "list-unsubscribe-post"):
        assert names.count(present) == 2
    for absent in ("cc", "reply-to"):
        assert names.count(absent) == 1
    assert names.count("content-transfer-encoding") == 1


def test_without_from_it_is_refused() -> None:
    with pytest.raises(ValueError, match="From"):
        dkim.sign(b"Subject: x\r\n\r\n", SIGNERS, timestamp=1)


def test_no_signers_no_fields() -> None:
    assert dkim.sign(compose(PLAIN), (), timestamp=1) == b""


def test_keys() -> None:
    assert len(base64.b64decode(ED_PUBLIC, validate=True)) == 32
    key = serialization.load_der_public_key(base64.b64decode(RSA_PUBLIC, validate=True))
    assert key.key_size == 2048  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="ed25519"):
        dkim.load("example.com", "s", "ed25519-sha256", RSA_DER)
    with pytest.raises(ValueError, match="rsa"):
        dkim.load("example.com", "s", "rsa-sha256", ED_DER)
    with pytest.raises(ValueError):
        dkim.load("example.com", "s", "rsa-sha256", b"no key")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("v=DKIM1; k=rsa; p=KEY", True),
        ("p=KEY", True),
        ("k=rsa;p=KEY;v=DKIM1;", True),
        (" v = DKIM1 ;\t k = rsa ; p = K E\tY ; ", True),
        ("v=DKIM1; t=y:s; n=note; h=sha1:sha256; s=email; p=KEY", True),
        ("v=DKIM1; k=rsa; p=", False),
        ("v=DKIM1; k=rsa; p=OTHER", False),
        ("v=DKIM1; k=rsa", False),
        ("v=DKIM1; k=ed25519; p=KEY", False),
        ("v=DKIM2; k=rsa; p=KEY", False),
        ("v=DKIM1; h=sha1; p=KEY", False),
        ("v=DKIM1; s=tlsrpt; p=KEY", False),
        ("v=DKIM1; p=KEY; p=OTHER", False),
        ("v=DKIM1; nonsense; p=KEY", False),
        ("v=spf1 -all", False),
        ("", False),
        ("p=KEY; n=" + "x" * 5000, False),
    ],
)
def test_matches(found: str, expected: bool) -> None:
    found = found.replace("K E\tY", f"{RSA_PUBLIC[:9]} \t{RSA_PUBLIC[9:]}").replace("KEY", RSA_PUBLIC)
    assert dkim.matches(found, "rsa-sha256", RSA_PUBLIC) is expected


def test_own_records_match_themselves_only() -> None:
    assert dkim.matches(dkim.record("rsa-sha256", RSA_PUBLIC), "rsa-sha256", RSA_PUBLIC)
    assert dkim.matches(dkim.record("ed25519-sha256", ED_PUBLIC), "ed25519-sha256", ED_PUBLIC)
    assert not dkim.matches(dkim.record("rsa-sha256", RSA_PUBLIC), "ed25519-sha256", RSA_PUBLIC)
    assert not dkim.matches(f"p={ED_PUBLIC}", "ed25519-sha256", ED_PUBLIC)
