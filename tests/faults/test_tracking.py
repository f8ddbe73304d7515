"""PostgreSQL and the API killed while pixels are fetched: what was answered is stored, and stored once."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, cycle

import httpx
import pytest

from tests.faults.house import House, eventually
from tests.faults.traffic import Traffic

MAILS = 8
CONNECTIONS = 16
FETCHES = 100


@dataclass(slots=True)
class Readers:
    """They fetch pixels, each time under another name, until the API is gone; `answered` are the names."""

    house: House
    pixels: Iterator[str]
    names: Iterator[int] = field(default_factory=count)
    answered: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """They read meanwhile."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            reading = [asyncio.create_task(self._read(client)) for _ in range(CONNECTIONS)]
            try:
                yield
            finally:
                for task in reading:
                    task.cancel()
                ended = await asyncio.gather(*reading, return_exceptions=True)
            refused = [one for one in ended if isinstance(one, AssertionError)]
            assert not refused, refused

    async def _read(self, client: httpx.AsyncClient) -> None:
        while True:
            name = f"Reader {next(self.names)}"
            try:
                answer = await client.get(next(self.pixels), headers={"User-Agent": name})
            except httpx.TransportError:
                return
            assert answer.status_code == 200, answer.text
            self.answered.append(name)

    async def have_read(self, more: int) -> None:
        """Wait until so many more have been answered."""
        enough = len(self.answered) + more

        async def reached() -> bool:
            return len(self.answered) >= enough

        await eventually(reached, timeout_seconds=20)

    async def stored(self) -> Counter[str]:
        """How often the database tells of each name."""
        rows = await self.house.query("SELECT data ->> 'user_agent' FROM events WHERE type = 'opened'")
        return Counter(name for (name,) in rows)

    async def are_stored(self) -> bool:
        return set(self.answered) <= (await self.stored()).keys()


@pytest.fixture
async def readers(house: House, traffic: Traffic) -> Readers:
    """Readers of mail that has arrived."""
    await house.worker(processes=1)
    for number in range(MAILS):
        to = f"reader{number}@{traffic.sites[0]}"
        body = {"from": traffic.sender, "to": to, "subject": "A pixel", "html": "<p>Hello.", "track_opens": True}
        answer = await traffic.client.post("/api/v1/messages/send", json=body, headers=traffic.headers)
        assert answer.status_code == 202, answer.text
    await traffic.arrivals_reach(MAILS)
    await traffic.settled()
    house.kill_workers()
    contents = b"".join(mail.content for host in traffic.hosts for mail in host.mails).decode().replace("=\r\n", "")
    pixels = set(re.findall(rf"{re.escape(house.base_url)}/track/open/[\w-]+", contents))
    assert len(pixels) == MAILS
    return Readers(house, cycle(sorted(pixels)))


async def test_every_answered_open_is_stored_once(house: House, readers: Readers) -> None:
    async with readers.reading():
        await readers.have_read(FETCHES)
        house.kill_postgres(whole=True)
        # Nobody waits for it, and what they did is kept in mind.
        await readers.have_read(FETCHES)
        await asyncio.to_thread(house.start_postgres)
        await readers.have_read(FETCHES)
    await eventually(readers.are_stored, timeout_seconds=20)
    try:
        async with readers.reading():
            await readers.have_read(FETCHES)
            house.kill_api()
        # What was not answered may be stored too.
        assert await readers.are_stored()
        assert set((await readers.stored()).values()) == {1}
    finally:
        await house.start_api()
