"""A recipient domain of the tests of transport security: DNS, policy host and mail host on loopback, with real TLS."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from app.core.config import Settings
from app.delivery.security import HostTls, Policies, Policy, Unsafe, open_connection
from app.mail.dns import Addresses, MailHosts, Resolver
from app.mail.smtp import SmtpError
from tests.certificates import Certificate, make_authority, self_signed
from tests.dnsd import DnsServer
from tests.httpd import HttpServer
from tests.mail.smtp_helpers import CONTENT, ENVELOPE, PATIENT, yes
from tests.mail.test_dane import tlsa
from tests.smtpd import SmtpServer, drop

DOMAIN = "example.test"
HOST = f"mx.{DOMAIN}"
POLICY_PATH = "/.well-known/mta-sts.txt"

ROOT = make_authority()
MIDDLE = ROOT.issue_authority("Middle")
STRANGER = make_authority()


def issued(*names: str, expired: bool = False) -> Certificate:
    return MIDDLE.issue(*names, expired=expired).sent_with(MIDDLE, ROOT)


# How a host can be: its certificate, and how it takes STARTTLS.
HOSTS = {
    "good": (issued(HOST), "yes"),
    "self-signed": (self_signed(HOST), "yes"),
    "unknown authority": (STRANGER.issue(HOST).sent_with(STRANGER), "yes"),
    "expired": (issued(HOST, expired=True), "yes"),
    "wrong name": (issued("other.test"), "yes"),
    "no STARTTLS": (issued(HOST), "no"),
    "STARTTLS refused": (issued(HOST), "refused"),
    "STARTTLS breaks": (issued(HOST), "breaks"),
}


@dataclass(frozen=True, slots=True)
class Sent:
    """How a mail went."""

    result: str
    policy: str | None = None
    failure: str | None = None
    detail: str = ""


class House:
    """A domain with DNS, a policy host and a mail host at 127.0.0.2, and what our side knows of it."""

    def __init__(self, settings: Settings, dns: DnsServer, web: HttpServer, mx: SmtpServer) -> None:
        self.dns, self.web, self.mx = dns, web, mx
        self.settings = settings.model_copy(update={"outbound_smtp_port": mx.port})
        self.anew()
        dns.add(DOMAIN, "MX", f"10 {HOST}.")
        dns.add(HOST, "A", mx.host)
        dns.add(f"mta-sts.{DOMAIN}", "A", "127.0.0.1")

    def anew(self, *, again_seconds: float = 300, **settings: object) -> None:
        """Forget everything, as a new process has."""
        self.settings = self.settings.model_copy(update=settings)
        self.resolver = Resolver([self.dns.address], timeout_seconds=0.5)
        self.policies = Policies(self.settings, self.resolver, https_port=self.web.port, again_seconds=again_seconds)

    @property
    def tlsa_name(self) -> str:
        return f"_{self.mx.port}._tcp.{HOST}"

    def publish_sts(self, mode: str, *mx: str, id: str = "1", max_age: int = 86_400) -> None:
        self.dns.replace(f"_mta-sts.{DOMAIN}", "TXT", f"v=STSv1; id={id};")
        lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {name}" for name in mx or (HOST,)), f"max_age: {max_age}"]
        self.web.put(POLICY_PATH, "\r\n".join(lines).encode(), "text/plain")

    def publish_tlsa(self, *records: str) -> None:
        self.dns.sign(DOMAIN)
        self.dns.replace(self.tlsa_name, "TLSA", *records)

    async def found(self) -> MailHosts:
        found = await self.resolver.mail_hosts(DOMAIN)
        assert isinstance(found, MailHosts)
        return found

    async def policy(self, **options: bool) -> Policy:
        return await self.policies.of(DOMAIN, await self.found(), **options)

    async def send(self, **options: bool) -> Sent:
        """One mail by the first host that may be used."""
        found = await self.found()
        policy = await self.policies.of(DOMAIN, found, **options)
        sent = Sent("refused")
        for host in found.hosts:
            terms = await self.policies.for_host(policy, host)
            if isinstance(terms, Unsafe):
                sent = Sent("refused", detail=f"{terms.reason}: {terms.detail}")
                continue
            sent = await self._send(terms, host)
            if sent.result != "refused":
                return sent
        return sent

    async def _send(self, terms: HostTls, host: str) -> Sent:
        addresses = await self.resolver.addresses(host)
        assert isinstance(addresses, Addresses)
        try:
            secured = await open_connection(
                terms, host, addresses.values[0], self.mx.port, ehlo_name="out.test", timeouts=PATIENT
            )
        except SmtpError as error:
            return Sent("refused", terms.policy, detail=str(error))
        connection = secured.connection
        try:
            assert (await connection.transmit(ENVELOPE, CONTENT, before_content=yes)).accepted
        finally:
            connection.abort()
        tls = connection.tls
        result = "plaintext" if tls is None else "proven" if tls.verified else "encrypted"
        return Sent(result, secured.policy, secured.failure, tls.authenticated or "" if tls else "")


@contextlib.asynccontextmanager
async def living_in(settings: Settings, host: str = "good") -> AsyncIterator[House]:
    certificate, starttls = HOSTS[host]
    async with (
        DnsServer() as dns,
        HttpServer(ROOT.issue(f"mta-sts.{DOMAIN}")) as web,
        SmtpServer(tls=None if starttls == "no" else certificate) as mx,
    ):
        if starttls == "refused":
            mx.replies.on_starttls = lambda _: "454 4.7.0 not now"
        if starttls == "breaks":
            mx.replies.on_starttls = lambda _: drop("220 2.0.0 go")
        yield House(settings, dns, web, mx)


def trusting_settings(settings: Settings, directory: Path) -> Settings:
    """Settings that trust the test's authority and nameserver, and let policies be fetched from loopback."""
    path = directory / "ca.pem"
    path.write_bytes(ROOT.pem)
    return settings.model_copy(
        update={"webhook_allow_private_networks": True, "outbound_tls_ca_file": path, "dane_enabled": True}
    )


def publish(house: House, policy: str, certificate: Certificate) -> None:
    """Make the domain one of those whose names the matrix of policies and hosts has."""
    own, root = tlsa(3, 1, 1, certificate), tlsa(2, 0, 1, ROOT)
    if policy.startswith("mta_sts"):
        house.publish_sts(policy.split(" ")[1])
    records = {
        "dane-ee": (own,),
        "dane-ta": (root, tlsa(2, 1, 2, MIDDLE)),
        "wrong TLSA": (tlsa(3, 1, 1, STRANGER), tlsa(2, 1, 1, STRANGER.issue_authority("X")), tlsa(3, 0, 0, MIDDLE)),
        "TLSA unusable": (tlsa(1, 1, 1, certificate), tlsa(0, 0, 1, ROOT), f"3 1 9 {'00' * 32}"),
    }
    if policy in records:
        house.publish_tlsa(*records[policy])
    elif policy not in ("opportunistic", "required") and not policy.startswith("mta_sts"):
        # Records that would refuse everybody, were they heeded.
        house.publish_tlsa(tlsa(3, 1, 1, STRANGER))
    match policy:
        case "TLSA lookup fails":
            house.dns.fail(house.tlsa_name)
        case "TLSA lookup times out":
            house.dns.silent(house.tlsa_name)
        case "no TLSA":
            house.dns.remove(house.tlsa_name)
        case "AD missing everywhere":
            house.dns.sign(DOMAIN, signed=False)
        case "AD missing at MX":
            house.dns.sign(DOMAIN, signed=False)
            house.dns.sign(HOST)
        case "AD missing at TLSA":
            house.dns.sign(house.tlsa_name, signed=False)
        case "DANE switched off":
            house.anew(dane_enabled=False)
