"""The supervisor's children: started, their output passed on, restarted when they die, stopped in order."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

LINE_BYTES_MAX = 64 * 2**10
BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_MAX_SECONDS = 30.0
# A child that lived this long was well; its next death counts as the first.
WELL_AFTER_SECONDS = 60.0
QUICK_DEATHS_MAX = 5

SUPERVISOR_PID = "POSTROAD_SUPERVISOR_PID"


@dataclass(slots=True)
class Child:
    """One `postroad <command>` process in a session of its own, out of reach of the terminal's Ctrl-C."""

    name: str
    arguments: tuple[str, ...]
    stop_timeout_seconds: float
    process: asyncio.subprocess.Process | None = field(default=None, init=False)
    is_stopping: bool = field(default=False, init=False)

    async def keep_running(self, environment: Mapping[str, str], say: Callable[[str], None]) -> str | None:
        """Run the child until it is told to stop; a sentence when it cannot stay alive."""
        deaths = 0
        while not self.is_stopping:
            started = time.monotonic()
            code = await self._run_once(environment)
            if self.is_stopping:
                break
            deaths = 1 if time.monotonic() - started > WELL_AFTER_SECONDS else deaths + 1
            if deaths >= QUICK_DEATHS_MAX:
                return f"{self.name} died {deaths} times in a row, last with status {code}; its output is above."
            pause = min(BACKOFF_FIRST_SECONDS * 2 ** (deaths - 1), BACKOFF_MAX_SECONDS)
            say(f"{self.name} ended with status {code}; starting it again in {pause:.0f} s")
            await asyncio.sleep(pause)
        return None

    async def stop(self, is_urgent: Callable[[], bool]) -> None:
        """Ask the child to end (SIGTERM), wait its time, then kill it with all that it started."""
        self.is_stopping = True
        process = self.process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        ended = asyncio.create_task(process.wait())
        deadline = time.monotonic() + self.stop_timeout_seconds
        while not ended.done() and time.monotonic() < deadline and not is_urgent():
            await asyncio.wait([ended], timeout=0.1)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await ended

    async def _run_once(self, environment: Mapping[str, str]) -> int:
        self.process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "app.cli", *self.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=LINE_BYTES_MAX,
            env={**environment, SUPERVISOR_PID: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
        )
        output = asyncio.create_task(self._pass_on(process))
        code = await process.wait()
        # Grandchildren may hold the pipe open: what the child itself said is there by now.
        await asyncio.wait([output], timeout=1)
        output.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return code

    async def _pass_on(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for above
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than LINE_BYTES_MAX: asyncio dropped it
                line = b"(a line too long to show)\n"
            if not line:
                return
            write(f"{self.name:<8}| ".encode() + line.rstrip(b"\r\n") + b"\n")


def write(line: bytes) -> None:
    """To the terminal, which may have been closed meanwhile."""
    with suppress(OSError, ValueError):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
