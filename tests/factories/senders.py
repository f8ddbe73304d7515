"""An organization that is ready to send: a user, an API key, a domain proven by DNS."""

import itertools
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx

from tests.accounts import helpers
from tests.dnsd import DnsServer

_numbers = itertools.count(1)


def new_domain(label: str = "sender") -> str:
    """A domain that no other test uses."""
    return f"{label}{next(_numbers)}.example"


@dataclass(frozen=True, slots=True)
class Sender:
    """Its credentials and its domain."""

    client: httpx.AsyncClient
    org_id: UUID
    domain: str
    domain_id: str
    user: dict[str, str]
    key: dict[str, str]

    def mail(self, to: Any, **fields: Any) -> dict[str, Any]:
        """A valid body of `send`."""
        body = {"from": f"hello@{self.domain}", "to": to, "subject": "A mail", "text": "Hello."}
        return {**body, **fields}

    async def post(self, body: Any, **headers: str) -> httpx.Response:
        """Ask to send; the answer, whatever it is."""
        return await self.client.post("/api/v1/messages/send", json=body, headers=self.key | headers)

    async def send(self, to: Any, **fields: Any) -> str:
        """Send and return the message's id."""
        response = await self.post(self.mail(to, **fields))
        assert response.status_code == 202, response.text
        identifier: str = response.json()["data"]["message"]["id"]
        return identifier

    async def message(self, message_id: str) -> dict[str, Any]:
        """The message as the API shows it."""
        response = await self.client.get(f"/api/v1/messages/{message_id}", headers=self.key)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()["data"]["message"]
        return found

    async def events(self, message_id: str) -> list[dict[str, Any]]:
        """The message's timeline."""
        response = await self.client.get(f"/api/v1/messages/{message_id}/events", headers=self.key)
        assert response.status_code == 200, response.text
        found: list[dict[str, Any]] = response.json()["data"]["events"]
        return found

    async def event_types(self, message_id: str) -> list[str]:
        """The types of the timeline's events."""
        return [event["type"] for event in await self.events(message_id)]


def publish(dns: DnsServer, domain: dict[str, Any]) -> None:
    """Publish the records that the API asked for."""
    for record in domain["dns_records"]:
        dns.add(record["name"], record["type"], record["value"])


async def make_sender(client: httpx.AsyncClient, dns: DnsServer) -> Sender:
    """Register, create a domain, publish its records, verify it, mint a key: all through the API."""
    account = await helpers.register(client)
    name = new_domain()
    created = await client.post("/api/v1/domains", json={"domain": name}, headers=account.headers)
    assert created.status_code == 201, created.text
    domain = created.json()["data"]["domain"]
    publish(dns, domain)
    verified = await client.post(f"/api/v1/domains/{domain['id']}/verify", headers=account.headers)
    assert verified.json()["data"]["domain"]["verified"], verified.text
    _, secret = await helpers.mint(client, account.headers)
    return Sender(client, account.org_id, name, domain["id"], account.headers, {"X-API-Key": secret})
