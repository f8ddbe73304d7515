"""The tests' DNS: a real nameserver on loopback whose records a test changes as it goes."""

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from app.local.nameserver import Nameserver

MAX_CNAME_STEPS = 8
ANY_TYPE = "ANY"


@dataclass(frozen=True, slots=True)
class Query:
    """One question as it arrived: name lower case without trailing dot, type as text."""

    name: str
    type: str


class DnsServer:
    """A mutable set of records served by UDP and TCP.

    async with DnsServer() as dns:
        dns.add("example.com", "MX", "10 mx.example.com.")
        dns.add("mx.example.com", "A", "127.0.0.2")

    A name without records is NXDOMAIN; a name (or an ancestor of one) without the type is NODATA with a SOA.
    Answers about names below a `sign`ed one have the AD bit, when the query asked for it; none else has.
    TTLs are 0 unless said otherwise, so that no cache holds a test back.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, ttl_seconds: int = 0) -> None:
        self.ttl_seconds = ttl_seconds
        self.delay_seconds = 0.0
        self.queries: list[Query] = []
        self._host = host
        self._port = port
        self._records: dict[str, dict[str, list[tuple[str, int | None]]]] = {}
        self._failures: dict[tuple[str, str], str] = {}
        self._silent: set[tuple[str, str]] = set()
        self._signed: dict[str, bool] = {}
        self._server = Nameserver(self._answer)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        await self._server.start(self._host, self._port)

    async def stop(self) -> None:
        await self._server.stop()

    @property
    def address(self) -> tuple[str, int]:
        """Where to ask: (IP address, port)."""
        return self._server.host, self._server.port

    @property
    def setting(self) -> str:
        """The address as DNS_NAMESERVERS takes it: "127.0.0.1:5353"."""
        return f"{self._server.host}:{self._server.port}"

    def add(self, name: str, type: str, value: str, *, ttl_seconds: int | None = None) -> None:
        """Add one record: TXT as plain text (cut here into 255-octet strings), others in zone-file form."""
        self._records.setdefault(_key(name), {}).setdefault(type.upper(), []).append((value, ttl_seconds))

    def remove(self, name: str, type: str | None = None) -> None:
        """Remove a name's records of one type, or all of them."""
        records = self._records.get(_key(name), {})
        if type is None:
            records.clear()
        else:
            records.pop(type.upper(), None)
        if not records:
            self._records.pop(_key(name), None)

    def replace(self, name: str, type: str, *values: str) -> None:
        """Make these the name's only records of the type."""
        self.remove(name, type)
        for value in values:
            self.add(name, type, value)

    def fail(self, name: str, rcode: str = "SERVFAIL", *, type: str = ANY_TYPE) -> None:
        """Answer with this response code from now on."""
        self._failures[_key(name), type.upper()] = rcode

    def silent(self, name: str, *, type: str = ANY_TYPE) -> None:
        """Never answer questions for this name from now on."""
        self._silent.add((_key(name), type.upper()))

    def sign(self, name: str, *, signed: bool = True) -> None:
        """Answer with AD for this name and those below it, as a validating nameserver does; signed=False: without."""
        self._signed[_key(name)] = signed

    def _is_signed(self, name: str) -> bool:
        labels = name.split(".")
        ancestors = (".".join(labels[skip:]) for skip in range(len(labels)))
        return next((self._signed[ancestor] for ancestor in ancestors if ancestor in self._signed), False)

    def heal(self, name: str) -> None:
        """Undo fail() and silent()."""
        self._failures = {key: code for key, code in self._failures.items() if key[0] != _key(name)}
        self._silent = {key for key in self._silent if key[0] != _key(name)}

    def asked(self, name: str, type: str) -> int:
        """How often this question has arrived."""
        return self.queries.count(Query(_key(name), type.upper()))

    async def _answer(self, query: dns.message.Message) -> dns.message.Message | None:
        question = query.question[0]
        name, kind = _key(question.name.to_text()), dns.rdatatype.to_text(question.rdtype)
        self.queries.append(Query(name, kind))
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if (name, kind) in self._silent or (name, ANY_TYPE) in self._silent:
            return None
        response = dns.message.make_response(query, recursion_available=True)
        # A validating nameserver says AD where the query has AD or DO (RFC 6840 §5.8), and of the whole answer.
        wanted = bool(query.flags & dns.flags.AD or query.ednsflags & dns.flags.DO)
        response.flags |= dns.flags.AA | (dns.flags.AD if wanted else 0)
        for _ in range(MAX_CNAME_STEPS):
            if not self._is_signed(name):
                response.flags &= ~dns.flags.AD
            failure = self._failures.get((name, kind)) or self._failures.get((name, ANY_TYPE))
            if failure:
                response.set_rcode(dns.rcode.from_text(failure))
                return response
            records = self._records.get(name, {})
            if kind in records:
                response.answer.append(self._rrset(name, kind))
                return response
            if "CNAME" not in records:
                break
            response.answer.append(self._rrset(name, "CNAME"))
            name = _key(records["CNAME"][0][0])
        if not self._exists(name):
            response.set_rcode(dns.rcode.NXDOMAIN)
        response.authority.append(_soa(name, self.ttl_seconds))
        return response

    def _exists(self, name: str) -> bool:
        return name in self._records or any(known.endswith("." + name) for known in self._records)

    def _rrset(self, name: str, kind: str) -> dns.rrset.RRset:
        rrset = dns.rrset.RRset(dns.name.from_text(name), dns.rdataclass.IN, dns.rdatatype.from_text(kind))
        for value, ttl_seconds in self._records[name][kind]:
            text = _txt(value) if kind == "TXT" else value
            rdata = dns.rdata.from_text(dns.rdataclass.IN, rrset.rdtype, text, origin=dns.name.root, relativize=False)
            rrset.add(rdata, self.ttl_seconds if ttl_seconds is None else ttl_seconds)
        return rrset


def _key(name: str) -> str:
    return name.rstrip(".").lower()


def _txt(value: str) -> str:
    octets = value.encode()
    strings = [octets[i : i + 255] for i in range(0, len(octets), 255)] or [b""]
    return " ".join('"' + "".join(_escaped(octet) for octet in string) + '"' for string in strings)


def _escaped(octet: int) -> str:
    return chr(octet) if 0x20 <= octet < 0x7F and octet not in b'"\\' else f"\\{octet:03d}"


def _soa(name: str, ttl_seconds: int) -> dns.rrset.RRset:
    zone = name.rsplit(".", 1)[-1] + "."
    return dns.rrset.from_text(
        zone, ttl_seconds, "IN", "SOA", f"ns.invalid. hostmaster.invalid. 1 60 60 60 {ttl_seconds}"
    )
