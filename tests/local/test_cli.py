"""The `postroad` command: what is wrong is told in one sentence, not in a traceback."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local import harness

SECRET = "a-secret-of-forty-characters-for-the-test"


@pytest.fixture
def directory() -> Iterator[Path]:
    with harness.data_directory() as path:
        yield path


async def fail(directory: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    command = await harness.start(directory, *arguments, **settings)
    try:
        return await command.ended(60), command.output
    finally:
        await command.kill_if_alive()


@pytest.mark.parametrize(
    ("command", "settings", "expected"),
    [
        ("run", {"POSTROAD_MODE": "production"}, "SECRET_KEY must be set"),
        ("api", {}, "SECRET_KEY must be set"),
        ("worker", {}, "SECRET_KEY must be set"),
        ("inbound", {}, "SECRET_KEY must be set"),
        ("beat", {}, "SECRET_KEY must be set"),
        ("webhooks", {}, "SECRET_KEY must be set"),
        ("migrate", {}, "SECRET_KEY must be set"),
        ("api", {"SECRET_KEY": "short"}, "SECRET_KEY must be set"),
        ("run", {"HTTP_PORT": "many"}, "HTTP_PORT: Input should be a valid integer"),
        ("run", {"DNS_NAMESERVERS": "dns.example"}, "DNS_NAMESERVERS: 'dns.example' is not"),
        ("run", {"POSTROAD_MODE": "other"}, "POSTROAD_MODE: Input should be 'local' or 'production'"),
    ],
)
async def test_wrong_settings_end_with_2(
    directory: Path, command: str, settings: dict[str, str], expected: str
) -> None:
    status, output = await fail(directory, command, **settings)
    assert status == 2
    assert output.startswith(f"postroad: {expected}")
    assert len(output.splitlines()) == 1
    assert list(directory.iterdir()) == []


async def test_a_taken_port_is_told(directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, output = await fail(directory, "run", HTTP_PORT=str(harness.free_port()), INBOUND_SMTP_PORT=port)
    assert status == 1
    assert output == f"postroad: Port {port} is taken by another program; set INBOUND_SMTP_PORT to a free one."


async def test_an_address_of_another_machine_is_told(directory: Path) -> None:
    status, output = await fail(directory, "run", HTTP_HOST="192.0.2.1")
    assert status == 1
    assert output.startswith("postroad: HTTP_HOST 192.0.2.1, HTTP_PORT 8000: ")
    assert len(output.splitlines()) == 1


async def test_a_data_dir_that_cannot_be_made_is_told(directory: Path) -> None:
    (directory / "file").write_text("")
    for settings in ({}, {"SECRET_KEY": SECRET}):
        status, output = await fail(directory, "run", DATA_DIR=str(directory / "file"), **settings)
        assert status == 1
        assert output.startswith("postroad: ")
        assert str(directory / "file") in output
        assert len(output.splitlines()) == 1


async def test_a_database_that_does_not_answer_is_told(directory: Path) -> None:
    url = f"postgresql://postgres@127.0.0.1:{harness.free_port()}/postroad"
    status, output = await fail(directory, "migrate", POSTROAD_MODE="local", DATABASE_URL=url)
    assert status == 1
    assert output.startswith("postroad: The database cannot be migrated: ")
    assert len(output.splitlines()) == 1


async def test_unknown_commands_end_with_2(directory: Path) -> None:
    status, output = await fail(directory, "fly")
    assert status == 2
    assert "invalid choice: 'fly'" in output


async def test_migrate_and_operator_use_the_embedded_database(directory: Path) -> None:
    migrated = await harness.start(directory, "migrate", POSTROAD_MODE="local")
    assert await migrated.ended() == 0, migrated.output
    created = await harness.start(
        directory,
        *("operator", "create", "--email", "op@postroad.test", "--name", "Op", "--organization", "Ops"),
        *("--password", "correct horse battery staple"),
        POSTROAD_MODE="local",
    )
    assert await created.ended() == 0, created.output
    assert "op@postroad.test" in created.output
    assert not (directory / ".data" / "postgres" / "data" / "postmaster.pid").exists()
