"""Domains through the API, proven by a real DNS."""

import asyncio
from uuid import UUID, uuid4

import idna
import pytest
from sqlalchemy import insert, select

from app.core.config import get_settings
from app.core.ids import new_id
from app.domains import service
from app.domains.models import DkimKey, Domain
from tests.accounts.helpers import assert_problem
from tests.domains.helpers import URL, publish, record_of, statuses, with_key


async def key_statuses(database, domain) -> dict[str, str]:
    async with database.transaction() as session:
        keys = await session.scalars(select(DkimKey).where(DkimKey.domain_id == UUID(domain["id"])))
        return {key.algorithm: key.status for key in keys}


async def test_from_creation_to_proof(tenant, zone, database):
    domain = await tenant.create("Shop.Example.COM", dkim_selector="Mail2026")
    assert domain["domain"] == domain["domain_unicode"] == "shop.example.com"
    assert (domain["status"], domain["verified"], domain["dkim_selector"]) == ("pending", False, "mail2026")
    assert (domain["verified_at"], domain["checked_at"]) == (None, None)
    assert domain["created_at"].endswith("Z")
    assert statuses(domain) == {"pending"}
    assert [one["name"] for one in domain["dns_records"] if one["required"]] == ["mail2026._domainkey.shop.example.com"]
    assert domain["return_path_domain"] == get_settings().return_path_domain

    unpublished = await tenant.verify(domain["id"])
    assert statuses(unpublished) == {"missing"}
    assert (unpublished["status"], unpublished["verified_at"]) == ("pending", None)
    assert unpublished["checked_at"].endswith("Z")
    assert set((await key_statuses(database, domain)).values()) == {"pending"}

    publish(zone, domain)
    verified = await tenant.verify(domain["id"])
    assert statuses(verified) == {"verified"}
    assert (verified["status"], verified["verified"]) == ("verified", True)
    assert verified["verified_at"].endswith("Z")
    assert all(one["found"] == [one["value"]] and one["error"] is None for one in verified["dns_records"])
    assert verified["return_path_domain"] == "bounces.shop.example.com"
    assert await key_statuses(database, domain) == {"rsa-sha256": "active", "ed25519-sha256": "active"}
    assert await tenant.get(domain["id"]) == verified


async def test_the_required_record_alone_is_enough(tenant, zone, database):
    domain = await tenant.create("alone.example.com")
    assert len(record_of(domain, "dkim")["value"]) > 255
    zone.add(record_of(domain, "dkim")["name"], "TXT", record_of(domain, "dkim")["value"])
    verified = await tenant.verify(domain["id"])
    assert verified["verified"]
    assert {one["status"] for one in verified["dns_records"] if not one["required"]} == {"missing"}
    assert await key_statuses(database, domain) == {"rsa-sha256": "active", "ed25519-sha256": "pending"}


async def test_the_ed25519_record_alone_is_not(tenant, zone, database):
    domain = await tenant.create("ed.example.com")
    ed25519 = domain["dns_records"][1]
    zone.add(ed25519["name"], "TXT", ed25519["value"])
    assert not (await tenant.verify(domain["id"]))["verified"]
    assert await key_statuses(database, domain) == {"rsa-sha256": "pending", "ed25519-sha256": "active"}


async def test_a_wrong_key_is_shown_beside_the_right_one(tenant, zone):
    domain = await tenant.create("wrong.example.com")
    expected = record_of(domain, "dkim")
    other = record_of(await tenant.create("other.example.com"), "dkim")["value"]
    zone.add(expected["name"], "TXT", other)
    checked = await tenant.verify(domain["id"])
    found = record_of(checked, "dkim")
    assert (found["status"], found["value"], found["found"]) == ("mismatch", expected["value"], [other])
    assert not checked["verified"]


async def test_a_corrected_record_is_seen_at_once(tenant, zone):
    zone.ttl_seconds = 3600
    domain = await tenant.create("corrected.example.com")
    assert record_of(await tenant.verify(domain["id"]), "dkim")["status"] == "missing"
    zone.add(record_of(domain, "dkim")["name"], "TXT", "v=DKIM1; k=rsa; p=")
    assert record_of(await tenant.verify(domain["id"]), "dkim")["status"] == "mismatch"
    zone.replace(record_of(domain, "dkim")["name"], "TXT", record_of(domain, "dkim")["value"])
    assert (await tenant.verify(domain["id"]))["verified"]


async def test_a_failing_dns_changes_nothing(tenant, zone):
    domain = await tenant.create("failing.example.com")
    names = [one["name"] for one in domain["dns_records"]]
    for name in names:
        zone.fail(name)
    failed = await tenant.verify(domain["id"])
    assert statuses(failed) == {"unknown"}
    assert all(one["error"] and one["found"] == [] for one in failed["dns_records"])
    assert failed["status"] == "pending"

    for name in names:
        zone.heal(name)
    publish(zone, domain)
    assert (await tenant.verify(domain["id"]))["verified"]

    for name in names:
        zone.fail(name)
    kept = await tenant.verify(domain["id"])
    assert kept["verified"]
    assert statuses(kept) == {"verified"}
    assert all(one["error"] and one["found"] == [one["value"]] for one in kept["dns_records"])


async def test_a_record_that_vanished_is_reported_and_unverifies_nothing(tenant, zone, database):
    domain = await tenant.create("vanished.example.com")
    publish(zone, domain)
    first = await tenant.verify(domain["id"])
    for one in domain["dns_records"]:
        zone.remove(one["name"])
    later = await tenant.verify(domain["id"])
    assert later["verified"]
    assert later["verified_at"] == first["verified_at"]
    assert statuses(later) == {"missing"}
    assert later["return_path_domain"] == get_settings().return_path_domain
    assert set((await key_statuses(database, domain)).values()) == {"active"}


async def test_internationalized_domains(tenant, zone):
    domain = await tenant.create("Bücher.example")
    assert (domain["domain"], domain["domain_unicode"]) == ("xn--bcher-kva.example", "bücher.example")
    assert domain["domain"] == idna.encode("bücher.example").decode()
    assert all(one["name"].isascii() and one["value"].isascii() for one in domain["dns_records"])
    publish(zone, domain)
    assert (await tenant.verify(domain["id"]))["verified"]
    assert_problem(await tenant.post({"domain": "xn--bcher-kva.example"}), 409, "domain_exists")


async def test_another_organization_sees_nothing(tenant, stranger):
    domain = await tenant.create("private.example.com")
    url = f"{URL}/{domain['id']}"
    for method, path in (("GET", url), ("POST", f"{url}/verify"), ("DELETE", url)):
        response = await stranger.client.request(method, path, headers=stranger.headers)
        assert_problem(response, 404, "domain_not_found")
    assert await stranger.names() == []
    assert await tenant.names() == ["private.example.com"]
    assert_problem(await tenant.client.get(f"{URL}/{uuid4()}", headers=tenant.headers), 404, "domain_not_found")


async def test_of_two_claimants_only_the_one_in_the_dns_is_verified(tenant, stranger, zone):
    owner, claimant = await tenant.create("claimed.example.com"), await stranger.create("claimed.example.com")
    assert record_of(owner, "dkim")["value"] != record_of(claimant, "dkim")["value"]
    publish(zone, owner)
    assert (await tenant.verify(owner["id"]))["verified"]
    checked = await stranger.verify(claimant["id"])
    assert not checked["verified"]
    assert record_of(checked, "dkim")["status"] == "mismatch"


async def test_deleted_and_added_anew(tenant, zone):
    domain = await tenant.create("again.example.com")
    publish(zone, domain)
    await tenant.verify(domain["id"])
    assert_problem(await tenant.post({"domain": "again.example.com"}), 409, "domain_exists")

    await tenant.delete(domain["id"])
    url = f"{URL}/{domain['id']}"
    for method, path in (("GET", url), ("POST", f"{url}/verify"), ("DELETE", url)):
        response = await tenant.client.request(method, path, headers=tenant.headers)
        assert_problem(response, 404, "domain_not_found")
    assert await tenant.names() == []

    anew = await tenant.create("again.example.com")
    assert anew["id"] != domain["id"]
    assert record_of(anew, "dkim")["value"] != record_of(domain, "dkim")["value"]
    checked = await tenant.verify(anew["id"])
    assert not checked["verified"]
    assert record_of(checked, "dkim")["found"] == [record_of(domain, "dkim")["value"]]


@pytest.mark.parametrize(
    "name",
    [
        *("com", "localhost", "127.0.0.1", "[::1]", "-a.example", "a_b.example", "a..example", "x@a.example"),
        *("https://a.example/", "a.example\r\nb", "a\x00.example", "", " ", "a" * 64 + ".example", "a." * 127 + "b"),
    ],
)
async def test_refused_names(empty, name):
    response = await empty.post({"domain": name})
    assert response.status_code == 422, response.text
    assert [flaw["pointer"] for flaw in response.json()["errors"]] == ["/domain"]
    assert await empty.names() == []


async def test_names_are_bounded_with_their_selector(tenant):
    label = "a" * 60
    at_most = 253 - len("pmta-ed25519._domainkey.")
    name = ".".join([label, label, label, "b" * (at_most - 3 * 61 - 4), "com"])
    assert len(name) == at_most
    domain = await tenant.create(name)
    assert max(len(one["name"]) for one in domain["dns_records"]) == 253
    response = await tenant.post({"domain": "c" + name})
    assert_problem(response, 422, "name_too_long")
    assert response.json()["errors"][0]["pointer"] == "/domain"


@pytest.mark.parametrize("selector", ["a", "0", "k-1", "A" * 40])
async def test_selectors(tenant, selector):
    domain = await tenant.create("selectors.example.com", dkim_selector=selector)
    names = [one["name"] for one in domain["dns_records"] if one["purpose"] == "dkim"]
    selector = selector.lower()
    assert names == [
        f"{selector}._domainkey.selectors.example.com",
        f"{selector}-ed25519._domainkey.selectors.example.com",
    ]


@pytest.mark.parametrize("selector", ["", "-a", "a-", "a.b", "a_b", "ä", "a" * 41, "a\n", 7])
async def test_refused_selectors(empty, selector):
    response = await empty.post({"domain": "selectors.example.com", "dkim_selector": selector})
    assert response.status_code == 422, response.text
    assert [flaw["pointer"] for flaw in response.json()["errors"]] == ["/dkim_selector"]
    assert await empty.names() == []


async def test_unknown_fields_are_refused(empty):
    assert (await empty.post({"domain": "a.example.com", "selector": "x"})).status_code == 422
    assert await empty.names() == []


async def test_a_restricted_key_touches_only_its_domains(tenant):
    allowed, hidden = await tenant.create("allowed.example.com"), await tenant.create("hidden.example.com")
    key = await with_key(tenant, scopes=["domains"], domains=["allowed.example.com", "new.example.com"])
    assert await key.names() == ["allowed.example.com"]
    assert (await key.get(allowed["id"]))["domain"] == "allowed.example.com"
    url = f"{URL}/{hidden['id']}"
    for method, path in (("GET", url), ("POST", f"{url}/verify"), ("DELETE", url)):
        response = await tenant.client.request(method, path, headers=key.headers)
        assert_problem(response, 404, "domain_not_found")
    assert_problem(await key.post({"domain": "third.example.com"}), 403, "domain_not_allowed")
    assert_problem(await key.post({"domain": "hidden.example.com"}), 403, "domain_not_allowed")
    await key.create("new.example.com")
    await key.delete(allowed["id"])
    assert await tenant.names() == ["new.example.com", "hidden.example.com"]


async def test_scope_and_credentials(tenant):
    key = await with_key(tenant, scopes=["send"])
    assert_problem(await key.post({"domain": "a.example.com"}), 403, "insufficient_scope")
    assert (await tenant.client.get(URL)).status_code == 401


async def test_pages(tenant, database):
    names = [f"p{number}.example.com" for number in range(5)]
    await insert_domains(database, tenant.org_id, names)
    first = (await tenant.client.get(URL, headers=tenant.headers, params={"limit": 2})).json()["data"]
    assert [one["domain"] for one in first["domains"]] == ["p4.example.com", "p3.example.com"]
    assert first["pagination"]["has_more"]
    assert await tenant.names(limit=10, after=first["pagination"]["next"]) == names[2::-1]


async def test_an_idempotent_create_makes_one_domain(tenant):
    body = {"domain": "once.example.com"}
    first = await tenant.post(body, **{"Idempotency-Key": "k1"})
    again = await tenant.post(body, **{"Idempotency-Key": "k1"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert_problem(await tenant.post(body), 409, "domain_exists")
    assert await tenant.names() == ["once.example.com"]


async def test_simultaneous_creates_make_one_domain(tenant):
    responses = await asyncio.gather(*(tenant.post({"domain": "race.example.com"}) for _ in range(4)))
    assert sorted(response.status_code for response in responses) == [201, 409, 409, 409]
    assert await tenant.names() == ["race.example.com"]


async def test_an_organization_has_a_bound(tenant, stranger, database):
    await insert_domains(database, tenant.org_id, [f"d{n}.example.com" for n in range(service.MAX_DOMAINS)])
    assert_problem(await tenant.post({"domain": "more.example.com"}), 409, "too_many_domains")
    await stranger.create("more.example.com")


async def test_the_documented_example_is_valid(tenant, app):
    examples = app.openapi()["components"]["schemas"]["NewDomain"]["examples"]
    for example in examples:
        assert (await tenant.post(example)).status_code == 201


async def insert_domains(database, org_id: UUID, names: list[str]) -> None:
    rows = [{"org_id": org_id, "id": new_id(), "name": name, "dkim_selector": "pmta"} for name in names]
    async with database.transaction() as session:
        await session.execute(insert(Domain), rows)
