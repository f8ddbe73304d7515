"""dkimpy as the independent judge of our signatures."""

from collections.abc import Callable, Mapping

import dkim
import dns.nameserver
import dns.resolver

from tests.dnsd import DnsServer


def verdicts(content: bytes, records: Mapping[str, str]) -> list[bool]:
    """Whether each DKIM-Signature of the mail verifies, top to bottom; `records` are TXT values by name."""

    def txt(name: bytes, timeout: float = 5) -> bytes:
        return records[name.decode().rstrip(".")].encode()

    return _verdicts(content, txt)


def verdicts_by_dns(content: bytes, server: DnsServer) -> list[bool]:
    """The same by real look-ups. Blocking: for a thread, as the server lives in the tests' event loop."""
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = [dns.nameserver.Do53Nameserver(*server.address)]

    def txt(name: bytes, timeout: float = 5) -> bytes:
        answer = resolver.resolve(name.decode(), "TXT", lifetime=timeout)
        return b"".join(next(iter(answer)).strings)

    return _verdicts(content, txt)


def _verdicts(content: bytes, txt: Callable[..., bytes]) -> list[bool]:
    found = []
    for index in range(content.partition(b"\r\n\r\n")[0].lower().count(b"dkim-signature: v=")):
        try:
            found.append(bool(dkim.DKIM(content).verify(index, dnsfunc=txt)))
        except dkim.ValidationError:
            found.append(False)
    return found
