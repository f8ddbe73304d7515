"""SQL of suppressions. What every mail passes is asked by the driver's own connection too (`Database.bare`)."""

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import ColumnElement, delete, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import ids
from app.core.db import dumps, insert_json
from app.core.pagination import Page
from app.suppressions.models import Suppression
from app.suppressions.schemas import Filters

# Organization, address and tag.
Place = tuple[UUID, str, str]
Rows = Sequence[dict[str, Any]]

# LIMIT keeps it to one look at the index for each, whatever is known of the table.
_FIND = """
    SELECT k.org_id, k.address, k.tag, s.id, s.reason
    FROM unnest({places}) AS k(org_id, address, tag)
    CROSS JOIN LATERAL (
        SELECT s.id, s.reason FROM suppressions s
        WHERE s.org_id = k.org_id AND s.address = k.address AND s.tag = k.tag LIMIT 1
    ) s
    """
_FIND_BARE = _FIND.format(places="$1::uuid[], $2::text[], $3::text[]")
_FIND_WITHIN = text(_FIND.format(places="CAST(:org_ids AS uuid[]), CAST(:addresses AS text[]), CAST(:tags AS text[])"))

# In one order, so that two that add the same ones do not wait for each other in a circle.
_IN_ORDER = "ORDER BY r.org_id, r.address, r.tag ON CONFLICT (org_id, address, tag)"
_NOTE = f"{insert_json(Suppression, '$1')} {_IN_ORDER} DO NOTHING"
# Those that are there already are locked by a change that changes nothing, so that they are still there when told of.
_ADD = text(
    f"{insert_json(Suppression, ':rows')} {_IN_ORDER} DO UPDATE SET tag = excluded.tag RETURNING *, xmax = 0 AS is_new"
)


async def find(connection: asyncpg.Connection, places: Collection[Place]) -> Sequence[Any]:
    """(org_id, address, tag, id, reason) of those that there are."""
    rows: Sequence[Any] = await connection.fetch(_FIND_BARE, *_columns(places))
    return rows


async def find_within(session: AsyncSession, places: Collection[Place]) -> Sequence[Any]:
    """As `find`, in a session's transaction."""
    org_ids, addresses, tags = _columns(places)
    values = {"org_ids": org_ids, "addresses": addresses, "tags": tags}
    return (await session.execute(_FIND_WITHIN, values)).all()


def _columns(places: Collection[Place]) -> tuple[list[UUID], list[str], list[str]]:
    return [org_id for org_id, _, _ in places], [address for _, address, _ in places], [tag for _, _, tag in places]


async def note(connection: asyncpg.Connection, rows: Rows) -> None:
    """Insert whole rows; those that are there already stay as they are."""
    await connection.execute(_NOTE, dumps(rows))


async def add(session: AsyncSession, rows: Rows) -> list[tuple[Suppression, bool]]:
    """Insert whole rows of different places; the suppression that each place has now, and whether it is new."""
    found = await session.execute(_ADD, {"rows": dumps(rows)})
    return [(Suppression(**{name: row[name] for name in _NAMES}), row["is_new"]) for row in found.mappings()]


_NAMES = [column.name for column in Suppression.__table__.columns]


async def page(session: AsyncSession, org_id: UUID, wanted: Page, filters: Filters) -> Sequence[Suppression]:
    """The rows for one page, to be cut by `wanted.cut`."""
    statement = select(Suppression).where(Suppression.org_id == org_id, *_conditions(filters))
    return (await session.scalars(wanted.select(statement, Suppression.id))).all()


def _conditions(filters: Filters) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if filters.reason is not None:
        found.append(Suppression.reason == filters.reason)
    if filters.tag is not None:
        found.append(Suppression.tag == filters.tag)
    if filters.address is not None:
        found.append(Suppression.address == filters.address)
    if filters.pattern is not None:
        found.append(Suppression.address.like(filters.pattern))
    if filters.created_from is not None:
        found.append(Suppression.id >= ids.floor(filters.created_from))
    if filters.created_to is not None:
        found.append(Suppression.id < ids.floor(filters.created_to))
    return found


async def of_addresses(
    session: AsyncSession, org_id: UUID, addresses: Collection[str], tags: Collection[str]
) -> Sequence[Suppression]:
    """All that these addresses have under these tags, those for all mail first."""
    statement = select(Suppression).where(
        Suppression.org_id == org_id, Suppression.address.in_(addresses), Suppression.tag.in_(tags)
    )
    return (await session.scalars(statement.order_by(Suppression.tag))).all()


async def get(session: AsyncSession, org_id: UUID, suppression_id: UUID) -> Suppression | None:
    """A suppression by its id."""
    return await session.get(Suppression, (org_id, suppression_id))


async def remove(session: AsyncSession, org_id: UUID, *conditions: ColumnElement[bool]) -> bool:
    """Delete what the conditions hold for; whether there was any."""
    statement = delete(Suppression).where(Suppression.org_id == org_id, *conditions).returning(Suppression.id)
    return (await session.scalars(statement)).first() is not None
