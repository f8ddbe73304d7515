"""What the tests' SMTP servers can be told to do, and what they hand back."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Act:
    """What to do instead of a plain reply: in this order wait, say, then close, hang or go on.

    say: str is made into a reply with line ends, bytes go out as they are.
    hang: nothing is read or said any more.
    abort: close by RST.
    keep_mail: at the end of data, the mail counts as received though nothing is said.
    """

    say: str | bytes = b""
    wait_seconds: float = 0.0
    byte_interval_seconds: float = 0.0
    close: bool = False
    abort: bool = False
    hang: bool = False
    keep_mail: bool = False


def hang(say: str | bytes = b"", *, keep_mail: bool = False) -> Act:
    """Say this (nothing by default), then neither read nor answer any more."""
    return Act(say, hang=True, keep_mail=keep_mail)


def drop(say: str | bytes = b"", *, abort: bool = False, keep_mail: bool = False) -> Act:
    """Say this (nothing by default), then close the connection."""
    return Act(say, close=True, abort=abort, keep_mail=keep_mail)


def slow(say: str | bytes, *, byte_interval_seconds: float = 0.002) -> Act:
    """Say this byte by byte."""
    return Act(say, byte_interval_seconds=byte_interval_seconds)


def late(say: str | bytes, *, wait_seconds: float) -> Act:
    """Say this after a while."""
    return Act(say, wait_seconds=wait_seconds)


def raw(say: bytes) -> Act:
    """Send exactly these bytes: garbage, over-long lines, replies too many."""
    return Act(say)


Answer = str | Act
Hook = Callable[[str], Answer | None]


def _usual(_argument: str) -> Answer | None:
    return None


@dataclass(slots=True)
class Replies:
    """A hook for each phase: its argument in, an answer out, or None for the usual one.

    The argument is the client's address (connect), its name (ehlo, helo), the path's address (mail, rcpt),
    the recipient (data, end_of_data), else "". A str answer is "550 5.1.1 text"; line ends in it make
    a multi-line reply.
    """

    on_connect: Hook = _usual
    on_ehlo: Hook = _usual
    on_helo: Hook = _usual
    on_starttls: Hook = _usual
    on_mail: Hook = _usual
    on_rcpt: Hook = _usual
    on_data: Hook = _usual
    on_end_of_data: Hook = _usual
    on_rset: Hook = _usual
    on_noop: Hook = _usual
    on_quit: Hook = _usual


@dataclass(frozen=True, slots=True)
class ReceivedMail:
    """One mail for one recipient (a transaction with two recipients gives two).

    content is without dot-stuffing and final dot, with its CRLFs; ehlo is the client's name; peer its address
    and port.
    """

    mail_from: str
    rcpt_to: str
    content: bytes
    tls: bool
    tls_version: str | None
    ehlo: str
    mail_parameters: dict[str, str]
    peer: tuple[str, int]
    connection_id: int


def reply_octets(reply: str) -> bytes:
    """A reply's lines as they go over the wire."""
    if "\n" not in reply:
        return reply.encode() + b"\r\n"
    code, lines = reply[:3], reply[4:].split("\n")
    return b"".join(
        f"{code}{'-' if number < len(lines) else ' '}{line}\r\n".encode() for number, line in enumerate(lines, 1)
    )
