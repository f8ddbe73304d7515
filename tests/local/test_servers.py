"""The embedded PostgreSQL and Redis: started, shared, killed, moved; the data stays."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_client
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.local import postgres, redis, servers
from app.local.errors import StartupError

BOTH = ("DATABASE_URL", "REDIS_URL")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Directly under /tmp: pytest's own directories are closed to the account that PostgreSQL runs as."""
    path = Path(tempfile.mkdtemp(prefix="postroad-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def query(url: str, *statements: str) -> object:
    """The single value of the last statement."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        for statement in statements:
            result = await connection.execute(text(statement))
        return result.scalar() if result.returns_rows else None


async def test_both_keep_their_data_over_a_restart(directory: Path) -> None:
    with servers.embedded(directory, BOTH) as urls:
        await query(urls["DATABASE_URL"], "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
        redis_client.Redis.from_url(urls["REDIS_URL"]).set("kept", "8")
        first_database_url = urls["DATABASE_URL"]
    assert not (directory / "postgres" / "data" / "postmaster.pid").exists()
    with pytest.raises(redis_client.ConnectionError):
        redis_client.Redis.from_url(urls["REDIS_URL"], retry=None).ping()
    with servers.embedded(directory, BOTH) as urls:
        assert urls["DATABASE_URL"] == first_database_url
        assert await query(urls["DATABASE_URL"], "SELECT n FROM kept") == 7
        assert redis_client.Redis.from_url(urls["REDIS_URL"]).get("kept") == b"8"


async def test_servers_are_set_up_for_safety(directory: Path) -> None:
    with servers.embedded(directory, BOTH) as urls:
        expected = {
            "server_version_num": "18",
            "synchronous_commit": "on",
            "fsync": "on",
            "max_connections": "200",
            "shared_buffers": "256MB",
            "listen_addresses": "",
            "timezone": "UTC",
        }
        for name, value in expected.items():
            found = str(await query(urls["DATABASE_URL"], f"SELECT current_setting('{name}')"))
            assert found.startswith(value), name
            assert found or not value
        client = redis_client.Redis.from_url(urls["REDIS_URL"])
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        port = client.connection_pool.connection_kwargs["port"]
        with pytest.raises(redis_client.AuthenticationError):
            redis_client.Redis(port=port).ping()
    assert (directory / "redis" / "redis.conf").stat().st_mode & 0o077 == 0


def test_the_last_user_stops_the_servers(directory: Path) -> None:
    with servers.embedded(directory, BOTH) as urls:
        with servers.embedded(directory, ["REDIS_URL"]) as again:
            assert again == {"REDIS_URL": urls["REDIS_URL"]}
        assert redis_client.Redis.from_url(urls["REDIS_URL"]).ping()
    with pytest.raises(redis_client.ConnectionError):
        redis_client.Redis.from_url(urls["REDIS_URL"], retry=None).ping()


def test_a_killed_user_leaves_servers_that_the_next_one_finds(directory: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from app.local import servers\n"
        "with servers.embedded(Path(sys.argv[1]), ['DATABASE_URL']): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(directory)], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    orphan = postmaster_pid(directory)
    with servers.embedded(directory, BOTH):
        assert postmaster_pid(directory) == orphan
    with pytest.raises(FileNotFoundError):
        postmaster_pid(directory)


async def test_a_killed_postgres_starts_again_though_its_pid_was_given_to_another(directory: Path) -> None:
    server = postgres.start(directory / "postgres")
    await query(server.url(), "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    pid = postmaster_pid(directory)
    os.kill(pid, signal.SIGKILL)
    file = directory / "postgres" / "data" / "postmaster.pid"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))
    server = postgres.start(directory / "postgres")
    try:
        assert postmaster_pid(directory) not in {pid, os.getpid()}
        assert await query(server.url(), "SELECT n FROM kept") == 7
    finally:
        postgres.stop(server)


def test_a_killed_redis_starts_again_with_its_data(directory: Path) -> None:
    server = redis.start(directory / "redis")
    client = redis_client.Redis.from_url(server.url)
    client.set("kept", "8")
    client.wait(0, 0)
    time.sleep(1.2)  # appendfsync everysec
    assert server.process is not None
    server.process.kill()
    server.process.wait(timeout=10)
    server = redis.start(directory / "redis")
    try:
        assert redis_client.Redis.from_url(server.url).get("kept") == b"8"
    finally:
        redis.stop(server)


@pytest.mark.parametrize("name", ["deep/" * 40, "a 'very' \"odd\" $na%41me,"], ids=["deep", "odd"])
async def test_any_data_directory_will_do(directory: Path, name: str) -> None:
    deep = directory / name
    with servers.embedded(deep, BOTH) as urls:
        assert await query(urls["DATABASE_URL"], "SELECT current_database()") == "postroad"
        assert redis_client.Redis.from_url(urls["REDIS_URL"]).ping()


def test_the_servers_are_out_of_reach_of_ctrl_c(directory: Path) -> None:
    with servers.embedded(directory, BOTH) as urls:
        redis_pid = int(redis_client.Redis.from_url(urls["REDIS_URL"]).info("server")["process_id"])
        for pid in (postmaster_pid(directory), redis_pid):
            assert os.getsid(pid) != os.getsid(0)


def test_a_directory_that_cannot_be_written_is_told_in_a_sentence(directory: Path) -> None:
    (directory / "file").write_text("")
    with (
        pytest.raises(StartupError, match=r"DATA_DIR .* is not writable: (File exists|Not a directory)"),
        servers.embedded(directory / "file", BOTH),
    ):
        pass


def test_data_of_another_major_version_is_refused(directory: Path) -> None:
    (directory / "postgres" / "data").mkdir(parents=True)
    (directory / "postgres" / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(StartupError, match=r"made by PostgreSQL 16; this release needs 18"):
        postgres.start(directory / "postgres")


def postmaster_pid(directory: Path) -> int:
    return int((directory / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
