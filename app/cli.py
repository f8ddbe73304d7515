"""The `postroad` command: everything in one terminal, or each process by itself."""

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
import uvloop
from celery.bin.celery import celery
from celery.platforms import SecurityWarning
from dotenv import dotenv_values
from pydantic import ValidationError

from app import migrate
from app.accounts import operator
from app.core import log
from app.core.config import Settings, get_settings
from app.core.priority import be_nice
from app.delivery import shaping
from app.delivery.shaping import ShapingError
from app.inbound import process as inbound
from app.inbound.listener import ListenError
from app.local import mailbox, servers, stack
from app.local.children import SUPERVISOR_PID
from app.local.errors import StartupError
from app.vmtas import operator as vmtas
from app.webhooks import courier

EXIT_FAILURE = 1
EXIT_USAGE = 2

GRACEFUL_STOP_SECONDS = 20
SUPERVISOR_POLL_SECONDS = 1.0

_BOTH = ("DATABASE_URL", "REDIS_URL")
_CELERY_APP = "workers.app:celery"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 failed, 2 wrong settings or usage."""
    parsed = _parser().parse_args(arguments)
    _follow_supervisor()
    # Whoever ends the process by SIGTERM wants what Ctrl-C does: everything put away first.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status: int = parsed.command(parsed)
    except ValidationError as error:
        sys.stderr.write("".join(f"postroad: {flaw}\n" for flaw in _flaws(error)))
        return EXIT_USAGE
    except (StartupError, ShapingError, ListenError) as error:
        sys.stderr.write(f"postroad: {error}\n")
        return EXIT_FAILURE
    except OSError as error:
        sys.stderr.write(f"postroad: {error.strerror or error}{f': {error.filename}' if error.filename else ''}\n")
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="postroad", description="A transactional e-mail platform.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for name, function, words in (
        ("run", _run, "everything in one terminal, with embedded servers and a local mailbox"),
        ("api", _api, "the HTTP API"),
        ("worker", _worker, "a worker: delivers mail"),
        ("inbound", _inbound, "the SMTP listener: takes bounces and complaints, and reads them"),
        ("webhooks", _webhooks, "hands events on to webhooks and delivers them"),
        ("beat", _beat, "the clock: rings for due and abandoned work; one per installation"),
        ("migrate", _migrate, "bring the database's schema up to date"),
    ):
        commands.add_parser(name, help=words).set_defaults(command=function)
    vmtas.add_parser(operator.add_parser(commands))
    commands.choices["operator"].set_defaults(command=_operator)
    mailbox = commands.add_parser("mailbox")  # without help: part of `run` only
    mailbox.add_argument("--smtp-port", type=int, default=1025)
    mailbox.add_argument("--dns-port", type=int, default=1053)
    mailbox.set_defaults(command=_mailbox)
    return parser


def _run(_: argparse.Namespace) -> int:
    os.environ["POSTROAD_MODE"] = (
        os.environ.get("POSTROAD_MODE") or dotenv_values(".env").get("POSTROAD_MODE") or "local"
    )
    settings = Settings()
    log.configure(settings)
    # alembic and the bootstrap run in this process and have nothing to tell that `run` does not say.
    logging.getLogger().setLevel(logging.WARNING)
    return stack.run(settings, migrate.upgrade)


def _api(_: argparse.Namespace) -> int:
    with _environment(_BOTH) as settings:
        log.configure(settings)
        uvicorn.run(
            "app.main:create_app",
            factory=True,
            host=settings.http_host,
            port=settings.http_port,
            loop="uvloop",
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_graceful_shutdown=GRACEFUL_STOP_SECONDS,
            backlog=2048,
        )
    return 0


def _worker(_: argparse.Namespace) -> int:
    with _environment(_BOTH) as settings:
        # Refused here once, not by each child that Celery would start again and again.
        shaping.load(settings.shaping_file, site_connections=settings.site_connections)
        if settings.mode == "local":
            warnings.filterwarnings("ignore", category=SecurityWarning)  # a developer's container is often root's
        return _celery(
            "worker",
            "--pool=prefork",
            f"--concurrency={settings.worker_processes}",
            f"--loglevel={settings.log_level}",
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        )


def _inbound(_: argparse.Namespace) -> int:
    with _environment(_BOTH) as settings:
        log.configure(settings)
        asyncio.run(inbound.run(settings))
    return 0


def _webhooks(_: argparse.Namespace) -> int:
    with _environment(("DATABASE_URL",)) as settings:
        log.configure(settings)
        be_nice(courier.NICENESS)
        uvloop.run(courier.run(settings))
    return 0


def _beat(_: argparse.Namespace) -> int:
    with _environment(_BOTH) as settings:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        schedule = settings.data_dir / "beat-schedule"
        return _celery("beat", f"--loglevel={settings.log_level}", f"--schedule={schedule}", "--pidfile=")


def _celery(*arguments: str) -> int:
    """Celery's own command line in this process."""
    # Rings and sweeps come and go all day; and its "ready" would be mistaken for the whole stack's.
    for name in ("celery.apps.worker", "celery.app.trace", "celery.worker.strategy", "celery.beat"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        celery.main(["--app", _CELERY_APP, "--quiet", *arguments], prog_name="postroad", standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def _migrate(_: argparse.Namespace) -> int:
    with _environment(("DATABASE_URL",)) as settings:
        log.configure(settings)
        migrate.upgrade()
    return 0


def _operator(parsed: argparse.Namespace) -> int:
    with _environment(("DATABASE_URL",)):
        return vmtas.run(parsed) if parsed.operator_command == "address" else operator.run(parsed)


def _mailbox(parsed: argparse.Namespace) -> int:
    with _environment(("DATABASE_URL",)) as settings:
        log.configure(settings)
        asyncio.run(mailbox.run(settings, smtp_port=parsed.smtp_port, dns_port=parsed.dns_port))
    return 0


@contextmanager
def _environment(needed: Sequence[str]) -> Iterator[Settings]:
    """The settings, with an embedded server for each of `needed` that is not set."""
    settings = get_settings()
    missing = [name for name in needed if not getattr(settings, name.lower())]
    with servers.embedded(settings.data_dir, missing) as urls:
        if urls:
            os.environ.update(urls)
            get_settings.cache_clear()
        yield get_settings()


def _follow_supervisor() -> None:
    """End with `postroad run`, even when that was killed: a child without it would keep ports and leases."""
    supervisor = int(os.environ.get(SUPERVISOR_PID, "0"))
    if not supervisor:
        return

    def watch() -> None:
        while os.getppid() == supervisor:
            time.sleep(SUPERVISOR_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _flaws(error: ValidationError) -> Iterator[str]:
    for flaw in error.errors(include_url=False, include_input=False):
        name = "_".join(str(part) for part in flaw["loc"]).upper()
        words = flaw["msg"].removeprefix("Value error, ")
        yield f"{name}: {words}" if name and not words.startswith(name) else words


if __name__ == "__main__":
    sys.exit(main())
