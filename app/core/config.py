"""Settings, read once from the environment (and `.env`): the only place that knows their names and defaults."""

import ipaddress
import os
import re
import secrets
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# Written in .env.example, so known to the world: production refuses it.
EXAMPLE_SECRET = "change-me-change-me-change-me-change-me"  # noqa: S105
_SECRET_MIN_CHARACTERS = 32

_EXECUTABLE = frozenset(
    re.findall(
        r"\w+",
        """
        ade adp apk appx bat cab chm cmd com cpl dll dmg exe hta ins iso isp jar js jse lib lnk mde msc msi msp mst
        nsh pif ps1 scr sct shb sys vb vbe vbs vxd wsc wsf wsh
        """,
    )
)

Seconds = Annotated[float, Field(gt=0, le=30 * 86_400)]


class Settings(BaseSettings):
    """Every setting of Postroad. `.env.example` says what each one means."""

    # An error about one setting must not print the others, secrets among them.
    model_config = SettingsConfigDict(env_file=".env", extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    mode: Literal["local", "production"] = Field(default="production", validation_alias="POSTROAD_MODE")
    secret_key: SecretStr = SecretStr("")
    data_dir: Path = Path(".data")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    database_url: str | None = None
    database_pool_size: int = Field(default=16, ge=1, le=200)
    redis_url: str | None = None

    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8000, ge=1, le=65_535)
    public_url: str = ""
    trusted_proxies: str = ""

    require_verified_email: bool | None = None
    system_mail_from: str = ""
    rate_limit_key_per_minute: int = Field(default=60_000, ge=1)
    rate_limit_organization_per_minute: int = Field(default=120_000, ge=1)
    rate_limit_address_per_minute: int = Field(default=300, ge=1)

    message_max_bytes: int = Field(default=25 * 2**20, ge=1024, le=100 * 2**20)
    blocked_attachment_extensions: Annotated[frozenset[str], NoDecode] = _EXECUTABLE

    dns_nameservers: str = ""
    dns_timeout_seconds: Seconds = 10
    ehlo_hostname: str = ""
    return_path_domain: str = ""
    outbound_smtp_port: int = Field(default=25, ge=1, le=65_535)
    outbound_tls_ca_file: Path | None = None
    dane_enabled: bool | None = Field(default=None, validation_alias="DANE")
    outbound_allow_private_networks: bool | None = None
    webhook_allow_private_networks: bool = False

    inbound_smtp_host: str = "127.0.0.1"
    inbound_smtp_port: int = Field(default=2525, ge=1, le=65_535)
    inbound_tls_certificate_file: Path | None = None
    inbound_tls_key_file: Path | None = None

    dkim_overlap_seconds: Seconds = 7 * 86_400
    domain_recheck_seconds: Seconds = 6 * 3600

    worker_processes: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=64)
    delivery_concurrency: int = Field(default=1000, ge=1, le=10_000)
    site_connections: int = Field(default=20, ge=1, le=1000)
    shaping_file: Path | None = None
    lease_seconds: Seconds = 60
    poll_seconds: Seconds = 1
    sweep_seconds: Seconds = 5
    retry_first_seconds: Seconds = 300
    retry_max_seconds: Seconds = 4 * 3600
    retry_for_seconds: Annotated[float, Field(gt=0, le=7 * 86_400)] = 3 * 86_400
    # Longer than a mail can wait: scheduled 30 days ahead, then tried for days, in partitions of whole weeks.
    retention_days: int = Field(default=90, ge=45, le=3650)

    @field_validator("blocked_attachment_extensions", mode="before")
    @classmethod
    def _split_words(cls, value: object) -> object:
        return frozenset(value.lower().replace(",", " ").split()) if isinstance(value, str) else value

    @field_validator("system_mail_from")
    @classmethod
    def _check_address(cls, value: str) -> str:
        if value and not re.fullmatch(r"([^<>\x00-\x1f]*<)?[^\s<>@]+@[^\s<>@]+\.[^\s<>@]+(?(1)>)", value):
            raise ValueError('SYSTEM_MAIL_FROM: give one address, "a@example.com" or "Name <a@example.com>"')
        return value

    @field_validator("dns_nameservers")
    @classmethod
    def _check_nameservers(cls, value: str) -> str:
        _parse_nameservers(value)
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        local = self.mode == "local"
        self.data_dir = self.data_dir.expanduser().absolute()
        secret = self.secret_key.get_secret_value()
        if local and not secret:
            self.secret_key = SecretStr(_kept_secret(self.data_dir))
        elif not local and (len(secret) < _SECRET_MIN_CHARACTERS or secret == EXAMPLE_SECRET):
            raise ValueError(
                f"SECRET_KEY must be set to {_SECRET_MIN_CHARACTERS} or more characters of your own in production; "
                "`openssl rand -hex 32` makes one"
            )
        self.public_url = (self.public_url or f"http://127.0.0.1:{self.http_port}").rstrip("/")
        self.ehlo_hostname = self.ehlo_hostname or _hostname()
        self.return_path_domain = (self.return_path_domain or f"bounces.{self.ehlo_hostname}").lower()
        if self.require_verified_email is None:
            self.require_verified_email = not local
        if self.outbound_allow_private_networks is None:
            self.outbound_allow_private_networks = local
        if self.dane_enabled is None:
            # What the AD bit says is worth what the way to the nameserver is worth (RFC 7672 §2.1.1).
            self.dane_enabled = bool(self.nameservers) and all(
                ipaddress.ip_address(address).is_loopback for address, _ in self.nameservers
            )
        return self

    @property
    def nameservers(self) -> tuple[tuple[str, int], ...]:
        """`DNS_NAMESERVERS` as (address, port) pairs; empty means the system's resolver."""
        return _parse_nameservers(self.dns_nameservers)

    @property
    def public_host(self) -> str:
        """The host name of `PUBLIC_URL`, without port."""
        return urlsplit(self.public_url).hostname or "localhost"


def _parse_nameservers(text: str) -> tuple[tuple[str, int], ...]:
    """Parse `host:port,host,[v6]:port`; ports default to 53. Raises ValueError with a sentence."""
    servers = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        try:
            parsed = urlsplit(f"//{item}" if item.count(":") < 2 or item.startswith("[") else f"//[{item}]")
            servers.append((str(ipaddress.ip_address(parsed.hostname or "")), parsed.port or 53))
        except ValueError as error:
            raise ValueError(f"DNS_NAMESERVERS: {item!r} is not an address with an optional port") from error
    return tuple(servers)


def _hostname() -> str:
    """This host's own name, as EHLO wants it (RFC 5321 §4.1.1.1); never an empty or one-label name."""
    name = os.uname().nodename.lower()
    return name if "." in name else f"{name or 'localhost'}.localdomain"


def _kept_secret(data_dir: Path) -> str:
    """The secret of a local installation: made once, kept in DATA_DIR for its owner's eyes only."""
    path = data_dir / "secret_key"
    data_dir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Linked when it is whole: of processes that start together, none may read an empty secret.
        with NamedTemporaryFile("w", dir=data_dir, prefix="secret_key.") as file, suppress(FileExistsError):
            file.write(secrets.token_hex(32))
            file.flush()
            os.link(file.name, path)
    return path.read_text().strip()


@lru_cache
def get_settings() -> Settings:
    """The process's settings. Raises pydantic.ValidationError when one is wrong."""
    return Settings()
