"""The local mailbox's files: each mail is `<id>.eml` as received, with its envelope beside it in `<id>.json`.

One process writes (the mailbox), any may read. Ids sort by time of arrival.
"""

import json
import re
import secrets
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

MAILS_MAX = 1000
BYTES_MAX = 2 * 2**30
ID_PATTERN = re.compile(r"[0-9]{20}-[0-9a-f]{8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What SMTP said about a mail (RFC 5321 §2.3.1) and how the connection stood. Times RFC 3339 in UTC."""

    mail_from: str
    rcpt_to: tuple[str, ...]
    received_at: str
    peer: str
    ehlo: str
    tls: str | None


@dataclass(frozen=True, slots=True)
class StoredMail:
    """One mail of the store; `path` holds the bytes as they came after DATA, without dot-stuffing."""

    id: str
    envelope: Envelope
    path: Path
    size_bytes: int


class Mailstore:
    """The writing side: keeps the newest MAILS_MAX mails and at most BYTES_MAX bytes of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for unfinished in directory.glob("*.part"):
            unfinished.unlink(missing_ok=True)
        self._kept = deque((mail_id, _path(directory, mail_id).stat().st_size) for mail_id in _ids(directory))
        self._bytes = sum(size for _, size in self._kept)
        self._lock = threading.Lock()

    def deposit(self, envelope: Envelope, content: bytes) -> str:
        """Store one mail whole or not at all; its id. Raises OSError when the disk refuses."""
        mail_id = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        # The .eml comes last: readers list those, so a mail that they see is complete.
        _write(_path(self._directory, mail_id).with_suffix(".json"), json.dumps(asdict(envelope)).encode())
        _write(_path(self._directory, mail_id), content)
        with self._lock:
            self._kept.append((mail_id, len(content)))
            self._bytes += len(content)
            while len(self._kept) > MAILS_MAX or self._bytes > BYTES_MAX:
                oldest, size = self._kept.popleft()
                self._bytes -= size
                _remove(self._directory, oldest)
        return mail_id


def newest(directory: Path, *, limit: int, before: str | None = None) -> list[StoredMail]:
    """Up to `limit` mails, newest first; only those older than the id `before` when it is given."""
    found: list[StoredMail] = []
    for mail_id in reversed(_ids(directory)):
        if before is not None and mail_id >= before:
            continue
        if len(found) == limit:
            break
        if (mail := find(directory, mail_id)) is not None:
            found.append(mail)
    return found


def count(directory: Path) -> int:
    """How many mails the store holds."""
    return len(_ids(directory))


def find(directory: Path, mail_id: str) -> StoredMail | None:
    """One mail by its id; None when the id is malformed or the mail is gone."""
    if not ID_PATTERN.fullmatch(mail_id):
        return None
    path = _path(directory, mail_id)
    with suppress(FileNotFoundError, ValueError, TypeError):
        fields = json.loads(path.with_suffix(".json").read_bytes())
        envelope = Envelope(**(fields | {"rcpt_to": tuple(fields["rcpt_to"])}))
        return StoredMail(mail_id, envelope, path, path.stat().st_size)
    return None


def clear(directory: Path) -> None:
    """Delete every mail."""
    for mail_id in _ids(directory):
        _remove(directory, mail_id)


def now() -> str:
    """The present as RFC 3339 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ids(directory: Path) -> list[str]:
    names = (path.stem for path in directory.glob("*.eml"))
    return sorted(name for name in names if ID_PATTERN.fullmatch(name))


def _path(directory: Path, mail_id: str) -> Path:
    return directory / f"{mail_id}.eml"


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(content)
    unfinished.rename(path)


def _remove(directory: Path, mail_id: str) -> None:
    path = _path(directory, mail_id)
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
