"""A queue's id, taken apart."""

from uuid import UUID

import pytest

from app.core.errors import NotFound
from app.queues.service import QueueId, parse_id

VMTA = "018f2f6e-7c1a-7d21-9f43-0a1b2c3d4e5f"


@pytest.mark.parametrize(
    ("text", "way", "site"),
    [
        ("default@gmail", UUID(int=0), "gmail"),
        (f"{VMTA}@gmail", UUID(VMTA), "gmail"),
        ("default@mx1+mx2.example.com", UUID(int=0), "mx1+mx2.example.com"),
        ("default@xn--bcher-kva.example", UUID(int=0), "xn--bcher-kva.example"),
        (f"default@{'a' * 500}", UUID(int=0), "a" * 500),
    ],
)
def test_well_formed(text: str, way: UUID, site: str) -> None:
    assert parse_id(text) == QueueId(way, site)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "gmail",
        "default",
        "default@",
        "@gmail",
        "Default@gmail",
        "default@Gmail",
        "default@gm ail",
        "default@gmail\n",
        "default@a@b",
        "default@-a.example",
        "default@a/b",
        "default@bücher.example",
        f"default@{'a' * 501}",
        f"{VMTA.upper()}@gmail",
        f"{VMTA.replace('-', '')}@gmail",
        f"{{{VMTA}}}@gmail",
        "018f2f6e@gmail",
        f"{UUID(int=0)}@gmail",
        "None@gmail",
    ],
)
def test_malformed_ones_name_no_queue(text: str) -> None:
    with pytest.raises(NotFound, match="no such queue"):
        parse_id(text)
