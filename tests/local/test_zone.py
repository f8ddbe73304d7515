"""What the mailbox's nameserver answers, asked by UDP; what users are to publish comes from the database."""

from collections.abc import AsyncIterator
from uuid import UUID

import dns.asyncresolver
import dns.message
import dns.nameserver
import dns.resolver
import pytest

from app.accounts import service as accounts
from app.core.db import Database
from app.core.ids import new_id
from app.domains import service as domains
from app.local import zone
from app.local.nameserver import Nameserver
from app.mail.dns import Resolver


@pytest.fixture
async def nameserver(database: Database) -> AsyncIterator[Nameserver]:
    server = Nameserver(zone.answerer(database))
    await server.start("127.0.0.1")
    yield server
    await server.stop()


@pytest.fixture
async def org_id(database: Database) -> UUID:
    async with database.transaction() as session:
        organization, _ = await accounts.register(
            session,
            email=f"{new_id()}@postroad.test",
            password=str(new_id()),
            name="Z",
            organization_name="Zone",
        )
    return organization.id


async def ask(nameserver: Nameserver, name: str, kind: str) -> list[str]:
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = [dns.nameserver.Do53Nameserver("127.0.0.1", nameserver.port)]
    try:
        answer = await resolver.resolve(name, kind)
    except dns.resolver.NoAnswer:
        return []
    if kind == "TXT":
        return [b"".join(record.strings).decode() for record in answer]
    return [record.to_text() for record in answer]


async def test_all_mail_leads_to_the_mailbox(nameserver: Nameserver) -> None:
    assert await ask(nameserver, "anything.example", "MX") == [f"10 {zone.MAIL_HOST}."]
    assert await ask(nameserver, zone.MAIL_HOST, "A") == ["127.0.0.1"]
    assert await ask(nameserver, "anything.example", "A") == ["127.0.0.1"]
    for kind in ("AAAA", "TXT", "CNAME", "TLSA"):
        assert await ask(nameserver, "anything.example", kind) == []


async def test_names_under_invalid_do_not_exist(nameserver: Nameserver) -> None:
    with pytest.raises(dns.resolver.NXDOMAIN):
        await ask(nameserver, "nobody.invalid", "MX")


async def test_every_record_of_a_domain_is_there_so_that_it_verifies(
    nameserver: Nameserver, database: Database, org_id: UUID
) -> None:
    name = f"zone-{new_id()}.example"
    async with database.transaction() as session:
        created = await domains.create(session, org_id, name=name, selector="s1", only=None)
    for record in created.dns_records:
        found = await ask(nameserver, record.name, record.type)
        assert [value.rstrip(".") for value in found] == [record.value], record
    assert any(len(record.value) > 255 for record in created.dns_records)  # strings had to be split
    resolver = Resolver((("127.0.0.1", nameserver.port),), timeout_seconds=5)
    verified = await domains.verify(database, resolver, org_id, created.id, only=None)
    assert verified.status == "verified"
    assert {record.status for record in verified.dns_records} == {"verified"}


async def test_mail_to_an_aliased_name_arrives_too(nameserver: Nameserver, database: Database, org_id: UUID) -> None:
    name = f"zone-{new_id()}.example"
    async with database.transaction() as session:
        await domains.create(session, org_id, name=name, selector="s1", only=None)
    assert await ask(nameserver, f"links.{name}", "CNAME") == ["postroad.test."]
    assert await ask(nameserver, f"links.{name}", "MX") == [f"10 {zone.MAIL_HOST}."]
    assert await ask(nameserver, f"links.{name}", "A") == ["127.0.0.1"]
    (mx,) = await ask(nameserver, f"bounces.{name}", "MX")
    assert await ask(nameserver, mx.split()[1], "A") == ["127.0.0.1"]
