"""Celery's consumer, made to care for the worker's processes also while Redis is away."""

from typing import Any

import structlog
from celery.worker import consumer, state

_RETRY_FIRST_SECONDS = 1
_RETRY_MAX_SECONDS = 5

log = structlog.get_logger(__name__)


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Waits for the broker for ever. Engines deliver meanwhile without it, so those that die are replaced meanwhile."""

    def ensure_connected(self, conn: Any) -> Any:
        """Return once the broker answers; raises Celery's WorkerShutdown and WorkerTerminate."""
        return conn.ensure_connection(
            _tell,
            interval_start=_RETRY_FIRST_SECONDS,
            interval_step=1,
            interval_max=_RETRY_MAX_SECONDS,
            callback=self._each_second,
        )

    def _each_second(self) -> None:
        state.maybe_shutdown()
        # Without its event loop Celery neither learns of a new process nor replaces a dead one by itself.
        if self.pool._pool.on_process_up is None:
            self.pool.register_with_event_loop(self.hub)
        self.pool.maintain_pool()


def _tell(error: Exception, interval_seconds: float) -> None:
    log.warning("broker_away", error=str(error)[:300], retry_seconds=interval_seconds, hint="engines poll meanwhile")
