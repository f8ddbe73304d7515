"""Nothing that comes back may raise, or cost more than its octets."""

import random
import time
from collections.abc import Callable

import pytest

from app.mail import mime, returned
from app.mail.mime import MAX_DEPTH, MAX_PARTS
from app.mail.reply import MAX_TEXT_CHARACTERS
from app.mail.report import Report, read
from app.mail.reported import MAX_ADDRESS_CHARACTERS, MAX_RECIPIENTS, Kind
from tests.mail.mails import DOMAIN, LOCAL, VERP, corpus

MUTANTS = 2_000
MAILS = [wanted.octets for wanted in corpus()]
JUNK = (
    b"\x00",
    b"\xff\xfe\xff",
    b"\x1b$B",
    b"=?utf-8?b?4pyT",
    b"&#99999999999999999999;",
    b"\r\n\r\n",
    b"charset*0*=x''y; charset=z;",
    b"\\x{FFFFFF}\\x{D800}@example.org",
    b"550 5.1.1 ",
    b"Content-Transfer-Encoding: base64\r\n",
    b"Final-Recipient: rfc822; trap@example.net\r\n",
)


def _flipped(chance: random.Random, mail: bytearray) -> None:
    for _ in range(chance.randint(1, 40)):
        mail[chance.randrange(len(mail))] = chance.randrange(256)


def _truncated(chance: random.Random, mail: bytearray) -> None:
    del mail[chance.randrange(1, len(mail) + 1) :]


def _spliced(chance: random.Random, mail: bytearray) -> None:
    other = chance.choice(MAILS)
    mail[chance.randrange(len(mail)) :] = other[chance.randrange(len(other)) :]


def _stuffed(chance: random.Random, mail: bytearray) -> None:
    at = chance.randrange(len(mail))
    mail[at:at] = chance.choice(JUNK) * chance.randint(1, 5)


def _boundaries_doubled(chance: random.Random, mail: bytearray) -> None:
    lines = bytes(mail).split(b"\r\n")
    boundaries = [line for line in lines if line.startswith(b"--")] or [b"--"]
    for _ in range(chance.randint(1, 5)):
        lines.insert(chance.randrange(len(lines)), chance.choice(boundaries))
    mail[:] = b"\r\n".join(lines)


def _lines_repeated(chance: random.Random, mail: bytearray) -> None:
    lines = bytes(mail).split(b"\r\n")
    at = chance.randrange(len(lines))
    lines[at:at] = [lines[at]] * chance.randint(1, 50)
    mail[:] = b"\r\n".join(lines)


def _shuffled(chance: random.Random, mail: bytearray) -> None:
    lines = bytes(mail).split(b"\r\n")
    chance.shuffle(lines)
    mail[:] = b"\r\n".join(lines)


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flipped,
    _truncated,
    _spliced,
    _stuffed,
    _boundaries_doubled,
    _lines_repeated,
    _shuffled,
)


def _check(report: Report) -> None:
    """What holds of every report, whatever it was made of."""
    assert len(report.recipients) <= MAX_RECIPIENTS
    assert len(report.envelope_candidates) <= returned.MAX_CANDIDATES
    assert len(report.original_list_unsubscribe) <= returned.MAX_URLS
    texts = [*report.envelope_candidates, *report.original_list_unsubscribe, report.original_message_id or ""]
    texts += [report.feedback_type or "", report.source_ip or "", report.user_agent or ""]
    for found in report.recipients:
        assert found.diagnosis is None or not found.diagnosis.address_level or found.kind is Kind.FAILURE
        assert len(found.diagnostic) <= MAX_TEXT_CHARACTERS
        for address in (found.address, found.original_address):
            assert address is None or ("@" in address and len(address) <= MAX_ADDRESS_CHARACTERS)
        texts += [found.address or "", found.original_address or "", found.diagnostic, found.remote_mta, found.action]
    for text in texts:
        assert len(text) <= MAX_TEXT_CHARACTERS
        assert not any(ord(each) < 0x20 or 0x7F <= ord(each) < 0xA0 or 0xD800 <= ord(each) < 0xE000 for each in text)


def test_mutilated_mails_are_read_to_some_end() -> None:
    chance = random.Random(3464)
    started = time.process_time()
    kinds = set()
    for _ in range(MUTANTS):
        mail = bytearray(chance.choice(MAILS))
        for _ in range(chance.randint(1, 4)):
            chance.choice(MUTATIONS)(chance, mail)
            mail = mail or bytearray(b"\n")
        report = read(bytes(mail))
        _check(report)
        kinds.add(report.kind)
    assert kinds == set(Kind)
    assert time.process_time() - started < 60


def test_random_octets_are_no_report() -> None:
    chance = random.Random(5965)
    for _ in range(300):
        assert read(chance.randbytes(chance.randint(0, 3_000))).kind is Kind.OTHER


HEAD = b"From: MAILER-DAEMON@example.org\r\nTo: a@example.org\r\nSubject: failure notice\r\n"
REPORT = (
    HEAD
    + b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\n\r\nSorry.\r\n--b\r\n"
    b"Content-Type: message/delivery-status\r\n\r\n"
)
GROUP = b"Final-Recipient: rfc822; a@example.org\r\nAction: failed\r\nStatus: 5.1.1\r\n"
HTML = HEAD + b"Content-Type: text/html\r\n\r\n"
# Made when they are wanted: together they are large.
PATHOLOGICAL: dict[str, Callable[[], bytes]] = {
    "one line": lambda: HEAD + b"\r\n" + b"a" * 8_000_000,
    "at signs": lambda: HEAD + b"\r\n" + b"a@" * 4_000_000,
    "recipients": lambda: (
        HEAD + b"\r\n" + b"".join(b"<a%d@example.org>: 550 5.1.1 No\r\n" % each for each in range(200_000))
    ),
    "sentences": lambda: HEAD + b"\r\n" + (b"mail to " * 120 + b"@\r\n") * 10_000,
    "replies": lambda: HEAD + b"\r\n" + b"550 " * 1_000_000,
    "statuses": lambda: HEAD + b"\r\n" + b"(#5.1.1" * 1_000_000,
    "blanks": lambda: HEAD + b"\r\n" + b" " * 5_000_000,
    "empty lines": lambda: b"\r\n" * 4_000_000,
    "nothing": lambda: b"",
    "zeros": lambda: b"\x00" * 5_000_000,
    "nested parts": lambda: (
        HEAD
        + b"".join(
            b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (each, each) for each in range(10_000)
        )
    ),
    "parts": lambda: HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n" * 1_000_000,
    "almost parts": lambda: (
        HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" + b"--bx\r\n" * 1_000_000
    ),
    "headers": lambda: b"X-A: b\r\n" * 100_000 + HEAD + b"\r\n.",
    "return paths": lambda: (
        HEAD
        + b"".join(b"X-A: b%061d@%s\r\n" % (0, DOMAIN.encode()) for _ in range(10))
        + f"X-A: {VERP}\r\n".encode() * 50_000
    ),
    "a long header": lambda: b"X-A: " + b"a" * 5_000_000 + b"\r\n" + HEAD + b"\r\n.",
    "a folded header": lambda: b"X-A: a\r\n" + b" a\r\n" * 1_000_000 + HEAD + b"\r\n.",
    "no colon": lambda: b"a" * 5_000_000,
    "parameters": lambda: HEAD + b"Content-Type: text/plain" + b"; a=b" * 500_000 + b"\r\n\r\n.",
    "an open quote": lambda: HEAD + b'Content-Type: text/plain; a="' + b";" * 1_000_000 + b"\r\n\r\n.",
    "encoded words": lambda: HEAD.replace(b"failure notice", b"=?a?q?" * 500_000) + b"\r\n.",
    "groups": lambda: REPORT + (GROUP + b"\r\n") * 50_000,
    "one group": lambda: REPORT + GROUP * 50_000,
    "a long diagnostic": lambda: REPORT + GROUP + b"Diagnostic-Code: smtp; " + b"550 5.1.1 " * 500_000,
    "parentheses": lambda: REPORT + GROUP[:-2] + b" " + b"(" * 1_000_000,
    "base64": lambda: HEAD + b"Content-Transfer-Encoding: base64\r\n\r\n" + b"YWJj\r\n" * 1_000_000,
    "padding": lambda: HEAD + b"Content-Transfer-Encoding: base64\r\n\r\n" + b"=" * 5_000_000,
    "quoted-printable": lambda: HEAD + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=\r\n" * 1_000_000,
    "angle brackets": lambda: HTML + b"<" * 5_000_000,
    "styles": lambda: HTML + b"<style" * 1_000_000,
    "comments": lambda: HTML + b"<!--" * 1_000_000,
    "references": lambda: HTML + b"&#" + b"9" * 1_000_000,
    "a slow codec": lambda: HEAD + b"Content-Type: text/plain; charset=punycode\r\n\r\n" + b"a-" * 1_000_000,
    "links": lambda: (
        REPORT + b"\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nList-Unsubscribe: " + b"<https://a>," * 1_000_000
    ),
}


@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_enormous_mails_cost_little_more_than_to_look_at(name: str) -> None:
    mail = PATHOLOGICAL[name]()
    started = time.process_time()
    _check(read(mail))
    assert time.process_time() - started < 5


def test_depth_and_number_of_parts_are_bounded() -> None:
    deep = mime.parse(PATHOLOGICAL["nested parts"]())
    depth = 0
    while deep.parts:
        (deep,) = deep.parts
        depth += 1
    assert depth == MAX_DEPTH
    for name in ("parts", "almost parts"):
        assert len(list(mime.parse(PATHOLOGICAL[name]()).walk())) <= MAX_PARTS
    wide = b"".join(b"--b\r\n\r\n" + HTML for _ in range(1_000))
    tree = mime.parse(HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + wide)
    assert len(list(tree.walk())) == MAX_PARTS


def test_fields_and_their_values_are_bounded() -> None:
    header = mime.parse(PATHOLOGICAL["headers"]()).header
    assert len(header.fields) == mime.MAX_FIELDS
    for name in ("a long header", "a folded header"):
        assert {len(value) for _, value in mime.parse(PATHOLOGICAL[name]()).header.fields} <= {
            mime.MAX_VALUE_CHARACTERS
        }
    many = b"".join(b"X-A: %s@%s\r\n" % (_other(each), DOMAIN.encode()) for each in range(60))
    assert len(read(HEAD + many + b"\r\n.").envelope_candidates) == returned.MAX_CANDIDATES


def _other(number: int) -> bytes:
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    return f"{LOCAL[:-2]}{letters[number // 32]}{letters[number % 32]}".encode()
