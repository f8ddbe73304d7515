"""An organization that keeps a list of suppressions."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx

from tests.accounts import helpers

URL = "/api/v1/suppressions"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Keeper:
    """Who keeps it, by the API."""

    client: httpx.AsyncClient
    org_id: UUID
    user: dict[str, str]
    key: dict[str, str]

    async def ask(self, method: str, path: str = "", **how: Any) -> httpx.Response:
        """The answer, whatever it is."""
        headers = self.key | how.pop("headers", {})
        return await self.client.request(method, f"{URL}{path}", headers=headers, **how)

    async def get(self, path: str = "", **params: Any) -> Json:
        """`data` of a good answer."""
        return self._data(await self.ask("GET", path, params=params))

    async def post(self, body: Json, path: str = "") -> Json:
        return self._data(await self.ask("POST", path, json=body))

    async def suppress(self, address: str, **fields: Any) -> Json:
        found: Json = (await self.post({"address": address, **fields}))["suppression"]
        return found

    async def send_csv(self, content: bytes | str, content_type: str = "text/csv") -> httpx.Response:
        return await self.ask("POST", "/import", content=content, headers={"Content-Type": content_type})

    async def imported(self, content: bytes | str) -> Json:
        return self._data(await self.send_csv(content))

    async def addresses(self, **params: Any) -> list[str]:
        """Those on the first page of the list."""
        return [one["address"] for one in (await self.get(**params))["suppressions"]]

    @staticmethod
    def _data(response: httpx.Response) -> Json:
        assert response.status_code in {200, 201}, response.text
        data: Json = response.json()["data"]
        return data


async def make_keeper(client: httpx.AsyncClient) -> Keeper:
    """A new organization with a key that may do everything."""
    account = await helpers.register(client)
    _, secret = await helpers.mint(client, account.headers)
    return Keeper(client, account.org_id, account.headers, {"X-API-Key": secret})
