"""Mail that an engine sends to domains that demand TLS: what their hosts got to see, and what the sender is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.core.config import Settings
from app.delivery.engine import Engine
from tests.delivery.conftest import QUICK, settled
from tests.delivery.test_transport_security import BAD_CERTIFICATES, EXPECTED, NO_TLS
from tests.delivery.tls_house import DOMAIN, HOSTS, House, living_in, publish, trusting_settings
from tests.factories.senders import Sender
from tests.faults.house import eventually

# Those that are enough to see that each way through the engine is guarded; all of them are in test_transport_security.
POLICIES = ("required", "mta_sts enforce", "mta_sts testing", "dane-ee", "dane-ta", "wrong TLSA", "TLSA lookup fails")
FAULTY = ("self-signed", "expired", "wrong name", "no STARTTLS", "STARTTLS refused", "STARTTLS breaks")
# How an attempt says under which demand it was made.
KINDS = {"required": "required", "mta_sts enforce": "mta_sts", "mta_sts testing": "mta_sts_testing"}


@pytest.fixture(scope="module")
def trusting(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    directory = tmp_path_factory.mktemp("secure")
    return trusting_settings(settings, directory).model_copy(update={"shaping_file": _shaping(directory)})


def _shaping(directory: Path) -> Path:
    path = directory / "shaping.toml"
    path.write_text(f'[[domain]]\nname = "{DOMAIN}"\ntls = "required"\n')
    return path


@asynccontextmanager
async def delivering(house: House, *, required: bool) -> AsyncIterator[Engine]:
    """An engine in the house's world, in which policies are served on a port of their own."""
    changed = {"dns_nameservers": house.dns.setting, "retry_first_seconds": 3600.0}
    if not required:
        changed["shaping_file"] = None  # type: ignore[assignment]
    engine = Engine(house.settings.model_copy(update=changed), timeouts=QUICK)
    engine._policies._https_port = house.web.port
    running = asyncio.create_task(engine.run())
    try:
        yield engine
    finally:
        engine.stop()
        await running


def expected(policy: str, host: str) -> str:
    at_good, at_bad_certificate, without_tls = EXPECTED[policy]
    return at_bad_certificate if host in BAD_CERTIFICATES else without_tls if host in NO_TLS else at_good


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("host", ["good", *FAULTY])
async def test_nothing_leaves_in_plaintext_where_tls_is_demanded(
    trusting: Settings, sender: Sender, policy: str, host: str
) -> None:
    result = expected(policy, host)
    async with living_in(trusting, host) as house, delivering(house, required=policy == "required"):
        publish(house, policy, HOSTS[host][0])
        message_id = await sender.send(f"ada@{DOMAIN}")
        message = await settled(sender, message_id, "deferred" if result == "refused" else "delivered")
        told = (await sender.events(message_id))[-1]
        recipient = message["recipients"][0]  # type: ignore[index]
        kind = KINDS.get(policy, "dane")
        if result == "refused":
            assert (house.mx.mails, "MAIL" in house.mx.verbs()) == ([], False)
            reason = "dane_lookup_failed" if policy == "TLSA lookup fails" else "tls_failed"
            assert (told["type"], told["reason"], told["category"]) == ("deferred", reason, "tls")
            assert (told["phase"], told["tls_policy"]) == ("starttls", kind)
            assert recipient["category"] == "tls"
            assert recipient["last_response"]
        else:
            assert [mail.tls for mail in house.mx.mails] == [result != "plaintext"]
            assert (told["tls"], told.get("tls_verified", False)) == (result != "plaintext", result == "proven")
            assert told["tls_policy"] == kind
            # What is only reported, as the policy is being tested.
            assert ("tls_failure" in told) == (policy == "mta_sts testing" and result != "proven")
            assert recipient["category"] is None


async def test_an_mx_that_the_policy_does_not_name(trusting: Settings, sender: Sender) -> None:
    async with living_in(trusting) as house, delivering(house, required=False):
        house.publish_sts("enforce", "elsewhere.test")
        message_id = await sender.send(f"ada@{DOMAIN}")
        await settled(sender, message_id, "deferred")
        told = (await sender.events(message_id))[-1]
        assert (told["reason"], told["category"]) == ("mta_sts_mx_mismatch", "tls")
        assert house.mx.connection_count == 0


async def _flushes_one(sender: Sender) -> bool:
    data = await sender.client.post(f"/api/v1/queues/default@{DOMAIN}/flush", headers=sender.key)
    return bool(data.json()["data"]["mails"] == 1)


async def test_it_goes_when_the_host_is_good_again(trusting: Settings, sender: Sender) -> None:
    """Deferred, not bounced, and delivered to the proven host at the next attempt."""
    async with living_in(trusting, "no STARTTLS") as house:
        publish(house, "required", HOSTS["good"][0])
        async with delivering(house, required=True) as engine:
            message_id = await sender.send(f"ada@{DOMAIN}")
            await settled(sender, message_id, "deferred")
            house.mx.tls_context = HOSTS["good"][0].server_context()
            # The engine tells once a second to which sites domains lead.
            await eventually(lambda: _flushes_one(sender), timeout_seconds=10)
            engine.ring()
            await settled(sender, message_id, "delivered")
        assert [mail.tls for mail in house.mx.mails] == [True]
