"""What Postroad writes to its users: plain text, the call to make, how long it is good.

Names that users chose do not stand in it, or whoever registers could have Postroad write to strangers in their words.
The one exception is the organization's name in an invitation, and that without anything a mail program makes a link of.
"""

import json
import re
from datetime import UTC, datetime, timedelta

from app.accounts.notices import Notice

_NAME_CHARACTERS = 60
_PASSWORD = "your new password"  # noqa: S105 - the place where the reader puts theirs
_NOT_IN_NAMES = re.compile(r"[^\w &'’,()+-]|_")


def verification(email: str, token: str, *, public_url: str, lifetime: timedelta) -> Notice:
    """Asks the user to prove that they read mail at the address they registered."""
    expires_at = datetime.now(UTC) + lifetime
    text = f"""Hello,

someone, hopefully you, registered this address with Postroad. Please confirm that it is yours:

{_call(public_url, "/api/v1/auth/verify-email", {"token": token})}

The token in it works once, until {_moment(expires_at)}. A new one is sent on
POST {public_url}/api/v1/auth/verify-email/resend.

If it was not you, there is nothing to do.
"""
    return Notice(email, "Confirm your e-mail address", text, expires_at)


def password_reset(email: str, token: str, *, public_url: str, lifetime: timedelta) -> Notice:
    """Lets the user choose a new password."""
    expires_at = datetime.now(UTC) + lifetime
    text = f"""Hello,

someone, hopefully you, asked for a new password for your account at Postroad. Choose it with this call:

{_call(public_url, "/api/v1/auth/password/reset", {"token": token, "password": _PASSWORD})}

The token in it works once, until {_moment(expires_at)}. All who are logged in to your account
are logged out by it.

If it was not you, there is nothing to do: your password stays as it is.
"""
    return Notice(email, "Choose a new password", text, expires_at)


def invitation(email: str, token: str, *, organization: str, role: str, public_url: str, lifetime: timedelta) -> Notice:
    """Asks someone to join an organization."""
    expires_at = datetime.now(UTC) + lifetime
    name = cleaned(organization)
    text = f"""Hello,

you are invited to join the organization {name} at Postroad, in the role of {role}. Accept with this call:

{_call(public_url, "/api/v1/auth/invitations/accept", {"token": token, "name": "Your Name", "password": _PASSWORD})}

The token in it works once, until {_moment(expires_at)}.

If you do not know {name}, there is nothing to do.
"""
    return Notice(email, f"Invitation to join {name}", text, expires_at)


def cleaned(name: str) -> str:
    """An organization's name as it may stand in a mail: words alone, so that no mail program makes a link of it."""
    words = " ".join(_NOT_IN_NAMES.sub(" ", name).split())
    return words[:_NAME_CHARACTERS].strip() or "without a name"


def _call(public_url: str, path: str, body: dict[str, str]) -> str:
    """A call of the API as one types it into a terminal."""
    lines = (f"curl -X POST {public_url}{path}", "-H 'Content-Type: application/json'", f"-d '{json.dumps(body)}'")
    return "  " + " \\\n    ".join(lines)


def _moment(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M} UTC"
