"""`postroad run` for real, as a process: to "ready", a first mail, Ctrl-C, and once more with the data kept."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from standardwebhooks import Webhook

from tests.accounts.helpers import token_in
from tests.dnsd import DnsServer
from tests.local import harness
from tests.local.harness import Command
from tests.smtpd import SmtpServer
from tests.webhooks.receiver import Receiver

DELIVERY_TIMEOUT_SECONDS = 60


@pytest.fixture
def directory() -> Iterator[Path]:
    with harness.data_directory() as path:
        yield path


@pytest.fixture
async def commands() -> AsyncIterator[list[Command]]:
    """What a test started, ended with it."""
    started: list[Command] = []
    yield started
    for command in started:
        await command.kill_if_alive()


async def run(directory: Path, commands: list[Command], port: int, **settings: str) -> dict[str, str]:
    """`postroad run` until it is ready; the credentials it wrote."""
    command = await harness.start(directory, "run", HTTP_PORT=str(port), WORKER_PROCESSES="1", **settings)
    commands.append(command)
    await command.wait_for(r"\bready\b")
    credentials: dict[str, str] = json.loads((directory / ".data" / "dev-credentials.json").read_text())
    return credentials


async def send(credentials: dict[str, str], to: str, subject: str = "First mail", **fields: Any) -> str:
    body = {"from": credentials["from"], "to": [to], "subject": subject, "text": "hello", **fields}
    headers = {"X-API-Key": credentials["api_key"]}
    async with httpx.AsyncClient(base_url=credentials["base_url"], headers=headers, timeout=30) as client:
        answer = await client.post("/api/v1/messages/send", json=body)
    assert answer.status_code == 202, answer.text
    message_id: str = answer.json()["data"]["message"]["id"]
    return message_id


async def status_of(credentials: dict[str, str], message_id: str, *awaited: str) -> str:
    """The message's status once it is one of the awaited."""
    headers = {"X-API-Key": credentials["api_key"]}
    async with httpx.AsyncClient(base_url=credentials["base_url"], headers=headers, timeout=30) as client:
        async with asyncio.timeout(DELIVERY_TIMEOUT_SECONDS):
            while True:
                answer = await client.get(f"/api/v1/messages/{message_id}")
                status: str = answer.json()["data"]["message"]["status"]
                if status in awaited:
                    return status
                await asyncio.sleep(0.2)


async def mailbox(credentials: dict[str, str]) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=credentials["base_url"], timeout=60) as client:
        messages: list[dict[str, Any]] = (await client.get("/local/mailbox.json")).json()["messages"]
        return messages


async def be_told(credentials: dict[str, str]) -> None:
    """A developer's own server hears of a mail by a webhook."""
    headers = {"X-API-Key": credentials["api_key"]}
    async with Receiver() as receiver, httpx.AsyncClient(base_url=credentials["base_url"], headers=headers) as client:
        body = {"url": receiver.url("/hook", "localhost"), "events": ["message.sent", "message.delivered"]}
        created = await client.post("/api/v1/webhooks", json=body)
        assert created.status_code == 201, created.text
        data = created.json()["data"]
        message_id = await send(credentials, "ada@example.com", "Told of")
        for received in await receiver.reach(2, timeout_seconds=DELIVERY_TIMEOUT_SECONDS):
            payload = Webhook(data["secret"]).verify(received.body, received.headers)
            assert payload["data"]["message_id"] == message_id
        assert (await client.delete(f"/api/v1/webhooks/{data['webhook']['id']}")).status_code == 204


async def register_and_verify(credentials: dict[str, str]) -> None:
    """A new user's verification mail lands in the local mailbox, and its token is good."""
    body = {"email": "ada@example.com", "password": "correct horse battery staple", "name": "Ada"}
    async with httpx.AsyncClient(base_url=credentials["base_url"], timeout=60) as client:
        registered = await client.post("/api/v1/auth/register", json=body | {"organization_name": "Engines"})
        assert registered.status_code == 201, registered.text
        async with asyncio.timeout(DELIVERY_TIMEOUT_SECONDS):
            while not (mails := await mailbox(credentials)):
                await asyncio.sleep(0.2)
        assert mails[0]["subject"] == "Confirm your e-mail address"
        assert [one["result"] for one in mails[0]["dkim"]] == ["pass", "pass"]
        source = (await client.get(f"/local/mailbox/{mails[0]['id']}.eml")).content
        received = message_from_bytes(source, policy=policy.default).get_body(("plain",))
        assert received is not None
        verified = await client.post("/api/v1/auth/verify-email", json={"token": token_in(received.get_content())})
        assert verified.json()["data"]["user"]["email_verified"] is True


def children_of(command: Command) -> dict[str, psutil.Process]:
    """The children of a running stack by the command that each of them is."""
    children = psutil.Process(command.process.pid).children()
    return {child.cmdline()[3]: child for child in children if child.cmdline()[1:3] == ["-m", "app.cli"]}


def processes_of(directory: Path) -> list[psutil.Process]:
    """Every process that works in the test's directory, or has it on its command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(directory) in " ".join([process.cwd(), *process.cmdline()]):
                found.append(process)
        except psutil.Error:
            continue
    return found


async def test_first_mail_then_ctrl_c_then_everything_is_still_there(directory: Path, commands: list[Command]) -> None:
    port = harness.free_port()
    credentials = await run(directory, commands, port)
    assert credentials["base_url"] == f"http://127.0.0.1:{port}"
    last_lines = [line for line in commands[0].lines if line.startswith("postroad|")][-6:]
    assert last_lines[-1].endswith("ready; Ctrl-C stops everything")
    for shown in (f":{port}/api/v1", f":{port}/docs", f":{port}/local/mailbox", "dev-credentials.json"):
        assert any(shown in line for line in last_lines), shown
    message_id = await send(credentials, "Ada <ada@example.com>", "Grüße", html="<p>hi</p>")
    assert await status_of(credentials, message_id, "delivered", "failed", "hard_bounced") == "delivered"
    (mail,) = await mailbox(credentials)
    assert mail["subject"] == "Grüße"
    assert mail["rcpt_to"] == ["ada@example.com"]
    assert mail["tls"] == "TLSv1.3"
    assert [one["result"] for one in mail["dkim"]] == ["pass", "pass"], mail["dkim"]
    await be_told(credentials)
    bounced = await send(credentials, "bounce@example.com")
    nowhere = await send(credentials, "ada@nowhere.invalid")
    deferred = await send(credentials, "defer@example.com")
    assert await status_of(credentials, bounced, "hard_bounced", "delivered") == "hard_bounced"
    assert await status_of(credentials, nowhere, "hard_bounced", "delivered") == "hard_bounced"
    assert await status_of(credentials, deferred, "deferred", "delivered") == "deferred"
    secret = (directory / ".data" / "secret_key").read_text()

    commands[0].press_ctrl_c()
    assert await commands[0].ended() == 0, commands[0].output
    assert commands[0].lines[-1] == "postroad| stopped"
    assert "Traceback" not in commands[0].output
    assert processes_of(directory) == []

    again = await run(directory, commands, port)
    assert again == credentials
    assert (directory / ".data" / "secret_key").read_text() == secret
    assert await status_of(again, message_id, "delivered") == "delivered"
    assert [mail["subject"] for mail in await mailbox(again)] == ["Told of", "Grüße"]
    await status_of(again, await send(again, "ada@example.com", "Second"), "delivered")
    assert [one["result"] for one in (await mailbox(again))[0]["dkim"]] == ["pass", "pass"]
    # These are taken, and come back a moment later.
    late, disliked = await send(again, "latebounce@example.com"), await send(again, "complain@example.com")
    assert await status_of(again, late, "hard_bounced") == "hard_bounced"
    assert await status_of(again, disliked, "complained") == "complained"
    commands[1].process.terminate()
    assert await commands[1].ended() == 0, commands[1].output
    assert processes_of(directory) == []


async def test_domains_verify_by_look_up_and_only_one_stack_runs(directory: Path, commands: list[Command]) -> None:
    credentials = await run(directory, commands, harness.free_port())
    headers = {"X-API-Key": credentials["api_key"]}
    async with httpx.AsyncClient(base_url=credentials["base_url"], headers=headers, timeout=30) as client:
        created = (await client.post("/api/v1/domains", json={"domain": "shop.example"})).json()["data"]["domain"]
        verified = await client.post(f"/api/v1/domains/{created['id']}/verify")
    assert verified.json()["data"]["domain"]["status"] == "verified"
    await register_and_verify(credentials)

    other = await harness.start(directory, "run", HTTP_PORT=str(harness.free_port()))
    commands.append(other)
    assert await other.ended(60) == 1
    assert other.lines == [
        f"postroad: Postroad is running with DATA_DIR {directory / '.data'} already; stop it, or set another DATA_DIR."
    ]


async def test_a_child_that_dies_is_started_again_and_a_killed_supervisor_leaves_none_behind(
    directory: Path, commands: list[Command]
) -> None:
    port = harness.free_port()
    credentials = await run(directory, commands, port)
    children = children_of(commands[0])
    assert children.keys() == {"api", "worker", "inbound", "webhooks", "beat", "mailbox"}
    children["worker"].kill()
    children["mailbox"].kill()
    await commands[0].wait_for(r"worker ended with status -9; starting it again", 30)
    message_id = await send(credentials, "ada@example.com")
    await status_of(credentials, message_id, "delivered")

    os.kill(commands[0].process.pid, signal.SIGKILL)
    await commands[0].process.wait()
    deadline = time.monotonic() + 60
    while any("python" in process.name() for process in processes_of(directory)):
        assert time.monotonic() < deadline, processes_of(directory)
        await asyncio.sleep(0.2)
    again = await run(directory, commands, port)
    assert again == credentials
    assert await status_of(again, message_id, "delivered") == "delivered"
    commands[1].press_ctrl_c()
    assert await commands[1].ended() == 0, commands[1].output
    assert processes_of(directory) == []


async def test_with_nameservers_set_delivery_is_real(directory: Path, commands: list[Command]) -> None:
    async with DnsServer() as dns, SmtpServer("127.0.0.1") as host:
        dns.add("example.com", "MX", "10 mx.example.com.")
        dns.add("mx.example.com", "A", "127.0.0.1")
        settings = {"DNS_NAMESERVERS": dns.setting, "OUTBOUND_SMTP_PORT": str(host.port)}
        credentials = await run(directory, commands, harness.free_port(), **settings)
        message_id = await send(credentials, "ada@example.com")
        await status_of(credentials, message_id, "delivered")
        assert await mailbox(credentials) == []
        assert children_of(commands[0]).keys() == {"api", "worker", "inbound", "webhooks", "beat"}
        assert len(host.mails) == 1
        commands[0].press_ctrl_c()
        assert await commands[0].ended() == 0, commands[0].output


async def test_ctrl_c_while_it_starts_stops_it_too(directory: Path, commands: list[Command]) -> None:
    command = await harness.start(directory, "run", HTTP_PORT=str(harness.free_port()))
    commands.append(command)
    await command.wait_for("data in")
    command.press_ctrl_c()
    assert await command.ended() == 0, command.output
    assert "Traceback" not in command.output
    assert processes_of(directory) == []
