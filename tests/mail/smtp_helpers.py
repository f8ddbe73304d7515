"""What the tests of the SMTP client share."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.mail.smtp import (
    Connection,
    Envelope,
    Timeouts,
    Transmission,
)
from tests.smtpd import DEFAULT_EXTENSIONS, SmtpServer

TIMEOUTS = Timeouts(**{field.name: 0.25 for field in dataclasses.fields(Timeouts)})
PATIENT = Timeouts(**{field.name: 5 for field in dataclasses.fields(Timeouts)})
ENVELOPE = Envelope("a@sender.test", "b@x.test")
CONTENT = b"Subject: hi\r\n\r\nHello\r\n"
LARGE = b"Subject: large\r\n\r\n" + (b"x" * 76 + b"\r\n") * 200_000
UNPIPELINED = tuple(name for name in DEFAULT_EXTENSIONS if name != "PIPELINING")


def yes() -> bool:
    return True


@contextlib.asynccontextmanager
async def connected(server: SmtpServer, timeouts: Timeouts = PATIENT, **options: Any) -> AsyncIterator[Connection]:
    connection = await Connection.open(
        "mx.test", server.host, server.port, ehlo_name="out.sender.test", timeouts=timeouts, **options
    )
    try:
        yield connection
    finally:
        connection.abort()


async def send(
    connection: Connection, envelope: Envelope = ENVELOPE, content: bytes = CONTENT, before: Callable[[], bool] = yes
) -> Transmission:
    return await connection.transmit(envelope, content, before_content=before)


@pytest.fixture
async def server() -> AsyncIterator[SmtpServer]:
    async with SmtpServer() as server:
        yield server


@pytest.fixture(params=[True, False], ids=["pipelined", "one by one"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[SmtpServer]:
    """A host with and one without PIPELINING."""
    async with SmtpServer(extensions=DEFAULT_EXTENSIONS if request.param else UNPIPELINED) as server:
        yield server
