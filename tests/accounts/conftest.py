"""Postroad's own mail, and the API once more in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.core.config import Settings
from tests.dnsd import DnsServer
from tests.factories.post_office import post_office as open_post_office
from tests.factories.senders import Sender
from tests.local.harness import free_port

START_TIMEOUT_SECONDS = 60


@pytest.fixture(scope="module")
async def post_office(app: FastAPI, client: httpx.AsyncClient, dns: DnsServer) -> AsyncIterator[Sender]:
    """The application mails its users; the operator's organization that it does so from."""
    async with open_post_office(app, client, dns) as operator:
        yield operator


@pytest.fixture(scope="package")
async def neighbour(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A client of another API process on the same database and Redis: it knows nothing of what this one remembers."""
    url = f"http://127.0.0.1:{free_port()}"
    said: Path = tmp_path_factory.mktemp("neighbour") / "output"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "api"],
            env=os.environ | {"HTTP_PORT": url.rpartition(":")[2]},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        # From an address of its own, so that its refusals are not counted with those of other tests.
        transport = httpx.AsyncHTTPTransport(local_address="127.60.0.1")
        async with httpx.AsyncClient(base_url=url, transport=transport) as found:
            await _answers(found, process, said)
            yield found
    finally:
        process.terminate()
        process.wait(timeout=40)


async def _answers(client: httpx.AsyncClient, process: "subprocess.Popen[bytes]", said: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if (await client.get("/health")).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(said.read_text())
