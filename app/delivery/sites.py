"""Connections to destination sites: found by MX, opened host by host, kept and reused, limited per site."""

import asyncio
import ssl
import time
from dataclasses import dataclass, field

import structlog

from app.core.config import Settings
from app.core.networks import is_public
from app.mail.dns import Addresses, LookupFailed, MailHosts, NoMailHost, NoSuchDomain, NullMx, Resolver
from app.mail.reply import Phase, Reply
from app.mail.smtp import Connection, SmtpError, Timeouts, TlsFailed, tls_context
from app.messages.status import Status

_HOSTS_MAX = 8
_ADDRESSES_MAX = 10
_TRANSACTIONS_MAX = 100
_IDLE_SECONDS = 5.0
_REAP_SECONDS = 1.0
# RFC 5321 §4.5.3.2.1 asks for five minutes of patience with one greeting; this is for all hosts together.
_CONNECT_SECONDS = 330

log = structlog.get_logger(__name__)


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


@dataclass(slots=True)
class Site:
    """One destination: at most `site_connections` of this process at once, and its idle connections."""

    slots: asyncio.Semaphore
    idle: list[Connection] = field(default_factory=list)
    waiting: int = 0


class Sites:
    """All destinations that this process talks to."""

    def __init__(self, settings: Settings, resolver: Resolver, timeouts: Timeouts) -> None:
        self._settings = settings
        self._resolver = resolver
        self._timeouts = timeouts
        ca_file = settings.outbound_tls_ca_file
        self._tls = tls_context(ca_file=str(ca_file) if ca_file else None)
        self._sites: dict[str, Site] = {}
        self._goodbyes: list[Connection] = []

    def enter(self, name: str) -> None:
        """A delivery to the site was claimed; it ends with `leave`."""
        if name not in self._sites:
            self._sites[name] = Site(asyncio.Semaphore(self._settings.site_connections))
        self._sites[name].waiting += 1

    def get(self, name: str) -> Site:
        """A site that was entered and not left."""
        return self._sites[name]

    def leave(self, name: str) -> None:
        """A delivery of the site has ended."""
        self._sites[name].waiting -= 1

    def busy(self, limit: int) -> list[str]:
        """The sites for which this process holds `limit` deliveries or more."""
        return [name for name, site in self._sites.items() if site.waiting >= limit]

    def dismiss(self) -> None:
        """Let everyone who waits for a connection through at once: they look whether the worker stops, and leave."""
        for site in self._sites.values():
            for _ in range(site.waiting):
                site.slots.release()

    def idle_connection(self, site: Site) -> Connection | None:
        """A kept connection that is ready for another transaction."""
        while site.idle:
            connection = site.idle.pop()
            if connection.is_usable:
                return connection
            connection.abort()
        return None

    async def connect(self, name: str) -> Connection | Unreachable:
        """A new connection to the best host that answers (RFC 5321 §5.1): every host and address in order.

        Hosts that let us wait may not take more than the time for one: their mail is tried again, slots are for all.
        """
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await self._connect(name)
        except TimeoutError:
            detail = f"no mail host of {name} was ready within {_CONNECT_SECONDS} s"
            return Unreachable(Status.DEFERRED, "timed_out", detail)

    async def _connect(self, name: str) -> Connection | Unreachable:
        found = await self._resolver.mail_hosts(name)
        match found:
            case NullMx():
                return Unreachable(Status.HARD_BOUNCED, "null_mx", f"{name} accepts no mail (null MX, RFC 7505)")
            case NoSuchDomain():
                return Unreachable(Status.HARD_BOUNCED, "no_such_domain", f"the domain {name} does not exist")
            case NoMailHost():
                return Unreachable(Status.HARD_BOUNCED, "no_mail_host", f"{name} has no MX, A or AAAA record")
            case LookupFailed():
                return Unreachable(Status.DEFERRED, "dns_failure", f"the DNS of {name} fails: {found.reason}")
        return await self._connect_any(name, found)

    async def _connect_any(self, name: str, found: MailHosts) -> Connection | Unreachable:
        failure = Unreachable(Status.DEFERRED, "no_host_address", f"no mail host of {name} has an address")
        for host in found.hosts[:_HOSTS_MAX]:
            addresses = await self._resolver.addresses(host)
            if isinstance(addresses, LookupFailed):
                detail = f"the DNS of {host} fails: {addresses.reason}"
                failure = Unreachable(Status.DEFERRED, "dns_failure", detail, host=host)
            if not isinstance(addresses, Addresses):
                continue
            for address in addresses.values[:_ADDRESSES_MAX]:
                connected = await self._connect_one(host, address)
                if isinstance(connected, Connection):
                    return connected
                failure = connected
        return failure

    async def _connect_one(self, host: str, address: str) -> Connection | Unreachable:
        if not self._settings.outbound_allow_private_networks and not is_public(address):
            detail = f"{host} has the address {address}, which is not a public one"
            return Unreachable(Status.DEFERRED, "private_address", detail, host=host, address=address)
        try:
            return await self._open(host, address, self._tls)
        except TlsFailed as error:
            # Opportunistic (RFC 7435): a host that offers STARTTLS and then fails at it is sent to in the clear.
            log.info("starttls_failed", host=host, address=address, error=str(error))
        except SmtpError as error:
            return _unreachable(error, host, address)
        try:
            return await self._open(host, address, None)
        except SmtpError as error:
            return _unreachable(error, host, address)

    async def _open(self, host: str, address: str, tls: ssl.SSLContext | None) -> Connection:
        return await Connection.open(
            host,
            address,
            self._settings.outbound_smtp_port,
            ehlo_name=self._settings.ehlo_hostname,
            timeouts=self._timeouts,
            tls=tls,
        )

    def keep(self, site: Site, connection: Connection) -> None:
        """Keep a connection for the site's next mail, unless it is spent."""
        if connection.is_usable and connection.transactions < _TRANSACTIONS_MAX:
            site.idle.append(connection)
        else:
            self._goodbyes.append(connection)

    async def reap(self) -> None:
        """Say goodbye to idle connections and forget sites at rest, until cancelled; then close all."""
        try:
            while True:
                await asyncio.sleep(_REAP_SECONDS)
                await self._close_idle(older_than=time.monotonic() - _IDLE_SECONDS)
        finally:
            await self._close_idle(older_than=float("inf"))

    async def _close_idle(self, *, older_than: float) -> None:
        leaving, self._goodbyes = self._goodbyes, []
        for name, site in list(self._sites.items()):
            old = [connection for connection in site.idle if connection.last_used < older_than]
            site.idle = [connection for connection in site.idle if connection.last_used >= older_than]
            leaving += old
            if not site.waiting and not site.idle:
                del self._sites[name]
        await asyncio.gather(*(connection.quit() for connection in leaving))


def _unreachable(error: SmtpError, host: str, address: str) -> Unreachable:
    detail = f"{host} [{address}]: {error}"
    return Unreachable(Status.DEFERRED, reason_of(error), detail, error.phase, error.reply, host, address)


def reason_of(error: SmtpError) -> str:
    """The stable name of a broken session: connect_failed, connection_lost, timed_out, protocol_violation, refused…"""
    name = type(error).__name__
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
