"""The worker's task notices a vanished record, and its owner gets one mail by SMTP."""

import asyncio
import importlib
from datetime import UTC, datetime
from email import message_from_bytes, policy
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import update

from app.core.config import Settings
from app.core.db import Database
from app.delivery.engine import Engine
from app.domains.models import Domain
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.post_office import post_office, writing_from
from tests.factories.senders import new_domain, publish
from tests.smtpd import SmtpServer


async def test_the_owner_of_a_vanished_record_gets_one_mail(
    app: FastAPI,
    client: httpx.AsyncClient,
    database: Database,
    settings: Settings,
    dns: DnsServer,
    mx: SmtpServer,
    site: str,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
):
    account = await helpers.register(client, email=f"owner@{site}")
    created = await client.post("/api/v1/domains", json={"domain": new_domain("gone")}, headers=account.headers)
    domain = created.json()["data"]["domain"]
    publish(dns, domain)
    await client.post(f"/api/v1/domains/{domain['id']}/verify", headers=account.headers)
    required = domain["dns_records"][0]
    dns.remove(required["name"], "TXT")

    async with post_office(app, client, dns) as operator:
        monkeypatch.setattr(importlib.import_module("workers.app"), "settings", writing_from(settings, operator))
        tasks = importlib.import_module("workers.tasks")
        for _ in range(4):
            async with database.transaction() as session:
                # Other tests' domains are not looked at.
                await session.execute(update(Domain).values(next_check_at=None))
                mine = update(Domain).where(Domain.id == UUID(domain["id"]))
                await session.execute(mine.values(next_check_at=datetime.now(UTC)))
            await asyncio.to_thread(tasks.recheck_domains)
        engine.ring()
        (mail,) = await mx.mails_expected(1)
        await asyncio.sleep(0.5)
        assert mx.mail_count == 1
    notice = message_from_bytes(mail.content, policy=policy.default)
    assert mail.rcpt_to == f"owner@{site}"
    assert notice["Subject"] == f"The DKIM record of {domain['domain']} is missing"
    assert notice["From"].addresses[0].domain == operator.domain
    text = notice.get_content()
    assert required["zone_line"] in text
    shown = await client.get(f"/api/v1/domains/{domain['id']}", headers=account.headers)
    found = shown.json()["data"]["domain"]
    assert (found["status"], found["failing_since"] is not None) == ("verified", True)
