"""MTA-STS policies, fetched by HTTPS on loopback, kept, refreshed and ended (RFC 8461 §3.3, §5.1)."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from app.core.config import Settings
from app.delivery.security import Policy
from app.mail.dns import MailHosts
from tests.certificates import self_signed
from tests.delivery.tls_house import DOMAIN, HOST, POLICY_PATH, ROOT, STRANGER, House, living_in, trusting_settings
from tests.httpd import HttpServer, answer


@pytest.fixture(scope="module")
def trusting(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return trusting_settings(settings, tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def house(trusting: Settings) -> AsyncIterator[House]:
    async with living_in(trusting) as found:
        yield found


async def test_without_a_record_nothing_is_fetched(house: House) -> None:
    house.publish_sts("enforce")
    house.dns.remove(f"_mta-sts.{DOMAIN}")
    for _ in range(5):
        assert await house.policy() == Policy()
    assert house.web.connections == 0
    assert house.dns.asked(f"_mta-sts.{DOMAIN}", "TXT") == 1


async def test_a_policy_is_fetched_once(house: House) -> None:
    house.publish_sts("enforce", "*.example.test", "b.test")
    expected = Policy("mta_sts", ("*.example.test", "b.test"), "enforce")
    assert await asyncio.gather(*(house.policy() for _ in range(10))) == [expected] * 10
    assert await house.policy() == expected
    assert len(house.web.requests) == 1
    assert house.dns.asked(f"_mta-sts.{DOMAIN}", "TXT") == 1


@pytest.mark.parametrize(
    "said",
    [
        answer(b"version: STSv1\nmode: enforce\n"),
        answer(b"version: STSv1\nmode: enforce\nmx: *\nmax_age: 86400\n"),
        answer(b"version: STSv1\nmode: enforce\nmx: mx.example.test\nmax_age: 86400\n", "text/html"),
        answer(b"", status="301 Moved Permanently", headers={"Location": "/policy"}),
        answer(b"", status="500 Oops"),
        answer(b"version: STSv1\nmode: enforce\nmx: mx.example.test\nmax_age: 86400\n" + b"x: y\n" * 20_000),
        b"garbage",
    ],
)
async def test_a_policy_that_cannot_be_had_is_none(house: House, said: bytes) -> None:
    house.publish_sts("enforce")
    house.web.answers["/policy"] = house.web.answers[POLICY_PATH]
    house.web.answers[POLICY_PATH] = said
    for _ in range(5):
        assert await house.policy() == Policy()
    assert len(house.web.requests) == 1


async def test_the_policy_host_is_verified(house: House) -> None:
    for certificate in (self_signed(f"mta-sts.{DOMAIN}"), ROOT.issue(DOMAIN), STRANGER.issue(f"mta-sts.{DOMAIN}")):
        async with HttpServer(certificate) as impostor:
            house.publish_sts("enforce")
            impostor.answers = house.web.answers
            house.web, web = impostor, house.web
            house.anew()
            house.web = web
            asked = house.dns.asked(f"mta-sts.{DOMAIN}", "A")
            assert await house.policy() == Policy()
            assert house.dns.asked(f"mta-sts.{DOMAIN}", "A") == asked + 1
            assert not impostor.requests


async def test_the_policy_host_must_be_public(house: House) -> None:
    house.publish_sts("enforce")
    house.anew(webhook_allow_private_networks=False)
    assert await house.policy() == Policy()
    assert house.web.connections == 0


async def test_failures_leave_a_kept_policy_in_force(house: House) -> None:
    house.publish_sts("enforce")
    house.anew(again_seconds=0.05)
    expected = await house.policy()
    assert expected.mode == "enforce"
    house.publish_sts("none", id="2")
    house.web.answers[POLICY_PATH] = answer(b"", status="500 Oops")
    await _looked_again(house, requests=2)
    house.dns.fail(f"_mta-sts.{DOMAIN}")
    await _asked_again(house)
    house.dns.heal(f"_mta-sts.{DOMAIN}")
    house.dns.remove(f"_mta-sts.{DOMAIN}")
    await _asked_again(house)
    assert await house.policy() == expected


async def test_a_new_id_brings_a_new_policy_without_delay(house: House) -> None:
    house.publish_sts("enforce")
    house.anew(again_seconds=0.05)
    assert (await house.policy()).mode == "enforce"
    house.publish_sts("none", id="2")
    await _looked_again(house, requests=2)
    assert await house.policy() == Policy()


async def test_an_old_policy_does_not_wait_for_its_host(house: House) -> None:
    house.publish_sts("enforce")
    house.anew(again_seconds=0.05)
    await house.policy()
    house.publish_sts("testing", id="2")
    house.web.pause_seconds = 0.5
    await asyncio.sleep(0.1)
    started = time.monotonic()
    assert (await house.policy()).mode == "enforce"
    assert time.monotonic() - started < 0.4


async def test_a_policy_ends_with_its_max_age(house: House) -> None:
    house.publish_sts("enforce", max_age=1)
    house.anew(again_seconds=0.05)
    assert (await house.policy()).mode == "enforce"
    house.dns.remove(f"_mta-sts.{DOMAIN}")
    await asyncio.sleep(0.5)
    assert (await house.policy()).mode == "enforce"
    await asyncio.sleep(0.7)
    assert await house.policy() == Policy()


async def test_policies_are_refreshed_while_nobody_asks(house: House) -> None:
    house.publish_sts("enforce", max_age=1)
    house.anew(again_seconds=0.05)
    await house.policy()
    refreshing = asyncio.create_task(house.policies.refresh())
    await asyncio.sleep(1.6)
    refreshing.cancel()
    house.web.answers.clear()
    house.dns.remove(f"_mta-sts.{DOMAIN}")
    assert 2 <= len(house.web.requests) <= 5
    assert (await house.policy()).mode == "enforce"


async def test_a_slow_domain_keeps_nobody_waiting(house: House) -> None:
    house.publish_sts("enforce")
    house.web.pause_seconds = 1
    slow = asyncio.create_task(house.policy())
    await asyncio.sleep(0.1)
    started = time.monotonic()
    assert await house.policies.of("other.test", MailHosts(("mx.other.test",))) == Policy()
    assert time.monotonic() - started < 0.3
    assert not slow.done()
    slow.cancel()


async def test_hosts_that_the_policy_does_not_name(house: House) -> None:
    house.publish_sts("enforce", "elsewhere.test", f"*.{HOST}")
    sent = await house.send()
    assert sent.result == "refused"
    assert "mta_sts_mx_mismatch" in sent.detail
    assert house.mx.connection_count == 0
    house.publish_sts("testing", "elsewhere.test")
    house.anew()
    sent = await house.send()
    assert (sent.result, sent.policy) == ("encrypted", "mta_sts_testing")
    assert sent.failure is not None
    assert HOST in sent.failure


async def _looked_again(house: House, *, requests: int) -> None:
    async with asyncio.timeout(5):
        while len(house.web.requests) < requests:
            await house.policy()
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)


async def _asked_again(house: House) -> None:
    before = house.dns.asked(f"_mta-sts.{DOMAIN}", "TXT")
    async with asyncio.timeout(5):
        while house.dns.asked(f"_mta-sts.{DOMAIN}", "TXT") == before:
            await house.policy()
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
