"""BIMI: the logo that receivers may show beside a domain's mail (draft-brand-indicators-for-message-identification).

What can be wrong with a logo is found out when it is set, while whoever sets it is looking; receivers would only
silently not show it.
"""

import asyncio
import hashlib
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.core.db import Database
from app.core.errors import Flaw, Invalid
from app.core.fetch import Fetched, Fetcher
from app.core.schemas import rfc3339
from app.core.web import WebError
from app.domains import queries, records, schemas, svg, view, vmc
from app.mail.dns import LookupFailed, Records, Resolver

FETCH_SECONDS = 10.0

_LOGO_TYPES = ("image/svg+xml",)
# No media type for PEM is in general use.
_ANY_TYPE = ("*/*",)
_MAX_PARENTS = 5


async def configure(
    database: Database,
    fetcher: Fetcher,
    resolver: Resolver,
    org_id: UUID,
    domain_id: UUID,
    wanted: schemas.BimiSettings,
    *,
    only: Collection[str] | None,
) -> tuple[schemas.Domain, list[str]]:
    """Set or remove a domain's BIMI record; the domain, and warnings about what may keep the logo from being shown.

    Raises NotFound, and Invalid: name_too_long, logo_not_fetched, logo_not_svg_tiny_ps, vmc_not_fetched, vmc_invalid.
    Nothing is changed then. No transaction is open while anything is fetched.
    """
    async with database.transaction() as session:
        domain, _ = await queries.load(session, org_id, domain_id, only)
    bimi: dict[str, Any] | None = None
    warnings: list[str] = []
    if wanted.enabled:
        if len(records.bimi_name(wanted.selector, domain.name)) > records.MAX_NAME_OCTETS:
            raise Invalid.at("/selector", "With its selector the name is too long for the DNS.", code="name_too_long")
        bimi, warnings = await _examine(fetcher, domain.name, wanted)
        warnings += await _dmarc_warnings(resolver, domain.name)
    async with database.transaction() as session:
        domain, keys = await queries.load(session, org_id, domain_id, only, lock=True)
        domain.bimi = bimi
        return view.show(domain, keys), warnings


async def _examine(fetcher: Fetcher, domain: str, wanted: schemas.BimiSettings) -> tuple[dict[str, Any], list[str]]:
    """What is kept of a logo and its certificate once both are found good, and warnings."""
    assert wanted.logo_url is not None  # noqa: S101 - the schema asks for it where BIMI is enabled
    fetched = await _fetch(fetcher, wanted.logo_url, "logo", accept=_LOGO_TYPES, max_bytes=svg.MAX_BYTES)
    try:
        # Pure Python takes a moment for the largest logo, in which others should be answered.
        logo = await asyncio.to_thread(svg.check, fetched.content)
    except svg.SvgError as error:
        flaws = [Flaw("/logo_url", flaw) for flaw in error.flaws]
        detail = f"The logo is not SVG Tiny Portable/Secure: {error.flaws[0]}"
        raise Invalid("logo_not_svg_tiny_ps", detail, flaws=flaws) from error
    bimi: dict[str, Any] = {
        "selector": wanted.selector,
        "logo_url": wanted.logo_url,
        "vmc_url": wanted.vmc_url,
        "logo_title": logo.title,
        "logo_sha256": hashlib.sha256(fetched.content).hexdigest(),
        "vmc_subject": None,
        "vmc_expires_at": None,
        "checked_at": rfc3339(datetime.now(UTC)),
    }
    if wanted.vmc_url is None:
        return bimi, ["Without a mark certificate (`vmc_url`) many receivers, Gmail among them, show no logo."]
    certificate = await _fetch(fetcher, wanted.vmc_url, "vmc", accept=_ANY_TYPE, max_bytes=vmc.MAX_BYTES)
    try:
        mark = vmc.check(certificate.content, domain=domain, selector=wanted.selector)
    except vmc.VmcError as error:
        raise Invalid.at("/vmc_url", str(error), code="vmc_invalid") from error
    bimi |= {"vmc_subject": mark.subject, "vmc_expires_at": rfc3339(mark.not_after)}
    return bimi, list(mark.warnings)


async def _fetch(fetcher: Fetcher, url: str, what: str, *, accept: Collection[str], max_bytes: int) -> Fetched:
    try:
        return await fetcher.fetch(url, max_bytes=max_bytes, timeout_seconds=FETCH_SECONDS, accept=accept)
    except WebError as error:
        raise Invalid.at(f"/{what}_url", str(error), code=f"{what}_not_fetched") from error


async def _dmarc_warnings(resolver: Resolver, domain: str) -> list[str]:
    """What of the domain's DMARC policy keeps receivers from showing logos: they want it enforced, for all mail."""
    tags = await _dmarc(resolver, domain)
    if tags is None:
        return ["The DMARC policy could not be looked up; BIMI needs p=quarantine or p=reject."]
    policy = tags.get("p", "none").lower()
    if policy not in {"quarantine", "reject"}:
        found = f"the DMARC policy is p={policy[:20]}" if tags else "there is no DMARC record"
        return [f"Receivers show no logo yet: {found}, and BIMI needs p=quarantine or p=reject."]
    if tags.get("pct", "100") != "100":
        return ["Receivers show no logo yet: the DMARC record has a pct other than 100."]
    return []


async def _dmarc(resolver: Resolver, domain: str) -> dict[str, str] | None:
    """The tags of the DMARC record that holds for the domain, its own or one above; None when nobody could say.

    Of one above, `sp` is given as `p` (RFC 7489 §6.3).
    """
    labels = domain.split(".")
    for skip in range(min(len(labels) - 1, _MAX_PARENTS)):
        found = await resolver.txt(f"_dmarc.{'.'.join(labels[skip:])}", fresh=True)
        if isinstance(found, LookupFailed):
            return None
        values = found.values if isinstance(found, Records) else ()
        policies = [tags for tags in map(records.tags_of, values) if tags.get("v") == "DMARC1"]
        if len(policies) == 1:
            tags = policies[0]
            return tags | {"p": tags["sp"]} if skip and "sp" in tags else tags
    return {}
