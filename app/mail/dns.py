"""DNS look-ups for mail: where a domain's mail goes, and what its records say. Every answer is a value.

RFC 5321 §5.1 (MX and implicit MX), RFC 7505 (null MX), RFC 2308 (negative answers and their caching).
"""

import asyncio
import ipaddress
import random
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdata
import dns.rdatatype
import dns.resolver
import idna
from cachetools import TLRUCache
from dns.rdtypes.ANY.CNAME import CNAME
from dns.rdtypes.ANY.MX import MX
from dns.rdtypes.ANY.SOA import SOA
from dns.rdtypes.ANY.TXT import TXT

MAX_MAIL_HOSTS = 20
MAX_ADDRESSES = 10
MAX_RECORDS = 100
MAX_LOOKUPS_AT_ONCE = 200
MAX_TTL_SECONDS = 86_400
MAX_NEGATIVE_TTL_SECONDS = 3600  # RFC 2308 §5 advises one to three hours
ROUTE_CHECK_SECONDS = 300.0
TRY_SECONDS = 2.0

_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class MailHosts:
    """Hosts in the order to try, at least one; implicit: there is no MX, it is the domain itself.

    authenticated: the nameserver says that DNSSEC vouches for it (the AD bit). That is worth what the nameserver
    and the way to it are worth.
    """

    hosts: tuple[str, ...]
    implicit: bool = False
    authenticated: bool = False


@dataclass(frozen=True, slots=True)
class NullMx:
    """The domain says that it takes no mail (RFC 7505)."""


@dataclass(frozen=True, slots=True)
class NoSuchDomain:
    """The domain does not exist (NXDOMAIN), or is no domain name at all."""


@dataclass(frozen=True, slots=True)
class NoMailHost:
    """The domain exists, but has neither a usable MX nor an address."""


@dataclass(frozen=True, slots=True)
class LookupFailed:
    """Nobody could say: SERVFAIL, REFUSED, time-out. To be tried again later."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotFound:
    """There is no such record; no_such_name: nor any other one of that name (NXDOMAIN).

    authenticated: see MailHosts.
    """

    no_such_name: bool
    authenticated: bool = False


@dataclass(frozen=True, slots=True)
class Addresses:
    """IP addresses in the order to try, at least one, IPv4 first.

    authenticated: see MailHosts. canonical: the name that has them, at the end of all aliases (CNAME).
    """

    values: tuple[str, ...]
    authenticated: bool = False
    canonical: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Records:
    """The values of a name's records, at least one; names in them lower case without trailing dot.

    authenticated: see MailHosts. canonical: the name that has them, at the end of all aliases (CNAME).
    """

    values: tuple[str, ...]
    authenticated: bool = False
    canonical: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TlsaRecords:
    """TLSA records that DNSSEC vouches for, as far as the nameserver can be believed, in zone-file form.

    base: the name under which they were found (RFC 7672 §2.2.3): the host's own, or the one it is an alias of.
    """

    values: tuple[str, ...]
    base: str


Found = Records | NotFound | LookupFailed


@dataclass(frozen=True, slots=True)
class _Cached:
    found: Records | NotFound
    ttl_seconds: float


class Resolver:
    """Asks nameservers by UDP, by TCP when an answer is truncated, and remembers answers for their TTL.

    nameservers: (IP address, port) each, tried in order; none means the system's. timeout_seconds: for one
    look-up with all its tries. Equal look-ups at the same time become one. Belongs to one event loop.
    Raises dns.resolver.NoResolverConfiguration when the system has no nameservers.
    """

    def __init__(
        self,
        nameservers: Sequence[tuple[str, int]] = (),
        *,
        timeout_seconds: float = 10,
        cache_entries: int = 10_000,
    ) -> None:
        self._resolver = dns.asyncresolver.Resolver(configure=not nameservers)
        if nameservers:
            self._resolver.nameservers = [dns.nameserver.Do53Nameserver(address, port) for address, port in nameservers]
        self._resolver.lifetime = timeout_seconds
        self._resolver.timeout = min(TRY_SECONDS, timeout_seconds)
        # AD in a query asks for AD in the answer (RFC 6840 §5.7), without the bulk of the signatures.
        self._resolver.flags = dns.flags.RD | dns.flags.AD
        # Not dnspython's own cache: it keeps negative answers without a SOA for decades.
        self._cache: TLRUCache[tuple[str, str], _Cached] = TLRUCache(
            cache_entries, ttu=lambda _, cached, now: now + cached.ttl_seconds, timer=time.monotonic
        )
        self._under_way: dict[tuple[str, str], asyncio.Task[Found]] = {}
        self._slots = asyncio.Semaphore(MAX_LOOKUPS_AT_ONCE)
        self._ipv6_route = False
        self._route_checked_at = -ROUTE_CHECK_SECONDS

    async def mail_hosts(self, domain: str) -> MailHosts | NullMx | NoSuchDomain | NoMailHost | LookupFailed:
        """Where to deliver mail for the domain, by preference, in random order among equal ones."""
        found = await self.mx(domain)
        if isinstance(found, LookupFailed):
            return found
        if isinstance(found, NotFound):
            return NoSuchDomain() if found.no_such_name else await self._implicit_mail_host(domain, found)
        records = [(int(preference), host) for preference, host in map(str.split, found.values)]
        if [host for _, host in records] == ["."]:
            return NullMx()
        drawn = sorted((preference, _random.random(), host) for preference, host in records)
        hosts = dict.fromkeys(host for _, _, host in drawn if host != "." and not _is_ip_address(host))
        if not hosts:
            return NoMailHost()
        return MailHosts(tuple(hosts)[:MAX_MAIL_HOSTS], authenticated=found.authenticated)

    async def _implicit_mail_host(self, domain: str, no_mx: NotFound) -> MailHosts | NoMailHost | LookupFailed:
        found = await self.addresses(domain)
        if isinstance(found, Addresses):
            return MailHosts((_normalised(domain) or domain,), implicit=True, authenticated=no_mx.authenticated)
        return found if isinstance(found, LookupFailed) else NoMailHost()

    async def addresses(self, host: str) -> Addresses | NotFound | LookupFailed:
        """The host's IPv4 addresses, and its IPv6 addresses where this machine has a route for IPv6."""
        types = ("A", "AAAA") if self._has_ipv6_route() else ("A",)
        answers = await asyncio.gather(*(self._find(host, type) for type in types))
        families = [found for found in answers if isinstance(found, Records)]
        if families:
            # Many addresses of one family must not leave the other without any.
            share = MAX_ADDRESSES // len(families)
            return Addresses(
                tuple(value for family in families for value in family.values[:share]),
                all(family.authenticated for family in families),
                families[0].canonical,
            )
        failed = [found for found in answers if isinstance(found, LookupFailed)]
        if failed:
            return failed[0]
        return NotFound(any(isinstance(found, NotFound) and found.no_such_name for found in answers))

    async def address_list(self, host: str) -> tuple[str, ...]:
        """As `addresses`; empty when there are none, or nobody could say."""
        found = await self.addresses(host)
        return found.values if isinstance(found, Addresses) else ()

    async def txt(self, name: str, *, fresh: bool = False) -> Found:
        """TXT records, the strings of each joined (RFC 7208 §3.3). fresh: ask again, whatever is
        remembered.
        """
        return await self._find(name, "TXT", fresh=fresh)

    async def cname(self, name: str, *, fresh: bool = False) -> Found:
        """The name that this name is an alias of."""
        return await self._find(name, "CNAME", fresh=fresh)

    async def mx(self, name: str, *, fresh: bool = False) -> Found:
        """MX records as "10 mx.example.com"; the null MX is "0 ."."""
        return await self._find(name, "MX", fresh=fresh)

    async def tlsa(self, host: str, port: int) -> TlsaRecords | NotFound | LookupFailed:
        """The host's TLSA records, where DNSSEC vouches for its address and for them (RFC 7672 §2.2.2, §2.2.3).

        NotFound: the host has none, or none that could be believed. LookupFailed: it may have some, which somebody
        could be hiding, so that nothing may be sent to it.
        """
        addresses = await self.addresses(host)
        if not isinstance(addresses, Addresses):
            return addresses
        own = _normalised(host) or host
        bases = [addresses.canonical, own]
        if not addresses.authenticated:
            # Nameservers of zones without DNSSEC are known to fail when asked for TLSA records, so they are not
            # asked. But an alias may be vouched for though the address it leads to is not.
            if addresses.canonical == own:
                return NotFound(no_such_name=False)
            alias = await self.cname(host)
            if not isinstance(alias, Records) or not alias.authenticated:
                return alias if isinstance(alias, LookupFailed) else NotFound(no_such_name=False)
            bases = [own]
        for base in dict.fromkeys(bases):
            found = await self._find(f"_{port}._tcp.{base}", "TLSA")
            if isinstance(found, LookupFailed):
                return found
            if isinstance(found, Records) and found.authenticated:
                return TlsaRecords(found.values, base)
        return NotFound(no_such_name=False)

    def forget(self, name: str) -> None:
        """Drop what is remembered about a name."""
        key = _normalised(name)
        for type in ("A", "AAAA", "CNAME", "MX", "TXT"):
            self._cache.pop((key or name, type), None)

    async def _find(self, name: str, type: str, *, fresh: bool = False) -> Found:
        normalised = _normalised(name)
        if normalised is None:
            return NotFound(no_such_name=True)
        key = (normalised, type)
        if fresh:
            return await self._ask(key)
        cached = self._cache.get(key)
        if cached is not None:
            return cached.found
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(key))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        # One impatient caller must not take the answer from the others.
        return await asyncio.shield(task)

    async def _ask(self, key: tuple[str, str]) -> Found:
        name, type = key
        try:
            async with self._slots:
                answer = await self._resolver.resolve(
                    dns.name.from_text(name), type, raise_on_no_answer=False, search=False
                )
        except dns.resolver.NXDOMAIN as error:
            responses = list(error.kwargs["responses"].values())
            authenticated = bool(responses) and all(map(_is_authenticated, responses))
            ttl_seconds = min(map(_negative_ttl_seconds, responses), default=0)
            cached = _Cached(NotFound(no_such_name=True, authenticated=authenticated), ttl_seconds)
        except (dns.exception.DNSException, OSError) as error:
            return LookupFailed(_reason(error))
        else:
            cached = _cached(answer)
        self._cache[key] = cached
        return cached.found

    def _has_ipv6_route(self) -> bool:
        now = time.monotonic()
        if now - self._route_checked_at >= ROUTE_CHECK_SECONDS:
            self._ipv6_route = has_ipv6_route()
            self._route_checked_at = now
        return self._ipv6_route


def has_ipv6_route() -> bool:
    """Whether this machine would know where to send a packet for the public IPv6 internet. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(("2001:4860:4860::8888", 53))
    except OSError:
        return False
    return True


def _cached(answer: dns.resolver.Answer) -> _Cached:
    authenticated = _is_authenticated(answer.response)
    if answer.rrset is None:
        missing = NotFound(no_such_name=False, authenticated=authenticated)
        return _Cached(missing, _negative_ttl_seconds(answer.response))
    values = tuple(_text(rdata) for rdata in list(answer.rrset)[:MAX_RECORDS])
    records = Records(values, authenticated, _name_text(answer.canonical_name))
    return _Cached(records, min(answer.chaining_result.minimum_ttl, MAX_TTL_SECONDS))


def _is_authenticated(response: dns.message.Message) -> bool:
    return bool(response.flags & dns.flags.AD)


def _negative_ttl_seconds(response: dns.message.Message) -> float:
    """How long to believe that something is not there: the SOA tells, and without one not at all (RFC
    2308 §5).
    """
    for rrset in response.authority:
        for rdata in rrset:
            if isinstance(rdata, SOA):
                return min(rrset.ttl, rdata.minimum, MAX_NEGATIVE_TTL_SECONDS)
    return 0


def _text(rdata: dns.rdata.Rdata) -> str:
    match rdata:
        case TXT():
            return b"".join(rdata.strings).decode("utf-8", "replace")
        case MX():
            return f"{rdata.preference} {_name_text(rdata.exchange)}"
        case CNAME():
            return _name_text(rdata.target)
        case _:
            return rdata.to_text()


def _name_text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _normalised(name: str) -> str | None:
    """Lower case, A-labels, no trailing dot; None when it cannot be a name in DNS."""
    text = name.rstrip(".").lower()
    try:
        if not text.isascii():
            text = idna.encode(text, uts46=True).decode()
        dns.name.from_text(text)
    except (dns.exception.DNSException, UnicodeError):
        return None
    return text or None


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, dns.resolver.LifetimeTimeout):
        return "DNS time-out"
    if isinstance(error, dns.resolver.NoNameservers):
        causes = [str(cause[3]) for cause in error.kwargs.get("errors", ())]
        return f"DNS {causes[-1]}"[:200] if causes else "DNS: no nameserver"
    return f"DNS {type(error).__name__}"
