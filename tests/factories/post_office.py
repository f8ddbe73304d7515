"""Postroad's own mail: an operator with a domain proven by DNS, and the application set up to write from it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI
from sqlalchemy import text

from app.core.config import Settings
from app.core.db import Database
from app.messages.notices import SystemMailer
from tests.dnsd import DnsServer
from tests.factories.senders import Sender, make_sender


@asynccontextmanager
async def post_office(app: FastAPI, client: httpx.AsyncClient, dns: DnsServer) -> AsyncIterator[Sender]:
    """While it is open, the application mails its users; the operator's organization that it does so from."""
    operator = await make_sender(client, dns)
    database: Database = app.state.database
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE users SET is_operator = true WHERE org_id = :org_id"), {"org_id": operator.org_id}
        )
    before = app.state.mailer
    app.state.mailer = SystemMailer(writing_from(app.state.settings, operator), app.state.doorbell.ring)
    try:
        yield operator
    finally:
        app.state.mailer = before
        # Later tests count operators, and their engines should not meet this mail.
        async with database.transaction() as session:
            for statement in (
                "UPDATE users SET is_operator = false WHERE org_id = :org_id",
                "DELETE FROM delivery_queue WHERE org_id = :org_id",
            ):
                await session.execute(text(statement), {"org_id": operator.org_id})


def writing_from(settings: Settings, operator: Sender) -> Settings:
    """Settings with the operator's domain as that of Postroad's own mail."""
    return settings.model_copy(update={"system_mail_from": f"Postroad <postroad@{operator.domain}>"})
