import random
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from app.mail.diagnosis import PROVIDERS, RULES, Action, Category, Diagnosis, RuleError, diagnose, load
from app.mail.reply import MAX_TEXT_CHARACTERS, Phase, Reply, parse

CORPUS = Path(__file__).with_name("replies_corpus.toml")
ABOUT_RECIPIENT = (Phase.RCPT, Phase.DATA, Phase.CONTENT)


class Row(NamedTuple):
    source: str
    provider: str
    phase: Phase
    category: str
    action: str
    address_level: bool
    reply: Reply


def _read() -> list[Row]:
    sources = tomllib.loads(CORPUS.read_text(encoding="utf-8"))["source"]
    return [
        Row(
            source["name"],
            source.get("provider", ""),
            Phase(phase),
            category,
            action,
            address_level,
            parse(lines.encode().split(b"\n")),
        )
        for source in sources
        for phase, category, action, address_level, lines in source["replies"]
    ]


ROWS = _read()

LISTED = [
    "Service unavailable; Client host [198.51.100.7] blocked using zen.spamhaus.org",
    "rejected: 198.51.100.7 is in a black list at bl.spamcop.net",
    "198.51.100.7 is listed on dnsbl-1.uceprotect.net",
    "poor reputation sender",
    "your domain is listed in the Spamhaus DBL",
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.source}: {row.reply}"[:90])
def test_what_real_hosts_say_is_understood(row: Row) -> None:
    found = diagnose(row.reply, row.phase, row.provider)
    assert (found.category, found.action, found.address_level) == (row.category, row.action, row.address_level), found


def test_the_table_is_wide_enough() -> None:
    assert len(ROWS) >= 170
    assert len({row.source for row in ROWS}) >= 20
    assert {row.category for row in ROWS} == set(Category)
    assert {row.action for row in ROWS} == set(Action)
    assert {row.provider for row in ROWS} == {"", *PROVIDERS}
    assert len({(row.provider, row.phase, str(row.reply)) for row in ROWS}) == len(ROWS)


def test_every_rule_is_met_by_a_real_reply() -> None:
    met = Counter(diagnose(row.reply, row.phase, row.provider).rule for row in ROWS)
    assert [rule.permanent.rule for rule in RULES if not met[rule.permanent.rule]] == []


@pytest.mark.parametrize("listed", LISTED)
@pytest.mark.parametrize("phase", list(Phase))
def test_a_list_or_reputation_is_never_the_recipients_fault(listed: str, phase: Phase) -> None:
    for code, enhanced in ((550, None), (550, "5.1.1"), (554, "5.7.1"), (553, "5.2.1"), (421, "4.7.0"), (451, None)):
        for provider in ("", *PROVIDERS):
            found = diagnose(Reply(code, enhanced, listed), phase, provider)
            assert not found.address_level
            if phase is not Phase.STARTTLS:
                assert found.category is Category.BLOCKLISTED
                assert found.action in ((Action.BLOCK,) if code >= 500 else (Action.RETRY, Action.SLOW_DOWN))


@pytest.mark.parametrize("listed", LISTED)
def test_words_on_the_mailbox_beside_a_list_do_not_blame_it(listed: str) -> None:
    for row in ROWS:
        reply = Reply(row.reply.code, row.reply.enhanced, f"{row.reply.text}; {listed}")
        assert not diagnose(reply, row.phase).address_level, reply


def test_no_security_code_blames_the_address() -> None:
    texts = ["", *(row.reply.text for row in ROWS if row.address_level)]
    assert len(texts) > 40
    for detail in (*range(0, 31), 124, 133, 350, 501, 511, 606, 649, 999):
        for text in texts:
            for reply in (Reply(550, f"5.7.{detail}", text), Reply(550, None, f"{text} (#5.7.{detail})")):
                for provider in ("", *PROVIDERS):
                    assert not diagnose(reply, Phase.RCPT, provider).address_level, reply


@pytest.mark.parametrize("row", [row for row in ROWS if row.address_level], ids=lambda row: str(row.reply)[:90])
def test_the_address_is_blamed_by_5yz_to_the_recipient_only(row: Row) -> None:
    for phase in Phase:
        found = diagnose(row.reply, phase, row.provider)
        assert not found.address_level or (phase in ABOUT_RECIPIENT and found.action is Action.HARD_BOUNCE)
    enhanced = row.reply.enhanced and f"4{row.reply.enhanced[1:]}"
    transient = diagnose(Reply(450, enhanced, row.reply.text), row.phase, row.provider)
    assert transient.action is Action.RETRY
    assert not transient.address_level


@pytest.mark.parametrize(
    "text",
    [
        "Domain of sender address bounce@example.org does not exist",
        "Sender address <bounce@example.org> does not exist",
        "sender account not found",
        "Return address unknown",
        "Your account has been disabled for sending",
        "your IP address is unknown",
        "The IP address not found in DNS",
        "IP address 198.51.100.7 has been locked; connection closed",
        "The MX record does not exist",
        "Your email address is invalid",
        "From address invalid",
        "Message has no Message-ID",
        "Service not active",
        "this service is no longer available",
        "expediteur inconnu",
        "sender doesn't have a valid MX",
        "mailbox unavailable; reject due to policy restrictions",
        "Domain example.org does not exist",
        "The user's account is temporarily disabled",
        "No",
        "",
    ],
)
def test_what_only_sounds_like_a_bad_address_suppresses_nobody(text: str) -> None:
    for code in (550, 553, 554):
        for phase in ABOUT_RECIPIENT:
            assert not diagnose(Reply(code, None, text), phase).address_level


def test_what_is_transient_is_never_final() -> None:
    for row in ROWS:
        found = diagnose(Reply(451, None, row.reply.text), row.phase, row.provider)
        assert found.action in (Action.RETRY, Action.SLOW_DOWN)
    for detail in range(1, 41):
        for subject in range(8):
            found = diagnose(Reply(450, f"4.{subject}.{detail}", ""), Phase.RCPT)
            assert found.action in (Action.RETRY, Action.SLOW_DOWN)


def test_only_slow_down_and_block_slow_down() -> None:
    slow = [diagnose(row.reply, row.phase, row.provider) for row in ROWS]
    assert all(found.slow_seconds for found in slow if found.action is Action.SLOW_DOWN)
    assert all(found.action in (Action.SLOW_DOWN, Action.BLOCK) for found in slow if found.slow_seconds)
    yahoo = Reply(421, "4.7.0", "[TSS04] Messages from 198.51.100.7 temporarily deferred due to user complaints")
    crowded = diagnose(Reply(421, None, "Too many connections"), Phase.GREETING)
    assert crowded.slow_seconds < 600 < 3600 < diagnose(yahoo, Phase.MAIL, "yahoo").slow_seconds


def test_one_customers_failing_authentication_slows_nobody_else() -> None:
    for row in ROWS:
        found = diagnose(row.reply, row.phase, row.provider)
        if found.rule in ("authentication", "gmail-authentication", "gmail-domain-rate", "domain-blocklisted"):
            assert found.slow_seconds == 0


def test_a_provider_is_heard_by_its_own_rules_only() -> None:
    reply = Reply(553, "5.7.2", "[TSS09] All messages from 198.51.100.7 will be permanently deferred")
    assert diagnose(reply, Phase.MAIL, "yahoo").rule == "yahoo-permanently-deferred"
    assert diagnose(reply, Phase.MAIL, "gmail") == diagnose(reply, Phase.MAIL) == diagnose(reply, Phase.MAIL, "nobody")
    assert diagnose(reply, Phase.MAIL).rule == "security-status"


def test_lines_case_and_apostrophes_do_not_hide_words() -> None:
    broken = Reply(550, None, "THE EMAIL ACCOUNT THAT YOU TRIED\nTO REACH   DOESN\u2019T\nEXIST")
    assert diagnose(broken, Phase.RCPT) == Diagnosis(Category.BAD_MAILBOX, Action.HARD_BOUNCE, True, "mailbox-unknown")


def test_words_within_an_address_count_for_nothing() -> None:
    for local in ("spamhaus", "too.many.connections", "policy", "dmarc", "user.unknown", "greylist", "phish"):
        found = diagnose(Reply(550, None, f"<{local}@example.com>: no such user"), Phase.RCPT)
        assert (found.category, found.address_level) == (Category.BAD_MAILBOX, True)
        assert diagnose(Reply(550, None, f"<{local}@example.com> no"), Phase.RCPT).rule == "recipient-refused"


def test_random_replies_never_raise_and_take_bounded_time() -> None:
    chance = random.Random(5321)
    words = " ".join(row.reply.text for row in ROWS).split()
    nasty = ["a" * 1999, "sender " * 300, "user " * 400, "domain " * 290, "\n" * 2000, "exceeded " * 222, "(#5.1" * 400]
    started = time.process_time()
    slowest = 0.0
    for number in range(2000):
        kind = number % 4
        if kind == 0:
            text = " ".join(chance.choices(words, k=chance.randint(0, 300)))
        elif kind == 1:
            text = "".join(map(chr, chance.choices(range(1, 0x3000), k=chance.randint(0, 2000))))
        elif kind == 2:
            text = chance.choice(nasty)
        else:
            text = ""
        code = chance.randint(200, 599)
        enhanced = f"{code // 100}.{chance.randint(0, 9)}.{chance.randint(0, 700)}" if chance.random() < 0.6 else None
        begun = time.process_time()
        found = diagnose(
            Reply(code, enhanced, text[:MAX_TEXT_CHARACTERS]),
            chance.choice(list(Phase)),
            chance.choice(["", "generic", *PROVIDERS]),
        )
        slowest = max(slowest, time.process_time() - begun)
        assert not found.address_level or (code >= 500 and found.action is Action.HARD_BOUNCE)
        assert code >= 500 or found.action in (Action.RETRY, Action.SLOW_DOWN)
    assert time.process_time() - started < 10
    assert slowest < 0.25


GOOD = 'category = "other"\naction = "retry"\n'
LAST = f'[[rule]]\nid = "last"\n{GOOD}[[rule]]\nid = "odd"\ncodes = ["2", "3"]\n{GOOD}'


def test_a_file_is_read_in_its_order() -> None:
    rules = load(f'[[rule]]\nid = "first"\ncodes = ["421"]\nprovider = "gmail"\n{GOOD}{LAST}')
    assert [rule.permanent.rule for rule in rules] == ["first", "last", "odd"]


def test_x_stands_for_a_digit_and_a_dot_for_the_subject() -> None:
    rules = load(f'[[rule]]\nid = "first"\nenhanced = ["5.7.6xx", "5.1.", "5.2.1"]\n{GOOD}{LAST}')
    fits = [code for code in ("5.7.6", "5.7.60", "5.7.600", "5.7.699", "5.1.9", "5.2.1", "5.2.10", "4.1.1", "")]
    assert [code for code in fits if rules[0].fits("550", code, Phase.RCPT)] == ["5.7.600", "5.7.699", "5.1.9", "5.2.1"]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('category = "nonsense"\naction = "retry"', "unknown category 'nonsense'"),
        ('category = "other"\naction = "explode"', "unknown action"),
        ('category = "other"', "unknown action None"),
        ('category = "other"\naction = "retry"\ntexts = ["x"]', "unknown key 'texts'"),
        ('category = "other"\naction = "retry"\nprovider = "hotmail"', "unknown provider"),
        ('category = "other"\naction = "retry"\ncodes = ["6"]', "codes cannot be '6'"),
        ('category = "other"\naction = "retry"\ncodes = "550"', "codes is a list of strings"),
        ('category = "other"\naction = "retry"\nenhanced = ["5.1"]', "enhanced cannot be '5.1'"),
        ('category = "other"\naction = "retry"\nphase = ["never"]', "unknown phase"),
        ('category = "other"\naction = "retry"\ntext = ["User"]', "lower case"),
        ('category = "other"\naction = "retry"\ntext = ["(user"]', "missing"),
        ('category = "other"\naction = "retry"\ntext = ["a.*b"]', "repetition"),
        ('category = "other"\naction = "retry"\ntext = ["(a|b){2,9}"]', "repetition"),
        ('category = "other"\naction = "retry"\ntext = ["a{0,9}b{0,9}"]', "repetition"),
        ('category = "other"\naction = "retry"\ntext = ["a{3,}"]', "repetition"),
        ('category = "other"\naction = "retry"\ntext = ["a{3,101}"]', "repetition"),
        ('category = "other"\naction = "retry"\ntext = [""]', "text is a list of strings"),
        ('category = "other"\naction = "retry"\naddress_level = true', "goes with hard_bounce"),
        ('category = "other"\naction = "hard_bounce"\naddress_level = 1', "true or false"),
        ('category = "policy"\naction = "hard_bounce"\naddress_level = true\nenhanced = ["5.7.1"]', "5.7.x"),
        ('category = "other"\naction = "slow_down"', "slow_down needs slow_seconds"),
        ('category = "other"\naction = "retry"\nslow_seconds = 5', "only block"),
        ('category = "other"\naction = "block"\nslow_seconds = 86401', "from 0 to 86400"),
    ],
)
def test_a_bad_rule_is_refused_by_its_id(body: str, fault: str) -> None:
    with pytest.raises(RuleError, match=r"^rule bad-one: .*") as caught:
        load(f'[[rule]]\nid = "bad-one"\n{body}\n{LAST}')
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("[[rule", "not a rule file"),
        ("", "not a rule file"),
        (f"{LAST}{LAST}", "rule last: there are two"),
        (f"[[rule]]\n{GOOD}{LAST}", "rule number 1"),
        (f'[[rule]]\nid = "Bad One"\n{GOOD}{LAST}', "rule Bad One: an id is"),
        (f'[[rule]]\nid = "last"\n{GOOD}', "the last rule for 2yz"),
        (f'{LAST}[[rule]]\nid = "later"\ntext = ["x"]\n{GOOD}', "the last rule for 4yz"),
    ],
)
def test_a_bad_file_is_refused(source: str, fault: str) -> None:
    with pytest.raises(RuleError, match=fault):
        load(source)
