"""Passwords: argon2id (RFC 9106), hashed in threads of their own since each hash takes 64 MiB and a core."""

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from passlib.hash import argon2

from app.core.errors import Invalid, Unavailable

MIN_CHARACTERS = 8
MAX_CHARACTERS = 256

# RFC 9106 §4, the second recommended option: 64 MiB, three passes, four lanes.
_MEMORY_KIB = 65_536
_PASSES = 3
_LANES = 4
_HASHER = argon2.using(type="ID", memory_cost=_MEMORY_KIB, time_cost=_PASSES, parallelism=_LANES)
# Verifying against this costs what a real one costs, and no password is known to fit it.
_NOBODYS_HASH = f"$argon2id$v=19$m={_MEMORY_KIB},t={_PASSES},p={_LANES}${'A' * 22}${'A' * 43}"

_WAITING_MAX = 32

# The most frequent of those that pass the length rule, from the lists that leaks are counted into.
_COMMON_WORDS = (
    "password password1 password12 password123 password! passw0rd p@ssw0rd p@ssword 12345678 123456789 "
    "1234567890 11111111 00000000 87654321 88888888 12341234 11223344 123123123 987654321 qwertyui "
    "qwertyuiop qwerty123 qwerty12 1q2w3e4r 1q2w3e4r5t 1qaz2wsx qazwsxedc asdfghjkl asdfasdf zxcvbnm1 "
    "zaq12wsx abcd1234 abc12345 abcdefgh a1b2c3d4 iloveyou iloveyou1 sunshine princess football baseball "
    "superman trustno1 welcome1 welcome123 letmein1 letmein123 changeme changeme1 administrator admin123 "
    "admin1234 whatever starwars computer internet michelle jennifer charlie1 dragon123 monkey123 "
    "master123 test1234 secret123"
)
_COMMON = frozenset(_COMMON_WORDS.split())

T = TypeVar("T")


class _Line:
    """A few threads, and how many wait for them. Each thread takes 64 MiB while it works."""

    def __init__(self, name: str, threads: int) -> None:
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix=f"argon2-{name}")
        self.waiting = 0


# Whom we have seen before does not stand in line behind a flood of strangers.
_STRANGERS = _Line("strangers", 2)
_KNOWN = _Line("known", 1)


async def hash_password(password: str, *, by_stranger: bool = False) -> str:
    """A new argon2id hash. Raises Unavailable when too many wait already; `by_stranger` as in `verify_password`."""
    return await _in_line(lambda: str(_HASHER.hash(_prepared(password))), by_stranger)


async def verify_password(password: str, password_hash: str | None, *, by_stranger: bool = False) -> bool:
    """Whether the password fits; without a hash the same work is done in vain. Raises Unavailable.

    Strangers stand in a line of their own.
    """

    def verify() -> bool:
        return bool(_HASHER.verify(_prepared(password), password_hash or _NOBODYS_HASH))

    return await _in_line(verify, by_stranger) and password_hash is not None


def refuse_common(password: str) -> None:
    """Raises Invalid for a password that everybody tries first (NIST SP 800-63B §5.1.1.2)."""
    if password.casefold() in _COMMON:
        raise Invalid.at("/password", "Too common: it is among the first that are tried.", code="password_too_common")


def _prepared(password: str) -> str:
    # RFC 8265 §4.2: the same characters typed on another system must give the same bytes.
    return unicodedata.normalize("NFC", password)


async def _in_line(work: Callable[[], T], by_stranger: bool) -> T:
    line = _STRANGERS if by_stranger else _KNOWN
    if line.waiting >= _WAITING_MAX:
        raise Unavailable("busy", "Too many passwords are being checked at the moment; try again shortly.")
    line.waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(line.threads, work)
    finally:
        line.waiting -= 1
