import asyncio
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from app.accounts.last_used import LAST_USED, LastUsed
from app.accounts.models import ApiKey
from app.core.db import Database
from app.core.ids import new_id
from tests.accounts.helpers import me, mint, register


async def last_used_at(database, key):
    async with database.transaction() as session:
        return await session.scalar(select(ApiKey.last_used_at).where(ApiKey.prefix == key["prefix"]))


async def test_uses_are_gathered_and_written_by_the_flush_alone(client, database):
    account = await register(client)
    used, secret = await mint(client, account.headers)
    unused, _ = await mint(client, account.headers)
    before = datetime.now(UTC)
    await me(client, {"X-API-Key": secret})
    await me(client, {"X-API-Key": secret})
    await LAST_USED.flush(database)
    written = await last_used_at(database, used)
    assert before <= written <= datetime.now(UTC)
    assert await last_used_at(database, unused) is None
    shown = await client.get(f"/api/v1/api-keys/{used['id']}", headers=account.headers)
    assert shown.json()["data"]["api_key"]["last_used_at"] is not None


async def test_an_older_note_of_another_process_does_not_turn_time_back(client, database):
    account = await register(client)
    key, secret = await mint(client, account.headers)
    slow = LastUsed()
    slow.note(account.org_id, key["id"])
    await asyncio.sleep(0.01)
    await me(client, {"X-API-Key": secret})
    await LAST_USED.flush(database)
    later = await last_used_at(database, key)
    await slow.flush(database)
    assert await last_used_at(database, key) == later


async def test_notes_survive_a_database_that_is_away(client, database, settings):
    account = await register(client)
    key, _ = await mint(client, account.headers)
    uses = LastUsed()
    uses.note(account.org_id, key["id"])
    nobody = Database(settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:9/none"}))
    await uses.flush(nobody)
    await nobody.close()
    assert await last_used_at(database, key) is None
    await uses.flush(database)
    assert await last_used_at(database, key) > datetime.now(UTC) - timedelta(minutes=1)


async def test_a_key_deleted_meanwhile_does_no_harm(client, database):
    account = await register(client)
    key, _ = await mint(client, account.headers)
    uses = LastUsed()
    uses.note(new_id(), new_id())
    uses.note(account.org_id, key["id"])
    await uses.flush(database)
    assert await last_used_at(database, key) is not None


async def test_stopping_writes_what_is_left(client, database):
    account = await register(client)
    key, _ = await mint(client, account.headers)
    uses = LastUsed()
    task = asyncio.create_task(uses.run(database))
    await asyncio.sleep(0)
    uses.note(account.org_id, key["id"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await last_used_at(database, key) is not None
