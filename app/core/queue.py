"""The doorbell: tells workers by Celery that mail is due. Postgres is the queue, so a lost ring is only a delay.

kombu publishes synchronously and can hang while Redis is away, so rings leave from a thread of their own and
are coalesced: however many messages commit in a moment, one task is published.
"""

import threading
import time

import structlog
from celery import Celery

from app.core.config import Settings

RING_TASK = "postroad.ring"
SWEEP_TASK = "postroad.sweep"
UPKEEP_TASK = "postroad.upkeep"
RECHECK_TASK = "postroad.recheck-domains"

# The first ring leaves at once. Under load one every so often is enough, as busy workers look for more by themselves,
# and a publisher that never rests would take the interpreter from the API's event loop.
_REST_SECONDS = 0.03
_BACKOFF_SECONDS = 2.0
# A ring that nobody heard in this time is stale: the workers' own poll has long found the mail.
_RING_EXPIRES_SECONDS = 10

log = structlog.get_logger(__name__)


def make_celery(settings: Settings) -> Celery:
    """The Celery application: broker only, no results, tasks that may be lost or repeated without harm."""
    celery = Celery("postroad", broker=settings.redis_url)
    celery.conf.update(
        task_ignore_result=True,
        task_default_queue="postroad",
        task_default_delivery_mode="transient",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_connect_timeout": 2,
            "socket_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # No task of ours is acknowledged late, so this cancels nothing; unset, Celery warns at each lost connection.
        worker_cancel_long_running_tasks_on_connection_loss=True,
        worker_prefetch_multiplier=4,
        beat_max_loop_interval=2,
        timezone="UTC",
    )
    return celery


class Doorbell:
    """Rings the workers from a background thread. `ring` never blocks and never raises."""

    def __init__(self, settings: Settings) -> None:
        self._celery = make_celery(settings)
        self._wanted = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="doorbell", daemon=True)
        self._thread.start()

    def ring(self) -> None:
        """Ask for a ring soon; many calls before it make one."""
        self._wanted.set()

    def close(self) -> None:
        """Stop the thread; a ring still wanted is left to the workers' poll."""
        self._closing = True
        self._wanted.set()
        self._thread.join(timeout=3)
        self._celery.close()

    def _run(self) -> None:
        broken = False
        while True:
            self._wanted.wait()
            if self._closing:
                return
            self._wanted.clear()
            try:
                self._celery.send_task(RING_TASK, expires=_RING_EXPIRES_SECONDS, retry=False)
            except Exception as error:
                # Whatever it was, later rings must be tried: without this thread there would be none.
                if not broken:
                    reason = f"{type(error).__name__}: {error}"[:300]
                    log.warning("doorbell_broken", error=reason, hint="workers poll until Redis is back")
                broken = True
                time.sleep(_BACKOFF_SECONDS)
            else:
                broken = False
                time.sleep(_REST_SECONDS)
