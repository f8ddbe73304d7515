"""What an attempt came to: a value, never an exception, so that settling is one path for all of them."""

import random
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.core.config import Settings
from app.mail.diagnosis import Diagnosis
from app.mail.reply import Phase, Reply
from app.messages.status import Status
from app.suppressions.service import Suppressed

# Attempts beyond this wait the longest delay anyhow; without a bound the power would overflow.
_MAX_DOUBLINGS = 20
_JITTER = 0.2
_RESPONSE_MAX_CHARACTERS = 3000


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that this worker holds a lease on."""

    org_id: UUID
    delivery_id: UUID
    message_id: UUID
    recipient: str
    domain: str
    vmta_id: UUID | None
    urgent: bool
    simulated: str | None
    size_bytes: int
    attempt: int
    give_up_at: datetime
    expires_at: datetime | None
    lease_token: UUID


@dataclass(slots=True)
class Outcome:
    """How an attempt ended. `reason` is stable and meant for programs; `reply` the host's own words, if any.

    `status` is delivered, deferred, soft_bounced, hard_bounced, failed or suppressed, then with what suppresses it.
    `sent_at` is when the final dot went out. From which vMTA and to which provider it went is filled in by the lane.
    `was_begun` false: no attempt was made.
    """

    status: Status
    reason: str
    detail: str
    started_at: datetime
    finished_at: datetime
    phase: Phase | None = None
    reply: Reply | None = None
    host: str | None = None
    address: str | None = None
    tls: str | None = None
    tls_policy: str | None = None
    tls_verified: bool = False
    tls_failure: str | None = None
    category: str | None = None
    diagnosis: Diagnosis | None = None
    provider: str | None = None
    vmta_id: UUID | None = None
    source_address: str | None = None
    sent_at: datetime | None = None
    was_begun: bool = True
    suppressed: Suppressed | None = None

    @property
    def response(self) -> str:
        """The answer in one line, or why there was none; always storable and bounded, whatever an error says."""
        return _storable(str(self.reply) if self.reply is not None else self.detail)

    def facts(self) -> dict[str, Any]:
        """What an event tells of it."""
        if self.suppressed is not None:
            return self.suppressed.facts()
        facts = {
            "reason": self.reason,
            "mx": self.host,
            "mx_address": self.address,
            "tls": self.tls is not None,
            "tls_version": self.tls,
            "tls_policy": self.tls_policy,
            "tls_verified": self.tls_verified if self.tls is not None else None,
            "tls_failure": self.tls_failure,
            "category": self.category,
            "vmta_id": self.vmta_id,
            "source_address": self.source_address,
            "phase": self.phase,
            "code": self.reply.code if self.reply else None,
            "enhanced_code": self.reply.enhanced if self.reply else None,
            "response": self.response,
        }
        return {
            name: _storable(value) if isinstance(value, str) else value
            for name, value in facts.items()
            if value is not None
        }


def _storable(text: str) -> str:
    if "\x00" not in text and text.isascii():
        return text[:_RESPONSE_MAX_CHARACTERS]
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()[:_RESPONSE_MAX_CHARACTERS]


def retry_delay_seconds(attempt: int, settings: Settings) -> float:
    """How long to wait after the attempt of this number (from 1): doubling from the first to the longest delay,
    spread by a fifth either way so that mails deferred together do not come back together.
    """
    doubled: float = settings.retry_first_seconds * 2 ** min(attempt - 1, _MAX_DOUBLINGS)
    return min(doubled, settings.retry_max_seconds) * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
