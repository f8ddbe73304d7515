"""vMTAs through the API."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from app.core.ids import new_id
from app.vmtas import service
from tests.accounts import helpers
from tests.accounts.helpers import assert_problem
from tests.vmtas.house import URL, Tenant, new_address, use

RAMP = {"enabled": True, "daily_start": 10, "growth": 2.0, "daily_limit": 40}
UNSET = dict.fromkeys(["ip_address", "hostname", "pool", "max_connections", "max_rate", "warmup"])


async def assign(database, address: str, org_id: UUID | None) -> None:
    async with database.transaction() as session:
        await service.assign_address(session, address, org_id)


async def become_operator(database, tenant: Tenant) -> None:
    # Who they are is remembered for a moment after they were first seen, which they have not been yet.
    await helpers.change_user(database, tenant.account, is_operator=True)


# ── Making and looking ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_one_with_everything(tenant):
    fields = {
        "ip_address": "127.0.0.1",
        "hostname": "mta1.example.com",
        "pool": "p",
        "weight": 7,
        "max_connections": 20,
        "max_rate": 600,
        "warmup": RAMP,
    }
    vmta = await tenant.create(name="mta-1", **fields)
    assert {name: vmta[name] for name in fields} == fields
    assert (vmta["name"], vmta["status"], vmta["paused_at"], vmta["warming_up"]) == ("mta-1", "active", None, True)
    assert vmta["warmup_started_at"].endswith("Z")
    assert vmta["created_at"].endswith("Z")
    assert await tenant.get(vmta) == vmta


async def test_one_with_nothing_but_a_name(tenant):
    vmta = await tenant.create(name="plain")
    assert {name: vmta[name] for name in UNSET} == UNSET
    assert (vmta["weight"], vmta["status"], vmta["warming_up"]) == (1, "active", False)
    assert vmta["warmup_started_at"] is None


async def test_texts_are_kept_in_one_form(tenant):
    vmta = await tenant.create(
        name="MTA_1.A", pool="Pool-A", ip_address="2001:DB8:0::1", hostname=" Mta.Bücher.Example. "
    )
    assert [vmta[name] for name in ("name", "pool", "ip_address", "hostname")] == [
        "mta_1.a",
        "pool-a",
        "2001:db8::1",
        "mta.xn--bcher-kva.example",
    ]


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"name": None}, "/name"),
        *[({"name": bad}, "/name") for bad in ("", "-a", "a-", "a b", "a@b", "ä", "a" * 65, "a\n", "a\x00", 5)],
        *[({"pool": bad}, "/pool") for bad in ("", "a b", "a" * 65)],
        *[({"ip_address": bad}, "/ip_address") for bad in ("", "x", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::")],
        *[({"ip_address": bad}, "/ip_address") for bad in ("ff02::1", "::ffff:1.2.3.4", "1.2.3.4\x00", "1" * 46)],
        *[({"hostname": bad}, "/hostname") for bad in ("", "localhost", "a_b.example.com", "1.2.3.4", "a..b", "\x00")],
        *[({"hostname": bad}, "/hostname") for bad in ("[1.2.3.4]", "a" * 64 + ".example", "x." * 130 + "com")],
        *[({"weight": bad}, "/weight") for bad in (-1, 1001, None, "many", 1.5, 10**30)],
        *[({"max_connections": bad}, "/max_connections") for bad in (0, 1001)],
        *[({"max_rate": bad}, "/max_rate") for bad in (0, 1_000_001)],
        *[({"warmup": {"daily_start": bad}}, "/warmup/daily_start") for bad in (0, 10**7)],
        *[({"warmup": {"growth": bad}}, "/warmup/growth") for bad in (1.0, 4.1, None)],
        *[({"warmup": {"daily_limit": bad}}, "/warmup/daily_limit") for bad in (1, 10**7 + 1)],
        ({"warmup": {"daily_start": 100, "daily_limit": 100}}, "/warmup"),
        ({"warmup": {"speed": 1}}, "/warmup/speed"),
        ({"warmup": True}, "/warmup"),
        ({"wieght": 1}, "/wieght"),
    ],
)
async def test_what_is_refused(tenant, fields, pointer):
    response = await tenant.call("POST", body={"name": "good", **fields})
    assert_problem(response, 422, "invalid_request")
    assert pointer in [one["pointer"] for one in response.json()["errors"]]
    vmta = await tenant.create(name="good")
    assert_problem(await tenant.call("PUT", f"/{vmta['id']}", fields), 422, "invalid_request")
    assert await tenant.get(vmta) == vmta


async def test_a_name_is_used_once(tenant, stranger):
    vmta = await tenant.create(name="one")
    assert_problem(await tenant.call("POST", body={"name": "ONE"}), 409, "vmta_exists")
    other = await tenant.create(name="two")
    assert_problem(await tenant.call("PUT", f"/{other['id']}", {"name": "One"}), 409, "vmta_exists")
    assert (await tenant.update(vmta, name="ONE"))["name"] == "one"
    await stranger.create(name="one")
    assert (await tenant.call("DELETE", f"/{vmta['id']}")).status_code == 204
    await tenant.create(name="one")


async def test_of_many_that_ask_for_one_name_one_gets_it(tenant):
    responses = await asyncio.gather(*(tenant.call("POST", body={"name": "race"}) for _ in range(5)))
    assert sorted(response.status_code for response in responses) == [201, 409, 409, 409, 409]
    first, second = await tenant.create(), await tenant.create()
    responses = await asyncio.gather(
        *(tenant.call("PUT", f"/{one['id']}", {"name": "both"}) for one in (first, second))
    )
    assert sorted(response.status_code for response in responses) == [200, 409]


async def test_there_is_a_limit_also_for_those_at_once(tenant, database):
    async with database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO vmtas (org_id, id, name, deleted_at) SELECT :org_id, gen_random_uuid(), 'v' || n, "
                "CASE WHEN n > 98 THEN now() END FROM generate_series(1, 150) n"
            ),
            {"org_id": tenant.org_id},
        )
    responses = await asyncio.gather(*(tenant.call("POST", body={"name": f"last-{n}"}) for n in range(12)))
    assert sorted(response.status_code for response in responses) == [201] * 2 + [409] * 10
    assert_problem(await tenant.call("POST", body={"name": "more"}), 409, "too_many_vmtas")


async def test_the_list(tenant, stranger):
    await stranger.create()
    made = [await tenant.create(name=f"v{number}") for number in range(5)]
    newest_first = made[::-1]
    data = (await tenant.call("GET")).json()["data"]
    assert data["vmtas"] == newest_first
    assert data["pagination"]["has_more"] is False
    first = (await tenant.call("GET", "?limit=3")).json()["data"]
    assert first["vmtas"] == newest_first[:3]
    rest = (await tenant.call("GET", f"?limit=3&after={first['pagination']['next']}")).json()["data"]
    assert rest["vmtas"] == newest_first[3:]
    assert_problem(await tenant.call("GET", "?after=nonsense!"), 422, "invalid_cursor")


async def test_a_repeat_with_an_idempotency_key_makes_one(tenant):
    headers = tenant.account.headers | {"Idempotency-Key": str(uuid4())}
    body = {"name": "once"}
    first, again = [await tenant.client.post(URL, json=body, headers=headers) for _ in range(2)]
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_nothing_of_another_organization(tenant, stranger):
    vmta = await tenant.create(warmup=RAMP)
    path = f"/{vmta['id']}"
    for method, below, body in (
        ("GET", "", None),
        ("PUT", "", {"weight": 9}),
        ("DELETE", "", None),
        ("POST", "/pause", None),
        ("POST", "/resume", None),
        ("GET", "/warmup", None),
    ):
        assert_problem(await stranger.call(method, path + below, body), 404, "vmta_not_found")
        assert_problem(await stranger.call(method, f"/{new_id()}{below}", body), 404, "vmta_not_found")
    assert (await stranger.call("GET")).json()["data"]["vmtas"] == []
    assert await tenant.get(vmta) == vmta


# ── Changing ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_put_changes_what_is_given(tenant):
    vmta = await tenant.create(name="a", pool="p", weight=3, max_rate=100, hostname="a.example.com", warmup=RAMP)
    changed = await tenant.update(vmta, weight=0, max_rate=None, pool="Q")
    assert changed["updated_at"] > vmta["updated_at"]
    expected = vmta | {"weight": 0, "max_rate": None, "pool": "q", "updated_at": changed["updated_at"]}
    assert changed == expected == await tenant.get(vmta)
    assert (await tenant.update(vmta)) == changed
    null = {name: None for name in UNSET}
    assert {name: value for name, value in (await tenant.update(vmta, **null)).items() if name in UNSET} == UNSET


async def test_pause_and_resume(tenant):
    vmta = await tenant.create()
    paused = await tenant.act(vmta, "pause")
    assert paused["status"] == "paused"
    assert paused["paused_at"].endswith("Z")
    assert await tenant.act(vmta, "pause") == paused == await tenant.get(vmta)
    resumed = await tenant.act(vmta, "resume")
    assert (resumed["status"], resumed["paused_at"]) == ("active", None)
    assert (await tenant.act(vmta, "resume"))["status"] == "active"


async def test_delete(tenant, database):
    vmta = await tenant.create()
    queued = {"org_id": tenant.org_id, "vmta_id": UUID(vmta["id"])}
    insert = (
        "INSERT INTO delivery_queue (org_id, delivery_id, message_id, recipient, domain, vmta_id, size_bytes, "
        "next_attempt_at, give_up_at) VALUES (:org_id, :id, :id, 'a@b.example', 'b.example', :vmta_id, 1, 'infinity', "
        "now())"
    )
    async with database.transaction() as session:
        # What the queue's row points at does not matter here.
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        await session.execute(text(insert), queued | {"id": new_id()})
    assert_problem(await tenant.call("DELETE", f"/{vmta['id']}"), 409, "vmta_in_use")
    assert await tenant.get(vmta) == vmta
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE vmta_id = :vmta_id"), queued)
    assert (await tenant.call("DELETE", f"/{vmta['id']}")).status_code == 204
    assert_problem(await tenant.call("GET", f"/{vmta['id']}"), 404, "vmta_not_found")
    assert_problem(await tenant.call("DELETE", f"/{vmta['id']}"), 404, "vmta_not_found")


# ── Addresses ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_in_local_mode_any_address_will_do(tenant, stranger):
    address = new_address()
    await tenant.create(ip_address=address)
    await stranger.create(ip_address=address)


async def test_in_production_only_addresses_that_were_given(tenant, stranger, database, production):
    own, common, unknown = new_address(), new_address(), new_address()
    await assign(database, own, tenant.org_id)
    await assign(database, common, None)
    vmta = await tenant.create(ip_address=own)
    await tenant.create(ip_address=common)
    await stranger.create(ip_address=common)
    nowhere = await stranger.create()
    for refused in (own, unknown):
        for method, path in (("POST", ""), ("PUT", f"/{nowhere['id']}")):
            response = await stranger.call(method, path, {"name": "x", "ip_address": refused})
            assert_problem(response, 422, "address_not_assigned")
            assert response.json()["errors"][0]["pointer"] == "/ip_address"
    assert (await stranger.get(nowhere))["ip_address"] is None
    assert (await tenant.update(vmta, ip_address=common))["ip_address"] == common


async def test_an_operator_may_use_any_that_is_not_somebody_elses(tenant, stranger, database, production):
    await become_operator(database, stranger)
    free, theirs = new_address(), new_address()
    await assign(database, theirs, tenant.org_id)
    await stranger.create(ip_address=free)
    response = await stranger.call("POST", body={"name": "x", "ip_address": theirs})
    assert_problem(response, 422, "address_not_assigned")


async def test_in_local_mode_too_an_address_is_not_shared_with_whom_it_was_given_to(tenant, stranger, database):
    address = new_address()
    await assign(database, address, tenant.org_id)
    response = await stranger.call("POST", body={"name": "x", "ip_address": address})
    assert_problem(response, 422, "address_not_assigned")
    await tenant.create(ip_address=address)


async def test_an_address_that_was_taken_back(tenant, stranger, database, production):
    address = new_address()
    await assign(database, address, tenant.org_id)
    vmta = await tenant.create(ip_address=address)
    async with database.transaction() as session:
        assert await service.unassign_address(session, address, pause_users=True) == 1
    assert (await tenant.get(vmta))["status"] == "paused"
    await assign(database, new_address(), tenant.org_id)
    assert_problem(await tenant.call("POST", f"/{vmta['id']}/resume"), 422, "address_not_assigned")
    # What stays as it is is not asked for again.
    assert (await tenant.update(vmta, ip_address=address, weight=5))["weight"] == 5
    await tenant.update(vmta, ip_address=None)
    assert (await tenant.act(vmta, "resume"))["status"] == "active"


async def test_a_race_for_an_address_has_one_winner(tenant, stranger, database):
    """A vMTA takes an address while the operator gives it to somebody else."""
    for _ in range(5):
        address = new_address()
        created, given = await asyncio.gather(
            stranger.call("POST", body={"name": f"n-{new_id()}", "ip_address": address}),
            assign(database, address, tenant.org_id),
            return_exceptions=True,
        )
        assert (created.status_code == 201) != (given is None)


# ── Warm-up ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_warmup_of_the_first_day(tenant):
    today = datetime.now(UTC).date()
    vmta = await tenant.create(warmup=RAMP)
    status = await tenant.warmup(vmta)
    assert (status["enabled"], status["finished"], status["day"]) == (True, False, 1)
    assert status["started_at"] == vmta["warmup_started_at"]
    days = [str(today + timedelta(days=number)) for number in range(4)]
    assert status["schedule"] == [
        {"day": 1, "date": days[0], "cap_per_provider": 10},
        {"day": 2, "date": days[1], "cap_per_provider": 20},
        {"day": 3, "date": days[2], "cap_per_provider": 40},
    ]
    assert status["finishes_on"] == days[3]
    assert status["today"][0] == {
        "provider": "gmail",
        "day": 1,
        "cap": 10,
        "used": 0,
        "remaining": 10,
        "held_back": False,
        "reason": None,
        "finishes_on": days[3],
    }
    assert [one["provider"] for one in status["today"]] == ["gmail", "microsoft", "yahoo", "apple", "generic"]


async def test_a_warmup_that_is_held_back(tenant, database):
    today = datetime.now(UTC).date()
    vmta = await tenant.create(warmup=RAMP)
    await use(database, tenant.org_id, vmta["id"], today, "yahoo", taken=8, delivered=1500, complained=2)
    status = await tenant.warmup(vmta)
    yahoo = next(one for one in status["today"] if one["provider"] == "yahoo")
    assert (yahoo["cap"], yahoo["used"], yahoo["remaining"]) == (5, 8, 0)
    assert (yahoo["held_back"], yahoo["reason"]) == (True, "complaints")
    assert yahoo["finishes_on"] == status["finishes_on"] == str(today + timedelta(days=4))


async def test_no_warmup(tenant):
    for fields in ({}, {"warmup": {"enabled": False}}):
        status = await tenant.warmup(await tenant.create(**fields))
        assert status == {
            "enabled": False,
            "finished": False,
            "started_at": None,
            "day": None,
            "schedule": [],
            "today": [],
            "finishes_on": None,
        }


async def test_when_a_warmup_begins_and_begins_anew(tenant, database):
    vmta = await tenant.create(ip_address=new_address())
    begun = await tenant.update(vmta, warmup=RAMP)
    assert begun["warming_up"]
    started_at = begun["warmup_started_at"]

    assert (await tenant.update(vmta, warmup={**RAMP, "daily_limit": 50}))["warmup_started_at"] == started_at
    assert (await tenant.update(vmta, weight=2))["warmup_started_at"] == started_at

    moved = await tenant.update(vmta, ip_address=new_address())
    assert moved["warmup_started_at"] > started_at
    assert moved["warmup"]["daily_limit"] == 50

    off = await tenant.update(vmta, warmup={**RAMP, "enabled": False})
    assert (off["warming_up"], off["warmup_started_at"]) == (False, None)
    again = await tenant.update(vmta, warmup=RAMP)
    assert again["warmup_started_at"] > moved["warmup_started_at"]
    assert (await tenant.update(vmta, warmup=None))["warming_up"] is False


async def test_a_finished_warmup_stays_finished_until_it_is_changed(tenant, database):
    vmta = await tenant.create(ip_address=new_address(), warmup=RAMP)
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE vmtas SET warmup_finished_at = now() WHERE id = :id"), {"id": UUID(vmta["id"])}
        )
    assert (await tenant.get(vmta))["warming_up"] is False
    assert (await tenant.update(vmta, warmup=RAMP, weight=4))["warming_up"] is False
    assert (await tenant.update(vmta, warmup={**RAMP, "daily_limit": 80}))["warming_up"] is True
