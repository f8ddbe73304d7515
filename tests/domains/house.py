"""An organization whose domains are looked at from time to time."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Organization, User
from app.accounts.notices import Notice
from app.core.config import Settings
from app.core.db import Database
from app.core.errors import Forbidden, Unavailable
from app.core.ids import new_id
from app.domains import records, service
from app.domains.models import Domain
from app.mail.dns import Resolver
from tests.dnsd import DnsServer


@dataclass(slots=True)
class Postbox:
    """A mailer that keeps what it is given, or cannot take it."""

    is_configured: bool = True
    is_broken: bool = False
    notices: list[Notice] = field(default_factory=list)

    async def check(self, session: AsyncSession) -> None:
        if self.is_broken:
            raise Unavailable("system_mail_not_configured", "Nobody can send it.")

    async def post(self, session: AsyncSession, notice: Notice) -> None:
        await self.check(session)
        self.notices.append(notice)

    def take(self) -> list[tuple[str, str]]:
        """(to, subject) of what came since the last time."""
        found = [(notice.to, notice.subject) for notice in self.notices]
        self.notices.clear()
        return found


@dataclass(slots=True)
class House:
    """An organization with its domains, the world's DNS, and the task that looks at it."""

    database: Database
    settings: Settings
    zone: DnsServer
    resolver: Resolver
    postbox: Postbox
    org_id: UUID
    owners: list[str]

    async def create(self, name: str, *, org_id: UUID | None = None, publish: bool = True) -> UUID:
        """A domain, verified with all its records published unless said otherwise."""
        org_id = org_id or self.org_id
        async with self.database.transaction() as session:
            domain = await service.create(session, org_id, name=name, selector="pmta", only=None)
        if publish:
            self.publish(domain)
            await service.verify(self.database, self.resolver, org_id, domain.id, only=None)
        return domain.id

    def publish(self, domain: Any) -> None:
        for record in domain.dns_records:
            self.zone.replace(record.name, record.type, record.value)

    async def row(self, domain_id: UUID) -> Domain:
        async with self.database.transaction() as session:
            return (await session.scalars(select(Domain).where(Domain.id == domain_id))).one()

    async def shown(self, domain_id: UUID) -> Any:
        row = await self.row(domain_id)
        async with self.database.transaction() as session:
            return await service.get(session, row.org_id, domain_id, only=None)

    async def change(self, domain_id: UUID, **values: Any) -> None:
        async with self.database.transaction() as session:
            await session.execute(update(Domain).where(Domain.id == domain_id).values(**values))

    async def run(self) -> int:
        return await service.recheck_due(self.database, self.resolver, self.postbox, self.settings)

    async def look(self, *domain_ids: UUID) -> list[tuple[str, str]]:
        """Have these domains looked at, now; what their owners are told."""
        for domain_id in domain_ids:
            await self.change(domain_id, next_check_at=datetime.now(UTC) - timedelta(seconds=1))
        assert await self.run() == len(domain_ids)
        return self.postbox.take()

    async def may_send(self, name: str, org_id: UUID | None = None) -> bool:
        try:
            async with self.database.transaction() as session:
                return await service.sendable(session, org_id or self.org_id, name) is not None
        except Forbidden:
            return False

    async def signs(self, domain_id: UUID) -> bool:
        pair = ((await self.row(domain_id)).org_id, domain_id)
        async with self.database.transaction() as session:
            return bool(await service.signing_keys(session, [pair]))


async def organization(database: Database, owners: int = 1) -> tuple[UUID, list[str]]:
    """A new organization with owners, and an admin who is none."""
    org_id = new_id()
    emails = [f"owner{number}-{org_id}@example.net" for number in range(owners)]
    async with database.transaction() as session:
        session.add(Organization(id=org_id, name="Rechecked"))
        await session.flush()
        for email in emails:
            session.add(User(org_id=org_id, email=email, name="O", password_hash="x", role="owner"))
        session.add(User(org_id=org_id, email=f"admin-{org_id}@example.net", name="A", password_hash="x", role="admin"))
    return org_id, emails


def dkim_name(domain: str, selector: str = "pmta") -> str:
    return records.dkim_name(selector, domain)
