"""What sending needs of domains: who may send, with which keys; and what becomes of keys in the end."""

import asyncio
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from sqlalchemy import delete, insert, select, update

from app.accounts.models import Organization
from app.core import crypto
from app.core.config import get_settings
from app.core.db import Database
from app.core.errors import Forbidden, NotFound
from app.core.ids import new_id
from app.domains import records, service
from app.domains.models import DkimKey, Domain
from app.mail import dkim
from app.mail.dns import Resolver
from app.messages.models import Delivery, Message, QueuedDelivery
from tests.dnsd import DnsServer


@pytest.fixture
async def org_id(database: Database) -> UUID:
    """An organization without users."""
    identifier = new_id()
    async with database.transaction() as session:
        session.add(Organization(id=identifier, name="Service tests"))
    return identifier


async def create(database: Database, org_id: UUID, name: str, *, trusted: bool = True) -> UUID:
    async with database.transaction() as session:
        domain = await service.create(session, org_id, name=name, selector="pmta", only=None)
        if trusted:
            await service.trust(session, org_id, domain.id)
    return domain.id


async def remove(database: Database, org_id: UUID, domain_id: UUID) -> None:
    async with database.transaction() as session:
        await service.delete(session, org_id, domain_id, only=None)


async def stored_keys(database: Database, domain_id: UUID) -> dict[str, tuple[bytes | None, str, str]]:
    """By algorithm: (private key as stored, public key, status)."""
    columns = DkimKey.algorithm, DkimKey.private_key, DkimKey.public_key, DkimKey.status
    async with database.transaction() as session:
        rows = await session.execute(select(*columns).where(DkimKey.domain_id == domain_id))
        return {algorithm: (private, public, status) for algorithm, private, public, status in rows}


async def signers_of(database: Database, *pairs: tuple[UUID, UUID]) -> dict[tuple[UUID, UUID], list[dkim.Signer]]:
    async with database.transaction() as session:
        return await service.signing_keys(session, pairs)


async def send_from(database: Database, org_id: UUID, name: str) -> service.SendingDomain | None:
    async with database.transaction() as session:
        return await service.sendable(session, org_id, name)


async def test_private_keys_are_sealed(database, org_id):
    keys = await stored_keys(database, await create(database, org_id, "sealed.example.com"))
    assert set(keys) == {"rsa-sha256", "ed25519-sha256"}
    for private, _, _ in keys.values():
        with pytest.raises(ValueError, match="Could not deserialize"):
            load_der_private_key(private, password=None)
        with pytest.raises(crypto.UnsealError):
            crypto.unseal(private, purpose="idempotency")
        der = crypto.unseal(private, purpose="dkim")
        assert der not in private
        load_der_private_key(der, password=None)


async def test_signers_are_those_of_the_published_keys(database, org_id):
    domain_id = await create(database, org_id, "signers.example.com")
    found = await signers_of(database, (org_id, domain_id), (org_id, uuid4()), (uuid4(), domain_id))
    assert list(found) == [(org_id, domain_id)]
    rsa, ed25519 = found[org_id, domain_id]
    assert (rsa.domain, rsa.selector, rsa.algorithm) == ("signers.example.com", "pmta", "rsa-sha256")
    assert (ed25519.selector, ed25519.algorithm) == ("pmta-ed25519", "ed25519-sha256")
    for signer in (rsa, ed25519):
        async with database.transaction() as session:
            name = records.dkim_name(signer.selector, signer.domain)
            (txt,) = await service.published(session, name, "TXT")
        assert dkim.matches(txt, signer.algorithm, public_key(signer))


def public_key(signer: dkim.Signer) -> str:
    """The p= tag of a signer, from its private key."""
    public = signer.key.public_key()
    if signer.algorithm == "rsa-sha256":
        return b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
    return b64encode(public.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


async def test_signers_are_parsed_once_and_only_of_active_keys(database, org_id):
    domain_id = await create(database, org_id, "active.example.com")
    pair = (org_id, domain_id)
    first, again = await signers_of(database, pair), await signers_of(database, pair)
    assert all(one is other for one, other in zip(first[pair], again[pair], strict=True))
    for status in ("pending", "retiring", "retired"):
        async with database.transaction() as session:
            ed25519 = (DkimKey.domain_id == domain_id) & (DkimKey.algorithm == "ed25519-sha256")
            await session.execute(update(DkimKey).where(ed25519).values(status=status))
        assert [signer.algorithm for signer in (await signers_of(database, pair))[pair]] == ["rsa-sha256"]


async def test_a_pending_domain_has_no_signers(database, org_id):
    domain_id = await create(database, org_id, "pending.example.com", trusted=False)
    assert await signers_of(database, (org_id, domain_id)) == {}


async def test_a_key_that_cannot_be_opened_signs_nothing_and_harms_nobody_else(database, org_id):
    broken = await create(database, org_id, "broken.example.com")
    sound = await create(database, org_id, "sound.example.com")
    async with database.transaction() as session:
        ed25519 = (DkimKey.domain_id == broken) & (DkimKey.algorithm == "ed25519-sha256")
        await session.execute(update(DkimKey).where(ed25519).values(private_key=b"\x01" + bytes(60)))
    assert list(await signers_of(database, (org_id, broken), (org_id, sound))) == [(org_id, sound)]


async def test_no_question_no_signers(database):
    assert await signers_of(database) == {}


async def test_who_may_send(database, org_id):
    assert await send_from(database, org_id, "sends.example.com") is None
    domain_id = await create(database, org_id, "sends.example.com", trusted=False)
    with pytest.raises(Forbidden) as refused:
        await send_from(database, org_id, "sends.example.com")
    assert (refused.value.code, refused.value.flaws[0].pointer) == ("domain_not_verified", "/from")
    assert str(domain_id) in refused.value.detail

    async with database.transaction() as session:
        await service.trust(session, org_id, domain_id)
    expected = service.SendingDomain(org_id, domain_id, "sends.example.com")
    assert await send_from(database, org_id, "sends.example.com") == expected
    assert await send_from(database, uuid4(), "sends.example.com") is None

    await remove(database, org_id, domain_id)
    assert await send_from(database, org_id, "sends.example.com") is None


async def test_what_may_send_is_remembered_for_a_moment(database, org_id):
    domain_id = await create(database, org_id, "cached.example.com")
    assert await send_from(database, org_id, "cached.example.com")
    async with database.transaction() as session:
        await session.execute(update(Domain).where(Domain.id == domain_id).values(deleted_at=datetime.now(UTC)))
    connections = database.engine.pool.checkedout()
    async with database.transaction() as session:
        assert await service.sendable(session, org_id, "cached.example.com")
        assert database.engine.pool.checkedout() == connections
    await asyncio.sleep(service.SENDABLE_SECONDS + 0.1)
    assert await send_from(database, org_id, "cached.example.com") is None


async def test_trust_wants_a_domain_of_the_organization(database, org_id):
    domain_id = await create(database, org_id, "trusted.example.com", trusted=False)
    async with database.transaction() as session:
        with pytest.raises(NotFound):
            await service.trust(session, uuid4(), domain_id)
        with pytest.raises(NotFound):
            await service.trust(session, org_id, uuid4())
    assert {status for _, _, status in (await stored_keys(database, domain_id)).values()} == {"pending"}


async def test_published_is_everything_that_was_asked_for(database, org_id):
    name = f"{uuid4().hex}.example.com"
    async with database.transaction() as session:
        domain = await service.create(session, org_id, name=name, selector="pmta", only=None)
        for record in domain.dns_records:
            assert await service.published(session, record.name.upper() + ".", record.type) == [record.value]
        assert await service.published(session, name, "CNAME") == []
        assert await service.published(session, "x." + domain.dns_records[0].name, "TXT") == []
        assert await service.published(session, "com", "TXT") == []
        await service.delete(session, org_id, domain.id, only=None)
        await session.flush()
        assert await service.published(session, domain.dns_records[0].name, "TXT") == []


async def test_published_joins_organizations(database, org_id):
    name = f"{uuid4().hex}.example.com"
    other = new_id()
    async with database.transaction() as session:
        session.add(Organization(id=other, name="Another"))
    await create(database, org_id, name)
    await create(database, other, name)
    async with database.transaction() as session:
        assert len(await service.published(session, f"pmta._domainkey.{name}", "TXT")) == 2
        assert len(await service.published(session, name, "TXT")) == 1


async def test_own_names(database, org_id, zone: DnsServer, resolver: Resolver):
    own, platform = (
        await create(database, org_id, "own.example.com"),
        await create(database, org_id, "platform.example.com"),
    )
    returns_to = get_settings().return_path_domain
    zone.add("bounces.own.example.com", "MX", f"10 {returns_to}.")
    zone.add("bounces.own.example.com", "TXT", f"v=spf1 include:{returns_to} -all")
    zone.add("links.own.example.com", "CNAME", f"{get_settings().public_host}.")
    zone.add("links.platform.example.com", "CNAME", "elsewhere.example.")
    for domain_id in (own, platform):
        await service.verify(database, resolver, org_id, domain_id, only=None)
    pairs = [(org_id, own), (org_id, platform), (org_id, uuid4())]
    async with database.transaction() as session:
        assert await service.own_names(session, pairs) == {
            (org_id, own): service.OwnNames("bounces.own.example.com", "links.own.example.com"),
            (org_id, platform): service.OwnNames(returns_to, None),
        }


async def test_no_connection_is_held_while_the_dns_is_asked(database, org_id, zone: DnsServer, resolver: Resolver):
    domain_id = await create(database, org_id, "slow.example.com", trusted=False)
    zone.delay_seconds = 0.3
    started = asyncio.get_running_loop().time()
    verification = asyncio.create_task(service.verify(database, resolver, org_id, domain_id, only=None))
    while not zone.queries:
        await asyncio.sleep(0.01)
    held = []
    while not verification.done():
        held.append(database.engine.pool.checkedout())
        await asyncio.sleep(0.01)
    # The least, because the application's own housekeeping may take one for a moment.
    assert min(held) == 0
    domain = await verification
    # One after another, they would take this long for each record.
    assert asyncio.get_running_loop().time() - started < zone.delay_seconds * len(domain.dns_records) / 2


async def test_a_domain_deleted_while_the_dns_is_asked_is_gone(database, org_id, zone: DnsServer, resolver: Resolver):
    domain_id = await create(database, org_id, "leaving.example.com", trusted=False)
    zone.delay_seconds = 0.3
    verification = asyncio.create_task(service.verify(database, resolver, org_id, domain_id, only=None))
    while not zone.queries:
        await asyncio.sleep(0.01)
    await remove(database, org_id, domain_id)
    with pytest.raises(NotFound):
        await verification


async def test_keys_of_deleted_domains_go_when_no_mail_needs_them(database, org_id):
    alive = await create(database, org_id, "alive.example.com")
    idle = await create(database, org_id, "idle.example.com")
    busy = await create(database, org_id, "busy.example.com")
    fresh = await create(database, org_id, "fresh.example.com")
    await queue_mail(database, org_id, busy)
    for domain_id in (idle, busy, fresh):
        await remove(database, org_id, domain_id)
    async with database.transaction() as session:
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        await session.execute(update(Domain).where(Domain.id.in_([idle, busy])).values(deleted_at=long_ago))

    await wipe(database)
    assert await wiped(database, alive, idle, busy, fresh) == [False, True, False, False]
    assert list(await signers_of(database, (org_id, idle), (org_id, busy))) == [(org_id, busy)]

    async with database.transaction() as session:
        await session.execute(delete(QueuedDelivery).where(QueuedDelivery.org_id == org_id))
    await wipe(database)
    assert await wiped(database, alive, idle, busy, fresh) == [False, True, True, False]


async def wipe(database: Database) -> None:
    async with database.transaction() as session:
        await service.wipe_deleted_keys(session)


async def wiped(database: Database, *domain_ids: UUID) -> list[bool]:
    keys = [await stored_keys(database, domain_id) for domain_id in domain_ids]
    return [all(private is None for private, _, _ in one.values()) for one in keys]


async def queue_mail(database: Database, org_id: UUID, domain_id: UUID) -> None:
    message_id, delivery_id, now = new_id(), new_id(), datetime.now(UTC)
    of_both = {"org_id": org_id, "message_id": message_id, "recipient": "b@example.net"}
    async with database.transaction() as session:
        await session.execute(
            insert(Message).values(
                org_id=org_id,
                id=message_id,
                domain_id=domain_id,
                sender={"email": "a@busy.example.com", "name": ""},
                to=[],
                subject="x",
                track_opens=False,
                track_clicks=False,
                size_bytes=1,
            )
        )
        await session.execute(insert(Delivery).values(**of_both, id=delivery_id, kind="to", status="queued"))
        await session.execute(
            insert(QueuedDelivery).values(
                **of_both,
                delivery_id=delivery_id,
                domain="example.net",
                size_bytes=1,
                next_attempt_at=now,
                give_up_at=now + timedelta(days=3),
            )
        )
