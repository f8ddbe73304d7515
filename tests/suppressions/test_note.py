"""What is learnt of addresses: noted once, whoever tells it, and whom it stops."""

import asyncio

from app.core.db import Database
from app.core.ids import new_id
from app.suppressions.service import Asked, Entry, find, find_within, note
from tests.suppressions.helpers import Keeper


async def test_it_is_noted_once(keeper: Keeper, stranger: Keeper, database: Database) -> None:
    org_id, message_id = keeper.org_id, new_id()
    entries = [
        Entry(org_id, "a@example.com", "complaint", message_id=message_id, detail="x" * 2000),
        Entry(org_id, "a@example.com", "manual"),
        Entry(org_id, "a@example.com", "unsubscribe", tag="news"),
        Entry(stranger.org_id, "a@example.com", "hard_bounce"),
    ]
    async with database.bare() as connection:
        await note(connection, [])
        await note(connection, entries)
        await note(
            connection, [Entry(org_id, "a@example.com", "hard_bounce"), Entry(org_id, "b@example.com", "manual")]
        )
    second, tagged, first = (await keeper.get())["suppressions"]
    assert (second["address"], tagged["tag"], tagged["reason"]) == ("b@example.com", "news", "unsubscribe")
    assert (first["reason"], first["message_id"], first["detail"]) == ("complaint", str(message_id), "x" * 1000)
    assert [one["reason"] for one in (await stranger.get())["suppressions"]] == ["hard_bounce"]


async def test_those_who_note_the_same_in_different_orders_do_not_block_each_other(
    keeper: Keeper, database: Database
) -> None:
    org_id = keeper.org_id
    entries = [Entry(org_id, f"u{number}@example.com", "manual") for number in range(200)]

    async def tell(order: int) -> None:
        async with database.bare() as connection, connection.transaction():
            await note(connection, entries[::order])

    bulk = {"suppressions": [{"address": one.address} for one in reversed(entries)]}
    await asyncio.gather(*(tell(order) for order in (1, -1, 1, -1)), keeper.post(bulk, "/bulk"))
    assert len((await keeper.get(limit=100))["suppressions"]) == 100


async def test_whom_it_stops(keeper: Keeper, stranger: Keeper, database: Database) -> None:
    org_id = keeper.org_id
    entries = [
        Entry(org_id, "all@example.com", "unsubscribe"),
        Entry(org_id, "news@example.com", "complaint", tag="news"),
        Entry(org_id, "both@example.com", "hard_bounce", tag="news"),
        Entry(org_id, "both@example.com", "manual"),
        Entry(org_id, "gone@example.com", "hard_bounce"),
    ]
    async with database.bare() as connection:
        await note(connection, entries)
        asked = {
            "all": Asked(org_id, "All@example.com", []),
            "plain": Asked(org_id, "news@example.com", ["sale"]),
            "news": Asked(org_id, "news@example.com", ["sale", "news"]),
            "both": Asked(org_id, "both@example.com", ["news"]),
            "nobody": Asked(org_id, "nobody@example.com", ["news"]),
            "theirs": Asked(stranger.org_id, "all@example.com", []),
            "notice": Asked(org_id, "all@example.com", [], is_notice=True),
            "notice to both": Asked(org_id, "both@example.com", ["news"], is_notice=True),
            "notice to gone": Asked(org_id, "gone@example.com", [], is_notice=True),
        }
        found = await find(connection, asked)
        assert await find(connection, {}) == {}
    expected = {
        "all": ("unsubscribe", ""),
        "news": ("complaint", "news"),
        "both": ("manual", ""),
        "notice to both": ("hard_bounce", "news"),
        "notice to gone": ("hard_bounce", ""),
    }
    assert {key: (one.reason, one.tag) for key, one in found.items()} == expected
    async with database.transaction() as session:
        assert await find_within(session, asked) == found
        assert await find_within(session, {}) == {}
