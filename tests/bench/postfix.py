"""The peer: a Postfix of our own with OpenDKIM, in a temporary directory, on loopback, delivering to the sink."""

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.bench import sink as sinks
from tests.faults.house import free_port

DOMAIN = "bench.test"
PROGRAMS = ("postfix", "postconf", "opendkim")
START_TIMEOUT_SECONDS = 15
# What must be said for it to run here, to relay to the sink and to look nothing up; the rest is as Debian ships it.
STOCK_MAIN_CF = """\
compatibility_level = 3.6
biff = no
append_dot_mydomain = no
recipient_delimiter = +
mailbox_size_limit = 0
smtp_tls_security_level = may
smtp_tls_session_cache_database = btree:${{data_directory}}/smtp_scache
queue_directory = {directory}/queue
data_directory = {directory}/data
command_directory = {command_directory}
daemon_directory = {daemon_directory}
maillog_file = {directory}/mail.log
maillog_file_prefixes = {directory}
myhostname = mta.{domain}
mydestination =
local_recipient_maps =
alias_maps =
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relayhost = [{sink_host}]:{sink_port}
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtpd_milters = unix:{directory}/milter.sock
milter_default_action = tempfail
"""
# Everything in parallel, connections kept.
TUNED_MAIN_CF = """\
smtp_tls_security_level = none
smtpd_client_connection_count_limit = 0
default_process_limit = 100
smtp_destination_concurrency_limit = 20
initial_destination_concurrency = 20
smtp_connection_cache_on_demand = yes
smtp_connection_cache_destinations = [{sink_host}]:{sink_port}
smtp_connection_reuse_count_limit = 100
in_flow_delay = 0
"""
MASTER_CF = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
pickup unix n - n 60 1 pickup
showq unix n - n - - showq
postlog unix-dgram n - n - 1 postlogd
"""
OPENDKIM_CONF = """\
Socket local:{directory}/milter.sock
UMask 000
Domain {domain}
Selector bench
KeyFile {directory}/dkim.pem
SignatureAlgorithm rsa-sha256
InternalHosts 127.0.0.1
RequireSafeKeys no
"""
STOCK_OPENDKIM_CONF = """\
Canonicalization relaxed/simple
OversignHeaders From
Syslog yes
SyslogSuccess yes
"""
TUNED_OPENDKIM_CONF = """\
Mode s
Canonicalization relaxed/relaxed
Syslog no
"""


@dataclass(frozen=True, slots=True)
class Postfix:
    """Where to send, and the processes to look at."""

    port: int
    processes: dict[str, int]


def missing() -> str | None:
    """Why there can be no comparison here, in a sentence; None when there can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"No comparison: {', '.join(absent)} not found (apt packages postfix and opendkim)."
    if os.geteuid() != 0:
        return "No comparison: Postfix can only be started by root."
    return None


@asynccontextmanager
async def running(directory: Path, sink: sinks.Sink, *, tuned: bool) -> AsyncIterator[Postfix]:
    """Postfix and OpenDKIM, tuned or as Debian ships them, until the block ends. `directory` is theirs alone."""
    port = free_port()
    names = {
        "directory": directory,
        "domain": DOMAIN,
        "port": port,
        "sink_host": sinks.HOST,
        "sink_port": sink.port,
        "command_directory": _postconf("command_directory"),
        "daemon_directory": _postconf("daemon_directory"),
    }
    directory.chmod(0o755)
    for name in ("queue", "data"):
        (directory / name).mkdir()
    os.chown(directory / "data", pwd.getpwnam("postfix").pw_uid, -1)
    main_cf = "".join(_last_of_each((STOCK_MAIN_CF + TUNED_MAIN_CF) if tuned else STOCK_MAIN_CF))
    opendkim_conf = OPENDKIM_CONF + (TUNED_OPENDKIM_CONF if tuned else STOCK_OPENDKIM_CONF)
    (directory / "main.cf").write_text(main_cf.format(**names))
    (directory / "master.cf").write_text(MASTER_CF.format(**names))
    (directory / "opendkim.conf").write_text(opendkim_conf.format(**names))
    _write_key(directory / "dkim.pem")
    signer = subprocess.Popen(["opendkim", "-f", "-x", str(directory / "opendkim.conf")], stdin=subprocess.DEVNULL)
    try:
        await _exists(directory / "milter.sock")
        _postfix(directory, "start")
        try:
            await _listens(port)
            master = int((directory / "queue" / "pid" / "master.pid").read_text())
            yield Postfix(port, {"postfix": master, "opendkim": signer.pid})
        finally:
            _postfix(directory, "stop")
    finally:
        signer.terminate()
        signer.wait(START_TIMEOUT_SECONDS)


def _last_of_each(parameters: str) -> list[str]:
    """The lines without those that a later one of the same name overrides: Postfix would warn of them."""
    return list({line.partition(" ")[0]: line for line in parameters.splitlines(keepends=True)}.values())


def _write_key(path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


def _postfix(directory: Path, command: str) -> None:
    done = subprocess.run(
        ["postfix", "-c", str(directory), command], capture_output=True, check=False, timeout=START_TIMEOUT_SECONDS
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")


def _postconf(name: str) -> str:
    """One of the compiled-in defaults."""
    done = subprocess.run(["postconf", "-dh", name], capture_output=True, check=True, timeout=START_TIMEOUT_SECONDS)
    return done.stdout.decode().strip()


async def _exists(path: Path) -> None:
    async with asyncio.timeout(START_TIMEOUT_SECONDS):
        while not path.exists():
            await asyncio.sleep(0.1)


async def _listens(port: int) -> None:
    async with asyncio.timeout(START_TIMEOUT_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            writer.close()
            return
