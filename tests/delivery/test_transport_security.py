"""What goes out under each policy to each kind of host: real TLS, DNS and HTTPS on loopback, counted at the hosts."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvloop

from app.core.config import Settings
from app.delivery.security import HostTls
from app.mail.smtp import Connection, TlsFailed, tls_context
from tests.delivery.tls_house import (
    DOMAIN,
    HOST,
    HOSTS,
    ROOT,
    STRANGER,
    House,
    Sent,
    living_in,
    publish,
    trusting_settings,
)
from tests.mail.smtp_helpers import PATIENT
from tests.mail.test_dane import tlsa
from tests.smtpd import SmtpServer

BAD_CERTIFICATES = ("self-signed", "unknown authority", "expired", "wrong name")
NO_TLS = ("no STARTTLS", "STARTTLS refused", "STARTTLS breaks")

# What is expected of each policy: at good hosts, at those of a bad certificate, at those that cannot do TLS.
# proven, encrypted (with whoever it is), plaintext, refused (nothing was sent, the mail waits).
EXPECTED = {
    "opportunistic": ("encrypted", "encrypted", "plaintext"),
    "required": ("encrypted", "encrypted", "refused"),
    "mta_sts enforce": ("proven", "refused", "refused"),
    "mta_sts testing": ("proven", "encrypted", "plaintext"),
    "mta_sts none": ("encrypted", "encrypted", "plaintext"),
    "dane-ee": ("proven", "proven", "refused"),
    "dane-ta": ("proven", "refused", "refused"),
    "wrong TLSA": ("refused", "refused", "refused"),
    "TLSA lookup fails": ("refused", "refused", "refused"),
    "TLSA lookup times out": ("refused", "refused", "refused"),
    "TLSA unusable": ("encrypted", "encrypted", "refused"),
    "no TLSA": ("encrypted", "encrypted", "plaintext"),
    "AD missing everywhere": ("encrypted", "encrypted", "plaintext"),
    "AD missing at MX": ("encrypted", "encrypted", "plaintext"),
    "AD missing at TLSA": ("encrypted", "encrypted", "plaintext"),
    "DANE switched off": ("encrypted", "encrypted", "plaintext"),
}


@pytest.fixture(scope="module")
def trusting(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return trusting_settings(settings, tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def house(trusting: Settings) -> AsyncIterator[House]:
    async with living_in(trusting) as found:
        yield found


@pytest.mark.parametrize("policy", EXPECTED)
@pytest.mark.parametrize("host", HOSTS)
async def test_every_policy_with_every_host(trusting: Settings, policy: str, host: str) -> None:
    at_good, at_bad_certificate, without_tls = EXPECTED[policy]
    expected = at_bad_certificate if host in BAD_CERTIFICATES else without_tls if host in NO_TLS else at_good
    async with living_in(trusting, host) as house:
        publish(house, policy, HOSTS[host][0])
        sent = await house.send(required=policy == "required")
        assert sent.result == expected, sent
        assert [mail.tls for mail in house.mx.mails] == {"refused": [], "plaintext": [False]}.get(expected, [True])
        if expected == "refused":
            # Not even who writes to whom.
            assert "MAIL" not in house.mx.verbs()
            assert sent.detail
        if policy == "mta_sts testing":
            assert sent.policy == "mta_sts_testing"
            assert (sent.failure is None) == (host == "good")
        if policy.startswith("TLSA lookup"):
            assert "dane_lookup_failed" in sent.detail
            assert house.mx.connection_count == 0


async def test_who_proved_it_is_told(house: House) -> None:
    assert (await house.send()).detail == ""
    house.publish_sts("enforce")
    house.anew()
    assert await house.send() == Sent("proven", "mta_sts", None, "mta_sts")
    house.publish_tlsa(tlsa(3, 1, 1, HOSTS["good"][0]))
    assert await house.send() == Sent("proven", "dane", None, "dane")


class TestDane:
    async def test_it_goes_before_mta_sts(self, house: House) -> None:
        house.publish_sts("enforce", "elsewhere.test")
        house.publish_tlsa(tlsa(3, 1, 1, HOSTS["good"][0]))
        assert (await house.send()).policy == "dane"
        house.publish_sts("enforce")
        house.publish_tlsa(tlsa(3, 1, 1, STRANGER))
        house.anew()
        assert (await house.send()).result == "refused"
        assert len(house.mx.mails) == 1

    async def test_hosts_without_usable_records_are_for_mta_sts(self, house: House) -> None:
        house.publish_sts("enforce")
        house.publish_tlsa(tlsa(1, 1, 1, STRANGER))
        assert (await house.send()).policy == "mta_sts"
        house.dns.remove(house.tlsa_name)
        assert (await house.send()).policy == "mta_sts"
        house.publish_sts("enforce", "elsewhere.test")
        house.anew()
        assert "mta_sts_mx_mismatch" in (await house.send()).detail

    async def test_unusable_records_demand_tls_while_mta_sts_is_tested(self, trusting: Settings) -> None:
        for host, result in (("self-signed", "encrypted"), ("no STARTTLS", "refused")):
            async with living_in(trusting, host) as house:
                house.publish_sts("testing")
                house.publish_tlsa(tlsa(1, 1, 1, STRANGER))
                sent = await house.send()
                assert (sent.result, sent.policy) == (result, "dane")

    async def test_a_required_host_without_records_gets_no_plaintext(self, trusting: Settings) -> None:
        async with living_in(trusting, "no STARTTLS") as house:
            house.dns.sign(DOMAIN)
            assert (await house.policy(required=True)).kind == "dane"
            assert (await house.send(required=True)).result == "refused"

    async def test_the_next_host_is_used_when_one_is_unsafe(self, house: House) -> None:
        house.publish_tlsa(tlsa(3, 1, 1, HOSTS["good"][0]))
        house.dns.add(DOMAIN, "MX", f"5 broken.{DOMAIN}.")
        house.dns.add(f"broken.{DOMAIN}", "A", "127.0.0.9")
        house.dns.fail(f"_{house.mx.port}._tcp.broken.{DOMAIN}")
        assert (await house.send()).result == "proven"

    async def test_without_mx_the_domain_is_the_host(self, house: House) -> None:
        house.dns.sign(DOMAIN)
        house.dns.remove(DOMAIN, "MX")
        house.dns.add(DOMAIN, "A", "127.0.0.2")
        name = f"_{house.mx.port}._tcp.{DOMAIN}"
        house.dns.add(name, "TLSA", tlsa(3, 1, 1, HOSTS["good"][0]))
        assert (await house.send()).result == "proven"
        house.dns.replace(name, "TLSA", tlsa(3, 1, 1, STRANGER))
        assert (await house.send()).result == "refused"

    async def test_an_alias_leads_to_the_records_of_what_it_means(self, house: House) -> None:
        """RFC 7672 §2.2.3, and the server name is the one under which the records are."""
        house.dns.replace(DOMAIN, "MX", f"10 alias.{DOMAIN}.")
        house.dns.add(f"alias.{DOMAIN}", "CNAME", f"{HOST}.")
        house.publish_tlsa(tlsa(2, 0, 1, ROOT))
        policy = await house.policy()
        terms = await house.policies.for_host(policy, f"alias.{DOMAIN}")
        assert isinstance(terms, HostTls)
        assert terms.server_name == HOST
        assert (await house.send()).result == "proven"
        house.publish_tlsa(tlsa(3, 1, 1, STRANGER))
        assert (await house.send()).result == "refused"

    async def test_an_alias_into_a_zone_without_dnssec_keeps_its_own_records(self, house: House) -> None:
        house.dns.replace(DOMAIN, "MX", f"10 alias.{DOMAIN}.")
        house.dns.add(f"alias.{DOMAIN}", "CNAME", "mx.unsigned.test.")
        house.dns.add("mx.unsigned.test", "A", "127.0.0.2")
        house.dns.sign(DOMAIN)
        house.dns.add(f"_{house.mx.port}._tcp.alias.{DOMAIN}", "TLSA", tlsa(3, 1, 1, STRANGER))
        assert (await house.send()).result == "refused"
        house.dns.replace(f"_{house.mx.port}._tcp.alias.{DOMAIN}", "TLSA", tlsa(3, 1, 1, HOSTS["good"][0]))
        assert (await house.send()).result == "proven"

    async def test_zones_without_dnssec_are_not_asked(self, house: House) -> None:
        house.dns.sign(DOMAIN)
        house.dns.sign(HOST, signed=False)
        house.dns.fail(house.tlsa_name)
        house.dns.fail(HOST, type="CNAME")
        assert (await house.send()).result == "encrypted"
        assert house.dns.asked(house.tlsa_name, "TLSA") == 0

    async def test_a_failed_lookup_is_not_repeated_for_each_mail(self, house: House) -> None:
        house.publish_tlsa(tlsa(3, 1, 1, HOSTS["good"][0]))
        house.dns.fail(house.tlsa_name)
        for _ in range(5):
            assert (await house.send()).result == "refused"
        assert house.dns.asked(house.tlsa_name, "TLSA") == 1


class TestConnections:
    async def open(self, mx: SmtpServer, **options: object) -> Connection:
        return await Connection.open(HOST, mx.host, mx.port, ehlo_name="out.test", timeouts=PATIENT, **options)

    async def test_required_tls_needs_a_context(self, house: House) -> None:
        with pytest.raises(ValueError, match="context"):
            await self.open(house.mx, require_tls=True)
        assert house.mx.connection_count == 0

    async def test_a_verified_context_alone_is_the_webs(self, house: House, trusting: Settings) -> None:
        context = tls_context(verify=True, ca_file=str(trusting.outbound_tls_ca_file))
        connection = await self.open(house.mx, tls=context)
        assert connection.tls is not None
        assert connection.tls.authenticated == "webpki"
        connection.abort()

    async def test_what_verify_refuses_hears_nothing_more(self, house: House) -> None:
        def refuse(_: object) -> None:
            raise TlsFailed("no", phase="starttls")

        with pytest.raises(TlsFailed):
            await self.open(house.mx, tls=tls_context(), verify=refuse)
        assert house.mx.verbs() == ["EHLO", "STARTTLS"]

    async def test_a_host_that_knows_no_ehlo(self, house: House) -> None:
        house.mx.replies.on_ehlo = lambda _: "500 5.5.1 what?"
        with pytest.raises(TlsFailed):
            await self.open(house.mx, tls=tls_context(), require_tls=True)
        assert house.mx.verbs() == ["EHLO", "HELO"]


@pytest.mark.parametrize(
    ("nameservers", "said", "enabled"),
    [
        ("", None, False),
        ("127.0.0.1", None, True),
        ("127.0.0.53:5353, [::1]:53", None, True),
        ("127.0.0.1, 192.0.2.1", None, False),
        ("192.0.2.1", None, False),
        ("192.0.2.1", True, True),
        ("", True, True),
        ("127.0.0.1", False, False),
    ],
)
def test_nameservers_are_believed_on_loopback_or_when_told(nameservers: str, said: bool | None, enabled: bool) -> None:
    options: dict[str, object] = {"secret_key": "x" * 32, "dns_nameservers": nameservers, "DANE": said}
    assert Settings(_env_file=None, **options).dane_enabled is enabled


@pytest.mark.parametrize("policy", ["dane-ta", "dane-ee", "wrong TLSA", "mta_sts enforce", "required"])
async def test_the_same_on_uvloop(trusting: Settings, policy: str) -> None:
    """Workers run on it, and its TLS is its own."""

    async def results() -> list[str]:
        found = []
        for host in ("good", "self-signed", "no STARTTLS"):
            async with living_in(trusting, host) as house:
                publish(house, policy, HOSTS[host][0])
                found.append((await house.send(required=policy == "required")).result)
                assert all(mail.tls for mail in house.mx.mails)
        return found

    def run() -> list[str]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(results())

    assert await asyncio.to_thread(run) == list(EXPECTED[policy])
