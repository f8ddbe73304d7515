"""What follows from a pixel that is fetched, a link that is followed, and a recipient who wants no more.

PostroadError
└── UnknownLink   404 link_not_found: the token is none of ours, or what it was for is kept no longer
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

import asyncpg

from app.core.db import Database
from app.core.errors import PostroadError
from app.core.networks import client_address
from app.messages import aftermath
from app.messages.aftermath import Happening
from app.suppressions import service as suppressions
from app.suppressions.service import Asked, Entry
from app.tracking import agents, queries, tokens
from app.tracking.agents import MAX_USER_AGENT_CHARACTERS
from app.tracking.journal import Journal
from app.tracking.queries import Copy

_KNOWN_ADDRESSES = 10_000
# Enough to tell networks apart, too little to tell a household's line.
_KEPT_BITS = {4: 24, 6: 48}
# What is followed this soon is followed by a program (see aftermath.Happening.early).
_TOO_SOON = {"is_bot": True, "agent": "scanner"}
_AHEAD_FIELDS = frozenset({b"purpose", b"sec-purpose", b"x-purpose", b"x-moz"})


class UnknownLink(PostroadError):  # noqa: N818 - named for what the client is told
    """The link is not one that we made, or too old."""

    status = 404

    def __init__(self) -> None:
        super().__init__("link_not_found", "This link is not valid: it is incomplete, was changed, or is too old.")


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks, as far as it is kept: `network` is a part of the address, None where it is unknown."""

    user_agent: str
    network: str | None
    is_head: bool
    is_prefetch: bool

    def traces(self) -> dict[str, Any]:
        """What is kept of them."""
        found = {"user_agent": self.user_agent or None, "ip": self.network}
        return {name: value for name, value in found.items() if value is not None}

    def facts(self) -> dict[str, Any]:
        """What an event tells of them: whether they are a person too."""
        agent = agents.recognise(self.user_agent, is_head=self.is_head, is_prefetch=self.is_prefetch)
        client = {} if agent.client is None else {"client": agent.client}
        return {"is_bot": agent.is_bot, "agent": agent.kind, **client, **self.traces()}


def visitor(method: str, headers: Iterable[tuple[bytes, bytes]], host: str) -> Visitor:
    """Read from a request: its raw fields, names in lower case, and the address that it came from."""
    user_agent, is_prefetch = "", False
    for name, value in headers:
        if name == b"user-agent":
            user_agent = _cleaned(value)
        elif name in _AHEAD_FIELDS:
            is_prefetch = is_prefetch or value.startswith((b"prefetch", b"preview"))
    return Visitor(user_agent, _network(host), method == "HEAD", is_prefetch)


def _cleaned(value: bytes) -> str:
    text = value[: 4 * MAX_USER_AGENT_CHARACTERS].decode("utf-8", "replace")[:MAX_USER_AGENT_CHARACTERS]
    return text if text.isprintable() else "".join(one if one.isprintable() else "\ufffd" for one in text)


@lru_cache(maxsize=_KNOWN_ADDRESSES)
def _network(host: str) -> str | None:
    address = client_address(host)
    if address is None:
        return None
    return str(ipaddress.ip_network((int(address), _KEPT_BITS[address.version]), strict=False))


async def opened(journal: Journal, token: str, seen: Visitor) -> None:
    """A pixel was fetched. Nothing is told of a token that is none."""
    ids = tokens.read_open(token)
    if ids is not None:
        await journal.keep(Happening(*ids, "opened", datetime.now(UTC), seen.facts()))


async def clicked(journal: Journal, token: str, seen: Visitor) -> str:
    """A link was followed: the URL that it leads to. Raises UnknownLink."""
    found = tokens.read_click(token)
    if found is None:
        raise UnknownLink
    org_id, delivery_id, target = found
    data = {"url": target, **seen.facts()}
    await journal.keep(Happening(org_id, delivery_id, "clicked", datetime.now(UTC), data, early=_TOO_SOON))
    return target


async def copy_of(database: Database, token: str) -> Copy:
    """The copy whose recipient may unsubscribe by this token. Raises UnknownLink and DATABASE_ERRORS."""
    ids = tokens.read_unsubscribe(token)
    if ids is None:
        raise UnknownLink
    async with database.bare() as connection:
        copy = await queries.copy(connection, *ids)
    if copy is None:
        raise UnknownLink
    return copy


async def unsubscribe(database: Database, token: str, tag: str, method: str, seen: Visitor) -> Copy:
    """Spare the recipient the organization's mail from now on; with a tag, mail that carries it.

    `method` is told by the event; whether a person asked is not, as by one click it is their provider that does. Asked
    again it changes nothing, and is told by one event for each copy, unless it now goes further than before, or the
    organization has lifted the suppression since. Raises UnknownLink, ValueError for a tag that the message does not
    carry, and DATABASE_ERRORS.
    """
    ids = tokens.read_unsubscribe(token)
    if ids is None:
        raise UnknownLink
    org_id, delivery_id = ids
    async with database.bare() as connection, connection.transaction():
        # Whoever asks at the same time waits here, and sees then what has been told.
        copy = await queries.locked_copy(connection, org_id, delivery_id)
        if copy is None:
            raise UnknownLink
        if tag and tag not in copy.tags:
            raise ValueError("the message does not carry this tag")
        is_told = await queries.is_told(connection, org_id, delivery_id, copy.message_id, tag)
        if not is_told or await _is_lifted(connection, org_id, copy, tag):
            data = {"method": method, **({"tag": tag} if tag else {}), **seen.traces()}
            happening = Happening(org_id, delivery_id, "unsubscribed", datetime.now(UTC), data)
            await aftermath.record(connection, [happening])
        if not copy.is_simulated:
            detail = "the recipient unsubscribed"
            entry = Entry(org_id, copy.recipient.casefold(), "unsubscribe", tag, copy.message_id, detail)
            await suppressions.note(connection, [entry])
    return copy


async def _is_lifted(connection: asyncpg.Connection, org_id: UUID, copy: Copy, tag: str) -> bool:
    """Whether the copy's recipient would get mail with the tag again. Simulated copies suppress nobody."""
    asked = Asked(org_id, copy.recipient, [tag] if tag else [])
    return not copy.is_simulated and not await suppressions.find(connection, {tag: asked})
