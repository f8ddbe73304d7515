"""Routes of sending domains."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Request, Response

from app.accounts.principal import Principal, Requires, Route, Scope
from app.core import errors
from app.core.db import Database, Transaction, database
from app.core.fetch import Fetcher
from app.core.idempotency import OnceKey
from app.core.pagination import PageQuery
from app.core.schemas import Envelope
from app.domains import bimi, rotation, schemas, service
from app.mail.dns import Resolver

router = APIRouter(prefix="/api/v1/domains", tags=["Domains"], route_class=Route)

Caller = Annotated[Principal, Depends(Requires(Scope.DOMAINS))]


def _resolver(request: Request) -> Resolver:
    found: Resolver = request.app.state.resolver
    return found


def _fetcher(request: Request) -> Fetcher:
    found: Fetcher = request.app.state.fetcher
    return found


class ZoneFile(Response):
    """A master file (RFC 4027)."""

    media_type = "text/dns"


@router.post(
    "",
    status_code=201,
    operation_id="createDomain",
    summary="Add a sending domain",
    description="Makes an RSA-2048 and an Ed25519 DKIM key and answers with the DNS records to publish. Mail "
    "can be sent from the domain once its required record is published and `verify` has seen it. The others "
    "are recommended; they improve delivery but do not hold sending back.",
    responses=errors.responses(401, 403, 409, 413, 422, 429),
)
async def create_domain(
    body: schemas.NewDomain, principal: Caller, session: Transaction, once: OnceKey
) -> Envelope[schemas.DomainData]:
    await once.begin(principal.org_id, principal.id)
    domain = await service.create(
        session,
        principal.org_id,
        name=body.domain,
        selector=body.dkim_selector,
        only=principal.domains,
    )
    return await once.remember(201, Envelope(data=schemas.DomainData(domain=domain)))


@router.get(
    "",
    operation_id="listDomains",
    summary="List sending domains",
    description="The organization's domains, newest first, with their records as they were found at the last "
    "check. A key that is restricted to domains sees only those.",
    responses=errors.responses(401, 403, 422, 429),
)
async def list_domains(principal: Caller, session: Transaction, page: PageQuery) -> Envelope[schemas.DomainsData]:
    domains, pagination = await service.page(session, principal.org_id, page, only=principal.domains)
    return Envelope(data=schemas.DomainsData(domains=domains, pagination=pagination))


@router.get(
    "/{domain_id}",
    operation_id="getDomain",
    summary="Get a sending domain",
    description="The domain and its records as they were found at the last check; nothing is looked up.",
    responses=errors.responses(401, 403, 404, 422, 429),
)
async def get_domain(domain_id: UUID, principal: Caller, session: Transaction) -> Envelope[schemas.DomainData]:
    domain = await service.get(session, principal.org_id, domain_id, only=principal.domains)
    return Envelope(data=schemas.DomainData(domain=domain))


@router.post(
    "/{domain_id}/verify",
    operation_id="verifyDomain",
    summary="Check a domain's DNS records",
    description="Looks every record up and shows what was found beside what is expected. The domain is "
    "verified once its required record is seen, and stays so; a new DKIM key signs once its own is seen. A look-up "
    "that fails (a DNS server without an "
    "answer) sets that record's `error`, and its `status` to `unknown` unless it was verified.",
    responses=errors.responses(401, 403, 404, 422, 429),
)
async def verify_domain(
    domain_id: UUID,
    principal: Caller,
    store: Annotated[Database, Depends(database)],
    resolver: Annotated[Resolver, Depends(_resolver)],
) -> Envelope[schemas.VerifyData]:
    domain = await service.verify(store, resolver, principal.org_id, domain_id, only=principal.domains)
    return Envelope(data=schemas.VerifyData(domain=domain, verified=domain.verified))


@router.post(
    "/{domain_id}/rotate-dkim",
    operation_id="rotateDkim",
    summary="Rotate a domain's DKIM keys",
    description="Makes a new RSA-2048 and a new Ed25519 key under new selectors, and answers with their records beside "
    "those of the old keys. Publish the new records and leave the old: once `verify`, or our own periodic check, has "
    "seen a new key's record, that key signs, and the old one's record is to be kept until its `keep_until`, for mail "
    "that is still on its way. After that it is listed with `action: remove`. While new keys wait for their records "
    "another rotation is a 409 `rotation_pending`, unless it names another selector: then they are given up for it.",
    responses=errors.responses(401, 403, 404, 409, 413, 422, 429),
)
async def rotate_dkim(
    domain_id: UUID,
    principal: Caller,
    session: Transaction,
    once: OnceKey,
    body: Annotated[schemas.Rotation, Body(default_factory=schemas.Rotation)],
) -> Envelope[schemas.DomainData]:
    await once.begin(principal.org_id, principal.id)
    domain = await rotation.rotate(
        session, principal.org_id, domain_id, selector=body.dkim_selector, only=principal.domains
    )
    return await once.remember(200, Envelope(data=schemas.DomainData(domain=domain)))


@router.put(
    "/{domain_id}/bimi",
    operation_id="setDomainBimi",
    summary="Set a domain's BIMI logo",
    description="Fetches the logo and checks that it is SVG Tiny Portable/Secure, and the mark certificate if one is "
    "given; then the BIMI record is among the domain's `dns_records`. `warnings` say what may keep receivers from "
    'showing the logo, such as a DMARC policy of `p=none`. `{"enabled": false}` removes the record.',
    responses=errors.responses(401, 403, 404, 413, 422, 429),
)
async def set_domain_bimi(
    domain_id: UUID,
    body: schemas.BimiSettings,
    principal: Caller,
    store: Annotated[Database, Depends(database)],
    fetcher: Annotated[Fetcher, Depends(_fetcher)],
    resolver: Annotated[Resolver, Depends(_resolver)],
) -> Envelope[schemas.BimiData]:
    domain, warnings = await bimi.configure(
        store, fetcher, resolver, principal.org_id, domain_id, body, only=principal.domains
    )
    return Envelope(data=schemas.BimiData(domain=domain, warnings=warnings))


@router.get(
    "/{domain_id}/zone",
    operation_id="getDomainZone",
    summary="Get a domain's records as a zone file",
    description="A master file (RFC 1035) with all records to publish, ready to paste into the domain's zone: names in "
    "A-labels, long text cut into strings. Records that may be removed stand in comments.",
    response_class=ZoneFile,
    responses={
        200: {"content": {"text/dns": {"schema": {"type": "string"}}}},
        **errors.responses(401, 403, 404, 422, 429),
    },
)
async def get_domain_zone(domain_id: UUID, principal: Caller, session: Transaction) -> ZoneFile:
    return ZoneFile(await service.zone_file(session, principal.org_id, domain_id, only=principal.domains))


@router.delete(
    "/{domain_id}",
    status_code=204,
    operation_id="deleteDomain",
    summary="Delete a sending domain",
    description="No more mail is accepted from the domain, and its name can be added anew, with new keys. "
    "Mail accepted before is still signed and delivered: leave its DKIM records published until then.",
    responses=errors.responses(401, 403, 404, 422, 429),
)
async def delete_domain(domain_id: UUID, principal: Caller, session: Transaction) -> None:
    await service.delete(session, principal.org_id, domain_id, only=principal.domains)
