"""MTA-STS: what a domain says of TLS to its mail hosts, in DNS and by HTTPS (RFC 8461). Reads, never asks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MAX_POLICY_BYTES = 64 * 1024  # RFC 8461 §3.3 advises it
MAX_AGE_SECONDS = 31_557_600  # a year, RFC 8461 §3.2
MAX_MX = 50

_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_MAX_AGE = re.compile(r"[0-9]{1,10}")
_MX = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_MX_MAX_CHARACTERS = 255

Mode = Literal["enforce", "testing", "none"]
_MODES: dict[str, Mode] = {"enforce": "enforce", "testing": "testing", "none": "none"}


class BadPolicy(ValueError):  # noqa: N818
    """The file is no policy; the message says why."""


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """A policy file (RFC 8461 §3.2). mx: patterns in lower case, none only in the mode "none"."""

    mode: Mode
    mx: tuple[str, ...]
    max_age_seconds: int


def parse_record(texts: Sequence[str]) -> str | None:
    """The id in the TXT records of `_mta-sts.<domain>`; None when they announce no policy (RFC 8461 §3.1).

    Two announcements are none.
    """
    announced = [fields for text in texts if (fields := _fields(text)) and fields[0] == "v=STSv1"]
    if len(announced) != 1:
        return None
    ids = [field[3:] for field in announced[0][1:] if field.startswith("id=")]
    return ids[0] if len(ids) == 1 and _ID.fullmatch(ids[0]) else None


def _fields(text: str) -> list[str]:
    return [field.strip(" \t") for field in text.split(";")] if ";" in text else []


def parse_policy(content: bytes) -> StsPolicy:
    """The policy in the file of a domain. Fields that nobody knows are passed over. Raises BadPolicy."""
    if len(content) > MAX_POLICY_BYTES:
        raise BadPolicy(f"it is larger than {MAX_POLICY_BYTES} bytes")
    try:
        lines = content.decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise BadPolicy("it is not UTF-8") from error
    fields: dict[str, str] = {}
    patterns: list[str] = []
    for line in lines:
        name, colon, value = (part.strip(" \t") for part in line.partition(":"))
        if not colon and name:
            raise BadPolicy(f"the line {name[:80]!r} has no colon")
        if name == "mx":
            patterns.append(_pattern(value))
        elif colon:
            fields.setdefault(name, value)  # of a field given twice the first counts
    return _policy(fields, patterns)


def _policy(fields: dict[str, str], patterns: list[str]) -> StsPolicy:
    if fields.get("version") != "STSv1":
        raise BadPolicy("its version is not STSv1")
    mode = _MODES.get(fields.get("mode", ""))
    if mode is None:
        raise BadPolicy("its mode is none of enforce, testing and none")
    max_age = fields.get("max_age", "")
    if not _MAX_AGE.fullmatch(max_age):
        raise BadPolicy("it has no max_age in seconds")
    if not patterns and mode != "none":
        raise BadPolicy("it names no mx")
    if len(patterns) > MAX_MX:
        raise BadPolicy(f"it names more than {MAX_MX} mx")
    return StsPolicy(mode, tuple(dict.fromkeys(patterns)), min(int(max_age), MAX_AGE_SECONDS))


def _pattern(value: str) -> str:
    pattern = value.lower().rstrip(".")
    if len(pattern) > _MX_MAX_CHARACTERS or not _MX.fullmatch(pattern):
        raise BadPolicy(f"its mx {value[:80]!r} is no host name")
    return pattern


def matches(host: str, patterns: Sequence[str]) -> bool:
    """Whether a mail host is one that the policy names; "*." stands for exactly one label (RFC 8461 §4.1)."""
    name = host.lower().rstrip(".")
    parent = name.partition(".")[2]
    return any(pattern == name or (pattern == f"*.{parent}" and parent != "") for pattern in patterns)
