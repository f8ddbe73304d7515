"""A tenant that works on its domains through the API."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx

from tests.accounts import helpers
from tests.dnsd import DnsServer

URL = "/api/v1/domains"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization's credentials."""

    client: httpx.AsyncClient
    org_id: UUID
    headers: dict[str, str]

    async def post(self, body: Json, **headers: str) -> httpx.Response:
        return await self.client.post(URL, json=body, headers=self.headers | headers)

    async def create(self, domain: str, **fields: Any) -> Json:
        response = await self.post({"domain": domain, **fields})
        assert response.status_code == 201, response.text
        return response.json()["data"]["domain"]

    async def get(self, domain_id: str) -> Json:
        response = await self.client.get(f"{URL}/{domain_id}", headers=self.headers)
        assert response.status_code == 200, response.text
        return response.json()["data"]["domain"]

    async def verify(self, domain_id: str) -> Json:
        response = await self.client.post(f"{URL}/{domain_id}/verify", headers=self.headers)
        assert response.status_code == 200, response.text
        data = response.json()["data"]
        assert data["verified"] == data["domain"]["verified"]
        return data["domain"]

    async def delete(self, domain_id: str) -> None:
        response = await self.client.delete(f"{URL}/{domain_id}", headers=self.headers)
        assert (response.status_code, response.content) == (204, b"")

    async def rotate(self, domain_id: str, body: Json | None = None, **headers: str) -> httpx.Response:
        url = f"{URL}/{domain_id}/rotate-dkim"
        return await self.client.post(url, json=body, headers=self.headers | headers)

    async def rotated(self, domain_id: str, **body: Any) -> Json:
        response = await self.rotate(domain_id, body or None)
        assert response.status_code == 200, response.text
        return response.json()["data"]["domain"]

    async def bimi(self, domain_id: str, **body: Any) -> httpx.Response:
        return await self.client.put(f"{URL}/{domain_id}/bimi", json=body, headers=self.headers)

    async def zone(self, domain_id: str) -> str:
        response = await self.client.get(f"{URL}/{domain_id}/zone", headers=self.headers)
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"].startswith("text/dns")
        return response.text

    async def names(self, **params: Any) -> list[str]:
        response = await self.client.get(URL, headers=self.headers, params=params)
        assert response.status_code == 200, response.text
        return [one["domain"] for one in response.json()["data"]["domains"]]


async def register(client: httpx.AsyncClient) -> Tenant:
    account = await helpers.register(client)
    return Tenant(client, account.org_id, account.headers)


async def with_key(tenant: Tenant, **fields: Any) -> Tenant:
    """The same organization by an API key."""
    _, secret = await helpers.mint(tenant.client, tenant.headers, **fields)
    return Tenant(tenant.client, tenant.org_id, {"X-API-Key": secret})


def publish(zone: DnsServer, domain: Json, *purposes: str) -> None:
    """Put the domain's records, or those of some purposes, into the DNS as they were asked for."""
    for record in domain["dns_records"]:
        if not purposes or record["purpose"] in purposes:
            value = record["value"] + "." if record["type"] == "CNAME" else record["value"]
            zone.add(record["name"], record["type"], value)


def record_of(domain: Json, purpose: str) -> Json:
    """The first record of a purpose: of DKIM's, that of the RSA key."""
    return next(record for record in domain["dns_records"] if record["purpose"] == purpose)


def key_states(domain: Json) -> dict[str, str]:
    """Status by selector."""
    return {key["selector"]: key["status"] for key in domain["dkim_keys"]}


def actions(domain: Json) -> dict[str, str]:
    """What to do with the record of each selector."""
    records = [record for record in domain["dns_records"] if record["purpose"] == "dkim"]
    return {record["name"].split(".")[0]: record["action"] for record in records}


def statuses(domain: Json) -> set[str]:
    return {record["status"] for record in domain["dns_records"]}
