"""What a negative SMTP reply means: whose trouble it is, and what is to be done about it.

The knowledge is in replies.toml beside this file, which says at its head how it is read; here it is loaded,
checked and matched. A 4yz reply is never final, and a recipient is only blamed when a 5yz reply says so of the
address itself: never for a 5.7.x, which speaks of security or policy (RFC 3463 §3.8).
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import resources
from typing import Any, TypeVar

from app.mail.reply import Phase, Reply

PROVIDERS = frozenset({"gmail", "microsoft", "yahoo", "apple"})
MAX_SLOW_SECONDS = 86_400

_Enum = TypeVar("_Enum", bound=StrEnum)

_KEYS = frozenset(
    {"id", "provider", "codes", "enhanced", "phase", "text", "category", "action", "address_level", "slow_seconds"}
)
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_CODE = re.compile(r"[2-5]\d{0,2}")
_ENHANCED = re.compile(r"[45]\.\d{1,3}\.(|\d{1,3}|\d{1,2}x|\dxx)")
# What could make matching slower than linear: open repetitions, and a counted one of a group.
_UNSAFE = re.compile(r"(?<!\\)[*+]|,\}|\)\{|\\\d|\(\?P")
_COUNTED = re.compile(r"(?<!\\)\{(?:\d+,)?(\d+)\}")
_MAX_COUNT = 100
_UPPER = re.compile(r"(?<!\\)[A-Z]")
_SPECIAL = frozenset(".^$*+?{}[]\\|()")
# qmail and those who learnt of it write the enhanced code last, as (#5.1.1).
_LAST_ENHANCED = re.compile(r"\(#([45]\.\d{1,3}\.\d{1,3})\b")
# An address may contain any word: postmaster, spamhaus, policy.
_ADDRESS = re.compile(r"<[^<>@ ]{1,64}@[^<> ]{1,255}>")
_SECURITY = re.compile(r"(?<![\d.])5\.7\.\d{1,3}(?![\d.])")


class Category(StrEnum):
    """What the trouble is about."""

    BAD_MAILBOX = "bad_mailbox"  # there is no such recipient
    INACTIVE_MAILBOX = "inactive_mailbox"  # the mailbox is there but takes no mail: disabled, closed, busy
    MAILBOX_FULL = "mailbox_full"  # the recipient has no room
    BAD_DOMAIN = "bad_domain"  # the recipient's domain does not exist or takes no mail
    BLOCKLISTED = "blocklisted"  # the reputation of our address or the sender's domain, or a list that has it
    AUTH_FAILURE = "auth_failure"  # SPF, DKIM, DMARC, or the reverse DNS of our address
    SPAM = "spam"  # the mail was taken for spam or phishing
    CONTENT = "content"  # size, attachment, virus, format or encoding of the mail
    POLICY = "policy"  # a rule of theirs, not told more closely
    SENDER_REJECTED = "sender_rejected"  # the envelope sender or its domain is not accepted
    RELAY_DENIED = "relay_denied"  # the host does not serve the recipient's domain, or only after a login
    RATE_LIMITED = "rate_limited"  # too much in too short a time
    TOO_MANY_CONNECTIONS = "too_many_connections"  # too many sessions at once
    GREYLISTED = "greylisted"  # the host wants to see us try again
    TLS = "tls"  # encryption was demanded or could not be agreed on
    PROTOCOL = "protocol"  # the SMTP conversation itself went wrong
    ROUTING = "routing"  # loops, and hosts that cannot find their own way
    NETWORK = "network"  # connections and time-outs behind the host
    SYSTEM = "system"  # the host's own trouble: load, storage, configuration
    OTHER = "other"  # nothing is known


class Action(StrEnum):
    """What is to be done with the mail."""

    RETRY = "retry"  # it waits and is tried again as usual
    HARD_BOUNCE = "hard_bounce"  # final for this delivery
    BLOCK = "block"  # final for this delivery, by our or the customer's doing; never the recipient's fault
    SLOW_DOWN = "slow_down"  # it waits, and this egress sends to this site more slowly or not at all for a time


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a reply means.

    address_level: the address itself is bad; only this may suppress a recipient, and only with hard_bounce.
    rule: the id of the rule in replies.toml that said so. slow_seconds: for how long the egress should slow down
    towards the site: always with slow_down; with block where more mail would meet the same; else 0.
    """

    category: Category
    action: Action
    address_level: bool
    rule: str
    slow_seconds: int = 0


class RuleError(ValueError):
    """A rule file that cannot be used. Says which rule and why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, ready to be matched: conditions, then what it says of a 5yz reply and of any other."""

    provider: str
    codes: tuple[str, ...]
    enhanced: frozenset[str]
    subjects: tuple[str, ...]
    phases: frozenset[Phase]
    literals: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]
    permanent: Diagnosis
    blameless: Diagnosis
    transient: Diagnosis

    def says(self, text: str) -> bool:
        """Whether a condition on the text (in lower case) holds, or there is none."""
        for literal in self.literals:
            if literal in text:
                return True
        for pattern in self.patterns:
            if pattern.search(text):
                return True
        return not self.literals and not self.patterns

    def fits(self, code: str, enhanced: str, phase: Phase) -> bool:
        """Whether all conditions but that on the text hold."""
        if not code.startswith(self.codes) or (self.phases and phase not in self.phases):
            return False
        if self.enhanced or self.subjects:
            return enhanced in self.enhanced or enhanced.startswith(self.subjects)
        return True

    @property
    def unconditional(self) -> bool:
        return not (self.provider or self.enhanced or self.subjects or self.phases or self.literals or self.patterns)


def diagnose(reply: Reply, phase: Phase, provider: str = "") -> Diagnosis:
    """Say what a reply other than the wanted one means, said at a phase by a host of a provider ("" if none is known).

    Never raises for a reply that `parse` made; takes time linear in its text, which is bounded.
    """
    code = str(reply.code)
    text = _ADDRESS.sub("<@>", " ".join(reply.text.lower().replace("\u2019", "'").split()))
    enhanced = reply.enhanced or _enhanced_within(text, code) or ""
    of_digit = _INDEX[code[0]]
    for rule in of_digit.get(provider, of_digit[""]):
        if rule.fits(code, enhanced, phase) and rule.says(text):
            if not reply.permanent:
                return rule.transient
            return rule.permanent if _blames_address(phase, enhanced, text) else rule.blameless
    raise AssertionError("the last rule matches everything")


def _enhanced_within(text: str, code: str) -> str | None:
    found = _LAST_ENHANCED.search(text)
    return found[1] if found and found[1][0] == code[0] else None


def _blames_address(phase: Phase, enhanced: str, text: str) -> bool:
    """Whether a reply at this phase with these words can be about the recipient's address at all."""
    if phase not in (Phase.RCPT, Phase.DATA, Phase.CONTENT) or enhanced.startswith("5.7."):
        return False
    return _SECURITY.search(text) is None


def load(source: str) -> tuple[Rule, ...]:
    """Read rules from TOML, in their order. Raises RuleError, naming the rule, for one that cannot be used."""
    try:
        tables = tomllib.loads(source)["rule"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise RuleError(f"not a rule file: {error}") from None
    rules: dict[str, Rule] = {}
    for number, table in enumerate(tables, 1):
        name = str(table.get("id", f"number {number}"))
        if name in rules:
            raise RuleError(f"rule {name}: there are two of that id")
        try:
            rules[name] = _rule(table)
        except (ValueError, TypeError, re.error) as error:
            raise RuleError(f"rule {name}: {error}") from None
    for digit, of_digit in _index(tuple(rules.values())).items():
        if not of_digit[""] or not of_digit[""][-1].unconditional or digit not in of_digit[""][-1].codes:
            raise RuleError(f"the last rule for {digit}yz must have no other condition")
    return tuple(rules.values())


def _rule(table: Mapping[str, Any]) -> Rule:
    if unknown := table.keys() - _KEYS:
        raise ValueError(f"unknown key {min(unknown)!r}")
    if not _ID.fullmatch(str(table.get("id"))):
        raise ValueError("an id is words of a-z and 0-9 joined by hyphens")
    provider = table.get("provider", "")
    if provider and provider not in PROVIDERS:
        raise ValueError(f"unknown provider {provider!r}")
    codes = _strings(table, "codes", _CODE) or ("4", "5")
    enhanced = _strings(table, "enhanced", _ENHANCED)
    texts = _strings(table, "text")
    for text in texts:
        _check_text(text)
    permanent = _diagnosis(table)
    if permanent.address_level and any(each.startswith("5.7.") for each in enhanced):
        raise ValueError("a 5.7.x is never the address's fault")
    return Rule(
        provider=provider,
        codes=codes,
        enhanced=frozenset(code for each in enhanced for code in _expanded(each)),
        subjects=tuple(each for each in enhanced if each.endswith(".")),
        phases=frozenset(_member(Phase, each) for each in _strings(table, "phase")),
        literals=tuple(text for text in texts if _SPECIAL.isdisjoint(text)),
        patterns=tuple(re.compile(text) for text in texts if not _SPECIAL.isdisjoint(text)),
        permanent=permanent,
        blameless=replace(permanent, address_level=False),
        transient=_when_transient(permanent),
    )


def _diagnosis(table: Mapping[str, Any]) -> Diagnosis:
    action = _member(Action, table.get("action"))
    address_level, slow_seconds = table.get("address_level", False), table.get("slow_seconds", 0)
    if type(address_level) is not bool or type(slow_seconds) is not int:
        raise ValueError("address_level is true or false, slow_seconds a whole number")
    if address_level and action is not Action.HARD_BOUNCE:
        raise ValueError("address_level goes with hard_bounce only")
    if not 0 <= slow_seconds <= MAX_SLOW_SECONDS:
        raise ValueError(f"slow_seconds is from 0 to {MAX_SLOW_SECONDS}")
    if (action is Action.SLOW_DOWN and not slow_seconds) or (
        slow_seconds and action not in (Action.SLOW_DOWN, Action.BLOCK)
    ):
        raise ValueError("slow_down needs slow_seconds; besides it only block may have them")
    return Diagnosis(_member(Category, table.get("category")), action, address_level, str(table["id"]), slow_seconds)


def _when_transient(said: Diagnosis) -> Diagnosis:
    """The same trouble in a 4yz reply: not final. A block that slows down then only slows down."""
    action = said.action
    if action in (Action.HARD_BOUNCE, Action.BLOCK):
        action = Action.SLOW_DOWN if said.slow_seconds else Action.RETRY
    return replace(said, action=action, address_level=False)


def _strings(table: Mapping[str, Any], key: str, form: re.Pattern[str] | None = None) -> tuple[str, ...]:
    values = table.get(key, [])
    if not isinstance(values, list) or not all(isinstance(each, str) and each for each in values):
        raise ValueError(f"{key} is a list of strings")
    for each in values:
        if form and not form.fullmatch(each):
            raise ValueError(f"{key} cannot be {each!r}")
    return tuple(values)


def _member(enum: type[_Enum], value: object) -> _Enum:
    try:
        return enum(str(value))
    except ValueError:
        raise ValueError(f"unknown {enum.__name__.lower()} {value!r}") from None


def _check_text(text: str) -> None:
    if _UPPER.search(text):
        raise ValueError(f"text is written in lower case: {text!r}")
    counts = _COUNTED.findall(text)
    if _UNSAFE.search(text) or len(counts) > 1 or any(int(each) > _MAX_COUNT for each in counts):
        raise ValueError(f"repetition is ? or one {{m,n}} of a character, n to {_MAX_COUNT}: {text!r}")


def _expanded(pattern: str) -> Sequence[str]:
    """The enhanced codes that a pattern stands for: an x is any digit. None for one that ends with a dot."""
    if pattern.endswith("."):
        return ()
    if "x" not in pattern:
        return (pattern,)
    return [each for digit in "0123456789" for each in _expanded(pattern.replace("x", digit, 1))]


def _index(rules: Sequence[Rule]) -> dict[str, dict[str, tuple[Rule, ...]]]:
    """First digit → provider, "" being any other → the rules to try, in their order."""
    return {
        digit: {
            provider: tuple(
                rule
                for rule in rules
                if rule.provider in ("", provider) and any(code[0] == digit for code in rule.codes)
            )
            for provider in ("", *PROVIDERS)
        }
        for digit in "2345"
    }


RULES = load(resources.files("app.mail").joinpath("replies.toml").read_text(encoding="utf-8"))
_INDEX = _index(RULES)
