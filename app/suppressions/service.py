"""Whom an organization's mail spares: kept by hand or learnt from bounces, complaints and unsubscribes, and asked by
whoever accepts or transmits mail.

PostroadError
├── NotFound   suppression_not_found
└── Invalid    no_valid_address, no_valid_line, invalid_csv
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import ids, problems
from app.core.db import Database
from app.core.errors import Flaw, Invalid, NotFound, ProblemFlaw
from app.core.pagination import Page, Pagination
from app.suppressions import queries, schemas, sheet
from app.suppressions.models import Reason, Suppression
from app.suppressions.queries import Place
from app.suppressions.schemas import Filters, Malformed, NewSuppression

KeyT = TypeVar("KeyT")

_EXPORT_PAGE = 1000


# ── What sending asks and tells ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Asked:
    """A copy that is to be sent: whose, to whom (as it stands in the mail), under which tags.

    `is_notice`: one of Postroad's own mails to its users. These leave from an operator's organization, and who wants
    no news from that one must still be able to get a new password: only a hard bounce holds them back.
    """

    org_id: UUID
    recipient: str
    tags: Sequence[str]
    is_notice: bool = False


@dataclass(frozen=True, slots=True)
class Suppressed:
    """Why a copy is not sent. `tag` empty: its address is suppressed for all mail."""

    id: UUID
    reason: str
    tag: str

    @property
    def response(self) -> str:
        """It in a line."""
        return f"the recipient is suppressed: {self.reason}"

    def facts(self) -> dict[str, Any]:
        """What the event `suppressed` tells of it."""
        facts = {"reason": self.reason, "suppression_id": str(self.id), "response": self.response}
        return {**facts, "tag": self.tag} if self.tag else facts


@dataclass(frozen=True, slots=True)
class Entry:
    """A suppression that was learnt of. `address` is `mail.address.Address.key`; `detail` a line that can be stored."""

    org_id: UUID
    address: str
    reason: Reason
    tag: str = ""
    message_id: UUID | None = None
    detail: str | None = None


async def find(connection: asyncpg.Connection, asked: Mapping[KeyT, Asked]) -> dict[KeyT, Suppressed]:
    """Of these copies those that are not to be sent, with the reason: one statement for all. Raises DATABASE_ERRORS."""
    return _stopped(asked, await queries.find(connection, _places(asked.values()))) if asked else {}


async def find_within(session: AsyncSession, asked: Mapping[KeyT, Asked]) -> dict[KeyT, Suppressed]:
    """As `find`, in a session's transaction."""
    return _stopped(asked, await queries.find_within(session, _places(asked.values()))) if asked else {}


def _places(asked: Collection[Asked]) -> set[Place]:
    return {(one.org_id, one.recipient.casefold(), tag) for one in asked for tag in ("", *one.tags)}


def _stopped(asked: Mapping[KeyT, Asked], rows: Sequence[Any]) -> dict[KeyT, Suppressed]:
    if not rows:
        return {}
    known: dict[Place, Suppressed] = {
        (org_id, address, tag): Suppressed(suppression_id, reason, tag)
        for org_id, address, tag, suppression_id, reason in rows
    }
    found: dict[KeyT, Suppressed] = {}
    for key, one in asked.items():
        for tag in ("", *one.tags):
            suppressed = known.get((one.org_id, one.recipient.casefold(), tag))
            if suppressed is not None and (suppressed.reason == "hard_bounce" or not one.is_notice):
                found[key] = suppressed
                break
    return found


async def note(connection: asyncpg.Connection, entries: Sequence[Entry]) -> None:
    """Suppress addresses; one that is suppressed under that tag already stays as it is. Raises DATABASE_ERRORS."""
    rows: dict[Place, dict[str, Any]] = {}
    for one in entries:
        detail = one.detail and one.detail[: schemas.MAX_DETAIL_CHARACTERS]
        place = (one.org_id, one.address, one.tag)
        rows.setdefault(place, _row(*place, one.reason, message_id=one.message_id, detail=detail))
    if rows:
        await queries.note(connection, list(rows.values()))


def _row(
    org_id: UUID, address: str, tag: str, reason: Reason, *, message_id: UUID | None = None, detail: str | None = None
) -> dict[str, Any]:
    identifier = ids.new_id()
    return {
        "org_id": org_id,
        "id": identifier,
        "address": address,
        "tag": tag,
        "reason": reason,
        "message_id": message_id,
        "detail": detail,
        # Lists are searched by the time within the id.
        "created_at": ids.time_of(identifier),
    }


# ── What the organization does ──────────────────────────────────────────────────────────────────────────────────────


async def add(session: AsyncSession, org_id: UUID, wanted: NewSuppression) -> tuple[schemas.Suppression, bool]:
    """Suppress an address; the suppression, and whether it is new. One that there is already stays as it is."""
    ((suppression, is_new),) = await _add(session, org_id, [wanted])
    return suppression, is_new


async def _add(
    session: AsyncSession, org_id: UUID, wanted: Sequence[NewSuppression]
) -> list[tuple[schemas.Suppression, bool]]:
    """As `add`, of each in order: what is named twice is new once."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in wanted:
        place = (one.address, one.tag or "")
        rows.setdefault(place, _row(org_id, *place, one.reason, detail=one.detail))
    added = await queries.add(session, list(rows.values())) if rows else []
    now = {(found.address, found.tag): (_show(found), is_new) for found, is_new in added}
    results = []
    for one in wanted:
        place = (one.address, one.tag or "")
        suppression, is_new = now[place]
        now[place] = (suppression, False)
        results.append((suppression, is_new))
    return results


async def add_many(
    session: AsyncSession, org_id: UUID, wanted: Sequence[NewSuppression | Malformed]
) -> schemas.BulkData:
    """Suppress those that are valid, and say of each what became of it. Raises Invalid when none is."""
    flaws = {index: _flaws(one) for index, one in enumerate(wanted) if isinstance(one, Malformed)}
    if len(flaws) == len(wanted):
        below = [Flaw(f"/suppressions/{index}{flaw.pointer}", flaw.detail) for index in flaws for flaw in flaws[index]]
        raise Invalid("no_valid_address", "None of the items is valid.", flaws=below[: problems.MAX_FLAWS])
    added = iter(await _add(session, org_id, [one for one in wanted if isinstance(one, NewSuppression)]))
    results = []
    for index in range(len(wanted)):
        if index in flaws:
            errors = [ProblemFlaw(pointer=flaw.pointer, detail=flaw.detail) for flaw in flaws[index]]
            results.append(schemas.BulkResult(index=index, status="rejected", suppression=None, errors=errors))
        else:
            suppression, is_new = next(added)
            status = "added" if is_new else "already_suppressed"
            results.append(schemas.BulkResult(index=index, status=status, suppression=suppression))
    return schemas.BulkData(
        added=sum(one.status == "added" for one in results),
        already_suppressed=sum(one.status == "already_suppressed" for one in results),
        rejected=len(flaws),
        results=results,
    )


def _flaws(item: Malformed) -> Sequence[Flaw]:
    found = item.error.errors(include_url=False, include_input=False)
    return problems.invalid([{**flaw, "loc": ("body", *flaw["loc"])} for flaw in found]).flaws


async def import_csv(session: AsyncSession, org_id: UUID, octets: bytes) -> schemas.ImportData:
    """Suppress what the lines of a file name, and say what is wrong with the others.

    Raises Invalid for what is no CSV, and when no line is valid.
    """
    try:
        # Domains in other scripts take their time, and others wait for this thread.
        read = await asyncio.to_thread(sheet.read, octets, max_lines=schemas.MAX_LINES)
    except sheet.NoCsvError as error:
        raise Invalid("invalid_csv", str(error)) from error
    flaws = list(read.flaws[: schemas.MAX_LINE_FLAWS])
    if not read.found:
        first = f" Line {flaws[0].line}: {flaws[0].detail}" if flaws else ""
        lines = [flaw.model_dump() for flaw in flaws]
        raise Invalid("no_valid_line", f"No line of the file names an address.{first}", extra={"lines": lines})
    added = sum(is_new for _, is_new in await _add(session, org_id, read.found))
    return schemas.ImportData(
        added=added, already_suppressed=len(read.found) - added, rejected=len(read.flaws), errors=flaws
    )


async def export_csv(database: Database, org_id: UUID, filters: Filters) -> AsyncIterator[str]:
    """The suppressions as CSV, newest first, piece by piece; no transaction is open between the pieces."""
    after, is_first, has_more = None, True, True
    while has_more:
        wanted = Page(_EXPORT_PAGE, after, None)
        async with database.transaction() as session:
            rows = await queries.page(session, org_id, wanted, filters)
        found, pagination = wanted.cut(rows, lambda one: one.id)
        yield sheet.write(found, with_header=is_first)
        is_first, has_more = False, pagination.has_more
        after = found[-1].id if found else None


async def page(
    session: AsyncSession, org_id: UUID, wanted: Page, filters: Filters
) -> tuple[list[schemas.Suppression], Pagination]:
    """A page of the organization's suppressions, newest first."""
    found, pagination = wanted.cut(await queries.page(session, org_id, wanted, filters), lambda one: one.id)
    return [_show(one) for one in found], pagination


async def check(
    session: AsyncSession, org_id: UUID, addresses: Sequence[str], tags: Sequence[str]
) -> list[schemas.Check]:
    """For each address, what would hold back a mail to it that carries these tags."""
    found: defaultdict[str, list[schemas.Suppression]] = defaultdict(list)
    for one in await queries.of_addresses(session, org_id, set(addresses), {"", *tags}):
        found[one.address].append(_show(one))
    return [schemas.Check(address=one, suppressed=one in found, suppressions=found.get(one, [])) for one in addresses]


async def get(session: AsyncSession, org_id: UUID, suppression_id: UUID) -> schemas.Suppression:
    """One suppression. Raises NotFound."""
    found = await queries.get(session, org_id, suppression_id)
    if found is None:
        raise NotFound("suppression")
    return _show(found)


async def delete(session: AsyncSession, org_id: UUID, suppression_id: UUID) -> None:
    """Let mail go to the address again. Raises NotFound."""
    if not await queries.remove(session, org_id, Suppression.id == suppression_id):
        raise NotFound("suppression")


async def delete_of(session: AsyncSession, org_id: UUID, address: str, tag: str | None) -> None:
    """As `delete`, of the one that the address has under the tag; None: of the one for all mail. Raises NotFound."""
    if not await queries.remove(session, org_id, Suppression.address == address, Suppression.tag == (tag or "")):
        raise NotFound("suppression")


def _show(suppression: Suppression) -> schemas.Suppression:
    return schemas.Suppression(
        id=suppression.id,
        address=suppression.address,
        tag=suppression.tag or None,
        reason=suppression.reason,
        message_id=suppression.message_id,
        detail=suppression.detail,
        created_at=suppression.created_at,
    )
