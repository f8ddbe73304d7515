"""The Celery application of `postroad worker` and `postroad beat`, and the engine that lives in each worker process."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
import uvloop
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown

from app.core import log
from app.core.config import get_settings
from app.core.queue import RECHECK_TASK, SWEEP_TASK, UPKEEP_TASK, make_celery
from app.delivery.engine import Engine

_STOP_SECONDS = 25
# Celery replaces a process at once; one that can never start must not keep the machine busy.
_CRASH_PAUSE_SECONDS = 1.0

settings = get_settings()
# How soon a record that was just published is found without being asked for.
recheck_seconds = min(30.0, settings.domain_recheck_seconds)
celery = make_celery(settings)
celery.conf.imports = ("workers.tasks",)
celery.conf.worker_consumer = "workers.consumer:Consumer"
celery.conf.beat_schedule = {
    "sweep": {"task": SWEEP_TASK, "schedule": settings.sweep_seconds, "options": {"expires": settings.sweep_seconds}},
    "upkeep": {"task": UPKEEP_TASK, "schedule": 3600, "options": {"expires": 3600}},
    "recheck": {"task": RECHECK_TASK, "schedule": recheck_seconds, "options": {"expires": recheck_seconds}},
}

logger = structlog.get_logger(__name__)


class EngineThread:
    """The engine on an event loop of its own, made after the fork; tasks reach it from Celery's thread.

    The process lives as long as its engine: when that has stopped or crashed, Celery starts another process, unless
    all is coming to its end.
    """

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._engine = Engine(settings)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._engine.run())
        except BaseException as error:
            _crash(error)
        os._exit(0)

    def call(self, action: Callable[[Engine], None]) -> None:
        """Have the loop do something with the engine, soon."""
        self._loop.call_soon_threadsafe(action, self._engine)

    def stop(self) -> None:
        """Let the engine end what it is doing, and this process with it."""
        self.call(Engine.stop)
        self._thread.join(timeout=_STOP_SECONDS)


def _crash(error: BaseException) -> None:
    logger.critical("engine_crashed", hint="Celery starts another process", exc_info=error)
    time.sleep(_CRASH_PAUSE_SECONDS)
    os._exit(1)


engine: EngineThread | None = None


@setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: Any) -> None:
    log.configure(settings)


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _start_engine(**_: Any) -> None:
    global engine  # noqa: PLW0603 - one a process, made after the fork
    try:
        engine = EngineThread()
    except Exception as error:
        # Celery would go on without it.
        _crash(error)
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: Any) -> None:
    """SIGTERM to this process, as a service manager sends it to all of a group: drain; the second one means now."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if engine is not None:
        engine.call(Engine.stop)


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _stop_engine(**_: Any) -> None:
    if engine is not None:
        engine.stop()
