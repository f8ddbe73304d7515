"""The whole story over real DNS and SMTP: from registration to a password that ends old sessions."""

import asyncio
from collections.abc import AsyncIterator
from email import message_from_bytes, policy

import httpx
import pytest
from fastapi import FastAPI

from app.core.config import Settings
from app.delivery.engine import Engine
from tests.accounts.helpers import PASSWORD, assert_problem, log_in, me, mint, registration, token_in
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, new_domain, publish
from tests.mail.verifier import verdicts_by_dns
from tests.smtpd import SmtpServer

AUTH = "/api/v1/auth"
NEW = "an altogether new one"


@pytest.fixture
async def inbox(settings: Settings, dns: DnsServer) -> AsyncIterator[tuple[SmtpServer, str]]:
    """The mail host of everybody in this story, and their domain; with an engine at work."""
    site = new_domain("people")
    dns.add(site, "MX", f"10 mx.{site}.")
    dns.add(f"mx.{site}", "A", "127.0.0.2")
    engine = Engine(settings)
    running = asyncio.create_task(engine.run())
    async with SmtpServer("127.0.0.2", settings.outbound_smtp_port) as host:
        yield host, site
    engine.stop()
    await running


async def received(host: SmtpServer, email: str, subject: str) -> tuple[bytes, str]:
    """The mail of that subject that came to the address: its octets and its text."""
    async with asyncio.timeout(15):
        while True:
            for mail in reversed(host.mails_to(email)):
                parsed = message_from_bytes(mail.content, policy=policy.default)
                if parsed["subject"] == subject:
                    body = parsed.get_body(("plain",))
                    assert body is not None
                    return mail.content, body.get_content()
            await asyncio.sleep(0.05)


async def test_from_registration_to_a_new_password(
    client: httpx.AsyncClient,
    app: FastAPI,
    dns: DnsServer,
    post_office: Sender,
    inbox: tuple[SmtpServer, str],
) -> None:
    host, site = inbox
    before = app.state.settings
    app.state.settings = before.model_copy(update={"require_verified_email": True})
    try:
        owner = await _register_and_verify(client, dns, host, site, post_office)
        await _invite(client, host, site, owner)
        await _reset(client, host, f"ada@{site}", owner)
    finally:
        app.state.settings = before


async def _register_and_verify(
    client: httpx.AsyncClient, dns: DnsServer, host: SmtpServer, site: str, post_office: Sender
) -> dict[str, str]:
    """The owner's credentials, once their address and a domain of theirs are verified."""
    email = f"ada@{site}"
    body = registration(email=email, organization_name="Analytical Engines")
    registered = (await client.post(f"{AUTH}/register", json=body)).json()["data"]
    owner = {"Authorization": f"Bearer {registered['access_token']}"}
    content, text = await received(host, email, "Confirm your e-mail address")
    assert await asyncio.to_thread(verdicts_by_dns, content, dns) == [True, True]
    assert f"postroad@{post_office.domain}".encode() in content

    domain = (await client.post("/api/v1/domains", json={"domain": new_domain()}, headers=owner)).json()["data"]
    publish(dns, domain["domain"])
    await client.post(f"/api/v1/domains/{domain['domain']['id']}/verify", headers=owner)
    mail = {"from": f"a@{domain['domain']['domain']}", "to": email, "subject": "From my own domain", "text": "Yes."}
    refused = await client.post("/api/v1/messages/send", headers=owner, json=mail)
    assert_problem(refused, 403, "email_not_verified")
    verified = await client.post(f"{AUTH}/verify-email", json={"token": token_in(text)})
    assert verified.json()["data"]["user"]["email_verified"] is True
    assert (await client.post("/api/v1/messages/send", headers=owner, json=mail)).status_code == 202
    await received(host, email, "From my own domain")
    return owner


async def _invite(client: httpx.AsyncClient, host: SmtpServer, site: str, owner: dict[str, str]) -> None:
    """A second user joins, and is what they were invited to be until that changes."""
    email = f"charles@{site}"
    body = {"email": email, "role": "analyst"}
    assert (await client.post("/api/v1/users/invitations", headers=owner, json=body)).status_code == 201
    _, text = await received(host, email, "Invitation to join Analytical Engines")
    body = {"token": token_in(text), "name": "Charles Babbage", "password": PASSWORD}
    joined = (await client.post(f"{AUTH}/invitations/accept", json=body)).json()["data"]
    analyst = {"Authorization": f"Bearer {joined['access_token']}"}
    assert (joined["user"]["email_verified"], joined["user"]["role"]) == (True, "analyst")
    assert (await client.get("/api/v1/messages", headers=analyst)).status_code == 200
    for path in ("api-keys", "domains", "users"):
        assert_problem(await client.get(f"/api/v1/{path}", headers=analyst), 403, "insufficient_scope")
    path = f"/api/v1/users/{joined['user']['id']}/role"
    assert (await client.put(path, headers=owner, json={"role": "developer"})).status_code == 200
    await asyncio.sleep(2)
    key, _ = await mint(client, analyst)
    assert "users" not in key["scopes"]


async def _reset(client: httpx.AsyncClient, host: SmtpServer, email: str, owner: dict[str, str]) -> None:
    """A new password by mail ends what the old one had begun."""
    session = (await log_in(client, email)).json()["data"]
    assert (await client.post(f"{AUTH}/password/forgot", json={"email": email})).status_code == 202
    _, text = await received(host, email, "Choose a new password")
    body = {"token": token_in(text), "password": NEW}
    assert (await client.post(f"{AUTH}/password/reset", json=body)).status_code == 200
    ended = await client.post(f"{AUTH}/refresh", json={"refresh_token": session["refresh_token"]})
    assert_problem(ended, 401, "invalid_refresh_token")
    assert_problem(await log_in(client, email), 401, "invalid_credentials")
    assert (await log_in(client, email, NEW)).status_code == 200
    await asyncio.sleep(2)
    for headers in (owner, {"Authorization": f"Bearer {session['access_token']}"}):
        assert_problem(await me(client, headers), 401, "invalid_token")
