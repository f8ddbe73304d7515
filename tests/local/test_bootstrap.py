"""The first run's credentials: they work, they stay, and what gets lost is made anew."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.config import Settings
from app.local import bootstrap

URL = "http://postroad.test"


@pytest.fixture
def local(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"data_dir": tmp_path})


async def written(local: Settings, url: str = URL) -> dict[str, str]:
    path = await bootstrap.run(local, url)
    assert path == local.data_dir / "dev-credentials.json"
    assert path.stat().st_mode & 0o777 == 0o600
    found: dict[str, str] = json.loads(path.read_text())
    assert list(found) == ["base_url", "email", "password", "api_key", "from"]
    return found


async def status_of(client: httpx.AsyncClient, credentials: dict[str, str]) -> tuple[int, int]:
    """Of logging in, and of asking for the domains by the key."""
    fields = {name: credentials[name] for name in ("email", "password")}
    logged_in = await client.post("/api/v1/auth/login", json=fields)
    listed = await client.get("/api/v1/domains", headers={"X-API-Key": credentials["api_key"]})
    return logged_in.status_code, listed.status_code


async def test_credentials_work_and_stay(client: httpx.AsyncClient, local: Settings) -> None:
    first = await written(local)
    assert first["base_url"] == URL
    assert first["from"] == "hello@mail.postroad.test"
    assert await status_of(client, first) == (200, 200)
    listed = await client.get("/api/v1/domains", headers={"X-API-Key": first["api_key"]})
    (domain,) = listed.json()["data"]["domains"]
    assert (domain["domain"], domain["status"]) == ("mail.postroad.test", "verified")
    assert await written(local, "http://127.0.0.1:9") == first | {"base_url": "http://127.0.0.1:9"}
    assert await status_of(client, first) == (200, 200)
    assert sorted(path.name for path in local.data_dir.iterdir()) == ["dev-credentials.json"]


@pytest.mark.parametrize("damage", ["missing", "broken", "other key", "other password"])
async def test_what_was_lost_is_made_anew(client: httpx.AsyncClient, local: Settings, damage: str) -> None:
    first = await written(local)
    path = local.data_dir / "dev-credentials.json"
    changed: dict[str, Any] = {
        "other key": first | {"api_key": first["api_key"][:-1] + "!"},
        "other password": first | {"password": "another one"},
    }
    path.unlink() if damage == "missing" else path.write_text(json.dumps(changed.get(damage, [])))
    second = await written(local)
    assert second["api_key"] != first["api_key"]
    assert await status_of(client, second) == (200, 200)
    listed = await client.get("/api/v1/api-keys", headers={"X-API-Key": second["api_key"]})
    assert len(listed.json()["data"]["api_keys"]) == 1


async def test_a_deleted_domain_comes_back(client: httpx.AsyncClient, local: Settings) -> None:
    headers = {"X-API-Key": (await written(local))["api_key"]}
    (domain,) = (await client.get("/api/v1/domains", headers=headers)).json()["data"]["domains"]
    assert (await client.delete(f"/api/v1/domains/{domain['id']}", headers=headers)).status_code == 204
    await written(local)
    (again,) = (await client.get("/api/v1/domains", headers=headers)).json()["data"]["domains"]
    assert again["id"] != domain["id"]
    assert again["status"] == "verified"
