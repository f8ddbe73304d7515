"""From stored messages to the octets that go over the wire: load, compose, sign."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.delivery import queries
from app.delivery.queries import Content, Key
from app.domains import service as domains
from app.mail import address, compose, dkim
from app.mail.address import Address


@dataclass(slots=True)
class Prepared:
    """One message ready to be composed; composed and signed once, whoever of its recipients comes first."""

    content: Content
    signers: list[dkim.Signer]
    return_path_domain: str
    _octets: bytes | None = None
    smtputf8: bool = False

    def octets(self) -> bytes:
        """The signed mail: the same for every recipient, and for every attempt but for its signatures."""
        if self._octets is None:
            mail = _mail(self.content)
            self.smtputf8 = compose.needs_smtputf8(mail)
            unsigned = compose.compose(mail)
            self._octets = dkim.sign(unsigned, self.signers, timestamp=int(time.time())) + unsigned
        return self._octets


async def prepare(session: AsyncSession, keys: Collection[Key], platform_domain: str) -> dict[Key, Prepared]:
    """Load messages by (org_id, message_id) with what signs them. A message whose keys are unusable is absent."""
    contents = await queries.load(session, keys)
    pairs = {(content.message.org_id, content.message.domain_id) for content in contents.values()}
    signers = await domains.signing_keys(session, pairs)
    envelopes = await domains.envelope_domains(session, pairs)
    prepared = {}
    for key, content in contents.items():
        pair = (content.message.org_id, content.message.domain_id)
        if pair in signers:
            prepared[key] = Prepared(content, signers[pair], envelopes.get(pair, platform_domain))
    return prepared


def _mail(content: Content) -> compose.Mail:
    message, body = content.message, content.body
    sender = _address(message.sender)
    return compose.Mail(
        message_id=message_id_header(message.id, sender.domain),
        # A scheduled mail is dated when it is sent, not when it was handed in.
        date=max(message.created_at, message.scheduled_at or message.created_at),
        sender=sender,
        to=tuple(map(_address, message.to)),
        cc=tuple(map(_address, message.cc)),
        reply_to=tuple(map(_address, message.reply_to)),
        subject=message.subject,
        text=body.text or None,
        html=body.html or None,
        headers=tuple(body.headers.items()),
        attachments=tuple(
            compose.Part(file.filename, file.content_type, file.content, file.content_id)
            for file in content.attachments
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
