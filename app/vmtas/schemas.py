"""Shapes of the vMTAs' routes."""

from datetime import date
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from app.core.pagination import Pagination
from app.core.schemas import Body, Text, Timestamp
from app.mail.address import parse_domain
from app.vmtas import addresses, warmup

_LABEL = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$"


def _host_name(value: str) -> str:
    return parse_domain(value.strip().removesuffix("."))


VmtaLabel = Annotated[str, Field(max_length=64, pattern=_LABEL), AfterValidator(str.lower)]
SourceAddress = Annotated[Text, Field(max_length=addresses.MAX_ADDRESS_CHARACTERS), AfterValidator(addresses.parse)]
HostName = Annotated[Text, Field(min_length=1, max_length=254), AfterValidator(_host_name)]
Weight = Annotated[int, Field(ge=0, le=1000)]
MaxConnections = Annotated[int, Field(ge=1, le=1000)]
MaxRate = Annotated[int, Field(ge=1, le=1_000_000)]

_NAME = "Up to 64 letters, digits, dots, hyphens and underscores, kept in lower case; unique in the organization."
_ADDRESS = (
    "The source address that its connections are bound to, IPv4 or IPv6. In production one that the operator has given "
    "to your organization. Null: whichever the host's routing chooses."
)
_HOSTNAME = (
    "What it says in EHLO, kept in A-labels: the name that the address's PTR record leads to. Null: the platform's own."
)
_POOL = (
    "The pool that it belongs to. Members of a pool share its mail by weight and stand in for one another; mail that "
    "asks for neither vMTA nor pool leaves from the pool `default` if there is one, else from any vMTA."
)
_WEIGHT = "Its share of the pool's mail; 0 means only in place of others."
_MAX_CONNECTIONS = "To one site (all domains with one set of mail hosts); null: as the platform's shaping says."
_MAX_RATE = "Mails a minute to one site; null: as the platform's shaping says."
_WARMUP = (
    "Lets its daily volume grow slowly for each mailbox provider; what is over goes to other members of the pool, or "
    "waits. Null: sends at full rate."
)
_EXAMPLE_WARMUP: JsonDict = {"enabled": True, "daily_start": 50, "growth": 1.5, "daily_limit": 50_000}


class WarmupSettings(Body):
    """How a vMTA's daily volume grows."""

    enabled: bool = True
    daily_start: Annotated[int, Field(ge=1, le=warmup.MAX_DAILY - 1)] = Field(
        default=50, description="Mails to each provider on the first day (UTC)."
    )
    growth: Annotated[float, Field(ge=warmup.MIN_GROWTH, le=warmup.MAX_GROWTH)] = Field(
        default=1.5, description="Each day that counts allows this many times as many as the one before."
    )
    daily_limit: Annotated[int, Field(ge=2, le=warmup.MAX_DAILY)] = Field(
        default=50_000, description="The cap of the last day; there is none after that."
    )

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.daily_limit <= self.daily_start:
            raise ValueError("daily_limit must be greater than daily_start")
        return self


class NewVmta(Body):
    """A vMTA to make."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "mta-1",
                    "ip_address": "192.0.2.25",
                    "hostname": "mta1.example.com",
                    "pool": "default",
                    "weight": 10,
                    "max_connections": 20,
                    "max_rate": 1000,
                    "warmup": _EXAMPLE_WARMUP,
                }
            ]
        }
    )

    name: VmtaLabel = Field(description=_NAME, examples=["mta-1"])
    ip_address: SourceAddress | None = Field(default=None, description=_ADDRESS, examples=["192.0.2.25"])
    hostname: HostName | None = Field(default=None, description=_HOSTNAME, examples=["mta1.example.com"])
    pool: VmtaLabel | None = Field(default=None, description=_POOL, examples=["default"])
    weight: Weight = Field(default=1, description=_WEIGHT)
    max_connections: MaxConnections | None = Field(default=None, description=_MAX_CONNECTIONS)
    max_rate: MaxRate | None = Field(default=None, description=_MAX_RATE)
    warmup: WarmupSettings | None = Field(default=None, description=_WARMUP)


class VmtaChanges(Body):
    """What to change of a vMTA; what is left out stays as it is."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"weight": 20, "max_rate": None, "warmup": _EXAMPLE_WARMUP}]}
    )

    name: VmtaLabel | None = Field(default=None, description=f"{_NAME} Not null.")
    ip_address: SourceAddress | None = Field(default=None, description=_ADDRESS)
    hostname: HostName | None = Field(default=None, description=_HOSTNAME)
    pool: VmtaLabel | None = Field(default=None, description=_POOL)
    weight: Weight | None = Field(default=None, description=f"{_WEIGHT} Not null.")
    max_connections: MaxConnections | None = Field(default=None, description=_MAX_CONNECTIONS)
    max_rate: MaxRate | None = Field(default=None, description=_MAX_RATE)
    warmup: WarmupSettings | None = Field(
        default=None,
        description=f"{_WARMUP} Its four fields are taken as a whole. A ramp begins anew when it is switched on, and "
        "when the address changes; other settings apply to the one under way.",
    )

    @field_validator("name", "weight", mode="before")
    @classmethod
    def _is_given(cls, value: object) -> object:
        if value is None:
            raise ValueError("must not be null; leave it out to keep it")
        return value


class Vmta(BaseModel):
    """A virtual MTA."""

    id: UUID
    name: str = Field(examples=["mta-1"])
    ip_address: str | None = Field(description=_ADDRESS)
    hostname: str | None = Field(description=_HOSTNAME)
    pool: str | None = Field(description=_POOL)
    weight: int = Field(description=_WEIGHT)
    max_connections: int | None = Field(description=_MAX_CONNECTIONS)
    max_rate: int | None = Field(description=_MAX_RATE)
    status: Literal["active", "paused"]
    paused_at: Timestamp | None
    warming_up: bool = Field(description="Whether its volume is capped by its warm-up at present.")
    warmup: WarmupSettings | None
    warmup_started_at: Timestamp | None
    created_at: Timestamp
    updated_at: Timestamp


class WarmupStep(BaseModel):
    """One day of the ramp."""

    day: int = Field(description="From 1.")
    date: date
    cap_per_provider: int


class WarmupToday(BaseModel):
    """Where the ramp stands with one mailbox provider, which may be behind the schedule."""

    provider: str = Field(description="`generic` is all that have no name of their own.", examples=["gmail"])
    day: int = Field(description="The step of the schedule that it is at.")
    cap: int | None = Field(description="Null when there is no cap any more.")
    used: int
    remaining: int | None
    held_back: bool = Field(
        description="Whether the provider holds it back: the cap is halved, and today does not count as a step."
    )
    reason: Literal["deferrals", "bounces", "complaints"] | None = Field(
        description="Of today and yesterday: more than 10 % of attempts deferred, more than 5 % bounced hard, or more "
        "than 0.1 % of delivered mails complained of."
    )
    finishes_on: date


class WarmupStatus(BaseModel):
    """A vMTA's warm-up. All days are days in UTC."""

    enabled: bool
    finished: bool = Field(description="Whether no provider has a cap any more.")
    started_at: Timestamp | None
    day: int | None = Field(description="The step of the schedule that today is; null when it is over or off.")
    schedule: list[WarmupStep] = Field(
        description="Dates of steps to come suppose that mail is sent every day: a day without any does not count."
    )
    today: list[WarmupToday]
    finishes_on: date | None = Field(description="The first day without any cap, if every day from now on counts.")


class VmtaData(BaseModel):
    """`data` with one vMTA."""

    vmta: Vmta


class VmtasData(BaseModel):
    """`data` with a page of vMTAs."""

    vmtas: list[Vmta]
    pagination: Pagination


class WarmupData(BaseModel):
    """`data` of a warm-up's status."""

    warmup: WarmupStatus
