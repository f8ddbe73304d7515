"""`postroad operator address`: which organization may send from which source address."""

import argparse
from collections.abc import Awaitable, Callable, Sequence

from app.accounts import suspension
from app.accounts.operator import Row, Subparsers, Table, execute
from app.core.db import Database
from app.core.errors import NotFound
from app.vmtas import addresses, queries, service

_HEADING: Row = ("ADDRESS", "ORGANIZATION", "ID", "VMTAS", "SINCE")
_ALL = "(all)"


async def add_address(database: Database, ip_address: str, organization: str | None) -> Row:
    """Give an address to an organization (its id or exact name), None for all; its row of the table.

    Raises ValueError for what is no such address, and the errors of `suspension.find` and `service.assign_address`.
    """
    ip_address = _parse(ip_address)
    async with database.transaction() as session:
        owner = None if organization is None else await suspension.find(session, organization)
        await service.assign_address(session, ip_address, owner.id if owner else None)
    return (await list_addresses(database, ip_address))[0]


async def list_addresses(database: Database, ip_address: str | None = None) -> list[Row]:
    """The addresses that were given, or this one, as rows of the table that is printed, at most a thousand."""
    async with database.transaction() as session:
        found = await queries.assignments(session, ip_address)
    return [
        (
            one.ip_address,
            name or _ALL,
            str(one.org_id or ""),
            str(users),
            f"{one.created_at:%Y-%m-%d}",
        )
        for one, name, users in found
    ]


async def remove_address(database: Database, ip_address: str, *, force: bool) -> None:
    """Take an address back; with `force` even while it is used, and then its vMTAs are paused.

    Raises ValueError when it was not given, and the errors of `service.unassign_address`.
    """
    ip_address = _parse(ip_address)
    async with database.transaction() as session:
        try:
            await service.unassign_address(session, ip_address, pause_users=force)
        except NotFound as error:
            raise ValueError(f"{ip_address} has not been given to anybody.") from error


def add_parser(commands: Subparsers) -> None:
    """Add `address add|list|remove` to the operator's commands."""
    parser = commands.add_parser("address", help="say which organization may send from which source address")
    actions = parser.add_subparsers(dest="address_command", required=True)
    add = actions.add_parser("add", help="give an address to one organization, or to all")
    add.add_argument("address", metavar="ADDRESS")
    owner = add.add_mutually_exclusive_group(required=True)
    owner.add_argument("--organization", help="its id, or its exact name")
    owner.add_argument("--all", action="store_true", help="every organization may use it")
    actions.add_parser("list", help="list the addresses that were given")
    remove = actions.add_parser("remove", help="take an address back")
    remove.add_argument("address", metavar="ADDRESS")
    remove.add_argument("--force", action="store_true", help="also while vMTAs use it, which are paused then")


def run(args: argparse.Namespace) -> int:
    """Do what the parsed command line asks for; the exit status."""
    return execute(_command(args))


def _command(args: argparse.Namespace) -> Callable[[Database], Awaitable[Sequence[Table]]]:
    async def command(database: Database) -> Sequence[Table]:
        match args.address_command:
            case "add":
                return [Table(_HEADING, [await add_address(database, args.address, args.organization)])]
            case "remove":
                await remove_address(database, args.address, force=args.force)
        return [Table(_HEADING, await list_addresses(database))]

    return command


def _parse(text: str) -> str:
    try:
        return addresses.parse(text)
    except ValueError as error:
        raise ValueError(f"{text} {error}.") from error
