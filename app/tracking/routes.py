"""/track: what the recipients of mail come to. No credentials: the token in the path is what they have.

Nothing here is counted against an address: the proxies of large providers fetch for millions of people.
"""

from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from app.core.body import received
from app.core.db import Database, database
from app.core.errors import responses
from app.tracking import pages_html, service
from app.tracking.service import UnknownLink, Visitor

router = APIRouter(prefix="/track", tags=["Tracking"])

# The smallest transparent GIF of one pixel that every program shows (GIF89a).
PIXEL = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
_NEVER_CACHED = {
    "Cache-Control": "no-store, no-cache, must-revalidate, private",
    "Pragma": "no-cache",
    "Expires": "0",
}
_REDIRECT = {**_NEVER_CACHED, "Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex, nofollow"}
_FORM, _MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
_MAX_FORM_FIELDS = 10
_ONE_CLICK = "One-Click"
_ASKED: dict[str, Any] = {"type": "string", "description": f"`{_ONE_CLICK}`: a mail program asks (RFC 8058)."}
_TAG: dict[str, Any] = {"type": "string", "description": "One of the mail's tags; empty or absent: all mail."}
_FORMS: dict[str, Any] = {
    _FORM: {"schema": {"type": "object", "properties": {"List-Unsubscribe": _ASKED, pages_html.CHOICE: _TAG}}},
    _MULTIPART: {"schema": {"type": "object", "properties": {"List-Unsubscribe": _ASKED}}},
}
_NO_LINK: dict[str, Any] = {"content": {"text/html": {}}, "description": "The link is none of ours, or too old."}
_NO_TAG: dict[str, Any] = {"content": {"text/html": {}}, "description": "The mail has no such tag."}

Db = Annotated[Database, Depends(database)]
Token = Annotated[str, Path(description="From a link of a mail.")]


# By all that follows in the path: a slash in it changes a token like any other character.
@router.head("/open/{id:path}", include_in_schema=False)
@router.get(
    "/open/{id:path}",
    operation_id="track_open",
    summary="Open-tracking pixel",
    response_class=Response,
    responses={200: {"content": {"image/gif": {}}, "description": "The pixel."}},
)
async def open_pixel(id: Token, request: Request) -> Response:
    """A transparent GIF of one pixel, the same for every id, never to be cached. Where the id is that of a mail's copy,
    its event `opened` tells that the pixel was fetched.
    """
    await service.opened(request.app.state.journal, id, _visitor(request))
    return Response(PIXEL, media_type="image/gif", headers=_NEVER_CACHED)


@router.head("/click/{token:path}", include_in_schema=False)
@router.get(
    "/click/{token:path}",
    operation_id="track_click",
    summary="Tracked link",
    status_code=302,
    response_class=Response,
    responses={302: {"description": "To the link's target."}, **responses(404)},
)
async def follow_link(token: Token, request: Request) -> Response:
    """Redirects to where a mail's link leads, and tells of it by its event `clicked`. The target, http or https, is
    part of the signed token: no other can be reached.
    """
    target = await service.clicked(request.app.state.journal, token, _visitor(request))
    return Response(status_code=302, headers={"Location": target, **_REDIRECT})


@router.head("/unsubscribe/{token:path}", include_in_schema=False)
@router.get(
    "/unsubscribe/{token:path}",
    operation_id="show_unsubscribe",
    summary="Unsubscribe page",
    response_class=HTMLResponse,
    responses={404: _NO_LINK, **responses(503)},
)
async def show_unsubscribe(token: Token, db: Db) -> HTMLResponse:
    """The page that asks whether to unsubscribe, from all mail of the sender or from that with one of the mail's tags.
    Looking at it changes nothing: scanners follow links too.
    """
    try:
        copy = await service.copy_of(db, token)
    except UnknownLink:
        return _page(pages_html.invalid_page(), 404)
    return _page(pages_html.ask_page(copy.sender, copy.recipient, copy.tags))


@router.post(
    "/unsubscribe/{token:path}",
    operation_id="unsubscribe",
    summary="Unsubscribe",
    response_class=HTMLResponse,
    responses={400: _NO_TAG, 404: _NO_LINK, **responses(413, 503)},
    openapi_extra={"requestBody": {"content": _FORMS}},
)
async def unsubscribe(token: Token, request: Request, db: Db) -> HTMLResponse:
    """Unsubscribes the mail's recipient: by one click of their mail program (RFC 8058, `List-Unsubscribe=One-Click`) or
    by the page's form, whose `tag` says that only mails with this tag are meant. The address is suppressed for the
    sender's organization, with the reason `unsubscribe`, and the event `unsubscribed` tells of it once.
    """
    fields = await _form(request)
    tag = fields.get(pages_html.CHOICE, "")
    method = "one_click" if fields.get("List-Unsubscribe") == _ONE_CLICK else "page"
    try:
        copy = await service.unsubscribe(db, token, tag, method, _visitor(request))
    except UnknownLink:
        return _page(pages_html.invalid_page(), 404)
    except ValueError:
        return _page(pages_html.invalid_page(), 400)
    return _page(pages_html.done_page(copy.sender, copy.recipient, tag))


def _visitor(request: Request) -> Visitor:
    scope = request.scope
    return service.visitor(scope["method"], scope["headers"], scope["client"][0] if scope["client"] else "")


def _page(html: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(html, status, pages_html.HEADERS)


async def _form(request: Request) -> dict[str, str]:
    """The fields of the body. Whatever it is, a POST with a good token unsubscribes; only the page narrows it down."""
    octets = await received(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _MULTIPART:
        # Mail programs send it so too, and nothing but this one field.
        return {"List-Unsubscribe": _ONE_CLICK} if _ONE_CLICK.encode() in octets else {}
    try:
        return dict(parse_qsl(octets.decode("utf-8", "replace"), max_num_fields=_MAX_FORM_FIELDS))
    except ValueError as error:
        raise HTTPException(400, "The form has too many fields.") from error
