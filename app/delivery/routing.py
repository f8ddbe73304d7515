"""Where a recipient domain's mail goes: its hosts, the site that they make, what holds there; and how to get there."""

import asyncio
from dataclasses import dataclass

from cachetools import TTLCache

from app.core.config import Settings
from app.core.networks import is_public
from app.delivery.security import Policies, Policy, Secured, Unsafe, open_connection
from app.delivery.shaping import Rule, Shaping
from app.mail.dns import Addresses, LookupFailed, MailHosts, NoMailHost, NoSuchDomain, NullMx, Resolver
from app.mail.reply import Phase, Reply
from app.mail.smtp import SmtpError, Timeouts
from app.messages.status import Status

_HOSTS_MAX = 8
_ADDRESSES_MAX = 10
# RFC 5321 §4.5.3.2.1 asks for five minutes of patience with one greeting; this is for all hosts together.
_CONNECT_SECONDS = 330
# The resolver remembers answers for as long as they last: this only spares the way through it for each mail.
_ROUTE_SECONDS = 5.0
_ROUTES = 50_000


@dataclass(frozen=True, slots=True)
class Route:
    """Where a domain's mail goes. Mails with equal `hosts` and `policy` may share a connection."""

    domain: str
    site: str
    provider: str
    hosts: tuple[str, ...]
    rule: Rule
    policy: Policy


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No connection could be had, and what that means for the delivery: hard_bounced or deferred."""

    status: Status
    reason: str
    detail: str
    phase: Phase = Phase.CONNECT
    reply: Reply | None = None
    host: str | None = None
    address: str | None = None


class Router:
    """Finds routes and opens connections along them. One an engine."""

    def __init__(
        self, settings: Settings, resolver: Resolver, shaping: Shaping, policies: Policies, timeouts: Timeouts
    ) -> None:
        self._settings = settings
        self._resolver = resolver
        self._shaping = shaping
        self._policies = policies
        self._timeouts = timeouts
        self._routes: TTLCache[str, Route] = TTLCache(_ROUTES, _ROUTE_SECONDS)

    def known(self, domain: str) -> Route | None:
        """The route if it was found a moment ago."""
        return self._routes.get(domain)

    def connections(self, domain: str) -> int:
        """How many connections the domain's mail may have, as far as is known."""
        route = self._routes.get(domain)
        return route.rule.connections if route is not None else self._settings.site_connections

    async def find(self, domain: str) -> Route | Unreachable:
        """Ask the DNS, and for the domain's policy. Never raises for what others do."""
        match await self._resolver.mail_hosts(domain):
            case NullMx():
                return Unreachable(Status.HARD_BOUNCED, "null_mx", f"{domain} accepts no mail (null MX, RFC 7505)")
            case NoSuchDomain():
                return Unreachable(Status.HARD_BOUNCED, "no_such_domain", f"the domain {domain} does not exist")
            case NoMailHost():
                return Unreachable(Status.HARD_BOUNCED, "no_mail_host", f"{domain} has no MX, A or AAAA record")
            case LookupFailed(reason):
                return Unreachable(Status.DEFERRED, "dns_failure", f"the DNS of {domain} fails: {reason}")
            case MailHosts() as found:
                route = self._routes[domain] = await self._route(domain, found)
                return route

    def is_spoken_by(self, host: str, route: Route) -> bool:
        """Whether a host speaks for the route's site, and does not only stand beside a provider's in an MX set."""
        return self._shaping.provider_of((host,)) == route.provider

    async def _route(self, domain: str, found: MailHosts) -> Route:
        provider = self._shaping.provider_of(found.hosts)
        rule = self._shaping.rule(provider, domain)
        policy = await self._policies.of(domain, found, required=rule.tls == "required")
        return Route(domain, self._shaping.site_of(found.hosts, domain), provider, found.hosts, rule, policy)

    async def connect(self, route: Route, source_address: str | None, ehlo_name: str) -> Secured | Unreachable:
        """A new connection to the best host that answers (RFC 5321 §5.1): every host and address in order.

        Hosts that let us wait may not take more than the time for one: their mail is tried again, slots are for all.
        """
        # Mail for other domains, perhaps of another tenant, ends by the same failure: so none is named in it.
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await self._connect(route, source_address, ehlo_name)
        except TimeoutError:
            detail = f"none of its mail hosts was ready within {_CONNECT_SECONDS} s"
            return Unreachable(Status.DEFERRED, "timed_out", detail)

    async def _connect(self, route: Route, source_address: str | None, ehlo_name: str) -> Secured | Unreachable:
        failure = Unreachable(Status.DEFERRED, "no_host_address", "none of its mail hosts has an address")
        for host in route.hosts[:_HOSTS_MAX]:
            terms = await self._policies.for_host(route.policy, host)
            if isinstance(terms, Unsafe):
                failure = Unreachable(Status.DEFERRED, terms.reason, terms.detail, Phase.STARTTLS, host=host)
                continue
            addresses = await self._resolver.addresses(host)
            if isinstance(addresses, LookupFailed):
                detail = f"the DNS of {host} fails: {addresses.reason}"
                failure = Unreachable(Status.DEFERRED, "dns_failure", detail, host=host)
            if not isinstance(addresses, Addresses):
                continue
            for address in addresses.values[:_ADDRESSES_MAX]:
                if not self._settings.outbound_allow_private_networks and not is_public(address):
                    detail = f"{host} has the address {address}, which is not a public one"
                    failure = Unreachable(Status.DEFERRED, "private_address", detail, host=host, address=address)
                    continue
                if source_address is not None and (":" in source_address) != (":" in address):
                    detail = f"{host} [{address}] cannot be reached from {source_address}"
                    failure = Unreachable(Status.DEFERRED, "no_route", detail, host=host, address=address)
                    continue
                try:
                    return await open_connection(
                        terms,
                        host,
                        address,
                        self._settings.outbound_smtp_port,
                        ehlo_name=ehlo_name,
                        timeouts=self._timeouts,
                        source_address=source_address,
                    )
                except SmtpError as error:
                    failure = _unreachable(error, host, address)
        return failure


def _unreachable(error: SmtpError, host: str, address: str) -> Unreachable:
    detail = f"{host} [{address}]: {error}"
    return Unreachable(Status.DEFERRED, reason_of(error), detail, error.phase, error.reply, host, address)


def reason_of(error: SmtpError) -> str:
    """The stable name of a broken session: connect_failed, connection_lost, timed_out, protocol_violation, refused…"""
    name = type(error).__name__
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
