"""Cursor pagination over UUIDv7 ids, newest first. Cursors are opaque to clients: base64url of the id's bytes."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import Depends, Query
from pydantic import BaseModel, Field
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute

from app.core.errors import Flaw, Invalid

T = TypeVar("T")


class Pagination(BaseModel):
    """Where this page stands in its list."""

    limit: int
    has_more: bool = Field(description="Whether more items lie beyond this page in the direction asked for.")
    next: str | None = Field(description="Pass as `after` for the next (older) page.")
    previous: str | None = Field(description="Pass as `before` for the previous (newer) page.")


@dataclass(frozen=True, slots=True)
class Page:
    """A request for one page: at most `limit` items older than `after`, or newer than `before`."""

    limit: int
    after: UUID | None
    before: UUID | None

    def select(self, statement: Select[Any], column: InstrumentedAttribute[UUID]) -> Select[Any]:
        """Restrict and order a statement; it fetches one row more than asked, to know whether there are more."""
        if self.before is not None:
            return statement.where(column > self.before).order_by(column.asc()).limit(self.limit + 1)
        if self.after is not None:
            statement = statement.where(column < self.after)
        return statement.order_by(column.desc()).limit(self.limit + 1)

    def cut(self, rows: Sequence[T], id_of: Callable[[T], UUID]) -> tuple[list[T], Pagination]:
        """The page's items, newest first, and where they stand."""
        has_more = len(rows) > self.limit
        items = list(rows[: self.limit])
        if self.before is not None:
            items.reverse()
        older_exist = has_more if self.before is None else bool(items)
        newer_exist = has_more if self.before is not None else self.after is not None and bool(items)
        return items, Pagination(
            limit=self.limit,
            has_more=has_more,
            next=_encode(id_of(items[-1])) if items and older_exist else None,
            previous=_encode(id_of(items[0])) if items and newer_exist else None,
        )


def _encode(identifier: UUID) -> str:
    return base64.urlsafe_b64encode(identifier.bytes).decode().rstrip("=")


def _decode(cursor: str | None, name: str) -> UUID | None:
    if cursor is None:
        return None
    try:
        return UUID(bytes=base64.urlsafe_b64decode(cursor.encode("ascii") + b"=="))
    except (ValueError, binascii.Error) as error:
        flaw = Flaw(f"/{name}", "Not a cursor of this list.", "query")
        raise Invalid("invalid_cursor", "The cursor is not one that this list gave out.", flaws=[flaw]) from error


def _page(
    limit: Annotated[int, Query(ge=1, le=100, description="Items on a page.")] = 25,
    after: Annotated[str | None, Query(max_length=64, description="`next` of an earlier page.")] = None,
    before: Annotated[str | None, Query(max_length=64, description="`previous` of an earlier page.")] = None,
) -> Page:
    if after is not None and before is not None:
        raise Invalid(
            "invalid_cursor", "Give `after` or `before`, not both.", flaws=[Flaw("/before", "not with after", "query")]
        )
    return Page(limit, _decode(after, "after"), _decode(before, "before"))


PageQuery = Annotated[Page, Depends(_page)]
