"""A tenant of the vMTAs' tests, and addresses that no other test uses."""

import itertools
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import text

from app.core.db import Database
from app.core.ids import new_id
from app.vmtas import warmup
from app.vmtas.choice import Vmta
from tests.accounts.helpers import Account

URL = "/api/v1/vmtas"
_numbers = itertools.count(1)


def new_address() -> str:
    """An address of this host that no other test uses."""
    number = next(_numbers)
    return f"127.77.{number // 250}.{number % 250 + 1}"


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization's owner."""

    client: httpx.AsyncClient
    account: Account

    @property
    def org_id(self) -> UUID:
        return self.account.org_id

    async def call(self, method: str, path: str = "", body: Any = None) -> httpx.Response:
        """Any request below the vMTAs' path; the answer, whatever it is."""
        return await self.client.request(method, f"{URL}{path}", json=body, headers=self.account.headers)

    async def create(self, **fields: Any) -> dict[str, Any]:
        """A new vMTA as the API shows it."""
        response = await self.call("POST", body={"name": f"mta-{next(_numbers)}", **fields})
        assert response.status_code == 201, response.text
        return found(response)

    async def get(self, vmta: dict[str, Any]) -> dict[str, Any]:
        """The vMTA as it is now."""
        return found(await self.call("GET", f"/{vmta['id']}"))

    async def update(self, vmta: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """The vMTA with fields changed."""
        return found(await self.call("PUT", f"/{vmta['id']}", fields))

    async def act(self, vmta: dict[str, Any], action: str) -> dict[str, Any]:
        """The vMTA after `pause` or `resume`."""
        return found(await self.call("POST", f"/{vmta['id']}/{action}"))

    async def warmup(self, vmta: dict[str, Any]) -> dict[str, Any]:
        """The status of its warm-up."""
        response = await self.call("GET", f"/{vmta['id']}/warmup")
        assert response.status_code == 200, response.text
        status: dict[str, Any] = response.json()["data"]["warmup"]
        return status


def found(response: httpx.Response) -> dict[str, Any]:
    """The vMTA of a good answer."""
    assert response.status_code in {200, 201}, response.text
    vmta: dict[str, Any] = response.json()["data"]["vmta"]
    return vmta


def make(name: str, **fields: Any) -> Vmta:
    """A vMTA as sending sees it."""
    values = {
        "org_id": UUID(int=1),
        "id": new_id(),
        "name": name,
        "ip_address": None,
        "hostname": None,
        "pool": None,
        "weight": 1,
        "max_connections": None,
        "max_rate": None,
        "is_paused": False,
        "warmup": None,
        "warmup_started_at": None,
        "updated_at": datetime.now(UTC),
        **fields,
    }
    return Vmta(**values)


async def use(database: Database, org_id: UUID, vmta_id: str, day: date, provider: str, **counts: int) -> None:
    """Write down what a vMTA did on a day."""
    row = {"org_id": org_id, "vmta_id": UUID(vmta_id), "day": day, "provider": provider, **counts}
    columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
    async with database.transaction() as session:
        await session.execute(text(f"INSERT INTO vmta_usage ({columns}) VALUES ({values})"), row)


def usage(day: int, provider: str = "gmail", **counts: int) -> warmup.Usage:
    """Usage of a day of November 2026."""
    return warmup.Usage(date(2026, 11, day), provider, **counts)
