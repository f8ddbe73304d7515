"""What one process knows of the endpoints that it delivers to: how much each takes, what waits in memory for it."""

import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

from app.core.web import Web
from app.webhooks import signing
from app.webhooks.due import EndpointRow, Job, Key
from app.webhooks.post import Attempt, Lines

# Attempts at one endpoint at once: few at one that nothing is known of, down to one at one that fails.
MAX_AT_ONCE = 10
_FIRST_AT_ONCE = 3
# What is taken in hand for one that nothing is known of.
FIRST_ROOM = 2 * _FIRST_AT_ONCE
# For one that takes as much at once as it may, and at most for one that is quick.
_FIRST_SHARE = 20
_MAX_SHARE = 400
_QUICK_SECONDS = 0.5
_SLOW_SECONDS = 2.0
# An endpoint's wish to be left alone holds for all its deliveries, but a process remembers it no longer than this.
_MAX_PAUSE_SECONDS = 3600.0
_IDLE_SECONDS = 60.0


class Endpoint:
    """One endpoint, its open connections, and the deliveries in hand for it."""

    def __init__(self, web: Web, row: EndpointRow) -> None:
        self._web = web
        self.key: Key = (row.org_id, row.id)
        self.lines = Lines(web, row.url)
        self.ready: deque[Job] = deque()
        self.under_way = 0
        # What this process knows to wait for it in the database; there may be more.
        self.waiting = 0
        self.success_noted_at: datetime | None = None
        self._limit = 1 if row.failing_since else _FIRST_AT_ONCE
        self._share = _FIRST_SHARE
        self._filled_at = self._used_at = time.monotonic()
        self._resume_at = 0.0
        self.update(row)

    def update(self, row: EndpointRow) -> None:
        """Its settings as they are now."""
        self.failing_since = row.failing_since
        if row.url != self.lines.url:
            self.lines.close()
            self.lines = Lines(self._web, row.url)
        self._secret = row.secret
        self._previous_secret = row.previous_secret
        self._previous_expires_at = row.previous_expires_at

    @property
    def room(self) -> int:
        """How many deliveries may be taken in hand for it."""
        if self.pause_seconds > 0:
            return 0
        share = min(self._share, 2 * self._limit) if self._limit < MAX_AT_ONCE else self._share
        return max(0, share - len(self.ready) - self.under_way)

    @property
    def has_backlog(self) -> bool:
        """Whether something waits for it in the database."""
        return self.waiting > 0

    @property
    def has_enough(self) -> bool:
        """Whether so much waits for it that more need not be handed on yet."""
        return self.waiting >= _MAX_SHARE

    @property
    def wants_more(self) -> bool:
        """Whether something waits for it in the database, and half of its share is free."""
        return self.has_backlog and self.room >= max(1, self._share // 2)

    @property
    def may_begin(self) -> bool:
        """Whether there is a delivery that may be attempted at once."""
        return bool(self.ready) and self.under_way < self._limit and self.pause_seconds <= 0

    @property
    def pause_seconds(self) -> float:
        """For how long yet it asked to be left alone."""
        return max(0.0, self._resume_at - time.monotonic())

    @property
    def is_idle(self) -> bool:
        """Whether it was not needed for a while."""
        in_use = self.ready or self.under_way or self.pause_seconds > 0
        return not in_use and time.monotonic() - self._used_at > _IDLE_SECONDS

    def fill(self, job: Job) -> None:
        """Take a delivery in hand."""
        if not self.ready:
            self._filled_at = time.monotonic()
        self.ready.append(job)

    def next_job(self) -> Job:
        """The delivery to attempt now; whoever asks says `ended` afterwards."""
        self.under_way += 1
        job = self.ready.popleft()
        if not self.ready:
            self._fit_share()
        return job

    def _fit_share(self) -> None:
        """What was taken in hand is used up: the sooner, the more is taken the next time."""
        took_seconds = time.monotonic() - self._filled_at
        if took_seconds < _QUICK_SECONDS:
            self._share = min(2 * self._share, _MAX_SHARE)
        elif took_seconds > _SLOW_SECONDS:
            self._share = max(self._share // 2, _FIRST_SHARE)

    def ended(self, attempt: Attempt | None) -> None:
        """An attempt has ended so; None: it was not made."""
        self.under_way -= 1
        self._used_at = time.monotonic()
        if attempt is None:
            return
        if attempt.has_succeeded:
            self._limit = min(self._limit + 1, MAX_AT_ONCE)
            return
        self._limit = max(1, self._limit // 2)
        if attempt.retry_after_seconds:
            pause_seconds = min(attempt.retry_after_seconds, _MAX_PAUSE_SECONDS)
            self._resume_at = max(self._resume_at, time.monotonic() + pause_seconds)

    def headers(self, job: Job, payload: bytes) -> dict[str, str]:
        """The header fields of an attempt now: while its secret is rotated, two signatures. Raises UnsealError."""
        now = datetime.now(UTC)
        keys = [signing.key_of(self._secret)]
        if self._previous_secret and self._previous_expires_at and self._previous_expires_at > now:
            keys.append(signing.key_of(self._previous_secret))
        return signing.headers(str(job.event_id), int(now.timestamp()), payload, keys)

    def take_back(self) -> list[Job]:
        """What was not begun is in nobody's hands any more."""
        jobs = list(self.ready)
        self.ready.clear()
        return jobs


class Endpoints:
    """The endpoints that were needed lately."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._known: dict[Key, Endpoint] = {}

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._known.values())

    def get(self, key: Key) -> Endpoint | None:
        """The endpoint, if it is known."""
        return self._known.get(key)

    def know(self, row: EndpointRow) -> Endpoint:
        """The endpoint of a row, with its settings as they are there."""
        endpoint = self._known.get((row.org_id, row.id))
        if endpoint is None:
            endpoint = self._known[row.org_id, row.id] = Endpoint(self._web, row)
        else:
            endpoint.update(row)
        return endpoint

    def rooms(self) -> dict[UUID, int]:
        """How much room each has."""
        return {webhook_id: endpoint.room for (_, webhook_id), endpoint in self._known.items()}

    def forget(self, endpoint: Endpoint) -> None:
        """It is not needed any more."""
        endpoint.lines.close()
        self._known.pop(endpoint.key, None)
