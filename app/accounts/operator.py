"""`postroad operator`: the people who run the platform, made and listed where the database is at hand."""

import argparse
import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable, Sequence

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from app.accounts import queries, service
from app.accounts.schemas import RegisterBody, normalised_email
from app.core.config import get_settings
from app.core.db import Database
from app.core.errors import NotFound, PostroadError

_LISTED_MAX = 1000

Row = tuple[str, ...]
_HEADING: Row = ("EMAIL", "NAME", "ORGANIZATION", "VERIFIED", "LAST LOG-IN")


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


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `operator create|list|verify-email` to the command line."""
    parser = subparsers.add_parser("operator", help="make and list operators, verify addresses")
    commands = parser.add_subparsers(dest="operator_command", required=True)
    create = commands.add_parser("create", help="make a user who may run the platform")
    create.add_argument("--email", required=True)
    create.add_argument("--password", help="asked for when left out, which keeps it out of the shell's history")
    create.add_argument("--name", required=True)
    create.add_argument("--organization", required=True)
    commands.add_parser("list", help="list the operators")
    verify = commands.add_parser("verify-email", help="take a user's address for verified")
    verify.add_argument("email", metavar="EMAIL")


def run(args: argparse.Namespace) -> int:
    """Do what the parsed command line asks for; the exit status."""
    try:
        rows = asyncio.run(_with_database(_command(args)))
    except ValidationError as error:
        for flaw in error.errors():
            print(f"{'.'.join(map(str, flaw['loc']))}: {flaw['msg']}", file=sys.stderr)
        return 1
    except NotFound:
        print("There is no user with this e-mail address.", file=sys.stderr)
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
    _print_table(rows)
    return 0


def _command(args: argparse.Namespace) -> Callable[[Database], Awaitable[Sequence[Row]]]:
    async def command(database: Database) -> Sequence[Row]:
        if args.operator_command == "list":
            return await list_operators(database)
        if args.operator_command == "verify-email":
            return [await verify_email(database, email=args.email)]
        created = await create_operator(
            database,
            email=args.email,
            password=args.password or getpass.getpass("Password: "),
            name=args.name,
            organization_name=args.organization,
        )
        return [created]

    return command


async def _with_database(command: Callable[[Database], Awaitable[Sequence[Row]]]) -> Sequence[Row]:
    database = Database(get_settings(), pool_size=1)
    try:
        return await command(database)
    finally:
        await database.close()


def _print_table(rows: Sequence[Row]) -> None:
    widths = [max(map(len, column)) for column in zip(_HEADING, *rows, strict=True)]
    for row in (_HEADING, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
