"""Mails of Postroad's own to its users: what they are, and who posts them.

Accounts and domains stand below messages and cannot import it; the application hands them a Mailer, which accepts
a notice as any other mail, in the transaction of whatever it tells of.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Protocol

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession


@dataclass(frozen=True, slots=True)
class Notice:
    """One mail to one user: the address, a subject line, and plain text. Not delivered after `expires_at`."""

    to: str
    subject: str
    text: str
    expires_at: datetime | None = None


class Mailer(Protocol):
    """Posts notices."""

    @property
    def is_configured(self) -> bool:
        """Whether there is an address to send from."""

    async def check(self, session: AsyncSession) -> None:
        """Raises Unavailable (system_mail_not_configured) unless a notice would be accepted now."""

    async def post(self, session: AsyncSession, notice: Notice) -> None:
        """Accept the notice for delivery; it leaves if the session's transaction commits.

        Raises Unavailable (system_mail_not_configured); nothing is written then.
        """


def _mailer(request: Request) -> Mailer:
    found: Mailer = request.app.state.mailer
    return found


MailerDependency = Annotated[Mailer, Depends(_mailer)]
