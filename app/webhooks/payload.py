"""What a webhook is told of an event: the very text that is stored, signed and sent."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from app.core.schemas import rfc3339
from app.messages.feed import FeedEvent

PREFIX = "message."


def type_of(event: FeedEvent) -> str:
    """The event's type as webhooks name it."""
    return PREFIX + event.type


def of_event(event: FeedEvent) -> str:
    """The payload of an event: always the same text, whenever and however often it is made."""
    facts = dict(event.facts)
    if "response" in facts:
        facts["mta_response"] = facts.pop("response")
    data = facts | {"event_id": event.id} | event.told()
    return render(type_of(event), event.occurred_at, data)


def render(type: str, timestamp: datetime, data: Mapping[str, Any]) -> str:
    """A payload's text."""
    # The driver's own UUIDs are a subclass, which orjson leaves to `default`.
    return orjson.dumps({"type": type, "timestamp": rfc3339(timestamp), "data": data}, default=str).decode()
