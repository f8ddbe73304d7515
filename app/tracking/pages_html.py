"""The HTML of unsubscribing. Everything that comes from a mail passes through `escape`.

The page tells no more than the mail itself does to whoever has it, perhaps forwarded: who sent it, in part to whom, and
its tags, for these are what can be chosen. No script, no cookie, nothing from elsewhere.
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from typing import Final

_STYLE = """
:root { color-scheme: light dark }
body { font: 17px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 3rem auto; padding: 0 1.25rem }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere }
p, label { overflow-wrap: anywhere }
fieldset { border: 0; margin: 1.5rem 0; padding: 0 }
legend { padding: 0; margin: 0 0 .5rem }
label { display: block; padding: .35rem 0 }
button { font: inherit; padding: .6rem 1.2rem; border: 0; border-radius: .35rem; background: #0b57d0; color: #fff }
button:focus-visible, input:focus-visible { outline: 3px solid #f5a623; outline-offset: 2px }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS: Final = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Robots-Tag": "noindex, nofollow",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# The form's one field, and what it says for all mail.
CHOICE: Final = "tag"


def ask_page(sender: str, recipient: str, tags: Sequence[str]) -> str:
    """Asks for what is to stop: all mail of this sender, or that of one kind."""
    who = f"<p>Mail from <strong>{escape(sender)}</strong> to <strong>{escape(masked(recipient))}</strong>.</p>"
    choice = _choice(tags) if tags else "<p>You will get no more mail from this sender.</p>"
    form = f'<form method="post">{choice}<button type="submit">Unsubscribe</button></form>'
    return _page("Unsubscribe", f"<h1>Unsubscribe?</h1>{who}{form}")


def done_page(sender: str, recipient: str, tag: str) -> str:
    """Says what has stopped."""
    what = f"mails of the kind “{escape(tag)}”" if tag else "mail"
    return _page(
        "Unsubscribed",
        f"<h1>You are unsubscribed</h1><p><strong>{escape(masked(recipient))}</strong> will get no more {what} from "
        f"<strong>{escape(sender)}</strong>.</p><p>Mail that is already on its way may still arrive.</p>",
    )


def invalid_page() -> str:
    """For tokens that are none of ours, and for mails that are kept no longer."""
    return _page(
        "Link not valid",
        "<h1>This link is not valid</h1><p>It is incomplete, was changed, or is too old. Open it from the mail again, "
        "or answer the mail to tell its sender.</p>",
    )


def masked(email: str) -> str:
    """An address that its owner knows again, and that tells little to others: `a***@example.com`."""
    local, _, domain = email.rpartition("@")
    return f"{local[:1] if len(local) > 2 else ''}***@{domain}"


def _choice(tags: Sequence[str]) -> str:
    options = [("", "All mail from this sender"), *((tag, f"Only mails of the kind “{tag}”") for tag in tags)]
    lines = (
        f'<label><input type="radio" name="{CHOICE}" value="{escape(value)}"{"" if value else " checked"}> '
        f"{escape(words)}</label>"
        for value, words in options
    )
    return f"<fieldset><legend>What do you not want any more?</legend>{''.join(lines)}</fieldset>"


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>{body}</main></body></html>"
    )
