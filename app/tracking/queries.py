"""SQL of unsubscribing, on the driver's own connection: one transaction is all of it."""

from dataclasses import dataclass
from uuid import UUID

import asyncpg

_COPY = """
    SELECT d.message_id, d.recipient, m.sender ->> 'email', m.tags, m.simulated
    FROM deliveries d JOIN messages m ON m.org_id = d.org_id AND m.id = d.message_id
    WHERE d.org_id = $1 AND d.id = $2
    """
_LOCKED_COPY = _COPY + "FOR NO KEY UPDATE OF d"
_IS_TOLD = """
    SELECT EXISTS (
        SELECT FROM events
        WHERE org_id = $1 AND message_id = $2 AND delivery_id = $3 AND type = 'unsubscribed'
          AND coalesce(data ->> 'tag', $4) = $4
    )
    """


@dataclass(frozen=True, slots=True)
class Copy:
    """One recipient's copy of a message, as far as unsubscribing goes. `sender`: the address in From."""

    message_id: UUID
    recipient: str
    sender: str
    tags: list[str]
    is_simulated: bool


async def copy(connection: asyncpg.Connection, org_id: UUID, delivery_id: UUID) -> Copy | None:
    """The copy; None when it is not there (any more)."""
    row = await connection.fetchrow(_COPY, org_id, delivery_id)
    return None if row is None else Copy(*row)


async def locked_copy(connection: asyncpg.Connection, org_id: UUID, delivery_id: UUID) -> Copy | None:
    """As `copy`, and until the transaction ends nobody else gets it so."""
    row = await connection.fetchrow(_LOCKED_COPY, org_id, delivery_id)
    return None if row is None else Copy(*row)


async def is_told(connection: asyncpg.Connection, org_id: UUID, delivery_id: UUID, message_id: UUID, tag: str) -> bool:
    """Whether an event tells already that this copy's recipient wants no mail with the tag ("": none at all)."""
    return bool(await connection.fetchval(_IS_TOLD, org_id, message_id, delivery_id, tag))
