"""Keys from pending to retired: through the API, a real DNS, and the sweep of the workers."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from app.core.config import get_settings
from app.domains import queries, service
from app.domains.models import DkimKey, Domain
from app.domains.rotation import next_selector
from tests.accounts.helpers import assert_problem
from tests.domains.helpers import actions, key_states, publish, record_of, with_key


@pytest.fixture
async def verified(tenant, zone):
    """A verified domain."""
    domain = await tenant.create("rotates.example.com")
    publish(zone, domain)
    return await tenant.verify(domain["id"])


async def signing(database, tenant, domain) -> list[str]:
    """The selectors that sign now."""
    pair = (tenant.org_id, UUID(domain["id"]))
    async with database.transaction() as session:
        return [signer.selector for signer in (await service.signing_keys(session, [pair])).get(pair, [])]


async def private_keys(database, domain) -> dict[str, bool]:
    """By selector, whether there is a private part."""
    columns = select(DkimKey.selector, DkimKey.private_key.is_not(None))
    async with database.transaction() as session:
        return dict((await session.execute(columns.where(DkimKey.domain_id == UUID(domain["id"])))).tuples().all())


async def let_overlap_pass(database, domain) -> None:
    async with database.transaction() as session:
        keys = update(DkimKey).where(DkimKey.domain_id == UUID(domain["id"]), DkimKey.status == "retiring")
        await session.execute(keys.values(retire_at=func.now()))
    async with database.transaction() as session:
        await queries.retire_keys(session)


async def test_the_whole_life_of_keys(tenant, zone, database, verified):
    before = datetime.now(UTC)
    rotated = await tenant.rotated(verified["id"])
    assert key_states(rotated) == {
        "pmta": "active",
        "pmta-ed25519": "active",
        "pmta2": "pending",
        "pmta2-ed25519": "pending",
    }
    assert set(actions(rotated).values()) == {"publish"}
    assert (rotated["verified"], rotated["dkim_selector"]) == (True, "pmta")
    fresh = [one for one in rotated["dns_records"] if one["status"] == "pending"]
    assert [one["name"].split(".")[0] for one in fresh] == ["pmta2", "pmta2-ed25519"]
    assert not any(one["required"] for one in fresh)
    assert await signing(database, tenant, verified) == ["pmta", "pmta-ed25519"]

    # Asked too early, nothing changes.
    assert key_states(await tenant.verify(verified["id"])) == key_states(rotated)
    assert await signing(database, tenant, verified) == ["pmta", "pmta-ed25519"]

    for one in fresh:
        zone.add(one["name"], "TXT", one["value"])
    switched = await tenant.verify(verified["id"])
    assert key_states(switched) == {
        "pmta": "retiring",
        "pmta-ed25519": "retiring",
        "pmta2": "active",
        "pmta2-ed25519": "active",
    }
    assert await signing(database, tenant, verified) == ["pmta2", "pmta2-ed25519"]
    assert (switched["dkim_selector"], switched["verified_at"]) == ("pmta2", verified["verified_at"])
    assert actions(switched) == {"pmta": "keep", "pmta-ed25519": "keep", "pmta2": "publish", "pmta2-ed25519": "publish"}
    kept = next(one for one in switched["dns_records"] if one["name"].startswith("pmta._domainkey"))
    assert kept["required"]
    keep_until = datetime.fromisoformat(kept["keep_until"])
    overlap = timedelta(seconds=get_settings().dkim_overlap_seconds)
    assert before + overlap <= keep_until <= datetime.now(UTC) + overlap
    assert f"{keep_until:%Y-%m-%d}" in kept["note"]
    assert all((await private_keys(database, verified)).values())

    await let_overlap_pass(database, verified)
    retired = await tenant.get(verified["id"])
    assert key_states(retired) | {"pmta": "retired", "pmta-ed25519": "retired"} == key_states(retired)
    assert actions(retired)["pmta"] == "remove"
    last = retired["dns_records"][-1]
    assert (last["action"], last["required"], last["keep_until"]) == ("remove", False, None)
    states = await private_keys(database, verified)
    assert states == {"pmta": False, "pmta-ed25519": False, "pmta2": True, "pmta2-ed25519": True}

    # As long as a record is there it is listed, so that nobody forgets it.
    assert set(actions(await tenant.verify(verified["id"]))) == {"pmta", "pmta-ed25519", "pmta2", "pmta2-ed25519"}
    zone.remove("pmta._domainkey.rotates.example.com")
    assert "pmta" not in actions(await tenant.verify(verified["id"]))
    zone.remove("pmta-ed25519._domainkey.rotates.example.com")
    assert set(key_states(await tenant.verify(verified["id"]))) == {"pmta2", "pmta2-ed25519"}
    assert set(key_states(await tenant.rotated(verified["id"]))) >= {"pmta3", "pmta3-ed25519"}


async def test_each_algorithm_rotates_for_itself(tenant, zone, database, verified):
    rotated = await tenant.rotated(verified["id"])
    ed25519 = next(one for one in rotated["dns_records"] if one["name"].startswith("pmta2-ed25519."))
    zone.add(ed25519["name"], "TXT", ed25519["value"])
    half = await tenant.verify(verified["id"])
    assert key_states(half) == {
        "pmta": "active",
        "pmta-ed25519": "retiring",
        "pmta2": "pending",
        "pmta2-ed25519": "active",
    }
    assert await signing(database, tenant, verified) == ["pmta", "pmta2-ed25519"]
    await tenant.rotated(verified["id"], dkim_selector="third")
    publish(zone, await tenant.get(verified["id"]), "dkim")
    await tenant.verify(verified["id"])
    assert await signing(database, tenant, verified) == ["third", "third-ed25519"]


async def test_a_wrong_record_activates_nothing(tenant, zone, database, verified):
    rotated = await tenant.rotated(verified["id"])
    old, new = (one for one in rotated["dns_records"] if one["name"].startswith(("pmta.", "pmta2.")))
    zone.add(new["name"], "TXT", old["value"])
    assert key_states(await tenant.verify(verified["id"]))["pmta2"] == "pending"
    zone.fail(new["name"])
    assert key_states(await tenant.verify(verified["id"]))["pmta2"] == "pending"
    assert await signing(database, tenant, verified) == ["pmta", "pmta-ed25519"]


async def test_a_second_rotation_waits_for_the_first_or_replaces_it(tenant, zone, database, verified):
    await tenant.rotated(verified["id"])
    assert_problem(await tenant.rotate(verified["id"]), 409, "rotation_pending")
    assert_problem(await tenant.rotate(verified["id"], {"dkim_selector": "pmta2"}), 409, "rotation_pending")
    assert_problem(await tenant.rotate(verified["id"], {"dkim_selector": "pmta"}), 409, "selector_used")
    assert_problem(await tenant.rotate(verified["id"], {"dkim_selector": "pmta-ed25519"}), 409, "selector_used")

    other = await tenant.rotated(verified["id"], dkim_selector="K2027")
    assert key_states(other) == {
        "pmta": "active",
        "pmta-ed25519": "active",
        "pmta2": "retired",
        "pmta2-ed25519": "retired",
        "k2027": "pending",
        "k2027-ed25519": "pending",
    }
    assert (await private_keys(database, verified))["pmta2"] is False
    # Given up and never published: forgotten at the next look.
    assert "pmta2" not in key_states(await tenant.verify(verified["id"]))
    publish(zone, other, "dkim")
    assert (await tenant.verify(verified["id"]))["dkim_selector"] == "k2027"
    assert "k2027-2" in key_states(await tenant.rotated(verified["id"]))


async def test_an_ed25519_key_that_nobody_publishes_does_not_hold_rotation_up(tenant, zone):
    domain = await tenant.create("plain.example.com")
    zone.add(record_of(domain, "dkim")["name"], "TXT", record_of(domain, "dkim")["value"])
    assert key_states(await tenant.verify(domain["id"]))["pmta-ed25519"] == "pending"
    rotated = await tenant.rotated(domain["id"])
    assert key_states(rotated)["pmta2-ed25519"] == "pending"
    assert key_states(rotated)["pmta-ed25519"] == "retired"


async def test_first_keys_can_be_replaced_but_are_not_by_mistake(tenant, zone):
    domain = await tenant.create("taken.example.com")
    assert_problem(await tenant.rotate(domain["id"]), 409, "rotation_pending")
    moved = await tenant.rotated(domain["id"], dkim_selector="other")
    assert (moved["status"], moved["dkim_selector"]) == ("pending", "other")
    assert [one["name"].split(".")[0] for one in moved["dns_records"] if one["required"]] == ["other"]
    publish(zone, moved, "dkim")
    verified = await tenant.verify(domain["id"])
    assert verified["verified"]
    assert key_states(verified)["pmta"] == "retired"


async def test_simultaneous_rotations_make_one(tenant, verified):
    responses = await asyncio.gather(*(tenant.rotate(verified["id"]) for _ in range(4)))
    assert sorted(response.status_code for response in responses) == [200, 409, 409, 409]
    assert len(key_states(await tenant.get(verified["id"]))) == 4


async def test_an_idempotent_rotation_makes_one(tenant, verified):
    headers = {"Idempotency-Key": "rotate-1"}
    first, again = [await tenant.rotate(verified["id"], {"dkim_selector": "once"}, **headers) for _ in range(2)]
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    other = await tenant.rotate(verified["id"], {"dkim_selector": "twice"}, **headers)
    assert_problem(other, 422, "idempotency_key_reused")


@pytest.mark.parametrize("body", [{"selector": "x"}, {"dkim_selector": "a.b"}, {"dkim_selector": "a" * 41}, [], "x", 7])
async def test_refused_bodies(empty, body):
    response = await empty.rotate(str(uuid4()), body)
    assert response.status_code == 422, response.text


async def test_others_and_restricted_keys_rotate_nothing(tenant, stranger, verified):
    assert_problem(await stranger.rotate(verified["id"]), 404, "domain_not_found")
    limited = await with_key(tenant, scopes=["domains"], domains=["else.example.com"])
    assert_problem(await limited.rotate(verified["id"]), 404, "domain_not_found")
    sender = await with_key(tenant, scopes=["send"])
    assert_problem(await sender.rotate(verified["id"]), 403, "insufficient_scope")


async def test_a_name_too_long_for_the_next_selector_is_said(tenant, database):
    label = "a" * 60
    name = ".".join([label, label, label, "b" * (253 - len("pmta-ed25519._domainkey.") - 3 * 61 - 4), "com"])
    domain = await tenant.create(name)
    async with database.transaction() as session:
        await service.trust(session, tenant.org_id, UUID(domain["id"]))
    refused = await tenant.rotate(domain["id"])
    assert_problem(refused, 422, "name_too_long")
    assert refused.json()["errors"][0]["pointer"] == "/dkim_selector"
    assert "k" in key_states(await tenant.rotated(domain["id"], dkim_selector="k"))


async def test_retired_keys_are_bounded(tenant, database, verified):
    for number in range(15):
        await tenant.rotated(verified["id"], dkim_selector=f"s{number}")
    states = list(key_states(await tenant.get(verified["id"])).values())
    assert (states.count("active"), states.count("pending"), states.count("retired")) == (2, 2, 20)
    async with database.transaction() as session:
        domain = await session.get(Domain, (tenant.org_id, UUID(verified["id"])))
        assert domain.dkim_selector == "s14"


def test_next_selectors() -> None:
    def keys(*selectors: str) -> list[DkimKey]:
        return [DkimKey(selector=selector) for selector in selectors]

    assert next_selector("pmta", keys("pmta", "pmta-ed25519")) == "pmta2"
    assert next_selector("pmta", keys("pmta9", "pmta10-ed25519", "other44")) == "pmta11"
    assert next_selector("mail2026", keys("mail2026")) == "mail2026-2"
    assert next_selector("mail2026", keys("mail2026-2", "mail20267")) == "mail2026-3"
