"""From stored messages to the octets that go over the wire: load, compose, sign."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.delivery import queries
from app.delivery.queries import Content, Key
from app.domains import service as domains
from app.mail import address, compose, dkim
from app.mail.address import Address

# Composing and signing megabytes takes a second, in which nothing else of this process would move.
_AT_ONCE_BYTES = 256 * 2**10


@dataclass(slots=True)
class Prepared:
    """One message ready to be composed; composed and signed once, whoever of its recipients comes first."""

    content: Content
    signers: list[dkim.Signer]
    return_path_domain: str
    smtputf8: bool = False
    _octets: bytes | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def octets(self) -> bytes:
        """The signed mail: the same for every recipient, and for every attempt but for its signatures."""
        async with self._lock:
            if self._octets is None:
                small = self.content.size_bytes <= _AT_ONCE_BYTES
                self._octets = self._compose() if small else await asyncio.to_thread(self._compose)
        return self._octets

    def _compose(self) -> bytes:
        mail = _mail(self.content)
        self.smtputf8 = compose.needs_smtputf8(mail)
        unsigned = compose.compose(mail)
        return dkim.sign(unsigned, self.signers, timestamp=int(time.time())) + unsigned


async def prepare(session: AsyncSession, keys: Collection[Key], platform_domain: str) -> dict[Key, Prepared]:
    """Load messages by (org_id, message_id) with what signs them. A message whose keys are unusable is absent."""
    contents = await queries.load(session, keys)
    pairs = {(content.org_id, content.domain_id) for content in contents.values()}
    signers = await domains.signing_keys(session, pairs)
    envelopes = await domains.envelope_domains(session, pairs)
    prepared = {}
    for key, content in contents.items():
        pair = (content.org_id, content.domain_id)
        if pair in signers:
            prepared[key] = Prepared(content, signers[pair], envelopes.get(pair, platform_domain))
    return prepared


def _mail(content: Content) -> compose.Mail:
    sender = _address(content.sender)
    return compose.Mail(
        message_id=message_id_header(content.message_id, sender.domain),
        # A scheduled mail is dated when it is sent, not when it was handed in.
        date=max(content.created_at, content.scheduled_at or content.created_at),
        sender=sender,
        to=tuple(map(_address, content.to)),
        cc=tuple(map(_address, content.cc)),
        reply_to=tuple(map(_address, content.reply_to)),
        subject=content.subject,
        text=content.text or None,
        html=content.html or None,
        headers=tuple(content.headers.items()),
        attachments=tuple(
            compose.Part(file.filename, file.content_type, file.content, file.content_id) for file in content.files
        ),
    )


def message_id_header(message_id: UUID, domain: str) -> str:
    """The Message-ID: the same on every attempt, so that a receiver can tell a repeat."""
    return f"{message_id}@{domain}"


def _address(stored: dict[str, Any]) -> Address:
    return _parsed(stored["email"], stored["name"])


@lru_cache(maxsize=10_000)
def _parsed(email: str, name: str) -> Address:
    return address.build(email, name)
