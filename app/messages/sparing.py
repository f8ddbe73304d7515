"""Copies to suppressed recipients: told from the others when rows are about to be stored, and stored as ended."""

from collections.abc import Mapping, Set
from datetime import datetime
from typing import Any
from uuid import UUID

from app.messages.queries import Rows
from app.messages.status import Status
from app.suppressions.service import Asked, Suppressed

Tables = dict[str, Rows]


def asked(tables: Tables) -> dict[UUID, Asked]:
    """What to ask of the copies that are to be sent, by their delivery; of those that are simulated nothing."""
    messages = {message["id"]: message for message in tables["messages"]}
    found = {}
    for row in tables["queue"]:
        if row["simulated"] is None:
            message = messages[row["message_id"]]
            found[row["delivery_id"]] = Asked(row["org_id"], row["recipient"], message["tags"], message["notice"])
    return found


def spare(tables: Tables, found: Mapping[UUID, Suppressed]) -> Tables:
    """The rows with these deliveries as suppressed: they wait in no queue, and nothing else is told of them.

    Those given stay as they are.
    """
    if not found:
        return tables
    moments = {row["delivery_id"]: row["occurred_at"] for row in tables["events"]}
    return tables | {
        "deliveries": [_ended(row, found.get(row["id"]), moments[row["id"]]) for row in tables["deliveries"]],
        "queue": [row for row in tables["queue"] if row["delivery_id"] not in found],
        "events": [_told(row, found.get(row["delivery_id"])) for row in tables["events"]],
    }


def _ended(row: dict[str, Any], suppressed: Suppressed | None, now: datetime) -> dict[str, Any]:
    # Rows of a table have equal keys.
    if suppressed is None:
        return {**row, "last_response": None, "settled_at": None}
    return {**row, "status": Status.SUPPRESSED, "last_response": suppressed.response, "settled_at": now}


def _told(event: dict[str, Any], suppressed: Suppressed | None) -> dict[str, Any]:
    return event if suppressed is None else {**event, "type": "suppressed", "data": suppressed.facts()}


def unsent(given: Tables, spared: Tables) -> Set[UUID]:
    """The messages of which nothing waits to be sent any more."""
    if spared is given:
        return frozenset()
    return {message["id"] for message in spared["messages"]} - {row["message_id"] for row in spared["queue"]}
