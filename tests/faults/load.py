"""Clients that send all the time, single mails and batches, and keep account of what they were answered."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx

from app.core.ids import new_id
from tests.faults.hosts import MARK

CLIENTS = 8
_PAUSE_SECONDS = 0.45
_BATCH_SHARE = 0.2
_BATCH_MAX = 12
_KEY_SHARE = 0.5
_RETRY_SECONDS = 0.2
# A client with a key repeats until it is answered: far longer than anything is away, but for the long outage of Redis,
# which must not keep it waiting at all.
_PATIENCE_SECONDS = 60.0
_URL = "/api/v1/messages"


@dataclass(slots=True)
class Answers:
    """What the API said to mails of one kind of fault, each with recipients of its own.

    `accepted`: message id by recipient. `unknown`: no answer, or one that leaves it open, and no key to ask again with.
    `unanswered`: those that had a key and were not answered in a minute. `refused`: by HTTP status.
    """

    accepted: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    refused: Counter[int] = field(default_factory=Counter)
    repeated: int = 0


class Load:
    """Continuous sending for one kind of fault: recipients are `<label>-…@<site>`."""

    def __init__(self, base_url: str, headers: dict[str, str], sender: str, sites: list[str], label: str) -> None:
        self.answers = Answers()
        self._base_url = base_url
        self._headers = headers
        self._sender = sender
        self._sites = sites
        self._label = label
        self._running = True
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._send_on()) for _ in range(CLIENTS)]

    async def stop(self) -> None:
        """Begin no more requests; return when all have been answered or given up."""
        self._running = False
        await asyncio.gather(*self._tasks)

    async def race(self, count: int, due_at: datetime) -> None:
        """Have that many mails come due in one moment, so that all who claim want them at once."""
        mails = [self._mail(1) | {"scheduled_at": due_at.isoformat()} for _ in range(count)]
        async with self._client() as client:
            await self._ask(client, "/batch", mails, new_id().hex)

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._base_url, trust_env=False, timeout=30)

    async def _send_on(self) -> None:
        async with self._client() as client:
            while self._running:
                await asyncio.sleep(random.expovariate(1 / _PAUSE_SECONDS))
                key = new_id().hex if random.random() < _KEY_SHARE else None
                if random.random() < _BATCH_SHARE:
                    await self._ask(
                        client, "/batch", [self._mail(1) for _ in range(random.randint(2, _BATCH_MAX))], key
                    )
                else:
                    await self._ask(client, "/send", [self._mail(random.choice((1, 1, 2)))], key)

    def _mail(self, recipients: int) -> dict[str, Any]:
        to = [f"{self._label}-{new_id().hex}@{random.choice(self._sites)}" for _ in range(recipients)]
        text = "Will it arrive, and once?\n" * random.randint(1, 200) + MARK
        return {"from": self._sender, "to": to[:1], "cc": to[1:], "subject": "A fault is near", "text": text}

    async def _ask(self, client: httpx.AsyncClient, path: str, mails: list[dict[str, Any]], key: str | None) -> None:
        body = {"messages": mails} if path == "/batch" else mails[0]
        headers = self._headers if key is None else self._headers | {"Idempotency-Key": key}
        recipients = [to for mail in mails for to in (*mail["to"], *mail["cc"])]
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                response = await self._post(client, path, body, headers, repeat=key is not None)
        except TimeoutError:
            self.answers.unanswered.update(recipients)
            return
        # A database that breaks off during COMMIT leaves it open whether that took place.
        if response is None or response.status_code == 503:
            self.answers.unknown.update(recipients)
        elif response.status_code == 202:
            data = response.json()["data"]
            messages = [one["message"] for one in data["results"]] if path == "/batch" else [data["message"]]
            for mail, message in zip(mails, messages, strict=True):
                for recipient in (*mail["to"], *mail["cc"]):
                    self.answers.accepted[recipient] = message["id"]
        else:
            self.answers.refused[response.status_code] += 1

    async def _post(
        self, client: httpx.AsyncClient, path: str, body: Any, headers: dict[str, str], *, repeat: bool
    ) -> httpx.Response | None:
        """The answer; None when the connection broke and there is no key to `repeat` with."""
        while True:
            try:
                response = await client.post(_URL + path, json=body, headers=headers)
            except httpx.TransportError:
                response = None
            # 409: the first request with this key still runs.
            if not repeat or (response is not None and response.status_code not in (409, 503)):
                return response
            self.answers.repeated += 1
            await asyncio.sleep(_RETRY_SECONDS)
