"""The Celery application of `postroad worker` and `postroad beat`, and the engine that lives in each worker process."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import uvloop
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown

from app.core import log
from app.core.config import get_settings
from app.core.queue import SWEEP_TASK, UPKEEP_TASK, make_celery
from app.delivery.engine import Engine

_STOP_SECONDS = 25

settings = get_settings()
celery = make_celery(settings)
celery.conf.imports = ("workers.tasks",)
celery.conf.beat_schedule = {
    "sweep": {"task": SWEEP_TASK, "schedule": settings.sweep_seconds, "options": {"expires": settings.sweep_seconds}},
    "upkeep": {"task": UPKEEP_TASK, "schedule": 3600, "options": {"expires": 3600}},
}


class EngineThread:
    """The engine on an event loop of its own, made after the fork; tasks reach it from Celery's thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._engine = Engine(settings)
        await self._engine.run()

    def call(self, action: Callable[[Engine], None]) -> None:
        """Have the loop do something with the engine, soon."""

        def act() -> None:
            if self._engine is not None:
                action(self._engine)

        self._loop.call_soon_threadsafe(act)

    def stop(self) -> None:
        """Let the engine end what it is doing."""
        self.call(Engine.stop)
        self._thread.join(timeout=_STOP_SECONDS)


engine: EngineThread | None = None


@setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: Any) -> None:
    log.configure(settings)


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _start_engine(**_: Any) -> None:
    global engine  # noqa: PLW0603 - one a process, made after the fork
    engine = EngineThread()


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _stop_engine(**_: Any) -> None:
    if engine is not None:
        engine.stop()
