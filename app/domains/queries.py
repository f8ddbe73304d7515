"""Statements on domains and their keys. Deleted domains are seen only where a function says so."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import NotFound
from app.core.pagination import Page
from app.domains.models import DkimKey, Domain, DomainStatus
from app.mail.dkim import Algorithm


def _live(org_id: UUID, only: Collection[str] | None) -> list[ColumnElement[bool]]:
    conditions = [Domain.org_id == org_id, Domain.deleted_at.is_(None)]
    return conditions if only is None else [*conditions, Domain.name.in_(only)]


async def get(
    session: AsyncSession, org_id: UUID, domain_id: UUID, only: Collection[str] | None, *, lock: bool = False
) -> Domain | None:
    """A domain by id; `only` restricts to these names. `lock` keeps other writers off until the commit."""
    statement = select(Domain).where(Domain.id == domain_id, *_live(org_id, only))
    if lock:
        # FOR NO KEY UPDATE: mail may be accepted for the domain (a foreign key's share lock) all the while.
        statement = statement.with_for_update(key_share=True)
    return await session.scalar(statement)


async def load(
    session: AsyncSession, org_id: UUID, domain_id: UUID, only: Collection[str] | None, *, lock: bool = False
) -> tuple[Domain, list[DkimKey]]:
    """A domain and its keys, oldest first. Raises NotFound."""
    domain = await get(session, org_id, domain_id, only, lock=lock)
    if domain is None:
        raise NotFound("domain")
    return domain, (await keys(session, org_id, [domain_id]))[domain_id]


async def page(session: AsyncSession, org_id: UUID, page: Page, only: Collection[str] | None) -> Sequence[Domain]:
    """The rows for one page, to be cut by `page.cut`."""
    statement = page.select(select(Domain).where(*_live(org_id, only)), Domain.id)
    return (await session.scalars(statement)).all()


async def exists(session: AsyncSession, org_id: UUID, name: str) -> bool:
    """Whether the organization has this domain."""
    return bool(await session.scalar(select(select(Domain.id).where(*_live(org_id, [name])).exists())))


async def count(session: AsyncSession, org_id: UUID) -> int:
    """How many domains the organization has."""
    return await session.scalar(select(func.count()).select_from(Domain).where(*_live(org_id, None))) or 0


async def add(
    session: AsyncSession, org_id: UUID, domain_id: UUID, *, name: str, selector: str, next_check_at: datetime
) -> Domain | None:
    """Insert a domain; None when the organization has one of that name."""
    statement = (
        insert(Domain)
        .values(org_id=org_id, id=domain_id, name=name, dkim_selector=selector, next_check_at=next_check_at)
        .on_conflict_do_nothing(index_elements=[Domain.org_id, Domain.name], index_where=Domain.deleted_at.is_(None))
        .returning(Domain)
    )
    return await session.scalar(statement)


async def keys(session: AsyncSession, org_id: UUID, domain_ids: Collection[UUID]) -> dict[UUID, list[DkimKey]]:
    """The keys of some domains of one organization, oldest first, without their private parts."""
    found: dict[UUID, list[DkimKey]] = {domain_id: [] for domain_id in domain_ids}
    statement = select(DkimKey).where(DkimKey.org_id == org_id, DkimKey.domain_id.in_(domain_ids)).order_by(DkimKey.id)
    for key in await session.scalars(statement):
        found[key.domain_id].append(key)
    return found


async def status(session: AsyncSession, org_id: UUID, name: str) -> tuple[UUID, DomainStatus] | None:
    """A domain's (id, status) by its name in A-labels."""
    row = (await session.execute(select(Domain.id, Domain.status).where(*_live(org_id, [name])))).one_or_none()
    return None if row is None else (row.id, row.status)


async def active_keys(
    session: AsyncSession, pairs: Collection[tuple[UUID, UUID]]
) -> Sequence[tuple[UUID, UUID, UUID, str, str, Algorithm, bytes]]:
    """(org_id, domain_id, key id, domain name, selector, algorithm, sealed key), RSA first; deleted domains too."""
    statement = (
        select(
            DkimKey.org_id,
            DkimKey.domain_id,
            DkimKey.id,
            Domain.name,
            DkimKey.selector,
            DkimKey.algorithm,
            DkimKey.private_key,
        )
        .join(Domain, (Domain.org_id == DkimKey.org_id) & (Domain.id == DkimKey.domain_id))
        .where(
            tuple_(DkimKey.org_id, DkimKey.domain_id).in_(pairs),
            DkimKey.status == "active",
            DkimKey.private_key.is_not(None),
        )
        .order_by(DkimKey.algorithm.desc(), DkimKey.id)
    )
    return [row._tuple() for row in await session.execute(statement)]  # type: ignore[misc]


async def by_ids(session: AsyncSession, pairs: Collection[tuple[UUID, UUID]]) -> Sequence[Domain]:
    """Live domains by (org_id, domain_id)."""
    statement = select(Domain).where(tuple_(Domain.org_id, Domain.id).in_(pairs), Domain.deleted_at.is_(None))
    return (await session.scalars(statement)).all()


async def by_names(session: AsyncSession, names: Collection[str]) -> Sequence[Domain]:
    """Live domains of all organizations with one of these names."""
    return (await session.scalars(select(Domain).where(Domain.name.in_(names), Domain.deleted_at.is_(None)))).all()


async def claim_due(session: AsyncSession, *, limit: int, lease: timedelta) -> list[tuple[UUID, UUID]]:
    """(org_id, domain_id) of live domains that are due for a check, longest first; nobody else gets them meanwhile.

    Those whose check is never written down are due again after `lease`.
    """
    due = (
        select(Domain.org_id, Domain.id)
        .where(Domain.next_check_at <= func.now(), Domain.deleted_at.is_(None))
        .order_by(Domain.next_check_at)
        .limit(limit)
        .with_for_update(key_share=True, skip_locked=True)
        .cte("due")
    )
    statement = (
        update(Domain)
        .where(Domain.org_id == due.c.org_id, Domain.id == due.c.id)
        .values(next_check_at=func.now() + lease)
        .returning(Domain.org_id, Domain.id)
        .execution_options(synchronize_session=False)
    )
    return [(org_id, domain_id) for org_id, domain_id in await session.execute(statement)]


async def is_proven_elsewhere(session: AsyncSession, org_id: UUID, name: str) -> bool:
    """Whether another organization has proven this name, and was not found without its record since."""
    others = select(Domain.id).where(
        Domain.name == name,
        Domain.org_id != org_id,
        Domain.status == "verified",
        Domain.misses == 0,
        Domain.deleted_at.is_(None),
    )
    return bool(await session.scalar(select(others.exists())))


async def hasten_rivals(session: AsyncSession, org_id: UUID, name: str) -> None:
    """Make other organizations' verified domains of this name due for a check; those being written now are left."""
    rivals = (
        select(Domain.org_id, Domain.id)
        .where(
            Domain.name == name,
            Domain.org_id != org_id,
            Domain.status == "verified",
            Domain.next_check_at > func.now(),
            Domain.deleted_at.is_(None),
        )
        .with_for_update(key_share=True, skip_locked=True)
        .cte("rivals")
    )
    statement = update(Domain).where(Domain.org_id == rivals.c.org_id, Domain.id == rivals.c.id)
    await session.execute(
        statement.values(next_check_at=func.now()).execution_options(synchronize_session=False),
    )


async def delete_keys(session: AsyncSession, org_id: UUID, key_ids: Collection[UUID]) -> None:
    """Forget keys altogether."""
    await session.execute(delete(DkimKey).where(DkimKey.org_id == org_id, DkimKey.id.in_(key_ids)))


async def retire_keys(session: AsyncSession) -> int:
    """Retire the keys whose overlap has passed, and wipe their private parts; how many."""
    statement = (
        update(DkimKey)
        .where(DkimKey.status == "retiring", DkimKey.retire_at <= func.now())
        .values(status="retired", private_key=None)
        .returning(DkimKey.id)
        .execution_options(synchronize_session=False)
    )
    return len((await session.execute(statement)).all())


async def wipe_deleted_keys(session: AsyncSession, *, grace: timedelta) -> int:
    """Null the private keys of domains deleted before `grace` for which no mail is queued; how many."""
    # SQL text, because domains stand below messages and delivery and may not import their models.
    statement = text(
        "UPDATE dkim_keys k SET private_key = NULL, status = 'retired' FROM domains d "
        "WHERE d.org_id = k.org_id AND d.id = k.domain_id AND k.private_key IS NOT NULL "
        "AND d.deleted_at < now() - CAST(:grace AS interval) AND NOT EXISTS ("
        "SELECT FROM delivery_queue q JOIN messages m ON m.org_id = q.org_id AND m.id = q.message_id "
        "WHERE q.org_id = d.org_id AND m.domain_id = d.id) RETURNING k.id"
    )
    return len((await session.execute(statement, {"grace": grace})).all())
