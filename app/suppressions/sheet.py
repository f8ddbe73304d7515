"""Lists of suppressions as CSV (RFC 4180): what an import reads and an export writes."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from app.core.schemas import rfc3339
from app.suppressions.models import Suppression
from app.suppressions.schemas import LineFlaw, NewSuppression

COLUMNS: Final = ("address", "reason", "tag", "detail")
# What an import does not read.
_TOLD: Final = ("message_id", "created_at")
# Spreadsheets take what begins so for a formula. The apostrophe is quoted itself, so that an import can tell.
_QUOTED: Final = ("=", "+", "-", "@", "\t", "\r", "'")
_HEADERS: Final = frozenset({"address", "email", "e-mail", "email_address", "emailaddress", "recipient"})


class NoCsvError(ValueError):
    """The octets are no CSV at all; its message is a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """The lines of a file that are suppressions, and what is wrong with the others."""

    found: Sequence[NewSuppression]
    flaws: Sequence[LineFlaw]


def read(octets: bytes, *, max_lines: int) -> Sheet:
    """Read lines of `address[,reason[,tag[,detail]]]`; further cells, and a header, are passed over.

    Raises NoCsvError for what is not UTF-8 and for too many lines.
    """
    try:
        text = octets.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NoCsvError("The file is not UTF-8.") from error
    if text.count("\n") > max_lines or text.count("\r") > max_lines:
        raise NoCsvError(f"The file has more than {max_lines:,} lines.")
    found: list[NewSuppression] = []
    flaws: list[LineFlaw] = []
    for number, row in _rows(text):
        try:
            found.append(_suppression(row))
        except ValueError as error:
            flaws.append(LineFlaw(line=number, detail=str(error)))
    return Sheet(found, flaws)


def _rows(text: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """The lines that say something, each with the number of its first; the header is not among them."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    is_first = True
    while True:
        number = reader.line_num + 1
        row: list[str] | csv.Error
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row = error
        if isinstance(row, list) and not any(cell.strip() for cell in row):
            continue
        if not (is_first and isinstance(row, list) and row[0].strip().lower() in _HEADERS):
            yield number, row
        is_first = False


def _suppression(row: list[str] | csv.Error) -> NewSuppression:
    """Raises ValueError with a sentence."""
    if isinstance(row, csv.Error):
        raise ValueError(f"The line is no CSV: {row}.")
    cells = [_unquoted(cell.strip()) for cell in row]
    given = {name: cell for name, cell in zip(COLUMNS, cells, strict=False) if cell}
    if "reason" in given:
        given["reason"] = given["reason"].lower()
    try:
        return NewSuppression.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{first['loc'][0]}: {str(first['msg']).removeprefix('Value error, ')}") from error


def write(suppressions: Iterable[Suppression], *, with_header: bool) -> str:
    """Lines of CSV, each with its CRLF."""
    out = io.StringIO()
    writer = csv.writer(out)
    if with_header:
        writer.writerow((*COLUMNS, *_TOLD))
    for one in suppressions:
        cells = (one.address, one.reason, one.tag, one.detail or "")
        writer.writerow((*map(_quoted, cells), one.message_id or "", rfc3339(one.created_at)))
    return out.getvalue()


def _quoted(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_QUOTED) else cell


def _unquoted(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_QUOTED) else cell
