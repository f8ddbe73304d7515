"""From stored messages to the octets that go over the wire: load, compose, sign."""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

from cachetools import TTLCache

from app.core.config import Settings
from app.core.db import Database
from app.delivery import queries
from app.delivery.copies import Copies, Unsigned
from app.delivery.queries import Content, Key
from app.domains import service as domains
from app.domains.service import OwnNames
from app.mail import address, compose, dkim
from app.mail.address import Address
from app.messages import body
from app.tracking import tokens

# Composing and signing megabytes takes a second, in which nothing else of this process would move.
AT_ONCE_BYTES = 256 * 2**10
# A key that is retired goes on verifying for days, so that signing with it for a moment longer does no harm.
_SIGNING_SECONDS = 2.0
_SIGNING_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Signing:
    """How mails of one domain leave: who signs them, the domain of their return paths, where their links lead."""

    signers: list[dkim.Signer]
    return_path_domain: str
    links_base: str


class Prepared:
    """One message ready to be composed: what its copies share by whichever of them comes first.

    A copy's own octets are not kept: they are made when it has a connection to leave by.
    """

    __slots__ = ("_composing", "_content", "_copies", "_is_large", "_signing", "is_notice", "tags")

    def __init__(self, content: Content, signing: Signing) -> None:
        self._content: Content | None = content
        self._is_large = content.size_bytes > AT_ONCE_BYTES
        self._signing = signing
        self._copies: Copies | None = None
        self._composing: asyncio.Task[None] | None = None
        self.tags = content.tags
        self.is_notice = content.notice

    @property
    def return_path_domain(self) -> str:
        """The domain of its envelope sender."""
        return self._signing.return_path_domain

    @property
    def smtputf8(self) -> bool:
        """Whether it is only for servers with SMTPUTF8; known once a copy of it was asked for."""
        return self._copies is not None and self._copies.smtputf8

    async def octets(self, delivery_id: UUID) -> bytes:
        """The signed mail of one copy: the same for every attempt but for its signatures."""
        if not self._is_large:
            return octets_together([(self, delivery_id)])[0]
        if self._composing is None:
            self._composing = asyncio.create_task(asyncio.to_thread(self._share))
        # One recipient that is given up must not take the mail from the others.
        await asyncio.shield(self._composing)
        return self.signed(await asyncio.to_thread(self._unsigned, delivery_id), delivery_id)

    def copies(self) -> Copies:
        """What makes its copies. Raises what composing raises."""
        if self._copies is None:
            assert self._content is not None  # noqa: S101 - dropped below only
            self._copies = Copies(self._content, _mail(self._content), self._signing.links_base)
            self._content = None
        return self._copies

    def signed(self, unsigned: Unsigned, delivery_id: UUID) -> bytes:
        """The copy with its own fields and its signatures."""
        own = self.copies().fields(delivery_id)
        signed_at = int(time.time())
        signatures = dkim.sign_head(own + unsigned.head, unsigned.body_hash, self._signing.signers, timestamp=signed_at)
        return b"".join((signatures, own, unsigned.octets))

    def _share(self) -> None:
        self.copies().share()

    def _unsigned(self, delivery_id: UUID) -> Unsigned:
        copies = self.copies()
        return copies.unsigned(copies.mail(delivery_id))


def octets_together(wanted: Sequence[tuple[Prepared, UUID]]) -> list[bytes]:
    """The signed mails of some copies, none of them large. Raises what composing raises.

    Step by step for all of them: each step finds what it takes in the processor's caches then, and they are made a
    quarter sooner than one after the other.
    """
    copies = [prepared.copies() for prepared, _ in wanted]
    mails = [one.mail(delivery_id) for one, (_, delivery_id) in zip(copies, wanted, strict=True)]
    unsigned = [one.unsigned(mail) for one, mail in zip(copies, mails, strict=True)]
    return [prepared.signed(one, delivery_id) for one, (prepared, delivery_id) in zip(unsigned, wanted, strict=True)]


class Loader:
    """Loads messages with what signs them. One an engine; it remembers the signing of a domain for a moment."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._public_url = settings.public_url
        self._platform = OwnNames(settings.return_path_domain, None)
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
                names = await domains.own_names(session, missing)
            for pair in missing:
                own, found = names.get(pair, self._platform), signers.get(pair)
                links_base = tokens.links_base(self._public_url, own.link_host)
                known[pair] = Signing(found, own.envelope_domain, links_base) if found else None
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
