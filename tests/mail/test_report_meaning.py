"""What the words and fields of a report mean for a recipient."""

import tomllib
from pathlib import Path

import pytest

from app.mail.diagnosis import Category, diagnose
from app.mail.reply import Phase, Reply, parse
from app.mail.report import read
from app.mail.reported import Kind
from tests.mail.mails import wire

DSN = """\
From: MAILER-DAEMON@relay.example.net (Mail Delivery System)
To: @VERP@
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary=B

--B
Content-Type: text/plain; charset=utf-8

{said}

--B
Content-Type: message/delivery-status

Reporting-MTA: dns; relay.example.net

Final-Recipient: rfc822; user@example.org
{fields}

--B
Content-Type: message/rfc822

@ORIGINAL@
--B--
"""
WORDS = """\
From: MAILER-DAEMON@relay.example.net
To: @VERP@
Subject: failure notice

{said}

--- Below this line is a copy of the message.

@ORIGINAL@
"""


def test_a_reply_means_in_a_report_what_it_means_to_us() -> None:
    """Every reply that real hosts give, as Postfix and qmail would tell of it."""
    sources = tomllib.loads(Path(__file__).with_name("replies_corpus.toml").read_text(encoding="utf-8"))["source"]
    told = {"rcpt": "RCPT TO", "mail": "MAIL FROM", "data": "DATA", "content": "end of DATA"}
    compared = 0
    for source in sources:
        for phase, _, _, _, lines in source["replies"]:
            reply = parse(lines.encode().split(b"\n"))
            if source.get("provider") or phase not in told or reply.code < 400:
                continue
            one_line = " ".join(lines.split())
            said = f"<user@example.org>: host mx.example.org[192.0.2.25] said: {one_line}"
            said += f" (in reply to {told[phase]} command)"
            wanted = diagnose(reply, Phase(phase))
            for mail in (
                DSN.format(said=said, fields=f"Action: failed\nDiagnostic-Code: smtp; {one_line}"),
                WORDS.format(said=said),
            ):
                (found,) = read(wire(mail)).recipients
                assert (found.kind, found.code) == (Kind.FAILURE, reply.code), lines
                assert found.diagnosis, lines
                assert (found.diagnosis.category, found.diagnosis.address_level) == (
                    wanted.category,
                    wanted.address_level,
                ), (lines, found)
            compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    ("fields", "kind", "status", "category", "address_level"),
    [
        ("Action: failed\nStatus: 5.1.1", Kind.FAILURE, "5.1.1", "bad_mailbox", True),
        ("Action: failed\nStatus: 5.2.1", Kind.FAILURE, "5.2.1", "inactive_mailbox", True),
        ("Action: failed\nStatus: 5.1.2", Kind.FAILURE, "5.1.2", "bad_domain", True),
        ("Action: failed\nStatus: 5.2.2", Kind.FAILURE, "5.2.2", "mailbox_full", False),
        ("Action: failed\nStatus: 5.7.1", Kind.FAILURE, "5.7.1", "policy", False),
        ("Action: failed\nStatus: 5.0.0", Kind.FAILURE, "5.0.0", "other", False),
        ("Action: failed\nStatus: 4.1.1", Kind.FAILURE, "4.1.1", "bad_mailbox", False),
        ("Action: failed", Kind.FAILURE, None, "other", False),
        ("Status: 5.1.1", Kind.FAILURE, "5.1.1", "bad_mailbox", True),
        ("Status: 4.1.1", Kind.DELAY, "4.1.1", "bad_mailbox", False),
        ("Action: delayed\nStatus: 5.1.1", Kind.DELAY, "5.1.1", "bad_mailbox", False),
        ("Action: FAILED (see above)\nStatus: 5.1.1 (no such user)", Kind.FAILURE, "5.1.1", "bad_mailbox", True),
        ("Action: failed\nStatus: 2.0.0", Kind.FAILURE, "2.0.0", "other", False),
        ("Action: failed\nStatus: nonsense", Kind.FAILURE, None, "other", False),
        (
            "Action: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.7.1 rejected",
            Kind.FAILURE,
            "5.7.1",
            "policy",
            False,
        ),
        (
            "Action: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 450 4.1.1 user unknown",
            Kind.FAILURE,
            "4.1.1",
            "bad_mailbox",
            False,
        ),
        (
            "Action: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 user unknown (5.7.1)",
            Kind.FAILURE,
            "5.7.1",
            "bad_mailbox",
            False,
        ),
        (
            "Action: failed\nStatus: 5.0.0\nDiagnostic-Code: 550 5.1.1 RESOLVER.ADR.RecipNotFound; not found",
            Kind.FAILURE,
            "5.1.1",
            "bad_mailbox",
            True,
        ),
        (
            "Action: failed\nStatus: 5.1.1\nDiagnostic-Code: x-unix; user unknown",
            Kind.FAILURE,
            "5.1.1",
            "bad_mailbox",
            True,
        ),
        (
            "Action: failed\nStatus: 5.3.0\nDiagnostic-Code: X-Postfix; mail for example.org loops back to myself",
            Kind.FAILURE,
            "5.3.0",
            "routing",
            False,
        ),
    ],
)
def test_what_fields_mean(fields: str, kind: Kind, status: str | None, category: str, address_level: bool) -> None:
    (found,) = read(wire(DSN.format(said="Sorry.", fields=fields))).recipients
    assert found.diagnosis
    assert (found.kind, found.status, found.diagnosis.category, found.diagnosis.address_level) == (
        kind,
        status,
        category,
        address_level,
    )


def test_no_words_blame_the_address_beside_a_security_code() -> None:
    for detail in (*range(0, 31), 124, 133, 350, 501, 606, 999):
        for fields in (
            f"Action: failed\nStatus: 5.7.{detail}\nDiagnostic-Code: smtp; 550 5.1.1 User unknown",
            f"Action: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.7.{detail} User unknown",
            f"Action: failed\nStatus: 5.1.1\nDiagnostic-Code: x-unix; user unknown, error 5.7.{detail}",
        ):
            (found,) = read(wire(DSN.format(said="Sorry.", fields=fields))).recipients
            assert found.diagnosis
            assert not found.diagnosis.address_level, fields


def test_the_words_of_one_recipient_are_not_anothers() -> None:
    said = (
        "<other@example.org>: host mx.example.org said: 550 5.1.1 User unknown\n\n<third@example.org>: 552 5.2.2 full"
    )
    (found,) = read(wire(DSN.format(said=said, fields="Action: failed"))).recipients
    assert (found.code, found.status, found.diagnostic) == (None, None, "")
    two = read(wire(WORDS.format(said=f"<user@example.org>:\nno route\n\n{said}"))).recipients
    assert [(found.address, found.code, found.diagnosis and found.diagnosis.category) for found in two] == [
        ("user@example.org", None, Category.ROUTING),
        ("other@example.org", 550, Category.BAD_MAILBOX),
        ("third@example.org", 552, Category.MAILBOX_FULL),
    ]


def test_dates_are_aware_or_none() -> None:
    for date, wanted in (
        ("Tue, 6 Oct 2026 09:12:43 +0200", "2026-10-06T07:12:43+00:00"),
        ("Tue, 6 Oct 2026 09:12:43 -0000", "2026-10-06T09:12:43+00:00"),
        ("Tue, 6 Oct 2026 09:12:43", "2026-10-06T09:12:43+00:00"),
        ("Tue, 6 Oct 2026 09:12:43 +9999", None),
        ("Tue, 6 Oct 99999999 09:12:43 +0000", None),
        ("Fri, 31 Dec 9999 23:59:59 -2359", None),
        ("yesterday", None),
        ("", None),
    ):
        mail = DSN.format(said=".", fields="Action: failed").replace(
            "Reporting-MTA:", f"Arrival-Date: {date}\nReporting-MTA:"
        )
        found = read(wire(mail)).arrival_date
        assert (found.isoformat() if found else None) == wanted


def test_a_reply_is_told_in_one_line_without_controls() -> None:
    diagnostic = "smtp; 550-5.1.1 No\x1b[31m such\n\t550-5.1.1 mailbox\x00\n 550 5.1.1 here"
    (found,) = read(wire(DSN.format(said=".", fields=f"Action: failed\nDiagnostic-Code: {diagnostic}"))).recipients
    assert found.diagnostic == "550 5.1.1 No\ufffd[31m such mailbox\ufffd here"
    assert found.diagnosis == diagnose(Reply(550, "5.1.1", found.diagnostic[10:]), Phase.RCPT)
