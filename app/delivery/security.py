"""What TLS a destination demands: DANE (RFC 7672), MTA-STS (RFC 8461), or what can be had (RFC 7435).

A domain has a Policy, a mail host under it a HostTls, and `open_connection` connects on those terms. Where TLS is
required no term leads to plaintext, so that nothing can be sent in it by mistake.
"""

import asyncio
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog
from cachetools import TTLCache

from app.core.config import Settings
from app.core.fetch import Fetcher
from app.core.web import WebError
from app.mail import dane, mta_sts
from app.mail.dns import LookupFailed, MailHosts, NotFound, Records, Resolver, TlsaRecords
from app.mail.reply import Phase
from app.mail.smtp import Authenticated, Connection, Timeouts, TlsFailed, tls_context

HTTPS_PORT = 443
# RFC 8461 §3.3 allows a minute; this is time that a domain's first mail waits.
FETCH_SECONDS = 15.0
# As many domains may keep us waiting as deliveries are under way: none waits for the slowness of others.
FETCHES_AT_ONCE = 500
AGAIN_SECONDS = 300.0
TLSA_AGAIN_SECONDS = 60.0
REFRESH_SECONDS = 86_400.0
REFRESHES_AT_ONCE = 10

_POLICIES_MAX = 4096
_DOMAINS_MAX = 50_000
_HOSTS_MAX = 10_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a recipient domain demands of the way to it. Connections may be shared by equal ones only.

    dane: the MX is vouched for by DNSSEC, so that its hosts' TLSA records count; what else is here is for hosts
    that have none. mx, mode: of its MTA-STS policy. required: we demand TLS, whatever the domain says.
    """

    kind: Literal["opportunistic", "required", "mta_sts", "dane"] = "opportunistic"
    mx: tuple[str, ...] = ()
    mode: Literal["enforce", "testing"] | None = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class HostTls:
    """Terms of a connection to one host, as `Connection.open` takes them.

    policy: which demand they meet: opportunistic, required, mta_sts, mta_sts_testing or dane; dane with nothing in
    `proves` means that no TLSA record is usable, so that TLS is required from anybody. otherwise: terms to fall back
    to when these end in TlsFailed; None: do not send. failure: a demand that is known not to be met.
    """

    policy: str
    context: ssl.SSLContext | None
    required: bool = False
    verify: Callable[[ssl.SSLObject], None] | None = None
    server_name: str | None = None
    proves: Authenticated | None = None
    otherwise: "HostTls | None" = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Unsafe:
    """This host must not be used now; the mail is deferred when no other will do. reason: for programs."""

    reason: Literal["dane_lookup_failed", "mta_sts_mx_mismatch"]
    detail: str


@dataclass(frozen=True, slots=True)
class Secured:
    """An open connection, the demand it meets, and why it does not meet the one that was tried before, if any."""

    connection: Connection
    policy: str
    failure: str | None


@dataclass(frozen=True, slots=True)
class _Kept:
    """A fetched MTA-STS policy; times by time.monotonic()."""

    policy: mta_sts.StsPolicy
    id: str
    refresh_at: float
    ends_at: float


class Policies:
    """The policies of all domains that this process sends to, kept in memory. Belongs to one event loop.

    https_port: where MTA-STS policies are served. again_seconds: a domain is asked for its MTA-STS record no more
    often than this.
    """

    def __init__(
        self,
        settings: Settings,
        resolver: Resolver,
        *,
        https_port: int = HTTPS_PORT,
        again_seconds: float = AGAIN_SECONDS,
    ) -> None:
        self._resolver = resolver
        self._fetcher = Fetcher(settings, resolver.address_list, at_once=FETCHES_AT_ONCE)
        self._https_port = https_port
        self._again_seconds = again_seconds
        self._smtp_port = settings.outbound_smtp_port
        self._dane_enabled = bool(settings.dane_enabled)
        ca_file = str(settings.outbound_tls_ca_file) if settings.outbound_tls_ca_file else None
        self._any_peer = tls_context(ca_file=ca_file)
        self._web_pki = tls_context(verify=True, ca_file=ca_file)
        # RFC 8461 §4.2 knows names in subjectAltName only.
        self._web_pki.hostname_checks_common_name = False
        self._policies: OrderedDict[str, _Kept] = OrderedDict()  # the one used last at the end
        self._looked: TTLCache[str, bool] = TTLCache(_DOMAINS_MAX, again_seconds, timer=time.monotonic)
        self._tlsa_failed: TTLCache[str, LookupFailed] = TTLCache(_HOSTS_MAX, TLSA_AGAIN_SECONDS, timer=time.monotonic)
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def of(self, domain: str, found: MailHosts, *, required: bool = False) -> Policy:
        """The policy of a recipient domain whose mail hosts were found. required: demand TLS of it in any case.

        Waits for the domain's DNS and web host when nothing is known of its MTA-STS policy; never raises for them.
        """
        sts = await self._sts(domain.lower().rstrip("."))
        mode: Literal["enforce", "testing"] | None = None
        if sts is not None and sts.mode != "none":
            mode = sts.mode
        mx = sts.mx if sts is not None and mode else ()
        if self._dane_enabled and found.authenticated:
            return Policy("dane", mx, mode, required)
        if mode:
            return Policy("mta_sts", mx, mode, required)
        return Policy("required" if required else "opportunistic", required=required)

    async def for_host(self, policy: Policy, host: str) -> HostTls | Unsafe:
        """The terms for one of the domain's mail hosts."""
        required = policy.required or policy.kind == "required"
        name = "required" if required else "opportunistic"
        if policy.kind == "dane":
            found = await self._tlsa(host)
            if isinstance(found, LookupFailed):
                # Whoever can make the question fail must not be able to make the mail go without (RFC 7672 §2.1.3).
                detail = f"the DNS does not tell whether {host} has TLSA records: {found.reason}"
                return Unsafe("dane_lookup_failed", detail)
            if isinstance(found, TlsaRecords):
                records = dane.usable(found.values)
                if records:
                    return self._dane(host, found.base, records)
                name, required = "dane", True
        return self._by_mta_sts(policy, host, self._unproven(name, required=required))

    def _dane(self, host: str, base: str, records: tuple[dane.Tlsa, ...]) -> HostTls:
        # Of RFC 7672 §3.2.2's names that of the recipient's domain is left out: a certificate for it would be none
        # for the other domains that share the connection.
        names = tuple(dict.fromkeys((base, host.lower().rstrip("."))))
        return HostTls("dane", self._any_peer, True, _dane_check(records, names), base, "dane")

    def _by_mta_sts(self, policy: Policy, host: str, unproven: HostTls) -> HostTls | Unsafe:
        """The terms where DANE says nothing of who the host is."""
        if policy.mode is None:
            return unproven
        proven = HostTls("mta_sts", self._web_pki, True, proves="mta_sts")
        matches = mta_sts.matches(host, policy.mx)
        if policy.mode == "enforce":
            if matches:
                return proven
            return Unsafe("mta_sts_mx_mismatch", f"the domain's MTA-STS policy does not name {host} as a mail host")
        # In the mode "testing" the mail goes out in any case, and we tell what would have stopped it (RFC 8461 §5).
        policy_name = "dane" if unproven.policy == "dane" else "mta_sts_testing"
        if matches:
            relaxed = _renamed(unproven, policy_name)
            return HostTls(policy_name, self._web_pki, True, proves="mta_sts", otherwise=relaxed)
        return _renamed(unproven, policy_name, f"the MTA-STS policy being tested does not name {host}")

    def _unproven(self, policy: str, *, required: bool) -> HostTls:
        """TLS with whoever answers; if it cannot be had and is not required, none."""
        plain = None if required else HostTls(policy, None)
        return HostTls(policy, self._any_peer, required, otherwise=plain)

    async def _tlsa(self, host: str) -> TlsaRecords | NotFound | LookupFailed:
        failed = self._tlsa_failed.get(host)
        if failed is not None:
            return failed
        found = await self._resolver.tlsa(host, self._smtp_port)
        if isinstance(found, LookupFailed):
            self._tlsa_failed[host] = found
        return found

    async def _sts(self, domain: str) -> mta_sts.StsPolicy | None:
        """What is known; an old policy is used while a newer one is looked for, none at all is waited for."""
        kept = self._kept(domain)
        if domain not in self._looked:
            looking = self._look_soon(domain)
            if kept is None:
                # One impatient caller must not take the answer from the others.
                await asyncio.shield(looking)
                kept = self._kept(domain)
        return kept.policy if kept is not None else None

    def _kept(self, domain: str) -> _Kept | None:
        kept = self._policies.get(domain)
        if kept is None:
            return None
        if kept.ends_at <= time.monotonic():
            del self._policies[domain]
            return None
        self._policies.move_to_end(domain)
        return kept

    def _look_soon(self, domain: str) -> asyncio.Task[None]:
        task = self._under_way.get(domain)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._look(domain))
            self._under_way[domain] = task
            task.add_done_callback(lambda _: self._under_way.pop(domain, None))
        return task

    async def _look(self, domain: str) -> None:
        """Ask for the domain's MTA-STS record, and fetch its policy when it is new or wants refreshing.

        Whatever fails leaves a kept policy in force until its own end (RFC 8461 §5.1).
        """
        try:
            found = await self._resolver.txt(f"_mta-sts.{domain}")
            policy_id = mta_sts.parse_record(found.values) if isinstance(found, Records) else None
            kept = self._policies.get(domain)
            is_fresh = kept is not None and kept.id == policy_id and time.monotonic() < kept.refresh_at
            if policy_id is not None and not is_fresh:
                self._policies[domain] = await self._fetched(domain, policy_id)
                while len(self._policies) > _POLICIES_MAX:
                    self._policies.popitem(last=False)
        except (WebError, mta_sts.BadPolicy) as error:
            log.info("mta_sts_fetch_failed", domain=domain, error=str(error))
        except Exception:
            # A strange answer for one domain is no reason to stop the mail to it.
            log.exception("mta_sts_look_failed", domain=domain)
        finally:
            self._looked[domain] = True

    async def _fetched(self, domain: str, policy_id: str) -> _Kept:
        port = "" if self._https_port == HTTPS_PORT else f":{self._https_port}"
        fetched = await self._fetcher.fetch(
            f"https://mta-sts.{domain}{port}/.well-known/mta-sts.txt",
            max_bytes=mta_sts.MAX_POLICY_BYTES,
            timeout_seconds=FETCH_SECONDS,
            accept=("text/plain",),
        )
        policy = mta_sts.parse_policy(fetched.content)
        now = time.monotonic()
        # A policy that ends sooner than we may ask again would leave mail without one in between.
        lasts_seconds = max(policy.max_age_seconds, self._again_seconds)
        return _Kept(policy, policy_id, now + min(REFRESH_SECONDS, lasts_seconds / 2), now + lasts_seconds)

    async def refresh(self) -> None:
        """Fetch policies anew before they end, even while no mail goes to their domains (RFC 8461 §10.2), until
        cancelled.
        """
        while True:
            await asyncio.sleep(self._again_seconds)
            now = time.monotonic()
            due = [domain for domain, kept in self._policies.items() if kept.refresh_at <= now < kept.ends_at]
            for start in range(0, len(due), REFRESHES_AT_ONCE):
                await asyncio.wait([self._look_soon(domain) for domain in due[start : start + REFRESHES_AT_ONCE]])


async def open_connection(
    tls: HostTls,
    host: str,
    address: str,
    port: int,
    *,
    ehlo_name: str,
    timeouts: Timeouts,
    source_address: str | None = None,
) -> Secured:
    """Connect on these terms, or on those they fall back to. Raises SmtpError; TlsFailed: on none of them."""
    failure = tls.failure
    terms = tls
    while True:
        try:
            connection = await Connection.open(
                host,
                address,
                port,
                ehlo_name=ehlo_name,
                timeouts=timeouts,
                source_address=source_address,
                tls=terms.context,
                require_tls=terms.required,
                verify=terms.verify,
                tls_name=terms.server_name,
                proves=terms.proves,
            )
        except TlsFailed as error:
            if terms.otherwise is None:
                raise
            log.info("tls_terms_failed", policy=terms.policy, host=host, address=address, error=str(error))
            failure = failure or str(error)
            terms = terms.otherwise
        else:
            return Secured(connection, terms.policy, failure)


def _dane_check(records: Sequence[dane.Tlsa], names: Sequence[str]) -> Callable[[ssl.SSLObject], None]:
    def verify(ssl_object: ssl.SSLObject) -> None:
        try:
            dane.check(dane.peer_chain(ssl_object), records, names)
        except dane.Mismatch as error:
            raise TlsFailed(f"DANE: {error}", phase=Phase.STARTTLS) from error

    return verify


def _renamed(tls: HostTls, policy: str, failure: str | None = None) -> HostTls:
    otherwise = _renamed(tls.otherwise, policy) if tls.otherwise is not None else None
    return HostTls(policy, tls.context, tls.required, otherwise=otherwise, failure=failure)
