"""Mails of one lane are composed some at a time, and each for itself all the same."""

import re

import pytest

from app.core.config import Settings
from app.core.db import Database
from tests.delivery.owner import Owner, engines, eventually
from tests.factories.senders import Sender
from tests.smtpd import ReceivedMail, SmtpServer, late

_SIGNED_AT = re.compile(rb" t=(\d+);")


@pytest.fixture
def owner(sender: Sender, database: Database) -> Owner:
    return Owner(sender, database)


def _signed_at(mail: ReceivedMail) -> int:
    found = _SIGNED_AT.search(mail.content)
    assert found is not None
    return int(found[1])


async def test_what_waits_behind_a_mail_is_signed_with_it(
    owner: Owner, mx: SmtpServer, site: str, settings: Settings
) -> None:
    mx.replies.on_end_of_data = lambda _: late("250 2.0.0 taken", wait_seconds=0.3)
    await owner.batch([f"user{number}@{site}" for number in range(12)])
    async with engines(settings, site_connections=1):
        await mx.mails_expected(12)
    # Over three seconds from the first to the last; of what was signed together only a second may have begun between.
    signed_at = [_signed_at(mail) for mail in mx.mails[1:]]
    assert max(signed_at) - min(signed_at) <= 1


async def test_a_large_mail_is_signed_when_it_is_its_turn(
    owner: Owner, mx: SmtpServer, site: str, settings: Settings
) -> None:
    mx.replies.on_end_of_data = lambda _: late("250 2.0.0 taken", wait_seconds=0.7)
    await owner.batch([f"user{number}@{site}" for number in range(4)], text="A line.\n" * 40_000)
    async with engines(settings, site_connections=1):
        await mx.mails_expected(4)
    signed_at = sorted(_signed_at(mail) for mail in mx.mails)
    assert signed_at[-1] - signed_at[0] >= 2


async def test_a_mail_that_cannot_be_composed_keeps_no_other_back(
    owner: Owner, mx: SmtpServer, site: str, settings: Settings
) -> None:
    recipients = [f"user{number}@{site}" for number in range(6)]
    messages = await owner.batch(recipients)
    await owner.sql(
        "UPDATE message_bodies SET content = 'broken' WHERE org_id = :org_id AND message_id = :id", id=messages[3]
    )
    async with engines(settings, site_connections=1):
        await mx.mails_expected(5)

        async def is_told() -> bool:
            rows = await owner.sql(
                "SELECT data ->> 'reason' AS reason FROM events WHERE org_id = :org_id AND message_id = :id "
                "AND type = 'deferred'",
                id=messages[3],
            )
            return [row.reason for row in rows] == ["internal_error"]

        await eventually(is_told)
    assert sorted(mail.rcpt_to for mail in mx.mails) == sorted(set(recipients) - {recipients[3]})
