"""How much may be sent where: the limits of destination sites, and which site a domain's mail hosts make.

The figures are in shaping.toml beside this file, which says at its head how it is read and how an operator's own file
is laid over it.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from app.mail.address import parse_domain

# The provider of all sites that the file names none for.
GENERIC = "generic"

_PERIOD_SECONDS = {"s": 1, "min": 60, "hour": 3600}
_RATE = re.compile(r"(\d{1,9})/(s|min|hour)")
_MAX_PER_SECOND = 10_000
_MAX_CONNECTIONS = 1000
_MAX_MESSAGES_PER_CONNECTION = 10_000
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MAX_NAME_CHARACTERS = 40
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_MX = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)+{_LABEL}")
_MAX_FILE_BYTES = 2**20
_MAX_SITE_CHARACTERS = 120
_SITE_HEAD_CHARACTERS = 80
_TLS = ("opportunistic", "required")
_LIMITS = frozenset({"connections", "messages_per_connection", "rate", "tls"})

Tls = Literal["opportunistic", "required"]


class ShapingError(ValueError):
    """A shaping file that cannot be used. Says which file, which entry, and why, in one sentence."""


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `permits` mails in any stretch of `period_seconds`."""

    permits: int
    period_seconds: int

    def divided(self, by: int) -> "Rate":
        """A part of it: one permit at least."""
        return Rate(max(1, self.permits // by), self.period_seconds)


@dataclass(frozen=True, slots=True)
class Rule:
    """The limits of one vMTA to one site, all workers together; rate None is no limit."""

    connections: int
    messages_per_connection: int
    rate: Rate | None
    tls: Tls


@dataclass(frozen=True, slots=True)
class Shaping:
    """What the files say; `load` makes it. Fields of entries are those that the files give."""

    default: Rule
    providers: Mapping[str, Mapping[str, Any]]
    domains: Mapping[str, Mapping[str, Any]]
    # (pattern, provider), in the order in which they are tried; a pattern that begins with a dot is a suffix.
    _patterns: Sequence[tuple[str, str]] = field(repr=False)

    def provider_of(self, hosts: Sequence[str]) -> str:
        """The provider to which the first of a domain's mail hosts belongs; `generic` if to none that is known.

        hosts: names in order of preference, as `mail.dns.MailHosts` has them.
        """
        host = _plain(hosts[0]) if hosts else ""
        for pattern, provider in self._patterns:
            if host == pattern or (pattern.startswith(".") and host.endswith(pattern)):
                return provider
        return GENERIC

    def rule(self, provider: str, domain: str) -> Rule:
        """The limits for a recipient's domain (lower case, A-labels) whose mail hosts are this provider's."""
        given = {**self.providers.get(provider, {}), **self.domains.get(domain, {})}
        return replace(self.default, **given)

    def site_of(self, hosts: Sequence[str], domain: str = "") -> str:
        """The site to which a domain's mail goes: what shares limits, connections and troubles.

        The domain itself when it has an entry of its own, else the provider's name, else the mail hosts, in an order
        that does not depend on how they were drawn: `mx1+mx2.example.com`, `mx.example.com+mx.example.net`. At most
        120 characters: longer ones end in a digest.
        """
        if domain in self.domains:
            return domain
        provider = self.provider_of(hosts)
        return provider if provider != GENERIC else _rolled_up(hosts)


def _rolled_up(hosts: Sequence[str]) -> str:
    names = sorted({_plain(host) for host in hosts})
    parents = {name.partition(".")[2] for name in names}
    # Only first labels are drawn together: names of several labels could also be read as hosts of somebody else's.
    if len(names) > 1 and len(parents) == 1 and "." in (parent := min(parents)):
        text = "+".join(name.partition(".")[0] for name in names) + f".{parent}"
    else:
        text = "+".join(names)
    if len(text) <= _MAX_SITE_CHARACTERS:
        return text
    return f"{text[:_SITE_HEAD_CHARACTERS]}~{sha256(text.encode()).hexdigest()[:32]}"


def _plain(host: str) -> str:
    return host.rstrip(".").lower()


def load(file: Path | None, *, site_connections: int) -> Shaping:
    """The shaping that comes with Postroad, and an operator's file (SHAPING_FILE) laid over it.

    site_connections: SITE_CONNECTIONS, for what the files give no number of connections. Raises ShapingError.
    """
    ours = resources.files("app.delivery").joinpath("shaping.toml").read_text()
    sources = [("shaping.toml", ours)]
    if file is not None:
        sources.append((f"SHAPING_FILE {file}", _read(file)))
    default = Rule(site_connections, 100, None, "opportunistic")
    providers: dict[str, dict[str, Any]] = {}
    domains: dict[str, dict[str, Any]] = {}
    hosts: dict[str, list[str]] = {}
    for where, text in sources:
        try:
            tables = _tables(text)
            default = replace(default, **_limits(tables.default, "[default]"))
            # Tried before those that were there, of which a provider's own give way to what it is given now.
            hosts = {**(given := _lay_providers(tables.providers, providers)), **_without(hosts, given)}
            for name, entry in _named(tables.domains, "domain").items():
                domains[_domain(name)] = _limits(entry, f"domain {name}")
        except ValueError as error:
            raise ShapingError(f"{where}: {error}") from error
    patterns = tuple((each.removeprefix("*"), name) for name, mx in hosts.items() for each in mx)
    return Shaping(default, providers, domains, patterns)


def _without(hosts: dict[str, list[str]], names: Iterable[str]) -> dict[str, list[str]]:
    return {name: mx for name, mx in hosts.items() if name not in names}


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise ShapingError(f"SHAPING_FILE {file}: it has more than {_MAX_FILE_BYTES} bytes")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ShapingError(f"SHAPING_FILE {file}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise ShapingError(f"SHAPING_FILE {file}: it is not UTF-8") from None


@dataclass(frozen=True, slots=True)
class _Tables:
    default: dict[str, Any]
    providers: list[Any]
    domains: list[Any]


def _tables(text: str) -> _Tables:
    parsed = tomllib.loads(text)
    if unknown := parsed.keys() - {"default", "provider", "domain"}:
        raise ValueError(f"{min(unknown)!r} is unknown; there are [default], [[provider]] and [[domain]]")
    default, providers, domains = parsed.get("default", {}), parsed.get("provider", []), parsed.get("domain", [])
    if not isinstance(default, dict):
        raise ValueError("default is a table, written [default]")
    for name, tables in (("provider", providers), ("domain", domains)):
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ValueError(f"{name} is a list of tables, each written [[{name}]]")
    return _Tables(default, providers, domains)


def _named(tables: Iterable[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for table in tables:
        name = table.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"each [[{kind}]] needs a name")
        if name in entries:
            raise ValueError(f"there are two entries for {kind} {name}")
        entries[name] = {key: value for key, value in table.items() if key != "name"}
    return entries


def _lay_providers(tables: Iterable[dict[str, Any]], providers: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Lay the limits of entries over those that are there; the mail hosts of those entries that name some."""
    hosts: dict[str, list[str]] = {}
    for name, entry in _named(tables, "provider").items():
        where = f"provider {name}"
        if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_CHARACTERS or name == GENERIC:
            raise ValueError(f"{where}: a name is words of a-z and 0-9 joined by hyphens, and not {GENERIC!r}")
        mx = entry.pop("mx", [])
        if not isinstance(mx, list) or not all(isinstance(each, str) and _MX.fullmatch(each) for each in mx):
            raise ValueError(f'{where}: mx is a list of host names in lower case, or "*." and the end of names')
        if not mx and name not in providers:
            raise ValueError(f"{where}: a new provider needs mx, the names of its mail hosts")
        providers[name] = {**providers.get(name, {}), **_limits(entry, where)}
        if mx:
            hosts[name] = mx
    return hosts


def _domain(name: str) -> str:
    try:
        return parse_domain(name)
    except ValueError as error:
        raise ValueError(f"domain {name}: {error}") from error


def _limits(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The checked fields of a Rule that an entry gives. Raises ValueError."""
    if unknown := entry.keys() - _LIMITS:
        raise ValueError(f"{where}: {min(unknown)!r} is unknown; there are {', '.join(sorted(_LIMITS))}")
    found = dict(entry)
    for key, most in (("connections", _MAX_CONNECTIONS), ("messages_per_connection", _MAX_MESSAGES_PER_CONNECTION)):
        if key in found and (type(found[key]) is not int or not 1 <= found[key] <= most):
            raise ValueError(f"{where}: {key} is a whole number from 1 to {most}")
    if found.get("tls", "required") not in _TLS:
        raise ValueError(f'{where}: tls is "opportunistic" or "required"')
    if "rate" in found:
        found["rate"] = _rate(found["rate"], where)
    return found


def _rate(value: object, where: str) -> Rate | None:
    if value == "":
        return None
    matched = _RATE.fullmatch(value) if isinstance(value, str) else None
    if matched:
        rate = Rate(int(matched[1]), _PERIOD_SECONDS[matched[2]])
        if 1 <= rate.permits <= _MAX_PER_SECOND * rate.period_seconds:
            return rate
    raise ValueError(f'{where}: rate is mails in a time, as "10/s", "600/min" or "20000/hour", at most 10000 a second')
