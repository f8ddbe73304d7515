"""The standard library as the independent reader of what `compose` writes."""

import email
import email.policy
import re
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.message import EmailMessage, MIMEPart
from email.utils import getaddresses

from app.mail.address import parse
from app.mail.compose import Mail, compose, needs_smtputf8

PLAIN = Mail(
    message_id="0190c0de@mail.example.com",
    date=datetime(2026, 3, 1, 12, 34, 56, tzinfo=UTC),
    sender=parse("Jane Doe <jane@example.com>"),
    to=(parse("joe@example.org"),),
    subject="Hello",
    text="Hello Joe,\n\nyours Jane\n",
)


def read(mail: Mail) -> EmailMessage:
    """What the standard library reads, after the checks that hold for every mail."""
    content = compose(mail)
    assert content == compose(mail)
    assert content.endswith(b"\r\n")
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", content)
    assert b"\x00" not in content
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert needs_smtputf8(mail) is not content.isascii()
    message = email.message_from_bytes(content, policy=email.policy.SMTP)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert part.defects == []
        # The standard library calls the raw UTF-8 of RFC 6532 a defect.
        assert needs_smtputf8(mail) or [header.defects for header in part.values()] == [()] * len(part)
    return message


def mailboxes(mail: Mail, field: str) -> list[tuple[str, str]]:
    """(display name, addr-spec) of each mailbox, read in both ways the standard library has.

    The newer reader loses runs of blanks and, before Python 3.13.2, puts blanks between encoded words, where
    RFC 2047 section 6.2 has none. It must find the same characters; the older one gives the answer.
    """
    source = email.message_from_string(compose(mail).decode(), policy=email.policy.compat32)
    unfolded = source[field].replace("\r\n", "")
    old = [(str(make_header(decode_header(name))), addr_spec) for name, addr_spec in getaddresses([unfolded])]
    new = [
        ("".join(box.display_name.split()), box.addr_spec.encode(errors="surrogateescape").decode())
        for box in read(mail)[field].addresses
    ]
    assert new == [("".join(name.split()), addr_spec) for name, addr_spec in old]
    return old


def body(part: MIMEPart) -> str:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    assert part.get_content_charset() == "utf-8"
    return payload.decode()


def normalised(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
