"""Which embedded servers a process needs, and who stops them: the last one to let go."""

import fcntl
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from app.local import postgres, redis
from app.local.errors import StartupError

_START_LOCK_TIMEOUT_SECONDS = 120


@contextmanager
def embedded(data_dir: Path, needed: Collection[str]) -> Iterator[dict[str, str]]:
    """Start or attach to DATA_DIR's servers; `needed` names the settings to fill: DATABASE_URL, REDIS_URL.

    Yields those settings. Every user of the servers holds a shared lock, which a killed process loses by
    itself; whoever leaves last stops them. Raises StartupError.
    """
    if not needed:
        yield {}
        return
    with (
        open_lock(data_dir / "servers.start.lock") as starting,
        open_lock(data_dir / "servers.lock") as users,
    ):
        urls: dict[str, str] = {}
        stops: list[Callable[[], None]] = []
        try:
            with _exclusive(starting):
                fcntl.flock(users, fcntl.LOCK_SH)
                # Both when either is needed: then whoever is last has both to stop, and forgets none.
                database = postgres.start(data_dir / "postgres")
                stops.append(lambda: postgres.stop(database))
                broker = redis.start(data_dir / "redis")
                stops.append(lambda: redis.stop(broker))
            urls = {"DATABASE_URL": database.url(), "REDIS_URL": broker.url}
            yield {name: urls[name] for name in needed}
        finally:
            with _exclusive(starting):
                if _is_last(users):
                    for stop in reversed(stops):
                        stop()


def open_lock(path: Path) -> IO[str]:
    """Open a lock file in DATA_DIR, making the directory if needed. Raises StartupError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
    except OSError as error:
        raise StartupError(f"DATA_DIR ({path.parent}) is not writable: {error.strerror}.") from error


def _is_last(users: IO[str]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _exclusive(lock: IO[str]) -> Iterator[None]:
    deadline = time.monotonic() + _START_LOCK_TIMEOUT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise StartupError(f"Another process holds {lock.name} for too long.") from error
            time.sleep(0.1)
    try:
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
