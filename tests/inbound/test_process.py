"""`postroad inbound` as a process of its own: killed, stopped, started again."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text

from app.core.db import Database
from tests.factories.senders import Sender
from tests.inbound.house import copies, dsn, mail_of, read, reason, state
from tests.inbound.wire import greeted, hand_in, offer
from tests.local import harness


@asynccontextmanager
async def running(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, once it listens; killed at the end if it still lives."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "app.cli", "inbound"),
        env=os.environ | {"INBOUND_SMTP_PORT": str(port), "LEASE_SECONDS": "1"},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    assert process.returncode is None, await process.communicate()
                    await asyncio.sleep(0.05)
        writer.close()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_killed_between_the_250_and_what_follows(sender: Sender, database: Database) -> None:
    port = harness.free_port()
    (copy,) = await copies(database, sender)
    async with running(port) as process, database.transaction() as session:
        # Whoever reads the report has to wait for the copy.
        lock = text("SELECT FROM deliveries WHERE org_id = :org AND id = :id FOR UPDATE")
        await session.execute(lock, {"org": copy.org_id, "id": copy.id})
        reply = await hand_in(port, copy.return_path, dsn(copy.recipient))
        async with asyncio.timeout(10):
            while (await mail_of(database, reply))["lease_token"] is None:
                await asyncio.sleep(0.02)
        process.kill()
        await process.wait()
    assert (await mail_of(database, reply))["verdict"] is None
    assert await state(database, copy) == ("delivered", [])
    async with running(port) as process:
        assert await read(database, reply) == ("failure", "applied")
        assert await state(database, copy) == ("hard_bounced", ["hard_bounced"])
        assert await reason(database, copy) == "hard_bounce"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_stopped_while_a_mail_is_coming_it_takes_that_one_still(sender: Sender, database: Database) -> None:
    port = harness.free_port()
    (copy,) = await copies(database, sender)
    content = dsn(copy.recipient)
    async with running(port) as process, greeted(port) as wire:
        await offer(wire, copy.return_path)
        wire.writer.write(content[:300])
        await wire.writer.drain()
        # It has what was said so far when it answers another.
        async with greeted(port) as other:
            await other.ask("NOOP")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                except OSError:
                    break
        reply = await wire.say(content[300:] + b".\r\n")
        assert reply.startswith("250 ")
        assert await asyncio.wait_for(process.wait(), 20) == 0
    assert (await mail_of(database, reply))["recipients"] == [copy.return_path]


async def test_a_port_that_cannot_be_had_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "app.cli", "inbound"),
            env=os.environ | {"INBOUND_SMTP_PORT": port},
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert said.decode().startswith(f"postroad: INBOUND_SMTP_HOST 127.0.0.1, INBOUND_SMTP_PORT {port}: ")
    assert len(said.decode().splitlines()) == 1
