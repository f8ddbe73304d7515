import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.core.config import EXAMPLE_SECRET, Settings

SECRET = "a secret of thirty-two characters"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without any setting, and no .env."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("POSTROAD_MODE", raising=False)
    monkeypatch.chdir(tmp_path)


def production(**values: Any) -> Settings:
    return Settings(**{"secret_key": SECRET, **values})


@pytest.mark.parametrize("secret", ["", "x", SECRET[:31], EXAMPLE_SECRET])
def test_production_refuses_a_secret_that_is_none(secret: str):
    with pytest.raises(ValidationError, match="SECRET_KEY must be set"):
        Settings(secret_key=secret)


def test_production_is_the_default_and_wants_a_secret():
    with pytest.raises(ValidationError, match="SECRET_KEY must be set"):
        Settings()
    assert production().mode == "production"


def test_the_secret_of_the_example_file_is_the_one_refused():
    example = Path(__file__).parents[2] / ".env.example"
    assert f"SECRET_KEY={EXAMPLE_SECRET}" in example.read_text().replace("# ", "")


def test_no_secret_shows_in_a_representation():
    assert SECRET not in repr(production())
    assert SECRET not in str(production().model_dump())


def test_an_error_does_not_show_the_secret():
    with pytest.raises(ValidationError) as refusal:
        Settings(secret_key="short but secret")
    assert "short but secret" not in str(refusal.value)


def test_the_environment_and_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / ".env").write_text(f"SECRET_KEY={SECRET}\nHTTP_PORT=8001\nDATABASE_URL=\nUNKNOWN=1\n")
    monkeypatch.setenv("HTTP_PORT", "8002")
    monkeypatch.setenv("BLOCKED_ATTACHMENT_EXTENSIONS", "EXE, zip")
    settings = Settings()
    assert (settings.http_port, settings.database_url) == (8002, None)
    assert settings.blocked_attachment_extensions == {"exe", "zip"}
    assert settings.public_url == "http://127.0.0.1:8002"


def test_what_follows_from_the_mode(tmp_path: Path):
    local = Settings(POSTROAD_MODE="local", data_dir=tmp_path)
    for settings, is_production in ((local, False), (production(), True)):
        assert settings.require_verified_email is is_production
        assert settings.outbound_allow_private_networks is not is_production
    assert production(require_verified_email=False).require_verified_email is False


def test_names_of_this_host():
    settings = production(ehlo_hostname="mta.example.com", public_url="https://api.example.com:8443/")
    assert (settings.return_path_domain, settings.public_url) == (
        "bounces.mta.example.com",
        "https://api.example.com:8443",
    )
    assert settings.public_host == "api.example.com"
    assert "." in production().ehlo_hostname


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", ()),
        (" , ", ()),
        ("192.0.2.1", (("192.0.2.1", 53),)),
        ("127.0.0.1:5353, 192.0.2.1", (("127.0.0.1", 5353), ("192.0.2.1", 53))),
        ("[2001:db8::1]:5353,2001:db8::1,::1", (("2001:db8::1", 5353), ("2001:db8::1", 53), ("::1", 53))),
    ],
)
def test_nameservers(text: str, servers: tuple[tuple[str, int], ...]):
    assert production(dns_nameservers=text).nameservers == servers


@pytest.mark.parametrize("text", ["ns.example.com", "127.0.0.1:dns", "127.0.0.1:99999", ":53", "[::1", "1.2", "a:b:c"])
def test_nameservers_that_are_none(text: str):
    with pytest.raises(ValidationError, match="DNS_NAMESERVERS"):
        production(dns_nameservers=text)


@pytest.mark.parametrize(
    "values",
    [
        {"http_port": 0},
        {"http_port": 65_536},
        {"worker_processes": 0},
        {"retention_days": 44},
        {"message_max_bytes": 2**40},
        {"lease_seconds": 0},
        {"POSTROAD_MODE": "debug"},
        {"log_level": "loud"},
    ],
)
def test_values_out_of_bounds(values: dict[str, Any]):
    with pytest.raises(ValidationError):
        production(**values)


def test_the_secret_of_a_local_installation_is_kept_for_its_owner_only(tmp_path: Path):
    directory = tmp_path / "new" / "data"
    before = os.umask(0)
    try:
        first = Settings(POSTROAD_MODE="local", data_dir=directory)
    finally:
        os.umask(before)
    path = directory / "secret_key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in directory.iterdir()] == ["secret_key"]
    secret = first.secret_key.get_secret_value()
    assert (len(secret), path.read_text()) == (64, secret)
    assert Settings(POSTROAD_MODE="local", data_dir=directory).secret_key == first.secret_key
    assert Settings(POSTROAD_MODE="local", data_dir=tmp_path).secret_key != first.secret_key
    given = Settings(POSTROAD_MODE="local", data_dir=directory, secret_key="x")
    assert given.secret_key.get_secret_value() == "x"


def test_processes_that_start_together_agree_on_the_secret(tmp_path: Path):
    def secret(number: int) -> str:
        directory = tmp_path / str(number // 8)
        return Settings(POSTROAD_MODE="local", data_dir=directory).secret_key.get_secret_value()

    with ThreadPoolExecutor(8) as threads:
        secrets = list(threads.map(secret, range(160)))
    assert all(len(one) == 64 for one in secrets)
    assert len(set(secrets)) == 20
