"""One transmission: hand a mail over on an open connection, and say how it ended."""

from datetime import UTC, datetime

from app.core import crypto
from app.delivery.lease import Held
from app.delivery.outcome import Outcome
from app.delivery.routing import Route, Unreachable, reason_of
from app.delivery.security import Secured
from app.mail import returnpath
from app.mail.diagnosis import Action, Category, Diagnosis, diagnose
from app.mail.reply import Phase, Reply
from app.mail.smtp import Envelope, SmtpError, Transmission
from app.messages.status import Status


async def transmit(held: Held, secured: Secured, route: Route, content: bytes, started_at: datetime) -> Outcome:
    """Hand over one mail. Raises SmtpError when the session breaks; its content_sent tells how far it came."""
    connection = secured.connection
    transmission = await connection.transmit(_envelope(held), content, before_content=held.may_send)
    status, reason, diagnosis = _judge(transmission, route.provider)
    return Outcome(
        status,
        reason,
        "the lease ended before the mail was handed over" if transmission.aborted else "",
        started_at,
        datetime.fromtimestamp(transmission.finished_at, UTC),
        phase=transmission.phase,
        reply=transmission.reply,
        host=connection.host,
        address=connection.address,
        tls=connection.tls.version if connection.tls else None,
        tls_policy=secured.policy,
        tls_verified=connection.tls is not None and connection.tls.verified,
        tls_failure=secured.failure,
        category=diagnosis.category if diagnosis else None,
        diagnosis=diagnosis,
        sent_at=datetime.fromtimestamp(transmission.content_sent_at, UTC) if transmission.content_sent_at else None,
    )


def _envelope(held: Held) -> Envelope:
    claimed, prepared = held.claimed, held.prepared
    assert prepared is not None  # noqa: S101 - the engine transmits nothing else
    local = returnpath.encode(claimed.org_id, claimed.delivery_id, key=crypto.derive_key("return-path"))
    return Envelope(
        mail_from=f"{local}@{prepared.return_path_domain}", rcpt_to=claimed.recipient, smtputf8=prepared.smtputf8
    )


def has_closed(outcome: Outcome) -> bool:
    """Whether the host ended a kept session, as with 421 for its length or idleness, before it heard of the mail."""
    return outcome.phase is Phase.MAIL and outcome.reply is not None and outcome.reply.code == 421


def _judge(transmission: Transmission, provider: str) -> tuple[Status, str, Diagnosis | None]:
    if transmission.accepted:
        return Status.DELIVERED, "delivered", None
    if transmission.reply is None:
        return Status.DEFERRED, "lease_ended", None
    diagnosis = diagnose(transmission.reply, transmission.phase, provider)
    if diagnosis.action in (Action.HARD_BOUNCE, Action.BLOCK):
        return Status.HARD_BOUNCED, "refused", diagnosis
    if diagnosis.category is Category.MAILBOX_FULL:
        return Status.SOFT_BOUNCED, "refused", diagnosis
    return Status.DEFERRED, "refused", diagnosis


def broken(error: SmtpError, secured: Secured, route: Route, started_at: datetime) -> Outcome:
    """The outcome of a session that broke under a mail: it is tried again."""
    connection = secured.connection
    diagnosis = _diagnosed(error.reply, error.phase, route.provider)
    return Outcome(
        Status.DEFERRED,
        reason_of(error),
        f"{connection.host} [{connection.address}]: {error}",
        started_at,
        datetime.now(UTC),
        phase=error.phase,
        reply=error.reply,
        host=connection.host,
        address=connection.address,
        tls=connection.tls.version if connection.tls else None,
        tls_policy=secured.policy,
        tls_verified=connection.tls is not None and connection.tls.verified,
        category=diagnosis.category if diagnosis else Category.NETWORK,
        diagnosis=diagnosis,
    )


def unreached(found: Unreachable, route: Route | None, started_at: datetime) -> Outcome:
    """The outcome where no connection was to be had."""
    diagnosis = _diagnosed(found.reply, found.phase, route.provider if route else "")
    if found.status is Status.HARD_BOUNCED:
        category = Category.BAD_DOMAIN
    elif found.phase is Phase.STARTTLS:
        category = Category.TLS
    else:
        category = diagnosis.category if diagnosis else Category.NETWORK
    return Outcome(
        found.status,
        found.reason,
        found.detail,
        started_at,
        datetime.now(UTC),
        phase=found.phase,
        reply=found.reply,
        host=found.host,
        address=found.address,
        tls_policy=route.policy.kind if route else None,
        category=category,
        diagnosis=diagnosis,
    )


def _diagnosed(reply: Reply | None, phase: Phase, provider: str) -> Diagnosis | None:
    return None if reply is None or reply.positive else diagnose(reply, phase, provider)
