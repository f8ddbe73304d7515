"""The local mailbox's pages: `/local/mailbox`. Part of the API process in local mode only."""

import asyncio
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from app.core.config import Settings
from app.local import dkimcheck, mailstore, mailview, pages_html
from app.local.dkimcheck import Verdict
from app.local.mailstore import StoredMail

PAGE_MAILS = 50
CHECK_TIMEOUT_SECONDS = 30
CHECKS_AT_ONCE = 4
VERDICTS_KEPT = mailstore.MAILS_MAX
# In DATA_DIR/mailbox while the stack leads mail to the mailbox.
SERVING = "serving"

Before = Annotated[str | None, Query(max_length=40)]

# The mail's HTML sits in a sandboxed frame that inherits this policy: it runs nothing and loads nothing.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_DOWNLOAD_HEADERS = _HEADERS | {"Content-Security-Policy": "default-src 'none'; sandbox"}


@dataclass(frozen=True, slots=True)
class Row:
    """A mail in the list."""

    mail: StoredMail
    headers: tuple[tuple[str, str], ...]
    verdicts: list[Verdict]


def router(settings: Settings) -> APIRouter:
    """The routes over DATA_DIR/mailbox; none of them is in OpenAPI."""
    pages = _Pages(settings)
    routes = APIRouter(prefix="/local/mailbox", include_in_schema=False)
    routes.add_api_route("", pages.list_page, response_class=HTMLResponse)
    routes.add_api_route(".json", pages.list_json)
    routes.add_api_route("/clear", pages.clear, methods=["POST"])
    routes.add_api_route("/{mail_id}.eml", pages.source)
    routes.add_api_route("/{mail_id}/parts/{index}", pages.part)
    routes.add_api_route("/{mail_id}", pages.mail_page)
    return routes


class _Pages:
    def __init__(self, settings: Settings) -> None:
        self._directory = settings.data_dir / "mailbox" / "new"
        self._serving = settings.data_dir / "mailbox" / SERVING
        self._checker = _Checker(settings.nameservers)

    async def list_page(self, before: Before = None) -> Response:
        total = await asyncio.to_thread(mailstore.count, self._directory)
        rows = await self._rows(PAGE_MAILS, before)
        page = pages_html.list_page(rows, total, has_older=len(rows) == PAGE_MAILS, is_serving=self._serving.exists())
        return HTMLResponse(page, headers=_HEADERS)

    async def list_json(
        self, limit: Annotated[int, Query(ge=1, le=mailstore.MAILS_MAX)] = PAGE_MAILS, before: Before = None
    ) -> Response:
        rows = await self._rows(limit, before)
        return JSONResponse({"messages": [_as_json(row) for row in rows]}, headers=_HEADERS)

    async def clear(self, request: Request) -> Response:
        if not _same_origin(request):
            return PlainTextResponse("Only the mailbox page itself may do this.", 403, headers=_HEADERS)
        await asyncio.to_thread(mailstore.clear, self._directory)
        return RedirectResponse("/local/mailbox", 303)

    async def source(self, mail_id: str) -> Response:
        if (found := await self._read(mail_id)) is None:
            return _not_found()
        mail, raw = found
        return _download(raw, f"{mail.id}.eml", "message/rfc822")

    async def part(self, mail_id: str, index: int) -> Response:
        if (found := await self._read(mail_id)) is None:
            return _not_found()
        content = await asyncio.to_thread(mailview.take_apart, found[1])
        for part in content.attachments:
            if part.index == index:
                return _download(part.content, part.name, "application/octet-stream")
        return _not_found()

    async def mail_page(self, mail_id: str) -> Response:
        if (found := await self._read(mail_id)) is None:
            return _not_found()
        mail, raw = found
        content = await asyncio.to_thread(mailview.take_apart, raw)
        verdicts = await self._checker.verdicts(mail)
        return HTMLResponse(pages_html.mail_page(mail, raw, content, verdicts), headers=_HEADERS)

    async def _rows(self, limit: int, before: str | None) -> list[Row]:
        mails = await asyncio.to_thread(mailstore.newest, self._directory, limit=limit, before=before)
        return list(await asyncio.gather(*(self._checker.row(mail) for mail in mails)))

    async def _read(self, mail_id: str) -> tuple[StoredMail, bytes] | None:
        if (mail := mailstore.find(self._directory, mail_id)) is None:
            return None
        try:
            return mail, await asyncio.to_thread(mail.path.read_bytes)
        except FileNotFoundError:
            return None


class _Checker:
    """DKIM verdicts, each found once per mail: in threads, a few at a time and within a bounded time."""

    def __init__(self, nameservers: tuple[tuple[str, int], ...]) -> None:
        self._nameservers = nameservers
        self._known: OrderedDict[str, list[Verdict]] = OrderedDict()
        self._places = asyncio.Semaphore(CHECKS_AT_ONCE)

    async def row(self, mail: StoredMail) -> Row:
        headers = await asyncio.to_thread(_head, mail)
        return Row(mail, headers, await self.verdicts(mail))

    async def verdicts(self, mail: StoredMail) -> list[Verdict]:
        if (known := self._known.get(mail.id)) is not None:
            return known
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS), self._places:
                found = await asyncio.to_thread(self._check, mail)
        except TimeoutError:
            return [Verdict("", "", "", "error", "the check took too long")]
        # A look-up that failed may work the next time.
        if all(verdict.result != "error" for verdict in found):
            self._known[mail.id] = found
            if len(self._known) > VERDICTS_KEPT:
                self._known.popitem(last=False)
        return found

    def _check(self, mail: StoredMail) -> list[Verdict]:
        try:
            raw = mail.path.read_bytes()
        except FileNotFoundError:
            return []
        return dkimcheck.check(raw, self._nameservers)


def _head(mail: StoredMail) -> tuple[tuple[str, str], ...]:
    try:
        with mail.path.open("rb") as file:
            return mailview.head(file.read(mailview.HEADER_BYTES_MAX))
    except FileNotFoundError:
        return ()


def _as_json(row: Row) -> dict[str, Any]:
    envelope = row.mail.envelope
    return {
        "id": row.mail.id,
        "received_at": envelope.received_at,
        "mail_from": envelope.mail_from,
        "rcpt_to": list(envelope.rcpt_to),
        "tls": envelope.tls,
        "ehlo": envelope.ehlo,
        "peer": envelope.peer,
        "size_bytes": row.mail.size_bytes,
        **{name: mailview.first(row.headers, name.replace("_", "-")) for name in ("from", "to", "subject")},
        "message_id": mailview.first(row.headers, "message-id"),
        "dkim": [asdict(verdict) for verdict in row.verdicts],
        "source": f"/local/mailbox/{row.mail.id}.eml",
    }


def _download(content: bytes, name: str, content_type: str) -> Response:
    """A file to be saved, never shown (RFC 6266, RFC 8187)."""
    disposition = f"attachment; filename*=UTF-8''{quote(name[:200], safe='', errors='replace')}"
    headers = _DOWNLOAD_HEADERS | {"Content-Disposition": disposition}
    return Response(content, media_type=content_type, headers=headers)


def _same_origin(request: Request) -> bool:
    """Whether a form was sent by our own page: browsers say so in Origin, and other clients send none."""
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def _not_found() -> Response:
    return HTMLResponse(pages_html.not_found_page(), status_code=404, headers=_HEADERS)
