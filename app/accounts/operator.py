"""`postroad operator`: who runs the platform and whom it serves, from where the database is at hand."""

import argparse
import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from app.accounts import queries, service, suspension
from app.accounts.models import Organization
from app.accounts.schemas import RegisterBody, normalised_email
from app.core.config import get_settings
from app.core.db import Database
from app.core.errors import NotFound, PostroadError

_LISTED_MAX = 1000
_REASON_MAX_CHARACTERS = 500

Row = tuple[str, ...]
_USERS: Row = ("EMAIL", "NAME", "ORGANIZATION", "VERIFIED", "LAST LOG-IN")
_ORGANIZATIONS: Row = ("ID", "ORGANIZATION", "USERS", "CREATED", "STATE")


@dataclass(frozen=True, slots=True)
class Table:
    """What a command prints."""

    heading: Row
    rows: Sequence[Row]


async def create_operator(database: Database, *, email: str, password: str, name: str, organization_name: str) -> Row:
    """A user with the operator flag and a verified address, in an organization of their own.

    Raises pydantic.ValidationError and the errors of `service.register`.
    """
    body = RegisterBody(email=email, password=password, name=name, organization_name=organization_name)
    async with database.transaction() as session:
        organization, user = await service.register(
            session,
            email=body.email,
            password=body.password,
            name=body.name,
            organization_name=body.organization_name,
        )
        user.is_operator = True
        await session.flush()
        user = await service.verify_email(session, user.email)
        return user.email, user.name, organization.name, "yes", "never"


async def list_operators(database: Database) -> list[Row]:
    """The operators as rows of the table that is printed, oldest first, at most a thousand."""
    async with database.transaction() as session:
        found = await queries.operators(session, limit=_LISTED_MAX)
    return [
        (
            user.email,
            user.name,
            organization.name,
            "yes" if user.email_verified_at else "no",
            f"{user.last_login_at:%Y-%m-%dT%H:%M:%SZ}" if user.last_login_at else "never",
        )
        for user, organization in found
    ]


async def verify_email(database: Database, *, email: str) -> Row:
    """Take a user's address for verified, whoever they are. Raises NotFound, AddressError."""
    async with database.transaction() as session:
        user = await service.verify_email(session, normalised_email(email))
        organization = await queries.organization(session, user.org_id)
        last_login = f"{user.last_login_at:%Y-%m-%dT%H:%M:%SZ}" if user.last_login_at else "never"
        return user.email, user.name, organization.name, "yes", last_login


async def list_organizations(database: Database) -> list[Row]:
    """Organizations as rows of the table that is printed: the suspended first, then the newest, at most a thousand."""
    async with database.transaction() as session:
        found = await queries.organizations(session, limit=_LISTED_MAX)
    return [_organization_row(organization, users) for organization, users in found]


async def suspend(database: Database, id_or_name: str, *, reason: str) -> Row:
    """Suspend an organization. Raises ValueError and the errors of `suspension.suspend`."""
    reason = reason.strip()
    if not 0 < len(reason) <= _REASON_MAX_CHARACTERS or not reason.isprintable():
        raise ValueError(f"The reason is one line of 1 to {_REASON_MAX_CHARACTERS} characters: it is told to users.")
    async with database.transaction() as session:
        return _organization_row(await suspension.suspend(session, id_or_name, reason=reason))


async def resume(database: Database, id_or_name: str) -> Row:
    """End a suspension. Raises the errors of `suspension.resume`."""
    async with database.transaction() as session:
        return _organization_row(await suspension.resume(session, id_or_name))


def _organization_row(organization: Organization, users: int | None = None) -> Row:
    state = "active"
    if organization.suspended_at is not None:
        state = f"suspended {organization.suspended_at:%Y-%m-%dT%H:%M:%SZ}: {organization.suspension_reason}"
    count = "" if users is None else str(users)
    return str(organization.id), organization.name, count, f"{organization.created_at:%Y-%m-%d}", state


Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: Subparsers) -> Subparsers:
    """Add `operator create|list|verify-email|suspend|resume` to the command line; where other nouns add theirs."""
    parser = subparsers.add_parser("operator", help="make and list operators, verify addresses, suspend organizations")
    commands = parser.add_subparsers(dest="operator_command", required=True)
    create = commands.add_parser("create", help="make a user who may run the platform")
    create.add_argument("--email", required=True)
    create.add_argument("--password", help="asked for when left out, which keeps it out of the shell's history")
    create.add_argument("--name", required=True)
    create.add_argument("--organization", required=True)
    commands.add_parser("list", help="list operators, and organizations with their state")
    verify = commands.add_parser("verify-email", help="take a user's address for verified")
    verify.add_argument("email", metavar="EMAIL")
    suspending = commands.add_parser("suspend", help="let an organization read only, and hold its mail")
    suspending.add_argument("--reason", required=True, help="one line, which its people are told")
    resuming = commands.add_parser("resume", help="end a suspension; mail that waited is sent")
    for command in (suspending, resuming):
        command.add_argument("organization", metavar="ORGANIZATION", help="its id, or its exact name")
    return commands


def run(args: argparse.Namespace) -> int:
    """Do what the parsed command line asks for; the exit status."""
    return execute(_command(args))


def execute(command: Callable[[Database], Awaitable[Sequence[Table]]]) -> int:
    """Run a command on the database that the settings name, and print its tables; the exit status."""
    try:
        tables = asyncio.run(_with_database(command))
    except ValidationError as error:
        for flaw in error.errors():
            print(f"{'.'.join(map(str, flaw['loc']))}: {flaw['msg']}", file=sys.stderr)
        return 1
    except NotFound as error:
        what = "organization with this id or name" if "organization" in error.code else "user with this e-mail address"
        print(f"There is no {what}.", file=sys.stderr)
        return 1
    except SQLAlchemyError as error:
        # Its own text would show the statement with all its values.
        print(
            f"The database did not do it: {getattr(error, 'orig', None) or type(error).__name__}",
            file=sys.stderr,
        )
        return 1
    except (PostroadError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n\n".join(map(_lines, tables)))
    return 0


def _command(args: argparse.Namespace) -> Callable[[Database], Awaitable[Sequence[Table]]]:
    async def command(database: Database) -> Sequence[Table]:
        match args.operator_command:
            case "list":
                organizations = Table(_ORGANIZATIONS, await list_organizations(database))
                return [Table(_USERS, await list_operators(database)), organizations]
            case "verify-email":
                return [Table(_USERS, [await verify_email(database, email=args.email)])]
            case "suspend":
                return [Table(_ORGANIZATIONS, [await suspend(database, args.organization, reason=args.reason)])]
            case "resume":
                return [Table(_ORGANIZATIONS, [await resume(database, args.organization)])]
        created = await create_operator(
            database,
            email=args.email,
            password=args.password or getpass.getpass("Password: "),
            name=args.name,
            organization_name=args.organization,
        )
        return [Table(_USERS, [created])]

    return command


async def _with_database(command: Callable[[Database], Awaitable[Sequence[Table]]]) -> Sequence[Table]:
    database = Database(get_settings(), pool_size=1)
    try:
        return await command(database)
    finally:
        await database.close()


def _lines(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip(table.heading, *table.rows, strict=True)]
    rows = (table.heading, *table.rows)
    cells = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in cells)
