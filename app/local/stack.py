"""`postroad run`: everything in one terminal, started in order, watched, stopped in order."""

import asyncio
import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx

from app.core.config import Settings, get_settings
from app.local import bootstrap, servers
from app.local.children import Child, write
from app.local.errors import StartupError
from app.local.pages import SERVING

READY_TIMEOUT_SECONDS = 120
# The API of a supervisor that was just killed needs a moment to notice.
PORT_WAIT_SECONDS = 5
MAILBOX_RETRY_SECONDS = 10
LOOPBACK = "127.0.0.1"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Stop:
    """How often the user asked to stop: once is an orderly end, twice does not wait for the children."""

    requests: int = 0

    def request(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.requests += 1
        if self.requests == 1:
            say("stopping; once more to hurry")

    def is_wanted(self) -> bool:
        """Whether to stop."""
        return self.requests > 0

    def is_urgent(self) -> bool:
        """Whether to stop without waiting for anyone."""
        return self.requests > 1


def run(settings: Settings, migrate: Callable[[], None]) -> int:
    """Run the stack until Ctrl-C or SIGTERM; the exit status. Raises StartupError."""
    stop = Stop()
    for number in STOP_SIGNALS:
        signal.signal(number, stop.request)
    with _only_instance(settings.data_dir):
        _wait_for_port(stop, "HTTP", settings.http_host, settings.http_port)
        _wait_for_port(stop, "INBOUND_SMTP", settings.inbound_smtp_host, settings.inbound_smtp_port)
        say(f"data in {settings.data_dir}")
        missing = [name for name in ("DATABASE_URL", "REDIS_URL") if not getattr(settings, name.lower())]
        with servers.embedded(settings.data_dir, missing) as urls, _mailbox_ports(settings) as ports:
            settings = _export(settings, urls, ports)
            failure = None if stop.is_wanted() else _prepare_and_supervise(settings, ports, migrate, stop)
    if failure is not None:
        raise StartupError(failure)
    say("stopped")
    return 0


def say(text: str) -> None:
    """A line of the supervisor's own."""
    write(f"{'postroad':<8}| {text}\n".encode())


def _prepare_and_supervise(
    settings: Settings, ports: tuple[int, int] | None, migrate: Callable[[], None], stop: Stop
) -> str | None:
    say("migrating the database")
    migrate()
    credentials = None
    if settings.mode == "local":
        credentials = asyncio.run(bootstrap.run(settings, _base_url(settings)))
    return asyncio.run(_supervise(settings, ports, credentials, stop))


async def _supervise(
    settings: Settings, ports: tuple[int, int] | None, credentials: Path | None, stop: Stop
) -> str | None:
    """Keep the children running until the user wants to stop; a sentence if a child cannot live."""
    children = _children(ports)
    environment = dict(os.environ)
    runs = [asyncio.create_task(child.keep_running(environment, say)) for child in children]
    announcing = asyncio.create_task(_announce(settings, ports, credentials))
    failure: str | None = None
    while not stop.is_wanted() and failure is None:
        await asyncio.sleep(0.1)
        failure = next((run.result() for run in runs if run.done()), None)
        if failure is None and announcing.done():
            failure = announcing.result()
    announcing.cancel()
    for child in children:
        await child.stop(stop.is_urgent)
    for run in runs:
        run.cancel()
    await asyncio.gather(announcing, *runs, return_exceptions=True)
    return failure


def _children(ports: tuple[int, int] | None) -> list[Child]:
    """In the order of their stopping: no new mail, then what is under way is finished, then where it goes."""
    children = [
        Child("api", ("api",), stop_timeout_seconds=25),
        Child("worker", ("worker",), stop_timeout_seconds=40),
        Child("inbound", ("inbound",), stop_timeout_seconds=20),
        Child("webhooks", ("webhooks",), stop_timeout_seconds=25),
        Child("beat", ("beat",), stop_timeout_seconds=10),
    ]
    if ports is not None:
        smtp_port, dns_port = ports
        arguments = ("mailbox", "--smtp-port", str(smtp_port), "--dns-port", str(dns_port))
        children.append(Child("mailbox", arguments, stop_timeout_seconds=10))
    return children


async def _announce(settings: Settings, ports: tuple[int, int] | None, credentials: Path | None) -> str | None:
    """Wait until everything answers and say where to look; a sentence when that takes too long."""
    base_url = _base_url(settings)
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        while not (await _is_healthy(client, base_url) and await _listens(settings, ports)):
            if time.monotonic() > deadline:
                return f"Not all answers within {READY_TIMEOUT_SECONDS} s; see {base_url}/health."
            await asyncio.sleep(0.2)
    delivery = f"real, by {settings.dns_nameservers}" if settings.dns_nameservers else "real"
    lines = {
        "API": f"{base_url}/api/v1",
        "Documentation": f"{base_url}/docs",
        "Reports": f"taken by SMTP at {settings.inbound_smtp_host}, port {settings.inbound_smtp_port}",
        "Delivery": f"to the local mailbox, {base_url}/local/mailbox" if ports else delivery,
    }
    if credentials is not None:
        lines["Credentials"] = str(credentials)
    for name, value in lines.items():
        say(f"{name:<14} {value}")
    say("ready; Ctrl-C stops everything")
    return None


async def _is_healthy(client: httpx.AsyncClient, base_url: str) -> bool:
    try:
        answer = await client.get(f"{base_url}/health")
        return bool(answer.json()["data"]["health"]["status"] == "ok")
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


async def _listens(settings: Settings, ports: tuple[int, int] | None) -> bool:
    inbound = (_reachable(settings.inbound_smtp_host), settings.inbound_smtp_port)
    for host, port in (inbound, *((LOOPBACK, port) for port in ports or ())):
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            return False
        writer.close()
    return True


def _export(settings: Settings, urls: dict[str, str], ports: tuple[int, int] | None) -> Settings:
    """Put what was found out into the environment, for the children and this process; the new settings."""
    os.environ.update(urls, DATA_DIR=str(settings.data_dir))
    if settings.mode == "local" and not settings.system_mail_from:
        os.environ["SYSTEM_MAIL_FROM"] = bootstrap.SYSTEM_SENDER
    if ports is not None:
        os.environ.update(DNS_NAMESERVERS=f"{LOOPBACK}:{ports[1]}", OUTBOUND_SMTP_PORT=str(ports[0]))
        if "retry_first_seconds" not in settings.model_fields_set:
            # Nobody waits five minutes to see a deferred mail come at the second try.
            os.environ["RETRY_FIRST_SECONDS"] = str(MAILBOX_RETRY_SECONDS)
    get_settings.cache_clear()
    return get_settings()


@contextmanager
def _only_instance(data_dir: Path) -> Iterator[None]:
    with servers.open_lock(data_dir / "run.lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartupError(
                f"Postroad is running with DATA_DIR {data_dir} already; stop it, or set another DATA_DIR."
            ) from error
        yield


def _wait_for_port(stop: Stop, name: str, host: str, port: int) -> None:
    """Raises StartupError when the port of the settings `name`_HOST and `name`_PORT cannot be had."""
    deadline = time.monotonic() + PORT_WAIT_SECONDS
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while not stop.is_wanted():
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise StartupError(f"{name}_HOST {host}, {name}_PORT {port}: {error.strerror}.") from error
                if time.monotonic() > deadline:
                    sentence = f"Port {port} is taken by another program; set {name}_PORT to a free one."
                    raise StartupError(sentence) from error
        time.sleep(0.2)


@contextmanager
def _mailbox_ports(settings: Settings) -> Iterator[tuple[int, int] | None]:
    """Ports for the mailbox's SMTP server and nameserver; None where delivery is real."""
    marker = settings.data_dir / "mailbox" / SERVING
    marker.unlink(missing_ok=True)
    if settings.mode != "local" or settings.dns_nameservers:
        yield None
        return
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    smtp_port = _free_port()
    dns_port = _free_port()
    while dns_port == smtp_port:
        dns_port = _free_port()
    yield smtp_port, dns_port
    marker.unlink(missing_ok=True)


def _free_port() -> int:
    """A port of loopback that is free for TCP and UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind((LOOPBACK, 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind((LOOPBACK, port))
            except OSError:
                continue
            return port


def _base_url(settings: Settings) -> str:
    """Where the API answers on this machine."""
    host = _reachable(settings.http_host)
    return f"http://[{host}]:{settings.http_port}" if ":" in host else f"http://{host}:{settings.http_port}"


def _reachable(host: str) -> str:
    """An address of this machine at which whoever listens on `host` answers."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104
