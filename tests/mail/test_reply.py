import pytest

from app.mail.reply import MAX_TEXT_CHARACTERS, Phase, Reply, classify, parse


def test_a_reply_has_code_enhanced_code_and_text() -> None:
    reply = parse([b"550 5.1.1 No such user"])
    assert reply == Reply(550, "5.1.1", "No such user")
    assert str(reply) == "550 5.1.1 No such user"
    assert reply.permanent
    assert not reply.transient
    assert not reply.positive


def test_lines_are_joined_and_lose_their_repeated_enhanced_code() -> None:
    reply = parse([b"550-5.7.26 This mail is unauthenticated.", b"550-5.7.26 Read on:", b"550 5.7.26 https://x.test"])
    assert reply == Reply(550, "5.7.26", "This mail is unauthenticated.\nRead on:\nhttps://x.test")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"250", Reply(250, None, "")),
        (b"250 ", Reply(250, None, "")),
        (b"250 2.0.0", Reply(250, "2.0.0", "")),
        (b"550 #5.1.0 Address rejected.", Reply(550, "5.1.0", "Address rejected.")),
        (b"550 4.4.4 of another class", Reply(550, None, "4.4.4 of another class")),
        (b"250 2.1.5x is no code", Reply(250, None, "2.1.5x is no code")),
        (b"554 Gr\xc3\xbc\xc3\x9fe", Reply(554, None, "Grüße")),
        (b"554 Gr\xfc\xdfe", Reply(554, None, "Gr\ufffd\ufffde")),
        (b"554 a\x00b\x1b[31m\tc\x7f", Reply(554, None, "a\ufffdb\ufffd[31m c\ufffd")),
        ("554 a\x9bb".encode(), Reply(554, None, "a\ufffdb")),
    ],
)
def test_parse(line: bytes, expected: Reply) -> None:
    assert parse([line]) == expected


def test_text_is_bounded() -> None:
    reply = parse([b"550-" + "ü".encode() * 1500] * 50 + [b"550 end"])
    assert len(reply.text) == MAX_TEXT_CHARACTERS


@pytest.mark.parametrize("lines", [[], [b""], [b"25"], [b"2x0 ok"], [b"150 ok"], [b"600 ok"]])
def test_what_is_no_reply_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(ValueError):
        parse(lines)


@pytest.mark.parametrize(
    ("line", "phase", "outcome"),
    [
        (b"421 4.3.2 closing", Phase.MAIL, "deferred"),
        (b"451 4.7.1 later", Phase.RCPT, "deferred"),
        (b"452 4.3.1 no room here", Phase.RCPT, "deferred"),
        (b"452 4.2.2 mailbox full", Phase.RCPT, "soft_bounced"),
        (b"450 4.2.1 mailbox disabled", Phase.CONTENT, "soft_bounced"),
        (b"450 4.2.0 we, not a mailbox", Phase.GREETING, "deferred"),
        (b"452 no code", Phase.RCPT, "deferred"),
        (b"550 5.1.1 no such user", Phase.RCPT, "hard_bounced"),
        (b"552 5.2.2 mailbox full for good", Phase.RCPT, "hard_bounced"),
        (b"554 no", Phase.CONTENT, "hard_bounced"),
    ],
)
def test_classify(line: bytes, phase: Phase, outcome: str) -> None:
    assert classify(parse([line]), phase) == outcome
