"""One attempt: get a connection to the site, hand the mail over, and say how it ended."""

from collections.abc import Callable
from datetime import UTC, datetime

from app.core import crypto
from app.delivery.content import Prepared
from app.delivery.outcome import Claimed, Outcome
from app.delivery.sites import Site, Sites, Unreachable, reason_of
from app.mail import returnpath
from app.mail.reply import Phase, classify
from app.mail.smtp import Connection, Envelope, SmtpError, Transmission
from app.messages.status import Status


async def attempt(sites: Sites, site: Site, claimed: Claimed, prepared: Prepared, fence: Callable[[], bool]) -> Outcome:
    """Transmit one delivery. `fence` is asked before the content and before its final dot; False stops it there.

    Never raises for what a peer or a network does.
    """
    started_at = datetime.now(UTC)
    content = await prepared.octets()
    envelope = _envelope(claimed, prepared)
    # A kept connection may have been closed by its peer in this very moment: that costs no attempt, as nothing
    # was sent yet. A fresh one that fails is the host's doing.
    connection = sites.idle_connection(site)
    if connection is not None:
        try:
            outcome = await _transmit(sites, site, connection, envelope, content, fence, started_at)
            if not _has_closed(outcome):
                return outcome
        except SmtpError as error:
            if error.content_sent:
                return _broken(error, connection, started_at)
    connected = await sites.connect(claimed.domain)
    if isinstance(connected, Unreachable):
        return Outcome(
            connected.status,
            connected.reason,
            connected.detail,
            started_at,
            datetime.now(UTC),
            phase=connected.phase,
            reply=connected.reply,
            host=connected.host,
            address=connected.address,
        )
    try:
        return await _transmit(sites, site, connected, envelope, content, fence, started_at)
    except SmtpError as error:
        return _broken(error, connected, started_at)


def _envelope(claimed: Claimed, prepared: Prepared) -> Envelope:
    local = returnpath.encode(claimed.org_id, claimed.delivery_id, key=crypto.derive_key("return-path"))
    return Envelope(
        mail_from=f"{local}@{prepared.return_path_domain}", rcpt_to=claimed.recipient, smtputf8=prepared.smtputf8
    )


async def _transmit(
    sites: Sites,
    site: Site,
    connection: Connection,
    envelope: Envelope,
    content: bytes,
    fence: Callable[[], bool],
    started_at: datetime,
) -> Outcome:
    transmission = await connection.transmit(envelope, content, before_content=fence)
    sites.keep(site, connection)
    status, reason = _judge(transmission)
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
        sent_at=datetime.fromtimestamp(transmission.content_sent_at, UTC) if transmission.content_sent_at else None,
    )


def _has_closed(outcome: Outcome) -> bool:
    """Whether the host ended a kept session, as with 421 for its length or idleness, before it heard of the mail."""
    return outcome.phase is Phase.MAIL and outcome.reply is not None and outcome.reply.code == 421


def _judge(transmission: Transmission) -> tuple[Status, str]:
    if transmission.accepted:
        return Status.DELIVERED, "delivered"
    if transmission.reply is None:
        return Status.DEFERRED, "lease_ended"
    return Status(classify(transmission.reply, transmission.phase)), "refused"


def _broken(error: SmtpError, connection: Connection, started_at: datetime) -> Outcome:
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
    )
