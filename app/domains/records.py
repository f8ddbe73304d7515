"""The DNS records that a sending domain should publish, and the judgement of what was found. No I/O."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from app.domains.models import DkimKey
from app.mail import dkim

Type = Literal["TXT", "CNAME"]
Purpose = Literal["dkim", "spf", "return_path", "dmarc", "tracking", "tls_rpt"]
Status = Literal["pending", "verified", "mismatch", "missing", "unknown"]

MAX_NAME_OCTETS: Final = 253
ED25519_SUFFIX: Final = "-ed25519"
ZONE_TTL_SECONDS: Final = 3600

_STRING_OCTETS = 255
_MAX_FOUND = 10
_MAX_FOUND_CHARACTERS = 1024
_POLICIES = frozenset({"none", "quarantine", "reject"})


@dataclass(frozen=True, slots=True)
class Platform:
    """What of this installation stands in its customers' DNS: where bounces go, and the host of its links."""

    return_path_domain: str
    public_host: str


@dataclass(frozen=True, slots=True)
class Check:
    """What the last look-ups of one record gave.

    `value` is what was expected then. `error` says why the latest look-up failed; status and found are then
    those of the last one that worked.
    """

    status: Status
    value: str
    found: tuple[str, ...] = ()
    error: str | None = None

    def stored(self) -> dict[str, Any]:
        """The form kept in `Domain.checks`."""
        return {"status": self.status, "value": self.value, "found": self.found, "error": self.error}


@dataclass(frozen=True, slots=True)
class Record:
    """One record to publish; `key` is its name in `Domain.checks`, `value` is unquoted and in one piece."""

    key: str
    type: Type
    name: str
    value: str
    purpose: Purpose
    required: bool
    dkim_key: DkimKey | None = None

    @property
    def zone_line(self) -> str:
        """The record as a line of a zone file: text in strings of up to 255 octets (RFC 1035 §3.3, §5.1)."""
        if self.type == "CNAME":
            data = f"{self.value}."
        else:
            pieces = range(0, len(self.value), _STRING_OCTETS)
            data = " ".join(f'"{self.value[at : at + _STRING_OCTETS]}"' for at in pieces)
        return f"{self.name}. {ZONE_TTL_SECONDS} IN {self.type} {data}"

    def last_check(self, checks: dict[str, Any]) -> Check:
        """The record's entry in `Domain.checks`; "pending" when this value was never looked for."""
        stored = checks.get(self.key)
        if stored is None or stored["value"] != self.value:
            return Check("pending", self.value)
        return Check(stored["status"], stored["value"], tuple(stored["found"]), stored["error"])


def dkim_name(selector: str, domain: str) -> str:
    """Where a DKIM key is published (RFC 6376 §3.6.2.1)."""
    return f"{selector}._domainkey.{domain}"


def return_path_name(domain: str) -> str:
    """The customer's own name for envelope senders, so that SPF aligns with From (RFC 7489 §3.1.2)."""
    return f"bounces.{domain}"


def plan(domain: str, keys: Sequence[DkimKey], platform: Platform) -> list[Record]:
    """All records to publish for a domain, the required ones first.

    Keys that have been retired are not listed. A record that would point to itself, because the platform
    lives under this very domain, is left out.
    """
    bounces, links = return_path_name(domain), f"links.{domain}"
    records = [_dkim(domain, key) for key in keys if key.status != "retired"]
    if domain != platform.return_path_domain:
        spf = f"v=spf1 include:{platform.return_path_domain} ~all"
        records.append(Record("spf", "TXT", domain, spf, "spf", required=False))
    if bounces != platform.return_path_domain:
        target = platform.return_path_domain
        records.append(Record("return_path", "CNAME", bounces, target, "return_path", required=False))
    records.append(Record("dmarc", "TXT", f"_dmarc.{domain}", "v=DMARC1; p=none", "dmarc", required=False))
    if _is_public_name(platform.public_host) and links != platform.public_host:
        records.append(Record("tracking", "CNAME", links, platform.public_host, "tracking", required=False))
    # Whoever takes mail for a domain has a postmaster (RFC 5321 §4.5.1): the one address known to exist.
    tls_rpt = f"v=TLSRPTv1; rua=mailto:postmaster@{domain}"
    records.append(Record("tls_rpt", "TXT", f"_smtp._tls.{domain}", tls_rpt, "tls_rpt", required=False))
    return sorted(records, key=lambda record: not record.required)


def envelope_domain(domain: str, checks: dict[str, Any], platform: Platform) -> str:
    """The domain for envelope senders: the customer's own when its CNAME was seen, else the platform's."""
    for record in plan(domain, (), platform):
        if record.purpose == "return_path" and record.last_check(checks).status == "verified":
            return record.name
    return platform.return_path_domain


def judge(record: Record, values: Sequence[str]) -> Check:
    """Compare what the DNS holds under the record's name and type with what should be there."""
    relevant = [value for value in values if record.purpose != "spf" or _is_spf(value)]
    if not relevant:
        return Check("missing", record.value)
    status: Status = "verified" if _suffices(record, relevant) else "mismatch"
    return Check(status, record.value, tuple(_clean(value) for value in relevant[:_MAX_FOUND]))


def keep(last: Check, error: str) -> Check:
    """The check after a look-up that failed: what was good stays so, anything else is unknown."""
    if last.status == "verified":
        return Check("verified", last.value, last.found, error)
    return Check("unknown", last.value, last.found, error)


def _dkim(domain: str, key: DkimKey) -> Record:
    return Record(
        key=f"dkim:{key.selector}",
        type="TXT",
        name=dkim_name(key.selector, domain),
        value=dkim.record(key.algorithm, key.public_key),
        purpose="dkim",
        required=key.algorithm == "rsa-sha256",
        dkim_key=key,
    )


def _is_public_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." in host and host.rsplit(".", 1)[-1] not in {"localhost", "localdomain", "local"}
    return False


def _suffices(record: Record, values: Sequence[str]) -> bool:
    if record.dkim_key is not None:
        # With two records the result is undefined (RFC 6376 §3.6.2.2): some receivers take the other one.
        key = record.dkim_key
        return len(values) == 1 and dkim.matches(values[0], key.algorithm, key.public_key)
    if record.type == "CNAME":
        return {_host(value) for value in values} == {_host(record.value)}
    if record.purpose == "spf":
        # Two SPF records are an error (RFC 7208 §4.5); "+" is the default qualifier.
        include = record.value.split()[1].lower()
        return len(values) == 1 and include in {term.removeprefix("+") for term in values[0].lower().split()}
    # Records of other kinds under the same name are ignored (RFC 7489 §6.6.3, RFC 8460 §3).
    version, wanted = ("DMARC1", _is_dmarc) if record.purpose == "dmarc" else ("TLSRPTv1", _is_tls_rpt)
    ours = [tags for tags in map(_tags, values) if next(iter(tags.items()), None) == ("v", version)]
    return len(ours) == 1 and wanted(ours[0])


def _is_spf(value: str) -> bool:
    return value.lower().split(" ", 1)[0] == "v=spf1"


def _is_dmarc(tags: dict[str, str]) -> bool:
    # Without a policy that can be read, one with a report address still counts as p=none (RFC 7489 §6.6.3).
    return tags.get("p", "").lower() in _POLICIES or "rua" in tags


def _is_tls_rpt(tags: dict[str, str]) -> bool:
    return tags.get("rua", "").lower().startswith(("mailto:", "https:"))


def _tags(value: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in value.split(";") if part.strip())
    return {name.strip().lower(): text.strip() for name, _, text in pairs}


def _host(value: str) -> str:
    return value.rstrip(".").lower()


def _clean(value: str) -> str:
    # What a stranger's DNS holds: JSON and PostgreSQL take neither NUL nor lone surrogates.
    shown = "".join(character if character.isprintable() else "\ufffd" for character in value[:_MAX_FOUND_CHARACTERS])
    return shown + "…" if len(value) > _MAX_FOUND_CHARACTERS else shown
