"""Pages of queues in the order of their ids. Cursors are opaque to clients: base64url of the id."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Query

from app.core.errors import Flaw, Invalid
from app.core.pagination import Pagination

T = TypeVar("T")

# A queue's id in base64.
_CURSOR_MAX_LENGTH = 800


@dataclass(frozen=True, slots=True)
class QueuePage:
    """A request for one page: at most `limit` queues whose ids come behind `after`, or ahead of `before`."""

    limit: int
    after: str | None
    before: str | None

    def cut(self, rows: Sequence[T], id_of: Callable[[T], str]) -> tuple[list[T], Pagination]:
        """The page's items in the order of their ids, and where they stand. `rows` is one more if there are more."""
        has_more = len(rows) > self.limit
        items = list(rows[: self.limit])
        if self.before is not None:
            items.reverse()
        later_exist = has_more if self.before is None else bool(items)
        earlier_exist = has_more if self.before is not None else self.after is not None and bool(items)
        return items, Pagination(
            limit=self.limit,
            has_more=has_more,
            next=_encode(id_of(items[-1])) if later_exist else None,
            previous=_encode(id_of(items[0])) if earlier_exist else None,
        )


def _encode(queue_id: str) -> str:
    return base64.urlsafe_b64encode(queue_id.encode()).decode().rstrip("=")


def _decode(cursor: str | None, name: str) -> str | None:
    if cursor is None:
        return None
    try:
        found = base64.urlsafe_b64decode(cursor.encode("ascii") + b"==").decode("ascii")
    except (ValueError, binascii.Error) as error:
        raise _bad_cursor(name) from error
    if not found.isprintable():
        raise _bad_cursor(name)
    return found


def _bad_cursor(name: str) -> Invalid:
    flaw = Flaw(f"/{name}", "Not a cursor of this list.", "query")
    return Invalid("invalid_cursor", "The cursor is not one that this list gave out.", flaws=[flaw])


def _page(
    limit: Annotated[int, Query(ge=1, le=100, description="Items on a page.")] = 25,
    after: Annotated[str | None, Query(max_length=_CURSOR_MAX_LENGTH, description="`next` of an earlier page.")] = None,
    before: Annotated[
        str | None, Query(max_length=_CURSOR_MAX_LENGTH, description="`previous` of an earlier page.")
    ] = None,
) -> QueuePage:
    if after is not None and before is not None:
        raise Invalid(
            "invalid_cursor", "Give `after` or `before`, not both.", flaws=[Flaw("/before", "not with after", "query")]
        )
    return QueuePage(limit, _decode(after, "after"), _decode(before, "before"))


QueuePageQuery = Annotated[QueuePage, Depends(_page)]
