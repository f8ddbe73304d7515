"""The copies of one message: what they share is composed once, what is each recipient's own is put into theirs.

Each copy's own are the fields by which its recipient unsubscribes (RFC 2369, RFC 8058), and, where its sender asked for
them, tracked links, the pixel and the unsubscribe link in its text.
"""

import dataclasses
import re
from dataclasses import dataclass
from uuid import UUID

from app.delivery.queries import Content
from app.mail import compose, dkim
from app.mail.rewrite import rewrite_html, rewrite_text
from app.messages.body import UNSUBSCRIBE_URL
from app.tracking.tokens import Links

# A sender who writes one of them has a way of their own to unsubscribe.
_LIST_FIELDS = frozenset({"list-unsubscribe", "list-unsubscribe-post"})
# RFC 2369 section 2: blanks inside the angle brackets are none of the URL.
_LIST_URL = re.compile(r"<([^<>]*)>")


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A composed mail, and of it what signing needs: its head, without the empty line, and the hash of its body."""

    octets: bytes
    head: bytes
    body_hash: bytes


class Copies:
    """A message with what makes its copies. `base_url`: where its links lead. Raises what composing raises."""

    __slots__ = ("_base_url", "_content", "_differ", "_has_list_fields", "_mail", "_shared", "_untracked", "smtputf8")

    def __init__(self, content: Content, mail: compose.Mail, base_url: str) -> None:
        self.smtputf8 = compose.needs_smtputf8(mail)
        self._content = content
        self._base_url = base_url
        own = [value for name, value in mail.headers if name.lower() in _LIST_FIELDS]
        self._has_list_fields = not content.notice and not own
        # A sender's own way to unsubscribe stays as it is in the bodies too.
        self._untracked = frozenset("".join(url.split()) for value in own for url in _LIST_URL.findall(value))
        self._differ = _differ(content, mail)
        self._mail: compose.Mail | None = mail
        self._shared: Unsigned | None = None

    def share(self) -> None:
        """Do now what is done for all copies together: the work of a whole mail, unless their bodies differ."""
        if not self._differ:
            self.unsigned(self._mail)

    def mail(self, delivery_id: UUID) -> compose.Mail | None:
        """The copy before it is composed; None when that was done for all copies together."""
        return self._personal(self._mail, delivery_id) if self._mail is not None and self._differ else self._mail

    def unsigned(self, mail: compose.Mail | None) -> Unsigned:
        """The copy of this `mail` without its signatures and its own fields."""
        if self._shared is not None:
            return self._shared
        assert mail is not None  # noqa: S101 - as long as nothing is shared
        octets = compose.compose(mail)
        head, _, body = octets.partition(b"\r\n\r\n")
        unsigned = Unsigned(octets, head, dkim.body_hash(body))
        if not self._differ:
            self._shared, self._mail = unsigned, None
        return unsigned

    def fields(self, delivery_id: UUID) -> bytes:
        """The copy's own header fields, to be put before the others; perhaps none."""
        if not self._has_list_fields:
            return b""
        url = self._links(delivery_id).unsubscribe()
        return f"List-Unsubscribe: <{url}>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n".encode()

    def _links(self, delivery_id: UUID) -> Links:
        return Links(self._base_url, self._content.org_id, delivery_id)

    def _personal(self, mail: compose.Mail, delivery_id: UUID) -> compose.Mail:
        content, html, text = self._content, mail.html, mail.text
        links = self._links(delivery_id)

        def link(url: str) -> str:
            return url if url in self._untracked else links.click(url) or url

        if html is not None and (content.track_opens or content.track_clicks):
            pixel = links.open() if content.track_opens else None
            html = rewrite_html(html, link if content.track_clicks else _as_it_is, pixel)
        if text is not None and content.track_text:
            text = rewrite_text(text, link)
        # Last, so that whoever wants no more mail is not told of as having clicked.
        if html is not None and UNSUBSCRIBE_URL in html:
            html = html.replace(UNSUBSCRIBE_URL, links.unsubscribe())
        if text is not None and UNSUBSCRIBE_URL in text:
            text = text.replace(UNSUBSCRIBE_URL, links.unsubscribe())
        return dataclasses.replace(mail, html=html, text=text)


def _as_it_is(url: str) -> str:
    return url


def _differ(content: Content, mail: compose.Mail) -> bool:
    """Whether the bodies of the copies differ."""
    if content.notice:
        return False
    html, text = mail.html or "", mail.text or ""
    return (
        bool(html and (content.track_opens or content.track_clicks))
        or bool(text and content.track_text)
        or UNSUBSCRIBE_URL in html
        or UNSUBSCRIBE_URL in text
    )
