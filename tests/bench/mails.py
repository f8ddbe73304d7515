"""The mails: the same 10 KB of text for both sides, each with a number of its own in subject and text."""

import json
import random
from typing import Any

from tests.bench import load, postfix, postroad
from tests.bench.load import Task
from tests.bench.measure import Load

TEXT_BYTES = 10_000
CONNECTIONS = 32
BATCH_MAILS = 100
RECIPIENT = f"somebody@{postroad.SITE}"


def text(size_bytes: int = TEXT_BYTES, seed: int = 0) -> str:
    """A text that does not compress into nothing, in lines as people write them; the number stands in the first."""
    words = random.Random(seed)
    lines = [f"This is mail {load.PLACE.decode()}.\n"]
    while sum(map(len, lines)) < size_bytes:
        lines.append(" ".join("".join(words.choices("etaoinshrdlu", k=words.randint(2, 9))) for _ in range(10)) + "\n")
    return "".join(lines)[:size_bytes]


def _message(seed: int) -> dict[str, Any]:
    return {
        "from": f"Bench <hello@{postroad.DOMAIN}>",
        "to": [RECIPIENT],
        "subject": f"Mail {load.PLACE.decode()}-{seed:03d}",
        "text": text(seed=seed),
    }


def single(ours: postroad.Postroad, mails: int) -> Load:
    """One mail a request over 32 connections."""
    path, content = "/api/v1/messages/send", json.dumps(_message(0))
    task = Task("http", "127.0.0.1", ours.port, mails, CONNECTIONS, content, path=path, key=ours.key)
    return Load(task, mails=1, idle=True)


def batches(ours: postroad.Postroad, mails: int, connections: int) -> Load:
    """A hundred different mails a request; `mails` is rounded up to whole batches."""
    count = -(-mails // BATCH_MAILS)
    content = json.dumps({"messages": [_message(seed) for seed in range(BATCH_MAILS)]})
    path = "/api/v1/messages/batch"
    task = Task("http", "127.0.0.1", ours.port, count, connections, content, path=path, key=ours.key)
    return Load(task, mails=BATCH_MAILS, idle=False)


def smtp(peer: postfix.Postfix, mails: int) -> Load:
    """One mail a transaction over 32 connections."""
    number = load.PLACE.decode()
    head = (
        f"From: Bench <hello@{postfix.DOMAIN}>\nTo: {RECIPIENT}\nSubject: Mail {number}-000\n"
        f"Date: Sat, 21 Nov 2026 12:00:00 +0000\nMessage-ID: <{number}@{postfix.DOMAIN}>\n"
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n"
    )
    content = (head + text()).replace("\n", "\r\n") + "\r\n"
    addresses = {"mail_from": f"hello@{postfix.DOMAIN}", "rcpt_to": RECIPIENT}
    return Load(Task("smtp", "127.0.0.1", peer.port, mails, CONNECTIONS, content, **addresses), mails=1, idle=True)
