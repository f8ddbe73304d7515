"""Structured logs (structlog) on stderr: JSON lines in production, readable in local mode; the request id on each."""

import logging
import sys
from contextvars import ContextVar

import structlog

from app.core.config import Settings

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def _add_request_id(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if (value := request_id.get()) is not None:
        event["request_id"] = value
    return event


def configure(settings: Settings) -> None:
    """Set up structlog and route the standard library's loggers (uvicorn, celery, sqlalchemy) through it."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str),
    ]
    if settings.mode == "local":
        # The usual formatter prints the values of local variables, and among them are mails and secrets.
        plain = structlog.dev.plain_traceback
        renderers = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *renderers,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "celery", "kombu"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # Both tell of every connection they lose; our own lines already say what that means.
    for name in ("uvicorn.access", "kombu", "aiosmtpd", "mail.log"):
        logging.getLogger(name).setLevel(logging.WARNING)
