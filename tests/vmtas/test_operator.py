"""`postroad operator address`."""

import argparse
import asyncio

import pytest

from app.accounts import operator as accounts
from app.core.errors import Conflict, NotFound
from app.core.ids import new_id
from app.vmtas import operator
from tests.vmtas.house import new_address


async def test_add_list_remove(tenant, database):
    own, common = new_address(), new_address()
    row = await operator.add_address(database, own, str(tenant.org_id))
    assert row[:4] == (own, "Engines", str(tenant.org_id), "0")
    assert (await operator.add_address(database, common, None))[:4] == (common, "(all)", "", "0")
    await tenant.create(ip_address=own)
    listed = {row[0]: row for row in await operator.list_addresses(database)}
    assert listed[own][3] == "1"
    assert common in listed
    await operator.remove_address(database, common, force=False)
    assert common not in {row[0] for row in await operator.list_addresses(database)}
    with pytest.raises(ValueError, match="has not been given to anybody"):
        await operator.remove_address(database, common, force=True)


async def test_an_address_is_given_once(tenant, stranger, database):
    address = "2001:DB8::77"
    assert (await operator.add_address(database, address, str(tenant.org_id)))[0] == "2001:db8::77"
    for owner in (str(stranger.org_id), str(tenant.org_id), None):
        with pytest.raises(Conflict) as error:
            await operator.add_address(database, "2001:db8:0::77", owner)
        assert error.value.code == "address_assigned"


async def test_what_others_use_is_not_given_away(tenant, stranger, database):
    address = new_address()
    vmta = await stranger.create(ip_address=address)
    with pytest.raises(Conflict) as error:
        await operator.add_address(database, address, str(tenant.org_id))
    assert error.value.code == "address_in_use"
    assert str(stranger.org_id) in error.value.detail
    await operator.add_address(database, address, None)
    await operator.remove_address(database, address, force=True)
    assert (await stranger.get(vmta))["status"] == "paused"
    await operator.add_address(database, address, str(stranger.org_id))


async def test_what_is_used_is_taken_back_only_by_force(tenant, database):
    address = new_address()
    await operator.add_address(database, address, str(tenant.org_id))
    vmta = await tenant.create(ip_address=address)
    with pytest.raises(Conflict) as error:
        await operator.remove_address(database, address, force=False)
    assert error.value.code == "address_in_use"
    assert address in {row[0] for row in await operator.list_addresses(database)}
    assert (await tenant.get(vmta))["status"] == "active"


async def test_what_is_no_address_or_organization(database):
    for wrong in ("x", "0.0.0.0", "::ffff:1.2.3.4"):
        with pytest.raises(ValueError, match=r"must be .*\.$"):
            await operator.add_address(database, wrong, None)
    with pytest.raises(NotFound):
        await operator.add_address(database, new_address(), str(new_id()))


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    operator.add_parser(accounts.add_parser(parser.add_subparsers(required=True)))
    return operator.run(parser.parse_args(["operator", "address", *argv]))


async def test_the_command_line(tenant, database, capsys):
    address = new_address()
    assert await asyncio.to_thread(run, "add", address, "--organization", str(tenant.org_id)) == 0
    assert address in capsys.readouterr().out
    assert await asyncio.to_thread(run, "list") == 0
    assert str(tenant.org_id) in capsys.readouterr().out
    assert await asyncio.to_thread(run, "add", address, "--all") == 1
    assert "has been given already" in capsys.readouterr().err
    assert await asyncio.to_thread(run, "remove", address) == 0
    assert address not in capsys.readouterr().out
    assert await asyncio.to_thread(run, "remove", address) == 1
    assert "has not been given to anybody" in capsys.readouterr().err
    assert await asyncio.to_thread(run, "add", new_address(), "--organization", "no such organization") == 1
    assert "no organization" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("add", address)
