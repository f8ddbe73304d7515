"""Who fetched a pixel or followed a link: a person, somebody's proxy, or a program that reads no mail.

Told by the User-Agent (agents.toml), by the method and by what browsers say of prefetching. When a link is followed is
judged where it is written down: see `journal`.
"""

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

Kind = Literal["person", "proxy", "prefetch", "scanner", "crawler", "unknown"]

MAX_USER_AGENT_CHARACTERS: Final = 400
_PEOPLE: Final = ("person", "proxy")
_KNOWN_AGENTS = 5000


@dataclass(frozen=True, slots=True)
class Agent:
    """Who it was; `client` names the program or service where it is known."""

    kind: Kind
    client: str | None = None

    @property
    def is_bot(self) -> bool:
        """Whether no person was at work, so that it is not to be counted as one."""
        return self.kind not in _PEOPLE


@dataclass(frozen=True, slots=True)
class _Entry:
    agent: Agent
    words: tuple[str, ...]
    exact: tuple[str, ...]


def _entries() -> tuple[_Entry, ...]:
    with Path(__file__).with_suffix(".toml").open("rb") as file:
        found = tomllib.load(file)["agent"]
    return tuple(
        _Entry(Agent(one["kind"], one.get("client")), tuple(one.get("words", ())), tuple(one.get("exact", ())))
        for one in found
    )


_ENTRIES = _entries()


@lru_cache(maxsize=_KNOWN_AGENTS)
def _named(user_agent: str) -> Agent:
    text = user_agent.strip().lower()
    if not text:
        return Agent("unknown")
    for entry in _ENTRIES:
        if text in entry.exact or any([word in text for word in entry.words]):
            return entry.agent
    return Agent("person")


def recognise(user_agent: str, *, is_head: bool = False, is_prefetch: bool = False) -> Agent:
    """Who sent this User-Agent ("" for none). `is_prefetch`: it said that it only fetches ahead.

    No mail program asks by HEAD, and none keeps its name to itself: that is what scanners do.
    """
    agent = _named(user_agent)
    if agent.is_bot:
        return agent
    if is_head:
        return Agent("scanner", agent.client)
    return Agent("prefetch", agent.client) if is_prefetch else agent
