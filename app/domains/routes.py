"""Routes of sending domains."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request

from app.accounts.principal import Principal, Requires, Scope
from app.core import errors
from app.core.db import Database, Transaction, database
from app.core.idempotency import OnceKey
from app.core.pagination import PageQuery
from app.core.schemas import Envelope
from app.domains import schemas, service
from app.mail.dns import Resolver

router = APIRouter(prefix="/api/v1/domains", tags=["Domains"])

Caller = Annotated[Principal, Depends(Requires(Scope.DOMAINS))]


def _resolver(request: Request) -> Resolver:
    found: Resolver = request.app.state.resolver
    return found


@router.post(
    "",
    status_code=201,
    operation_id="createDomain",
    summary="Add a sending domain",
    description="Makes an RSA-2048 and an Ed25519 DKIM key and answers with the DNS records to publish. Mail "
    "can be sent from the domain once its required record is published and `verify` has seen it. The others "
    "are recommended; they improve delivery but do not hold sending back.",
    responses=errors.responses(401, 403, 409, 422, 429),
)
async def create_domain(
    body: schemas.NewDomain, principal: Caller, session: Transaction, once: OnceKey
) -> Envelope[schemas.DomainData]:
    await once.begin(principal.org_id, principal.id)
    domain = await service.create(
        session,
        principal.org_id,
        name=body.domain,
        selector=body.dkim_selector.lower(),
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
    "verified once its required record is seen, and stays so. A look-up that fails (a DNS server without an "
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
