"""A worker process that sends as much as shared limits allow, to a sink that counts. Run by test_limits.py.

Each of its connections says what the sink is to count: "M" for a mail, and "Q" when it goes; the sink answers each, so
that nothing is given back before the sink has seen it go.
"""

import asyncio
import contextlib
import json
import random
import sys

from app.core.config import get_settings
from app.core.redis import connect
from app.delivery.limits import SharedLimits
from app.delivery.shaping import Rate

_ASK_SECONDS = 0.02


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, word: str) -> None:
    writer.write(f"{word}\n".encode())
    await reader.readexactly(1)


async def connections(limits: SharedLimits, port: int, key: str, limit: int, mail_seconds: float) -> None:
    """Open a connection whenever a slot is to be had, use it for some mails, close it."""
    while True:
        if not await limits.acquire(key, limit):
            await asyncio.sleep(_ASK_SECONDS)
            continue
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(random.randint(1, 20)):
            await asyncio.sleep(random.uniform(0, mail_seconds))
            await _say(reader, writer, "M")
            if limits.should_yield(key, limit):
                break
        await _say(reader, writer, "Q")
        writer.close()
        limits.release(key)


async def mails(limits: SharedLimits, port: int, key: str, rate: Rate) -> None:
    """Send a mail whenever a permit is to be had."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        wait_seconds = await limits.take(key, rate, 20)
        if wait_seconds:
            await asyncio.sleep(wait_seconds)
        else:
            await _say(reader, writer, "M")


async def main(work: dict[str, object]) -> None:
    settings = get_settings().model_copy(update={"redis_url": work["redis_url"]})
    limits = SharedLimits(connect(settings), ttl_seconds=work["ttl_seconds"])
    limits.workers_alive = work["workers"]
    tasks = [asyncio.create_task(limits.run())]
    for _ in range(work["tasks"]):
        if "rate" in work:
            tasks.append(asyncio.create_task(mails(limits, work["port"], work["key"], Rate(*work["rate"]))))
        else:
            sending = connections(limits, work["port"], work["key"], work["limit"], work["mail_seconds"])
            tasks.append(asyncio.create_task(sending))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(work["seconds"]):
            await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
