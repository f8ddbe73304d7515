"""Request bodies as JSON in the strict sense (RFC 8259 with RFC 7493's rules): one meaning, whoever reads it."""

import json
from typing import Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request


class StrictRequest(Request):
    """A request whose JSON is refused where readers differ about it; FastAPI turns that into `invalid_json`."""

    async def json(self) -> Any:
        """The body's value. Raises json.JSONDecodeError with a sentence that says what is wrong."""
        return parse(await self.body())


async def received(request: Request) -> bytes:
    """The body's octets. Raises HTTPException when the client goes away before all have come."""
    try:
        return await request.body()
    except ClientDisconnect as error:
        # Nobody reads the answer; it is for the log, in which this is no failure of ours.
        raise HTTPException(400, "The client went away before its request was complete.") from error


def parse(body: bytes) -> Any:
    """Read UTF-8 JSON.

    Raises json.JSONDecodeError for anything else: other encodings, NaN and Infinity, a field given twice, numbers of
    thousands of digits, nesting beyond the interpreter's depth.
    """
    try:
        return json.loads(body.decode(), object_pairs_hook=_fields, parse_constant=_refuse_constant)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError("not UTF-8", "", 0) from error
    except RecursionError as error:
        raise json.JSONDecodeError("too deeply nested", "", 0) from error
    except ValueError as error:
        raise json.JSONDecodeError("a number with too many digits", "", 0) from error


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise json.JSONDecodeError(f"the field {twice[:100]!r} is given twice", "", 0)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no number in JSON", "", 0)
