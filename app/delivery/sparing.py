"""Claimed mail whose recipient has been suppressed since it was accepted: it ends without an attempt."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from app.core.db import Database
from app.delivery.content import Prepared
from app.delivery.lease import Held
from app.delivery.outcome import Outcome
from app.delivery.queries import Key
from app.messages.status import Status
from app.suppressions import service as suppressions
from app.suppressions.service import Asked, Suppressed


async def find(database: Database, chunk: Sequence[Held], prepared: Mapping[Key, Prepared]) -> dict[Key, Suppressed]:
    """Of the deliveries that could be sent those that may not, by (org_id, delivery_id). Raises DATABASE_ERRORS."""
    asked: dict[Key, Asked] = {}
    for held in chunk:
        claimed = held.claimed
        message = prepared.get((claimed.org_id, claimed.message_id))
        if message is not None and claimed.simulated is None:
            asked[claimed.org_id, claimed.delivery_id] = Asked(
                claimed.org_id, claimed.recipient, message.tags, message.is_notice
            )
    if not asked:
        return {}
    async with database.bare() as connection:
        return await suppressions.find(connection, asked)


def outcome(suppressed: Suppressed, now: datetime) -> Outcome:
    """How such a delivery ends."""
    return Outcome(
        Status.SUPPRESSED,
        suppressed.reason,
        suppressed.response,
        now,
        now,
        was_begun=False,
        suppressed=suppressed,
    )
