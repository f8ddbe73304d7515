"""Cancelling what has not been sent.

PostroadError
├── NotFound   message_not_found
└── Conflict   message_not_cancellable, with `message_status`
"""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.principal import Principal
from app.core.errors import Conflict
from app.messages import queries, schemas, service


async def cancel(session: AsyncSession, principal: Principal, message_id: UUID) -> schemas.MessageOut:
    """Cancel every copy that still waits; the message as it is then. Copies in a worker's hands go on.

    Raises NotFound, and Conflict when no copy waits any more.
    """
    await service.get(session, principal, message_id)
    cancelled = await queries.cancel(session, principal.org_id, message_id, now=datetime.now(UTC))
    message = await service.get(session, principal, message_id)
    if not cancelled:
        raise Conflict(
            "message_not_cancellable",
            f"No copy of this message waits to be sent: it is {message.status}.",
            extra={"message_status": message.status},
        )
    return message
