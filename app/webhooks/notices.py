"""What the owners of an organization are told of a webhook by mail."""

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import service as accounts
from app.accounts.notices import Mailer, Notice
from app.core.errors import Unavailable
from app.webhooks.models import Webhook
from app.webhooks.schemas import DisabledReason

_WHY: dict[DisabledReason, str] = {
    "gone": "It answered 410 Gone, which says that nothing is wanted there any more.",
    "failing": "It has taken nothing for five days, though it was tried again and again.",
    "manual": "You turned it off.",
}
_TEXT = """Hello,

the webhook {url} has been disabled. {why}

Nothing is sent to it now, and what waited for it is cancelled. When it is well again, enable it
(PUT /api/v1/webhooks/{id} with {{"enabled": true}}) and have the events since then sent again
(POST /api/v1/webhooks/{id}/replay).

Postroad
"""

log = structlog.get_logger(__name__)


async def tell_disabled(session: AsyncSession, mailer: Mailer, webhook: Webhook, reason: DisabledReason) -> None:
    """Post a notice to every owner in the session's transaction, if there is anybody to send it as."""
    log.warning("webhook_disabled", org_id=str(webhook.org_id), webhook_id=str(webhook.id), reason=reason)
    if not mailer.is_configured:
        return
    content = _TEXT.format(url=webhook.url, why=_WHY[reason], id=webhook.id)
    try:
        async with session.begin_nested():
            for email in await accounts.owner_emails(session, webhook.org_id):
                await mailer.post(session, Notice(to=email, subject="A webhook has been disabled", text=content))
    except Unavailable as error:
        log.error("webhook_notice_failed", webhook_id=str(webhook.id), error=error.detail)
