import asyncio
from collections.abc import AsyncIterator

import pytest

from app.mail.dns import (
    MAX_ADDRESSES,
    MAX_MAIL_HOSTS,
    Addresses,
    LookupFailed,
    MailHosts,
    NoMailHost,
    NoSuchDomain,
    NotFound,
    NullMx,
    Records,
    Resolver,
    has_ipv6_route,
)
from tests.dnsd import DnsServer


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
def resolver(dns: DnsServer) -> Resolver:
    return Resolver([dns.address], timeout_seconds=0.6)


async def test_mail_hosts_come_by_preference(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("example.com", "MX", "30 c.example.com.")
    dns.add("example.com", "MX", "10 A.Example.com.")
    dns.add("example.com", "MX", "20 b.example.com.")
    expected = MailHosts(("a.example.com", "b.example.com", "c.example.com"))
    assert await resolver.mail_hosts("example.com") == expected
    assert await resolver.mail_hosts("EXAMPLE.com.") == expected


async def test_equal_preferences_are_drawn_anew_each_time(dns: DnsServer, resolver: Resolver) -> None:
    for number in range(4):
        dns.add("example.com", "MX", f"10 mx{number}.example.com.", ttl_seconds=60)
    dns.add("example.com", "MX", "20 last.example.com.", ttl_seconds=60)
    orders = set()
    for _ in range(60):
        found = await resolver.mail_hosts("example.com")
        assert isinstance(found, MailHosts)
        assert found.hosts[-1] == "last.example.com"
        orders.add(found.hosts)
    assert len(orders) > 5
    assert dns.asked("example.com", "MX") == 1


async def test_a_long_mx_list_is_cut_at_its_far_end(dns: DnsServer, resolver: Resolver) -> None:
    for number in range(60):
        dns.add("example.com", "MX", f"{number} mx{number}.example.com.")
    found = await resolver.mail_hosts("example.com")
    assert found == MailHosts(tuple(f"mx{number}.example.com" for number in range(MAX_MAIL_HOSTS)))


async def test_without_mx_the_domain_itself_is_the_host(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("example.com", "A", "127.0.0.9")
    assert await resolver.mail_hosts("example.com") == MailHosts(("example.com",), implicit=True)


async def test_null_mx(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("example.com", "MX", "0 .")
    dns.add("example.com", "A", "127.0.0.9")
    assert await resolver.mail_hosts("example.com") == NullMx()
    dns.add("example.com", "MX", "10 mx.example.com.")
    assert await resolver.mail_hosts("example.com") == MailHosts(("mx.example.com",))


async def test_no_such_domain(resolver: Resolver) -> None:
    assert await resolver.mail_hosts("nowhere.test") == NoSuchDomain()


@pytest.mark.parametrize("domain", ["", ".", "a..b", "x" * 64 + ".test", "ü" * 80 + ".test"])
async def test_what_is_no_domain_name_does_not_exist(dns: DnsServer, resolver: Resolver, domain: str) -> None:
    assert await resolver.mail_hosts(domain) == NoSuchDomain()
    assert await resolver.addresses(domain) == NotFound(no_such_name=True)
    assert dns.queries == []


async def test_neither_mx_nor_address(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("example.com", "TXT", "nothing else")
    assert await resolver.mail_hosts("example.com") == NoMailHost()


async def test_an_mx_that_is_an_ip_address_is_skipped(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("example.com", "MX", "5 127.0.0.9.")
    assert await resolver.mail_hosts("example.com") == NoMailHost()
    dns.add("example.com", "MX", "10 mx.example.com.")
    assert await resolver.mail_hosts("example.com") == MailHosts(("mx.example.com",))


async def test_cnames_are_followed(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("alias.test", "CNAME", "example.com.")
    dns.add("example.com", "MX", "10 mx.example.com.")
    dns.add("mx.example.com", "CNAME", "host.example.com.")
    dns.add("host.example.com", "A", "127.0.0.9")
    assert await resolver.mail_hosts("alias.test") == MailHosts(("mx.example.com",))
    assert await resolver.addresses("mx.example.com") == Addresses(("127.0.0.9",))
    assert await resolver.cname("mx.example.com") == Records(("host.example.com",))


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "FORMERR"])
async def test_a_failing_nameserver_is_not_an_absent_domain(dns: DnsServer, resolver: Resolver, rcode: str) -> None:
    dns.add("example.com", "MX", "10 mx.example.com.")
    dns.fail("example.com", rcode)
    found = await resolver.mail_hosts("example.com")
    assert isinstance(found, LookupFailed)
    assert rcode in found.reason
    dns.heal("example.com")
    assert await resolver.mail_hosts("example.com") == MailHosts(("mx.example.com",))


async def test_implicit_mx_fails_when_the_addresses_fail(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("example.com", "TXT", "x")
    dns.fail("example.com", type="A")
    assert isinstance(await resolver.mail_hosts("example.com"), LookupFailed)


async def test_silence_is_a_failed_lookup_in_bounded_time(dns: DnsServer, resolver: Resolver) -> None:
    dns.silent("example.com")
    async with asyncio.timeout(3):
        assert await resolver.mail_hosts("example.com") == LookupFailed("DNS time-out")


async def test_the_next_nameserver_is_asked_when_one_is_dead(dns: DnsServer) -> None:
    async with DnsServer() as dead:
        dead.fail("example.com", "REFUSED")
        dns.add("example.com", "MX", "10 mx.example.com.")
        resolver = Resolver([dead.address, dns.address], timeout_seconds=2)
        assert await resolver.mail_hosts("example.com") == MailHosts(("mx.example.com",))
        assert dead.asked("example.com", "MX") == 1


async def test_addresses_of_both_families(dns: DnsServer, resolver: Resolver) -> None:
    for number in range(1, 15):
        dns.add("mx.example.com", "A", f"127.0.0.{number}")
    dns.add("mx.example.com", "AAAA", "::1")
    found = await resolver.addresses("mx.example.com")
    assert isinstance(found, Addresses)
    assert len(found.values) <= MAX_ADDRESSES
    assert len(set(found.values)) == len(found.values)
    assert found.values[0].startswith("127.0.0.")
    assert (found.values[-1] == "::1") == has_ipv6_route()
    assert dns.asked("mx.example.com", "AAAA") == int(has_ipv6_route())


async def test_one_family_may_fail(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("mx.example.com", "A", "127.0.0.9")
    dns.fail("mx.example.com", type="AAAA")
    assert await resolver.addresses("mx.example.com") == Addresses(("127.0.0.9",))
    dns.fail("mx.example.com", type="A")
    assert isinstance(await resolver.addresses("mx.example.com"), LookupFailed)


async def test_absent_addresses(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("example.com", "TXT", "x")
    assert await resolver.addresses("example.com") == NotFound(no_such_name=False)
    assert await resolver.addresses("nowhere.test") == NotFound(no_such_name=True)


async def test_long_txt_comes_whole_by_tcp(dns: DnsServer, resolver: Resolver) -> None:
    key = 'v=DKIM1; k=rsa; p="\\' + "A" * 3000 + "ü"
    dns.add("s._domainkey.example.com", "TXT", key)
    assert await resolver.txt("s._domainkey.example.com") == Records((key,))
    assert dns.asked("s._domainkey.example.com", "TXT") == 2  # UDP, truncated, then TCP


async def test_mx_and_internationalized_names(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("xn--bcher-kva.example", "MX", "10 MX.Example.com.")
    assert await resolver.mx("Bücher.example") == Records(("10 mx.example.com",))


async def test_answers_are_remembered_for_their_ttl(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("example.com", "TXT", "one", ttl_seconds=1)
    assert await resolver.txt("example.com") == Records(("one",))
    dns.remove("example.com")
    dns.add("example.com", "TXT", "two", ttl_seconds=1)
    assert await resolver.txt("example.com") == Records(("one",))
    await asyncio.sleep(1.05)
    assert await resolver.txt("example.com") == Records(("two",))
    assert dns.asked("example.com", "TXT") == 2


async def test_negative_answers_are_remembered_until_asked_afresh(dns: DnsServer, resolver: Resolver) -> None:
    dns.ttl_seconds = 60
    assert await resolver.txt("example.com") == NotFound(no_such_name=True)
    dns.add("example.com", "TXT", "here")
    assert await resolver.txt("example.com") == NotFound(no_such_name=True)
    assert await resolver.txt("example.com", fresh=True) == Records(("here",))
    assert await resolver.txt("example.com") == Records(("here",))


async def test_forget(dns: DnsServer, resolver: Resolver) -> None:
    dns.ttl_seconds = 60
    assert await resolver.mx("example.com") == NotFound(no_such_name=True)
    dns.add("example.com", "MX", "10 mx.example.com.")
    resolver.forget("Example.com.")
    assert await resolver.mx("example.com") == Records(("10 mx.example.com",))


async def test_failures_are_not_remembered(dns: DnsServer, resolver: Resolver) -> None:
    dns.ttl_seconds = 60
    dns.fail("example.com")
    assert isinstance(await resolver.txt("example.com"), LookupFailed)
    dns.heal("example.com")
    assert await resolver.txt("example.com") == NotFound(no_such_name=True)


async def test_equal_lookups_at_once_become_one(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("example.com", "MX", "10 mx.example.com.")
    dns.delay_seconds = 0.05
    found = await asyncio.gather(*(resolver.mail_hosts("example.com") for _ in range(20)))
    assert set(found) == {MailHosts(("mx.example.com",))}
    assert dns.asked("example.com", "MX") == 1


async def test_one_cancelled_caller_does_not_cancel_the_others(dns: DnsServer, resolver: Resolver) -> None:
    dns.add("example.com", "TXT", "x")
    dns.delay_seconds = 0.05
    first = asyncio.create_task(resolver.txt("example.com"))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(resolver.txt("example.com"))
    await asyncio.sleep(0.01)
    first.cancel()
    assert await second == Records(("x",))


async def test_the_cache_is_bounded(dns: DnsServer) -> None:
    resolver = Resolver([dns.address], timeout_seconds=1, cache_entries=2)
    for name in ("a.test", "b.test", "c.test"):
        dns.add(name, "TXT", name, ttl_seconds=60)
        await resolver.txt(name)
    await resolver.txt("c.test")
    await resolver.txt("a.test")
    assert dns.asked("c.test", "TXT") == 1
    assert dns.asked("a.test", "TXT") == 2
