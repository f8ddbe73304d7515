"""A domain as the API shows it, and its zone file."""

from collections.abc import Sequence

import idna

from app.core.config import get_settings
from app.core.schemas import rfc3339
from app.domains import records, schemas
from app.domains.models import DkimKey, Domain


def platform() -> records.Platform:
    """What of this installation stands in its customers' DNS."""
    settings = get_settings()
    return records.Platform(settings.return_path_domain, settings.public_host)


def plan(domain: Domain, keys: Sequence[DkimKey]) -> list[records.Record]:
    """All records of a stored domain."""
    return records.plan(domain.name, keys, platform(), bimi_record(domain))


def bimi_record(domain: Domain) -> records.Bimi | None:
    """What the domain's BIMI record says; None without BIMI."""
    if domain.bimi is None:
        return None
    return records.Bimi(domain.bimi["selector"], domain.bimi["logo_url"], domain.bimi["vmc_url"])


def show(domain: Domain, keys: Sequence[DkimKey]) -> schemas.Domain:
    """The domain with its records as they were found at the last check; `keys` oldest first."""
    return schemas.Domain(
        id=domain.id,
        domain=domain.name,
        domain_unicode=_unicode(domain.name),
        status=domain.status,
        verified=domain.status == "verified",
        dkim_selector=_selector(domain, keys),
        return_path_domain=records.envelope_domain(domain.name, domain.checks, platform()),
        dns_records=[_show_record(record, domain) for record in plan(domain, keys)],
        dkim_keys=[_show_key(key) for key in keys],
        bimi=None if domain.bimi is None else schemas.Bimi.model_validate(domain.bimi),
        created_at=domain.created_at,
        verified_at=domain.verified_at,
        checked_at=domain.checked_at,
        failing_since=domain.failing_since,
    )


def zone_file(domain: Domain, keys: Sequence[DkimKey]) -> str:
    """The records as a master file (RFC 1035 §5), ready to paste; what may be removed stands in comments."""
    lines = [
        f"; Records for {domain.name}, to be added to its zone.",
        f"; Unicode name: {_unicode(domain.name)}",
        f"$ORIGIN {domain.name}.",
        f"$TTL {records.ZONE_TTL_SECONDS}",
    ]
    for record in plan(domain, keys):
        need = "required" if record.required else "no longer needed" if record.action == "remove" else "recommended"
        status = record.last_check(domain.checks).status
        lines += ["", f"; {record.purpose}: {need}; at the last check: {status}"]
        lines += [f"; {record.note}"] if record.note else []
        lines.append(f"; {record.zone_line}" if record.action == "remove" else record.zone_line)
    checked = "never" if domain.checked_at is None else rfc3339(domain.checked_at)
    return "\n".join([*lines, "", f"; Last checked: {checked}", ""])


def _selector(domain: Domain, keys: Sequence[DkimKey]) -> str:
    """That of the RSA key that signs; before there is one, that of the newest."""
    rsa = [key for key in keys if key.algorithm == "rsa-sha256" and key.status in {"active", "pending"}]
    newest_last = sorted(rsa, key=lambda key: (key.status == "active", key.id))
    return newest_last[-1].selector if newest_last else domain.dkim_selector


def _show_key(key: DkimKey) -> schemas.DkimKey:
    return schemas.DkimKey(
        selector=key.selector,
        algorithm=key.algorithm,
        status=key.status,
        created_at=key.created_at,
        activated_at=key.activated_at,
        retire_at=key.retire_at,
    )


def _show_record(record: records.Record, domain: Domain) -> schemas.DnsRecord:
    check = record.last_check(domain.checks)
    return schemas.DnsRecord(
        type=record.type,
        name=record.name,
        value=record.value,
        zone_line=record.zone_line,
        purpose=record.purpose,
        required=record.required,
        action=record.action,
        keep_until=record.keep_until,
        note=record.note,
        status=check.status,
        found=list(check.found),
        error=check.error,
    )


def _unicode(name: str) -> str:
    try:
        return idna.decode(name)
    except idna.IDNAError:
        # Names in plain ASCII may break rules of IDNA (hyphens in third and fourth place) and still exist.
        return name
