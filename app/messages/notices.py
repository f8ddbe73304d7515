"""Postroad's own mails: accepted, signed, delivered and retried as any other, in an operator's organization.

Errors: Unavailable (`system_mail_not_configured`).
"""

from collections.abc import Callable

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import service as accounts
from app.accounts.notices import Notice
from app.core.config import Settings
from app.core.db import after_commit
from app.core.errors import Forbidden, Unavailable
from app.domains import service as domains
from app.domains.service import SendingDomain
from app.mail import address
from app.messages import service
from app.messages.schemas import SendRequest

_TAG = "postroad"


class SystemMailer:
    """Posts from SYSTEM_MAIL_FROM; `app.accounts.notices.Mailer` says what its methods do.

    `ring` tells the workers; without it they find the mail at their next poll. Raises AddressError for an address that
    is none.
    """

    def __init__(self, settings: Settings, ring: Callable[[], None] | None = None) -> None:
        self._settings = settings
        self._ring = ring
        self._sender = address.parse(settings.system_mail_from) if settings.system_mail_from else None

    @property
    def is_configured(self) -> bool:
        return self._sender is not None

    async def check(self, session: AsyncSession) -> None:
        await self._domain(session)

    async def post(self, session: AsyncSession, notice: Notice) -> None:
        domain = await self._domain(session)
        request = SendRequest.model_validate(
            {
                "from": self._sender,
                "to": [notice.to],
                "subject": notice.subject,
                "text": notice.text,
                "tags": [_TAG],
                "expires_at": notice.expires_at and notice.expires_at.isoformat(),
            }
        )
        await service.send_own(session, request, domain, self._settings)
        if self._ring is not None:
            after_commit(session, self._ring)

    async def _domain(self, session: AsyncSession) -> SendingDomain:
        """The sender's domain, where an operator's organization may send from it. Raises Unavailable."""
        if self._sender is None:
            raise _not_configured("SYSTEM_MAIL_FROM is not set")
        for org_id in await accounts.operator_organizations(session):
            try:
                domain = await domains.sendable(session, org_id, self._sender.domain)
            except Forbidden:
                continue
            if domain is not None:
                return domain
        raise _not_configured("the domain of SYSTEM_MAIL_FROM is not a verified one of an operator's organization")


def _not_configured(why: str) -> Unavailable:
    return Unavailable("system_mail_not_configured", f"This server cannot send mail of its own: {why}.")
