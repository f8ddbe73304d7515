"""From stored messages to the octets that go over the wire: load, compose, sign."""

import asyncio
import time
from collections.abc import Collection
from functools import lru_cache
from typing import Any
from uuid import UUID

from cachetools import TTLCache

from app.core.db import Database
from app.delivery import queries
from app.delivery.queries import Content, Key
from app.domains import service as domains
from app.mail import address, compose, dkim
from app.mail.address import Address
from app.messages import body

# Composing and signing megabytes takes a second, in which nothing else of this process would move.
_AT_ONCE_BYTES = 256 * 2**10
# A key that is retired goes on verifying for days, so that signing with it for a moment longer does no harm.
_SIGNING_SECONDS = 2.0
_SIGNING_ENTRIES = 10_000


class Signing:
    """How mails of one domain leave: who signs them, and the domain of their return paths."""

    __slots__ = ("return_path_domain", "signers")

    def __init__(self, signers: list[dkim.Signer], return_path_domain: str) -> None:
        self.signers = signers
        self.return_path_domain = return_path_domain


class Prepared:
    """One message ready to be composed; composed and signed once, whoever of its recipients comes first."""

    __slots__ = ("_composing", "_content", "_octets", "_signing", "is_notice", "smtputf8", "tags")

    def __init__(self, content: Content, signing: Signing) -> None:
        self._content: Content | None = content
        self._signing = signing
        self._octets: bytes | None = None
        self._composing: asyncio.Task[None] | None = None
        self.smtputf8 = False
        self.tags = content.tags
        self.is_notice = content.notice

    @property
    def return_path_domain(self) -> str:
        """The domain of its envelope sender."""
        return self._signing.return_path_domain

    async def octets(self) -> bytes:
        """The signed mail: the same for every recipient, and for every attempt but for its signatures."""
        if self._octets is None and self._content is not None:
            if self._content.size_bytes <= _AT_ONCE_BYTES:
                self._compose()
            else:
                if self._composing is None:
                    self._composing = asyncio.create_task(asyncio.to_thread(self._compose))
                # One recipient that is given up must not take the mail from the others.
                await asyncio.shield(self._composing)
        assert self._octets is not None  # noqa: S101 - _compose sets it or raises
        return self._octets

    def _compose(self) -> None:
        assert self._content is not None  # noqa: S101 - dropped below only
        mail = _mail(self._content)
        self.smtputf8 = compose.needs_smtputf8(mail)
        unsigned = compose.compose(mail)
        self._octets = dkim.sign(unsigned, self._signing.signers, timestamp=int(time.time())) + unsigned
        self._content = None


class Loader:
    """Loads messages with what signs them. One an engine; it remembers the signing of a domain for a moment."""

    def __init__(self, database: Database, platform_domain: str) -> None:
        self._database = database
        self._platform_domain = platform_domain
        self._signing: TTLCache[tuple[UUID, UUID], Signing | None] = TTLCache(_SIGNING_ENTRIES, _SIGNING_SECONDS)

    async def load(self, keys: Collection[Key]) -> dict[Key, Prepared]:
        """Messages by (org_id, message_id). One whose domain has no usable key is absent. Raises DATABASE_ERRORS."""
        async with self._database.bare() as connection:
            contents = await queries.load(connection, keys)
        signing = await self._signing_of({(content.org_id, content.domain_id) for content in contents.values()})
        prepared = {}
        for key, content in contents.items():
            how = signing[content.org_id, content.domain_id]
            if how is not None:
                prepared[key] = Prepared(content, how)
        return prepared

    async def _signing_of(self, pairs: Collection[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], Signing | None]:
        known = {pair: self._signing[pair] for pair in pairs if pair in self._signing}
        missing = [pair for pair in pairs if pair not in known]
        if missing:
            async with self._database.transaction() as session:
                signers = await domains.signing_keys(session, missing)
                envelopes = await domains.envelope_domains(session, missing)
            for pair in missing:
                found = signers.get(pair)
                known[pair] = Signing(found, envelopes.get(pair, self._platform_domain)) if found else None
                self._signing[pair] = known[pair]
        return known


def _mail(content: Content) -> compose.Mail:
    sender = _address(content.sender)
    said = body.unpack(content.body)
    return compose.Mail(
        message_id=message_id_header(content.message_id, sender.domain),
        # A scheduled mail is dated when it is sent, not when it was handed in.
        date=max(content.created_at, content.scheduled_at or content.created_at),
        sender=sender,
        to=tuple(map(_address, content.to)),
        cc=tuple(map(_address, content.cc)),
        reply_to=tuple(map(_address, content.reply_to)),
        subject=content.subject,
        text=said.text or None,
        html=said.html or None,
        headers=tuple(said.headers.items()),
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
