"""A suspended organization: it reads, changes nothing, and its mail waits."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from app.accounts import operator
from app.core.errors import Conflict, NotFound
from app.core.ids import new_id
from app.delivery.engine import Engine
from tests.accounts.helpers import PASSWORD, assert_problem, log_in, me, mint, register
from tests.accounts.test_operator import run
from tests.factories.senders import make_sender, new_domain
from tests.smtpd import SmtpServer

REASON = "Complaints above 0.5 %"


async def test_it_reads_and_changes_nothing_in_any_process_and_all_is_well_after(client, database, dns, neighbour):
    sender = await make_sender(client, dns)
    everywhere = [(process, headers) for process in (client, neighbour) for headers in (sender.user, sender.key)]
    for process, headers in everywhere:
        assert (await me(process, headers)).json()["data"]["organization"]["suspended_at"] is None
    await operator.suspend(database, str(sender.org_id), reason=REASON)
    await asyncio.sleep(2)
    for process, headers in everywhere:
        refusals = [
            await process.post("/api/v1/messages/send", headers=headers, json=sender.mail("a@b.example")),
            await process.post("/api/v1/domains", headers=headers, json={"domain": "x.example"}),
            await process.delete(f"/api/v1/domains/{sender.domain_id}", headers=headers),
            await process.post("/api/v1/api-keys", headers=headers, json={"name": "k"}),
        ]
        for refusal in refusals:
            assert_problem(refusal, 403, "organization_suspended")
            assert REASON in refusal.json()["detail"]
        for path in ("messages", "domains", "api-keys", "users", "auth/me"):
            assert (await process.get(f"/api/v1/{path}", headers=headers)).status_code == 200
        organization = (await me(process, headers)).json()["data"]["organization"]
        assert organization["suspension_reason"] == REASON
        assert organization["suspended_at"].endswith("Z")
    await operator.resume(database, str(sender.org_id))
    await asyncio.sleep(2)
    for process, headers in everywhere:
        sent = await process.post("/api/v1/messages/send", headers=headers, json=sender.mail("a@nowhere.invalid"))
        assert sent.status_code == 202, sent.text
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM delivery_queue WHERE org_id = :id"), {"id": sender.org_id})


async def test_its_people_still_log_in_and_bystanders_notice_nothing(client, database):
    account, bystander = await register(client), await register(client)
    await operator.suspend(database, str(account.org_id), reason=REASON)
    answer = await log_in(client, account.email)
    assert answer.json()["data"]["organization"]["suspension_reason"] == REASON
    await mint(client, bystander.headers)


async def test_invitations_into_it_wait(client, database):
    account = await register(client)
    async with database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO invitations (org_id, id, email, role, token_hash, expires_at) "
                "VALUES (:org_id, :id, :email, 'analyst', sha256('t'), now() + interval '1 day')"
            ),
            {"org_id": account.org_id, "id": new_id(), "email": "invited@example.com"},
        )
    await operator.suspend(database, str(account.org_id), reason=REASON)
    body = {"token": "t", "name": "Charles", "password": PASSWORD}
    refused = await client.post("/api/v1/auth/invitations/accept", json=body)
    assert_problem(refused, 403, "organization_suspended")
    await operator.resume(database, str(account.org_id))
    assert (await client.post("/api/v1/auth/invitations/accept", json=body)).status_code == 201


async def test_its_mail_waits_and_goes_out_after_unless_it_has_expired(client, database, dns, settings):
    sender, other = await make_sender(client, dns), await make_sender(client, dns)
    site = new_domain("site")
    dns.add(site, "MX", f"10 mx.{site}.")
    dns.add(f"mx.{site}", "A", "127.0.0.2")
    soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    waits = await sender.send(f"waits@{site}")
    expires = await sender.send(f"expires@{site}", expires_at=soon)
    await operator.suspend(database, str(sender.org_id), reason=REASON)
    engine = Engine(settings)
    running = asyncio.create_task(engine.run())
    try:
        async with SmtpServer("127.0.0.2", settings.outbound_smtp_port) as mx:
            await other.send(f"other@{site}")
            await mx.mails_expected(1)
            await asyncio.sleep(2)
            assert [mail.rcpt_to for mail in mx.mails] == [f"other@{site}"]
            assert (await sender.message(waits))["status"] == "queued"
            health = (await client.get("/health")).json()["data"]["health"]["checks"]["queue"]
            assert health["detail"].startswith("0 due, ")
            await operator.resume(database, str(sender.org_id))
            await mx.mails_expected(2)
            assert [mail.rcpt_to for mail in mx.mails] == [f"other@{site}", f"waits@{site}"]
            async with asyncio.timeout(10):
                while (await sender.message(expires))["status"] != "failed":
                    await asyncio.sleep(0.05)
        assert (await sender.events(expires))[-1]["reason"] == "expired"
    finally:
        engine.stop()
        await running


async def test_by_name_when_one_has_it(client, database):
    name = f"Engines {new_id()}"
    account = await register(client, organization_name=name)
    row = await operator.suspend(database, name, reason=REASON)
    assert row[0] == str(account.org_id)
    assert row[-1].startswith("suspended 2")
    assert row[-1].endswith(REASON)
    assert (await operator.list_organizations(database))[0][-1].startswith("suspended")
    again = await operator.suspend(database, name, reason="Another reason")
    assert again[-1].endswith("Another reason")
    assert (await operator.resume(database, name))[-1] == "active"
    twin = await register(client, organization_name=name)
    with pytest.raises(Conflict, match=str(twin.org_id)):
        await operator.suspend(database, name, reason=REASON)
    for unknown in (str(new_id()), "nobody's name"):
        with pytest.raises(NotFound):
            await operator.resume(database, unknown)
    for bad in ("", " ", "two\nlines", "x" * 501):
        with pytest.raises(ValueError, match="The reason is one line"):
            await operator.suspend(database, str(twin.org_id), reason=bad)


async def test_the_command_line(client, capsys):
    account = await register(client)
    org_id = str(account.org_id)
    reason = f"Reason {org_id}"
    assert await asyncio.to_thread(run, "suspend", org_id, "--reason", reason) == 0
    assert await asyncio.to_thread(run, "list") == 0
    out = capsys.readouterr().out
    assert out.count(reason) == 2
    assert "LAST LOG-IN" in out
    assert await asyncio.to_thread(run, "resume", org_id) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == "active"
    assert await asyncio.to_thread(run, "resume", str(new_id())) == 1
    assert "no organization" in capsys.readouterr().err
