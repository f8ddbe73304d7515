"""When a delivery is tried again, and what an endpoint may say to that."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from app.webhooks import post, schedule
from app.webhooks.courier import Courier
from tests.webhooks.house import Tenant
from tests.webhooks.receiver import Receiver, reply

SECONDS = "2000"


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Unavailable", "500 Oops", "400 Bad", "302 Found"])
@pytest.mark.parametrize("is_date", [False, True])
async def test_retry_after_is_heeded_for_all(
    tenant: Tenant, courier: Courier, receiver: Receiver, status: str, is_date: bool
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=int(SECONDS)), usegmt=True)
    receiver.manners["/"] = [reply(status, Retry_After=date if is_date else SECONDS), reply()]
    hook = await tenant.hook(receiver.url("/"), "message.opened")
    await tenant.tell()
    ((delivery),) = await tenant.tried(hook, 1)
    pause = datetime.fromisoformat(delivery["next_attempt_at"]) - datetime.now(UTC)
    assert timedelta(seconds=1900) < pause < timedelta(seconds=2100)
    await tenant.tell()
    await asyncio.sleep(1)
    assert len(receiver.received) == 1
    assert [one["status"] for one in await tenant.deliveries(hook)] == ["pending"] * 2


async def test_a_success_is_one_whatever_else_it_says(tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    receiver.manners["/"] = [reply(Retry_After=SECONDS)]
    hook = await tenant.hook(receiver.url("/"), "message.opened")
    for count in (1, 2):
        await tenant.tell()
        assert {one["status"] for one in await tenant.settled(hook, count)} == {"delivered"}


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("99999999999999999999", 86_400.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("Wed, 25 Nov 2026 12:01:00 GMT", 60.0),
        ("Wed, 25 Nov 2026 11:00:00 GMT", 0.0),
        ("Wed, 25 Nov 2036 12:00:00 GMT", 86_400.0),
        ("٣", None),
        ("Wed, 25 Nov 99999999999999999999 12:01:00 GMT", None),
    ],
)
def test_what_retry_after_says(said: str, seconds: float | None) -> None:
    assert post.retry_after_seconds(said, datetime(2026, 11, 25, 12, tzinfo=UTC)) == seconds


def test_the_schedule() -> None:
    waits = [schedule.pause_seconds(attempt) for attempt in range(1, 11)]
    assert waits[-1] is None
    for wait, named in zip(waits, [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400], strict=False):
        assert wait is not None
        assert 0.9 * named <= wait <= 1.1 * named
    assert len({schedule.pause_seconds(3) for _ in range(50)}) > 40
    assert schedule.pause_seconds(1, 500.0) == 500.0
    assert (schedule.pause_seconds(4, 1.0) or 0) > 6000
    assert schedule.pause_seconds(10, 5.0) is None
