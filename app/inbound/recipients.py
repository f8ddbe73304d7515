"""For whom mail is taken: return paths that we have signed, and the addresses that reports are sent to."""

from typing import Final
from uuid import UUID

from cachetools import LRUCache

from app.core import crypto
from app.core.config import Settings
from app.core.db import Database
from app.inbound import queries
from app.mail import returnpath

# At the platform's return-path domain: where feedback loops are registered, and what every domain has (RFC 2142).
REPORT_LOCALS: Final = frozenset({"abuse", "complaints", "fbl", "postmaster"})
_CUSTOMER_PREFIX: Final = "bounces."
_KNOWN_ENTRIES: Final = 10_000


def delivery_of(address: str) -> tuple[UUID, UUID] | None:
    """The (org_id, delivery_id) whose return path the address is, whatever its domain; None: none that we signed."""
    return returnpath.decode(address.partition("@")[0], key=crypto.derive_key("return-path"))


class Recipients:
    """Judges the recipients of mail that is offered. One a process."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._platform_domain = settings.return_path_domain
        self._database = database
        # A customer's domain stays one, also when it is deleted: bounces come late.
        self._known: LRUCache[tuple[UUID, str], bool] = LRUCache(_KNOWN_ENTRIES)

    async def flaw(self, address: str) -> str | None:
        """Why there is no such recipient, as it is counted; None: there is. Raises DATABASE_ERRORS."""
        local, _, domain = address.lower().partition("@")
        domain = domain.removesuffix(".")
        if not domain:
            # RFC 5321 section 4.5.1.
            return None if local == "postmaster" else "unknown_recipient"
        ours = domain == self._platform_domain
        if ours and local in REPORT_LOCALS:
            return None
        if not ours and not domain.startswith(_CUSTOMER_PREFIX):
            return "unknown_recipient"
        delivery = delivery_of(local)
        if delivery is None:
            return "forged_return_path" if len(local) == returnpath.LOCAL_CHARACTERS else "unknown_recipient"
        if ours or await self._is_customers(delivery[0], domain.removeprefix(_CUSTOMER_PREFIX)):
            return None
        return "unknown_recipient"

    async def _is_customers(self, org_id: UUID, domain: str) -> bool:
        key = (org_id, domain)
        if key not in self._known:
            async with self._database.bare() as connection:
                if not await queries.has_domain(connection, org_id, domain):
                    return False
            self._known[key] = True
        return True
