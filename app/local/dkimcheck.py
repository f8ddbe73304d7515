"""Checks every DKIM signature of a mail with dkimpy, by real look-ups."""

import binascii
from collections.abc import Callable
from dataclasses import dataclass

import dkim
import dns.exception
import dns.nameserver
import dns.resolver

SIGNATURES_MAX = 10
LOOKUP_TIMEOUT_SECONDS = 5

TxtLookup = Callable[..., bytes]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one DKIM-Signature: `result` is `pass`, `fail` or `error`, `detail` why no pass."""

    domain: str
    selector: str
    algorithm: str
    result: str
    detail: str


def check(content: bytes, nameservers: tuple[tuple[str, int], ...]) -> list[Verdict]:
    """The verdict on each DKIM-Signature, topmost first, at most SIGNATURES_MAX.

    Blocking, for a thread: each signature may take LOOKUP_TIMEOUT_SECONDS. No nameservers: the system's.
    """
    lookup = _txt_lookup(nameservers)
    try:
        headers, _ = dkim.rfc822_parse(content)
    except dkim.DKIMException:
        return []
    signatures = [value for name, value in headers if name.lower() == b"dkim-signature"]
    return [_check_one(content, index, value, lookup) for index, value in enumerate(signatures[:SIGNATURES_MAX])]


def _check_one(content: bytes, index: int, signature: bytes, lookup: TxtLookup) -> Verdict:
    try:
        tags = dkim.parse_tag_value(signature)
    except dkim.util.InvalidTagValueList:
        return Verdict("", "", "", "error", "the signature is not a list of tags")
    result, detail = "pass", ""
    try:
        if not dkim.DKIM(content, minkey=1024).verify(idx=index, dnsfunc=lookup):
            result, detail = "fail", "the signature does not verify with the published key"
    except dkim.ValidationError as error:
        result, detail = "fail", str(error)
    except dns.exception.DNSException as error:
        result, detail = "error", f"look-up failed: {error}"
    except (dkim.DKIMException, dkim.util.InvalidTagValueList, binascii.Error, ValueError, KeyError) as error:
        result, detail = "error", str(error)
    domain, selector, algorithm = (_text(tags.get(tag, b"")) for tag in (b"d", b"s", b"a"))
    return Verdict(domain, selector, algorithm, result, detail[:300])


def _txt_lookup(nameservers: tuple[tuple[str, int], ...]) -> TxtLookup:
    def lookup(name: bytes, timeout: float = LOOKUP_TIMEOUT_SECONDS) -> bytes:
        resolver = dns.resolver.Resolver(configure=not nameservers)
        if nameservers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in nameservers]
        # What this raises passes through dkimpy; for a missing key it would only say that nothing verifies.
        answer = resolver.resolve(_text(name), "TXT", lifetime=timeout)
        return b"".join(answer[0].strings)

    return lookup


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")[:300]
