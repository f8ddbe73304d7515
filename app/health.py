"""/health and /metrics: whether mail flows, and the numbers to watch it by."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.core.db import Database, database
from app.core.errors import responses
from app.core.schemas import Envelope
from app.delivery import service as delivery
from app.delivery.service import Overview
from app.inbound import service as inbound
from app.inbound.service import Overview as InboundOverview
from app.webhooks import service as webhooks

router = APIRouter(tags=["Health"])

# What waits longer than this while it is due has nobody who works at it.
_DUE_LIMIT_SECONDS = 120.0
_CHECK_TIMEOUT_SECONDS = 3

Db = Annotated[Database, Depends(database)]


@dataclass(frozen=True, slots=True)
class _Look:
    """What the database tells."""

    queue: Overview
    inbound: InboundOverview


class Check(BaseModel):
    """One thing that was looked at."""

    status: Literal["ok", "failing"]
    detail: str


class Health(BaseModel):
    """`ok`; `degraded` when mail still flows but something is missing; `failing` when it does not."""

    status: Literal["ok", "degraded", "failing"]
    checks: dict[str, Check] = Field(description="postgres, redis, workers, queue and inbound")


class HealthData(BaseModel):
    """`data` of /health."""

    health: Health


class Failing(BaseModel):
    """The answer of /health when mail cannot be accepted: the envelope of a success, but for its status."""

    status: Literal["error"] = "error"
    data: HealthData


@router.get(
    "/health",
    operation_id="get_health",
    summary="Service health check",
    response_model=Envelope[HealthData],
    responses={503: {"model": Failing, "description": "Postgres cannot be reached."}},
)
async def health(request: Request, db: Db) -> JSONResponse:
    """Whether Postgres, Redis, a worker and the queue are well. 503 only when mail cannot be accepted."""
    look, redis = await asyncio.gather(_look(db), _redis(request))
    postgres_well = isinstance(look, _Look) or await _answers(db)
    answers = Check(status="ok", detail="answers") if postgres_well else Check(status="failing", detail=str(look))
    checks = {"postgres": answers, "redis": redis, **_flow(look)}
    well = all(check.status == "ok" for check in checks.values())
    status: Any = "ok" if well else "degraded" if postgres_well else "failing"
    data = HealthData(health=Health(status=status, checks=checks))
    if not postgres_well:
        return JSONResponse(Failing(data=data).model_dump(), 503)
    return JSONResponse(Envelope(data=data).model_dump())


async def _look(db: Database) -> _Look | str:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_SECONDS), db.transaction() as session:
            return _Look(await delivery.overview(session), await inbound.overview(session))
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        return f"does not answer ({type(error).__name__})"


async def _webhooks(db: Database) -> webhooks.Overview | None:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_SECONDS), db.transaction() as session:
            return await webhooks.overview(session)
    except (SQLAlchemyError, OSError, TimeoutError):
        return None


async def _answers(db: Database) -> bool:
    """Whether mail can be accepted, though the look at the queue has failed."""
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_SECONDS), db.transaction() as session:
            await session.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError, TimeoutError):
        return False
    return True


async def _redis(request: Request) -> Check:
    try:
        await request.app.state.redis.ping()
    except (RedisError, OSError, TimeoutError) as error:
        return Check(status="failing", detail=f"does not answer ({type(error).__name__}); mail flows by polling")
    return Check(status="ok", detail="answers")


def _flow(look: _Look | str) -> dict[str, Check]:
    if isinstance(look, str):
        unknown = Check(status="failing", detail="unknown: the look at the queue failed")
        return {"workers": unknown, "queue": unknown, "inbound": unknown}
    queue, alive = look.queue, len(look.queue.workers)
    return {
        "workers": Check(status="ok" if alive else "failing", detail=f"{alive} with a heartbeat"),
        "queue": _timely(
            queue.oldest_due_seconds,
            f"{queue.due} due, {queue.queued} in all; the oldest waits {queue.oldest_due_seconds:.0f} s",
        ),
        "inbound": _timely(
            look.inbound.due_seconds, f"{look.inbound.unread} to be read; due for {look.inbound.due_seconds:.0f} s"
        ),
    }


def _timely(due_seconds: float, detail: str) -> Check:
    return Check(status="failing" if due_seconds > _DUE_LIMIT_SECONDS else "ok", detail=detail)


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Prometheus and JSON metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}, "application/json": {}}, "description": "The metrics."},
        **responses(422),
    },
)
async def metrics(db: Db, accept: Annotated[str, Header(max_length=1000)] = "") -> Response:
    """In Prometheus' text format; with `Accept: application/json` as a list of samples."""
    look, hooks = await asyncio.gather(_look(db), _webhooks(db))
    families = [*REGISTRY.collect(), *_families(look), *_webhook_families(hooks)]
    if "application/json" in accept:
        samples = [
            {"name": sample.name, "labels": sample.labels, "value": sample.value}
            for family in families
            for sample in family.samples
        ]
        return JSONResponse({"status": "success", "data": {"metrics": samples}})
    return Response(generate_latest(_Collected(families)), media_type=CONTENT_TYPE_LATEST)


class _Collected(CollectorRegistry):
    """Families that were collected already."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _families(look: _Look | str) -> Iterator[Metric]:
    up = GaugeMetricFamily("postroad_database_up", "Whether Postgres answers.")
    up.add_metric([], float(isinstance(look, _Look)))
    yield up
    if isinstance(look, str):
        return
    queue = look.queue
    gauges = {
        "postroad_queue_deliveries": ("Deliveries in the queue.", queue.queued),
        "postroad_queue_due_deliveries": ("Deliveries in the queue whose time has come.", queue.due),
        "postroad_queue_oldest_due_seconds": ("How long the oldest due delivery has waited.", queue.oldest_due_seconds),
        "postroad_workers": ("Worker processes with a heartbeat.", len(queue.workers)),
        "postroad_inbound_unread_mails": ("Mails that came back and were not read yet.", look.inbound.unread),
        "postroad_inbound_due_seconds": ("For how long the first of them has been due.", look.inbound.due_seconds),
    }
    yield from _gauges(gauges)
    outcomes = CounterMetricFamily(
        "postroad_attempts", "Attempts ended, by worker and outcome.", labels=["worker", "outcome"]
    )
    for worker in queue.workers:
        for outcome, count in worker.outcomes.items():
            outcomes.add_metric([f"{worker.host}:{worker.pid}", outcome], count)
    yield outcomes
    mails = CounterMetricFamily(
        "postroad_inbound_mails",
        "Mails that came back, by what they are and what followed.",
        labels=["kind", "verdict"],
    )
    for kind, verdict, count in look.inbound.counts:
        mails.add_metric([kind, verdict], count)
    yield mails


def _gauges(gauges: Mapping[str, tuple[str, float]]) -> Iterator[Metric]:
    for name, (documentation, value) in gauges.items():
        gauge = GaugeMetricFamily(name, documentation)
        gauge.add_metric([], value)
        yield gauge


def _webhook_families(overview: webhooks.Overview | None) -> Iterator[Metric]:
    if overview is None:
        return
    gauges = {
        "postroad_webhook_deliveries_pending": ("Webhook deliveries that wait, retries included.", overview.pending),
        "postroad_webhook_oldest_due_seconds": (
            "How long the oldest due webhook delivery has waited.",
            overview.oldest_due_seconds,
        ),
    }
    yield from _gauges(gauges)
    attempts = CounterMetricFamily("postroad_webhook_attempts", "Webhook attempts ended.", labels=["outcome"])
    for outcome, count in overview.attempts.items():
        attempts.add_metric([outcome], count)
    yield attempts
