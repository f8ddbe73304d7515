"""What the owners of an organization are told of a domain by mail, each once."""

from typing import Literal

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import service as accounts
from app.accounts.notices import Mailer, Notice
from app.core.errors import Unavailable
from app.domains.models import Domain
from app.domains.records import Record

Event = Literal["failing", "well", "lost"]

_SUBJECTS: dict[Event, str] = {
    "failing": "The DKIM record of {name} is missing",
    "well": "The DKIM record of {name} is back",
    "lost": "{name} is no longer verified",
}
_TEXTS: dict[Event, str] = {
    "failing": (
        "the DNS record below is no longer there, or has changed; two look-ups in a row said so. Mail from {name} is "
        "still sent, but receivers cannot verify its signature, and may refuse it or take it for spam.\n\n"
        "Please publish this record again:\n\n{zone_line}\n\n"
        "There will be one more mail when it has been seen, and none until then."
    ),
    "well": "the DKIM record of {name} has been seen again. Receivers can verify its mail; there is nothing to do.",
    "lost": (
        "another organization has proven by DNS that {name} is theirs, and the record with your key is no longer "
        "there. So {name} is no longer verified: nothing is accepted from it, and mail that waits is held back.\n\n"
        "If the domain is yours, publish this record again:\n\n{zone_line}"
    ),
}

log = structlog.get_logger(__name__)


async def tell(session: AsyncSession, mailer: Mailer, domain: Domain, record: Record, event: Event) -> bool:
    """Post a notice to every owner in the session's transaction; False when there is nobody to send it as."""
    log.warning("domain_notice", org_id=str(domain.org_id), domain=domain.name, notice=event)
    if not mailer.is_configured:
        return False
    subject = _SUBJECTS[event].format(name=domain.name)
    text = f"Hello,\n\n{_TEXTS[event].format(name=domain.name, zone_line=record.zone_line)}\n\nPostroad\n"
    try:
        async with session.begin_nested():
            for email in await accounts.owner_emails(session, domain.org_id):
                await mailer.post(session, Notice(to=email, subject=subject, text=text))
    except Unavailable as error:
        log.error("domain_notice_failed", org_id=str(domain.org_id), domain=domain.name, error=error.detail)
        return False
    return True
