"""The corpus of mails that come back, each about a copy of its own: the right copy hears of it, and no other."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from app.core.db import Database
from app.inbound import judge, queries
from app.mail.report import read as read_report
from app.mail.reported import Kind
from tests.factories.senders import Sender
from tests.inbound.house import PLATFORM, Copy, copies, event, read, state
from tests.inbound.wire import greeted, offer
from tests.mail.mails import DELIVERY, LOCAL, ORG, Wanted, corpus

CORPUS = corpus()
_A_MESSAGE = 50
_TOLD = {"failure": "hard_bounced", "delay": "deferred", "complaint": "complained"}


def recipient(wanted: Wanted) -> str:
    """To whom the copy went that a mail is about: the first that it speaks of, by the name that we know."""
    for line in wanted.recipients:
        address, *words = line.split()[1:]
        known = [word.removeprefix("original=") for word in words if word.startswith("original=")]
        if known or address != "-":
            return known[0] if known else address
    return "user@example.org"


@pytest.fixture
async def about(sender: Sender, database: Database) -> list[Copy]:
    """A copy for each mail."""
    found: list[Copy] = []
    while len(found) < len(CORPUS):
        found += await copies(database, sender, _A_MESSAGE)
    found = [replace(copy, recipient=recipient(wanted)) for copy, wanted in zip(found, CORPUS, strict=False)]
    async with database.transaction() as session:
        for copy in found:
            await session.execute(
                text("UPDATE deliveries SET recipient = :recipient WHERE org_id = :org AND id = :id"),
                {"org": copy.org_id, "id": copy.id, "recipient": copy.recipient},
            )
    return found


@pytest.mark.parametrize("to", ["the return path", "a report address"])
async def test_each_mail_bears_on_its_own_copy(port: int, about: list[Copy], database: Database, to: str) -> None:
    replies = []
    for begin in range(0, len(CORPUS), _A_MESSAGE):
        # Other tests' mails of this minute come from another client.
        async with greeted(port, source="127.0.8.1" if to == "the return path" else "127.0.8.2") as wire:
            for wanted, copy in list(zip(CORPUS, about, strict=True))[begin : begin + _A_MESSAGE]:
                await offer(wire, copy.return_path if to == "the return path" else f"abuse@{PLATFORM}")
                # As it would be had it been sent for this copy; where it stands encoded, it stays that of nobody.
                content = wanted.octets.replace(LOCAL.encode(), copy.local.encode())
                replies.append(await wire.say(content.replace(b"\r\n.", b"\r\n..") + b".\r\n"))
    applied = 0
    for wanted, copy, reply in zip(CORPUS, about, replies, strict=True):
        kind, verdict = await read(database, reply)
        assert kind == wanted.said["expect"], wanted.name
        told = _TOLD.get(kind)
        if told is None or (verdict == "unproven" and to != "the return path"):
            assert await state(database, copy) == ("delivered", []), wanted.name
            continue
        applied += 1
        assert verdict == "applied", wanted.name
        assert (await state(database, copy))[1] == [told], wanted.name
        if kind != "complaint":
            assert (await event(database, copy))["category"] == first(wanted)[4], wanted.name
    assert applied > (100 if to == "the return path" else 90)


def test_only_an_address_that_is_itself_bad_is_suppressed() -> None:
    suppressed = 0
    for wanted in CORPUS:
        report = read_report(wanted.octets)
        copy = queries.Copy(ORG, DELIVERY, DELIVERY, recipient(wanted).upper(), "delivered")
        ruling = judge.rule(report, copy, was_delayed=False, received_at=datetime.now(UTC))
        if report.kind in (Kind.FAILURE, Kind.DELAY):
            words = first(wanted)
            is_bad = "address" in words and not any(word.startswith("original=") for word in words)
            assert (ruling.entry is not None) == is_bad, wanted.name
        else:
            assert (ruling.entry is not None) == (report.kind is Kind.COMPLAINT), wanted.name
        if ruling.entry is not None:
            suppressed += 1
            assert (ruling.entry.org_id, ruling.entry.address) == (ORG, recipient(wanted).lower()), wanted.name
    assert suppressed > 60


def first(wanted: Wanted) -> list[str]:
    """The words on the first recipient of which a mail tells what it is about."""
    return next(line for line in wanted.recipients if line.startswith(wanted.said["expect"])).split()
