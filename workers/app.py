"""The Celery application of `postroad worker` and `postroad beat`, and the engine that lives in each worker process."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
import uvloop
from celery.signals import (
    setup_logging,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_shutting_down,
)

from app.core import log
from app.core.config import get_settings
from app.core.memory import collect_rarely
from app.core.queue import RECHECK_TASK, SWEEP_TASK, UPKEEP_TASK, make_celery
from app.delivery.engine import Engine

_STOP_SECONDS = 25
_DISMISSAL_SECONDS = 3.0
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

    def __init__(self, tether: int) -> None:
        self._tether = tether
        self._loop = uvloop.new_event_loop()
        self._engine = Engine(settings)
        self._dismissed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        collect_rarely()
        self._loop.add_reader(self._tether, self._let_off)
        try:
            self._loop.run_until_complete(self._engine.run())
        except BaseException as error:
            _crash(error)
        # Celery would replace a process that ends before it is told to; it may be late in telling.
        self._dismissed.wait(_DISMISSAL_SECONDS)
        os._exit(0)

    def _let_off(self) -> None:
        self._loop.remove_reader(self._tether)
        self._engine.stop()

    def call(self, action: Callable[[Engine], None]) -> None:
        """Have the loop do something with the engine, soon."""
        self._loop.call_soon_threadsafe(action, self._engine)

    def stop(self) -> None:
        """Let the engine end what it is doing, and this process with it."""
        self._dismissed.set()
        self.call(Engine.stop)
        self._thread.join(timeout=_STOP_SECONDS)


def _crash(error: BaseException) -> None:
    logger.critical("engine_crashed", hint="Celery starts another process", exc_info=error)
    time.sleep(_CRASH_PAUSE_SECONDS)
    os._exit(1)


engine: EngineThread | None = None
# The main process holds the writing end and its children read: what they read is its end, or its wish for theirs. No
# signal does, since billiard puts its own handlers in place of ours and takes a second SIGTERM for an order to die.
tether: tuple[int, int] | None = None


@worker_init.connect  # type: ignore[untyped-decorator]
def _make_tether(**_: Any) -> None:
    global tether  # noqa: PLW0603 - made before the fork
    tether = os.pipe()


@setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: Any) -> None:
    log.configure(settings)


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _start_engine(**_: Any) -> None:
    global engine  # noqa: PLW0603 - one a process, made after the fork
    if tether is None:
        # Celery replaced a process that had ended, before it saw that all of them are to.
        os._exit(0)
    try:
        reader, writer = tether
        os.close(writer)
        engine = EngineThread(reader)
    except Exception as error:
        # Celery would go on without it.
        _crash(error)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_all(**_: Any) -> None:
    """In the main process: tell the engines at once. Celery's own word may come half a minute later (billiard waits
    that long for results of tasks that nobody reads any more), and they would claim mail meanwhile.
    """
    global tether  # noqa: PLW0603 - cut once, however often it is asked to end
    if tether is not None:
        os.close(tether[1])
        tether = None


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _stop_engine(**_: Any) -> None:
    if engine is not None:
        engine.stop()
