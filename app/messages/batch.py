"""Accepting up to a hundred mails in one transaction.

The errors of `accept`; with several of them, Invalid (batch_rejected).
"""

from collections.abc import Container, Iterable, Mapping
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.principal import Principal
from app.core import problems
from app.core.config import Settings
from app.core.errors import Flaw, Invalid, PostroadError, problem
from app.domains.service import SendingDomain
from app.messages import accept
from app.messages.accept import Mail, Terms
from app.messages.batch_schemas import BatchAccepted, BatchData, BatchRejected, BatchRequest, Malformed, Refusal
from app.messages.intake import Store
from app.messages.schemas import SendRequest
from app.vmtas import choice

_Accepted = tuple[Mail, SendingDomain]


async def send(
    session: AsyncSession, principal: Principal, request: BatchRequest, settings: Settings, store: Store
) -> BatchData:
    """Accept the mails of a batch.

    Raises PostroadError, and nothing is stored then, when a strict batch has a mail that cannot be accepted, and when
    a permissive one has no other. Pointers begin at the batch (/messages/3/to/0).
    """
    wanted = {item.vmta for item in request.items if isinstance(item, SendRequest)}
    fleet = await choice.load(session, principal.org_id, wanted)
    terms = accept.terms_of(principal, settings, fleet, datetime.now(UTC))
    await accept.check_sender(session, principal, terms)
    found = await _examine(session, principal, request, terms)
    accepted = [one for one in found if not isinstance(one, PostroadError)]
    errors = {index: one for index, one in enumerate(found) if isinstance(one, PostroadError)}
    if errors and request.mode == "strict":
        raise _refused(errors)
    unsent = await store(accept.rows(accepted, terms)) if accepted else frozenset()
    results = [_result(index, one, terms, unsent) for index, one in enumerate(found)]
    if not accepted:
        error = _refused(errors)
        error.extra["results"] = [result.model_dump(mode="json") for result in results]
        raise error
    return BatchData(batch_id=request.batch_id, accepted=len(accepted), rejected=len(errors), results=results)


async def _examine(
    session: AsyncSession, principal: Principal, request: BatchRequest, terms: Terms
) -> list[_Accepted | PostroadError]:
    """Each item as it can be accepted, or why not. Every domain is asked for once."""
    found: list[_Accepted | PostroadError] = []
    domains: dict[str, SendingDomain | PostroadError] = {}
    for item in request.items:
        mail = _checked(item, request.batch_id, terms)
        if isinstance(mail, PostroadError):
            found.append(mail)
            continue
        name = mail.request.sender.domain
        if name not in domains:
            try:
                domains[name] = await accept.sending_domain(session, principal, name, terms)
            except PostroadError as error:
                domains[name] = error
        domain = domains[name]
        found.append(domain if isinstance(domain, PostroadError) else (mail, domain))
    return found


def _checked(item: SendRequest | Malformed, batch_id: str | None, terms: Terms) -> Mail | PostroadError:
    if isinstance(item, Malformed):
        flaws = item.error.errors(include_url=False, include_input=False)
        return problems.invalid([{**flaw, "loc": ("body", *flaw["loc"])} for flaw in flaws[: problems.MAX_FLAWS]])
    if batch_id is not None and item.batch_id not in (None, batch_id):
        return Invalid.at("/batch_id", "must be that of the batch, or absent", code="batch_id_differs")
    item.batch_id = item.batch_id or batch_id
    try:
        return accept.check(item, terms)
    except PostroadError as error:
        return error


def _result(
    index: int, found: _Accepted | PostroadError, terms: Terms, unsent: Container[UUID]
) -> BatchAccepted | BatchRejected:
    if isinstance(found, PostroadError):
        document = problem(found.status, found.code, found.detail, request_id=None, flaws=found.flaws)
        return BatchRejected(index=index, error=Refusal(**document))
    return BatchAccepted(index=index, message=accept.answer(found[0], terms, unsent))


def _refused(errors: Mapping[int, PostroadError]) -> PostroadError:
    """One error for the whole batch: of their own kind if they are of one, and Invalid if they are of several."""
    index, first = next(iter(errors.items()))
    flaws = list(_flaws(errors.items()))[: problems.MAX_FLAWS]
    where = f"/messages/{index}: {first.detail}"
    if len(errors) > 1:
        where = f"{len(errors)} messages cannot be accepted, the first is {where}"
    if len({error.code for error in errors.values()}) > 1:
        return Invalid("batch_rejected", where, flaws=flaws)
    return type(first)(first.code, where, flaws=flaws)


def _flaws(errors: Iterable[tuple[int, PostroadError]]) -> Iterable[Flaw]:
    for index, error in errors:
        yield from accept.flaws_below(error, f"/messages/{index}")
