"""`postroad` as a process of its own, with nothing of the tests' environment."""

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.core.config import Settings

READY_TIMEOUT_SECONDS = 150
STOP_TIMEOUT_SECONDS = 90


@contextmanager
def data_directory() -> Iterator[Path]:
    """Directly under /tmp: pytest's own directories are closed to the account that PostgreSQL runs as."""
    path = Path(tempfile.mkdtemp(prefix="postroad-test-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without any setting of Postroad's, and then these."""
    names = {name.upper() for name in Settings.model_fields} | {"POSTROAD_MODE"}
    return {name: value for name, value in os.environ.items() if name not in names} | settings


@dataclass(slots=True)
class Command:
    """A running `postroad …` in a session of its own, like a terminal's; its output is collected."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)
    reader: asyncio.Task[None] | None = None

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    async def wait_for(self, pattern: str, timeout_seconds: float = READY_TIMEOUT_SECONDS) -> None:
        async with asyncio.timeout(timeout_seconds):
            while not any(re.search(pattern, line) for line in self.lines):
                assert self.process.returncode is None, self.output
                await asyncio.sleep(0.1)

    async def ended(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> int:
        """The exit status, once everything is said."""
        async with asyncio.timeout(timeout_seconds):
            status = await self.process.wait()
            assert self.reader is not None
            await self.reader
            return status

    def press_ctrl_c(self) -> None:
        """SIGINT to the foreground process group, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    async def kill_if_alive(self) -> None:
        """So that a failed test leaves nothing running; the children follow their supervisor."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                await self.ended()
            except TimeoutError:
                self.process.kill()


async def start(directory: Path, *arguments: str, **settings: str) -> Command:
    """Start `postroad` in `directory`, its DATA_DIR's parent; bounces come to a port of its own, webhooks lead here."""
    settings = {"INBOUND_SMTP_PORT": str(free_port()), "WEBHOOK_ALLOW_PRIVATE_NETWORKS": "true", **settings}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "app.cli", *arguments),
        cwd=directory,
        env=environment(**settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    command = Command(process)

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            command.lines.append(line.decode(errors="replace").rstrip())

    command.reader = asyncio.create_task(read())
    return command
