"""The DNS records that a sending domain should publish, and the judgement of what was found. No I/O.

All records together make a legal zone: published literally, every one of them, none shuts another out. For that the
return path is an MX and an SPF record at `bounces.<domain>`, not the CNAME that some services ask for: nothing may
stand beside a CNAME (RFC 1034 §3.6.2), and an MX must not lead to one (RFC 2181 §10.3). What a CNAME would have hidden
then can be checked: that bounces come back to us, and that the envelope sender passes SPF. Only with both is the
customer's own domain used in envelope senders (`envelope_domain`).
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from app.domains.models import DkimKey
from app.mail import dkim

Type = Literal["TXT", "CNAME", "MX"]
Purpose = Literal["dkim", "spf", "return_path", "bounce_mx", "dmarc", "tracking", "tls_rpt", "bimi"]
Status = Literal["pending", "verified", "mismatch", "missing", "unknown"]
Action = Literal["publish", "keep", "remove"]

MAX_NAME_OCTETS: Final = 253
ED25519_SUFFIX: Final = "-ed25519"
ZONE_TTL_SECONDS: Final = 3600
BOUNCE_MX_PREFERENCE: Final = 10

_STRING_OCTETS = 255
_MAX_FOUND = 10
_MAX_FOUND_CHARACTERS = 1024
_POLICIES = frozenset({"none", "quarantine", "reject"})
_VERSIONS = {"dmarc": "DMARC1", "tls_rpt": "TLSRPTv1", "bimi": "BIMI1"}
_SPF_NOTE = "A name has one SPF record: where there is one already, add the include to it."
_LINKS_NOTE = "Once it is seen, tracked links and unsubscribe links in your mails begin with this name."
_BOUNCE_NOTE = "Bounces return here. Both records of this name are needed before envelope senders use it."


@dataclass(frozen=True, slots=True)
class Platform:
    """What of this installation stands in its customers' DNS: where bounces go, and the host of its links."""

    return_path_domain: str
    public_host: str


@dataclass(frozen=True, slots=True)
class Bimi:
    """What a domain's BIMI record says: https URLs without commas and semicolons."""

    selector: str
    logo_url: str
    vmc_url: str | None

    @property
    def value(self) -> str:
        """The TXT value (draft-brand-indicators-for-message-identification §4.2)."""
        return f"v=BIMI1; l={self.logo_url}; a={self.vmc_url or ''}"


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
    """One record to publish; `key` is its name in `Domain.checks`, `value` is unquoted and in one piece.

    `action` is "keep" for the record of a replaced key, to stay until `keep_until`, and "remove" after that.
    """

    key: str
    type: Type
    name: str
    value: str
    purpose: Purpose
    required: bool = False
    note: str | None = None
    action: Action = "publish"
    keep_until: datetime | None = None
    dkim_key: DkimKey | None = None

    @property
    def zone_line(self) -> str:
        """The record as a line of a zone file: text in strings of up to 255 octets (RFC 1035 §3.3, §5.1)."""
        if self.type == "TXT":
            pieces = (self.value[at : at + _STRING_OCTETS] for at in range(0, len(self.value), _STRING_OCTETS))
            data = " ".join('"' + piece.replace("\\", "\\\\").replace('"', '\\"') + '"' for piece in pieces)
        else:
            data = f"{self.value}."
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


def bimi_name(selector: str, domain: str) -> str:
    """Where a BIMI record is published."""
    return f"{selector}._bimi.{domain}"


def plan(domain: str, keys: Sequence[DkimKey], platform: Platform, bimi: Bimi | None = None) -> list[Record]:
    """All records of a domain: the required ones first, at the end those of retired keys, which may be removed.

    A record that would point to itself, because the platform lives under this very domain, is left out.
    """
    is_proven = any(key.algorithm == "rsa-sha256" and key.status == "active" for key in keys)
    records = [_dkim(domain, key, is_proven) for key in keys]
    if domain != platform.return_path_domain:
        records.append(Record("spf", "TXT", domain, f"{_spf(platform)} ~all", "spf", note=_SPF_NOTE))
    records += _return_path(domain, platform)
    records.append(Record("dmarc", "TXT", f"_dmarc.{domain}", "v=DMARC1; p=none", "dmarc"))
    records += _tracking(domain, platform)
    # Whoever takes mail for a domain has a postmaster (RFC 5321 §4.5.1): the one address known to exist.
    tls_rpt = f"v=TLSRPTv1; rua=mailto:postmaster@{domain}"
    records.append(Record("tls_rpt", "TXT", f"_smtp._tls.{domain}", tls_rpt, "tls_rpt"))
    if bimi is not None:
        records.append(Record("bimi", "TXT", bimi_name(bimi.selector, domain), bimi.value, "bimi"))
    return sorted(records, key=lambda record: (record.action == "remove", not record.required))


def _spf(platform: Platform) -> str:
    return f"v=spf1 include:{platform.return_path_domain}"


def _return_path(domain: str, platform: Platform) -> list[Record]:
    name, target = return_path_name(domain), platform.return_path_domain
    if name == target:
        return []
    mx = f"{BOUNCE_MX_PREFERENCE} {target}"
    return [
        Record("return_path", "TXT", name, f"{_spf(platform)} -all", "return_path", note=_BOUNCE_NOTE),
        Record("bounce_mx", "MX", name, mx, "bounce_mx", note=_BOUNCE_NOTE),
    ]


def _tracking(domain: str, platform: Platform) -> list[Record]:
    name, target = f"links.{domain}", platform.public_host
    if not _is_public_name(target) or name == target:
        return []
    return [Record("tracking", "CNAME", name, target, "tracking", note=_LINKS_NOTE)]


def link_host(domain: str, checks: dict[str, Any], platform: Platform) -> str | None:
    """The customer's own host for links in their mails once its CNAME was seen; None: that of PUBLIC_URL."""
    own = _tracking(domain, platform)
    return own[0].name if own and own[0].last_check(checks).status == "verified" else None


def envelope_domain(domain: str, checks: dict[str, Any], platform: Platform) -> str:
    """The domain for envelope senders: the customer's own when its MX and SPF were seen, else the platform's."""
    own = _return_path(domain, platform)
    if own and all(record.last_check(checks).status == "verified" for record in own):
        return return_path_name(domain)
    return platform.return_path_domain


def judge(record: Record, values: Sequence[str]) -> Check:
    """Compare what the DNS holds under the record's name and type with what should be there."""
    is_spf = record.purpose in {"spf", "return_path"}
    relevant = [value for value in values if not is_spf or _is_spf(value)]
    if not relevant:
        return Check("missing", record.value)
    status: Status = "verified" if _suffices(record, relevant) else "mismatch"
    return Check(status, record.value, tuple(_clean(value) for value in relevant[:_MAX_FOUND]))


def keep(last: Check, error: str) -> Check:
    """The check after a look-up that failed: what was good stays so, anything else is unknown."""
    if last.status == "verified":
        return Check("verified", last.value, last.found, error)
    return Check("unknown", last.value, last.found, error)


def _dkim(domain: str, key: DkimKey, is_proven: bool) -> Record:
    note: str | None = None
    action: Action = "publish"
    required = key.algorithm == "rsa-sha256"
    match key.status:
        case "pending" if is_proven:
            required = False
            note = "A new key: publish its record beside the old one. It signs once the record has been seen."
        case "retiring":
            until = f" until {key.retire_at:%Y-%m-%d %H:%M} UTC" if key.retire_at else ""
            note = f"A replaced key: keep its record{until}, so that mail on its way still verifies."
            action = "keep"
        case "retired":
            required = False
            note = "A key that is no longer used: its record may be removed."
            action = "remove"
    return Record(
        key=f"dkim:{key.selector}",
        type="TXT",
        name=dkim_name(key.selector, domain),
        value=dkim.record(key.algorithm, key.public_key),
        purpose="dkim",
        required=required,
        note=note,
        action=action,
        keep_until=key.retire_at if action == "keep" else None,
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
    if record.type == "MX":
        # Any other host among them would get bounces of ours, in whatever order.
        return {_host(value.split()[-1]) for value in values} == {_host(record.value.split()[-1])}
    if record.purpose in {"spf", "return_path"}:
        # Two SPF records are an error (RFC 7208 §4.5); "+" is the default qualifier.
        include = record.value.split()[1].lower()
        return len(values) == 1 and include in {term.removeprefix("+") for term in values[0].lower().split()}
    return _suffices_by_tags(record, values)


def _suffices_by_tags(record: Record, values: Sequence[str]) -> bool:
    # Records of other kinds under the same name are ignored (RFC 7489 §6.6.3, RFC 8460 §3).
    wanted_version = ("v", _VERSIONS[record.purpose])
    ours = [tags for tags in map(tags_of, values) if next(iter(tags.items()), None) == wanted_version]
    if len(ours) != 1:
        return False
    (tags,) = ours
    if record.purpose == "bimi":
        wanted = tags_of(record.value)
        return (tags.get("l"), tags.get("a", "")) == (wanted["l"], wanted["a"])
    return _is_dmarc(tags) if record.purpose == "dmarc" else _is_tls_rpt(tags)


def _is_spf(value: str) -> bool:
    return value.lower().split(" ", 1)[0] == "v=spf1"


def _is_dmarc(tags: dict[str, str]) -> bool:
    # Without a policy that can be read, one with a report address still counts as p=none (RFC 7489 §6.6.3).
    return tags.get("p", "").lower() in _POLICIES or "rua" in tags


def _is_tls_rpt(tags: dict[str, str]) -> bool:
    return tags.get("rua", "").lower().startswith(("mailto:", "https:"))


def tags_of(value: str) -> dict[str, str]:
    """The tags of a record such as DMARC's, in their order, names in lower case."""
    pairs = (part.partition("=") for part in value.split(";") if part.strip())
    return {name.strip().lower(): text.strip() for name, _, text in pairs}


def _host(value: str) -> str:
    return value.rstrip(".").lower()


def _clean(value: str) -> str:
    # What a stranger's DNS holds: JSON and PostgreSQL take neither NUL nor lone surrogates.
    shown = "".join(character if character.isprintable() else "\ufffd" for character in value[:_MAX_FOUND_CHARACTERS])
    return shown + "…" if len(value) > _MAX_FOUND_CHARACTERS else shown
