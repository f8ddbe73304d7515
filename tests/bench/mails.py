"""The mails: the same 10 KB of text for both sides, each with a number of its own in subject and text.

Of those that are tracked the 10 KB are HTML, with half a dozen links, as receipts have.
"""

import json
import random
from typing import Any

from tests.bench import load, postfix, postroad
from tests.bench.load import Task
from tests.bench.measure import Load

TEXT_BYTES = 10_000
CONNECTIONS = 32
BATCH_MAILS = 100
LINK_EVERY = 4
RECIPIENT = f"somebody@{postroad.SITE}"


def text(size_bytes: int = TEXT_BYTES, seed: int = 0) -> str:
    """A text that does not compress into nothing, in lines as people write them; the number stands in the first."""
    words = random.Random(seed)
    lines = [f"This is mail {load.PLACE.decode()}.\n"]
    while sum(map(len, lines)) < size_bytes:
        lines.append(" ".join("".join(words.choices("etaoinshrdlu", k=words.randint(2, 9))) for _ in range(10)) + "\n")
    return "".join(lines)[:size_bytes]


def html(seed: int) -> str:
    """10 KB of HTML as receipts are: a table, its styles in every element for the programs that read no others."""
    lines = iter(text(TEXT_BYTES, seed).splitlines())
    style = "margin:0;box-sizing:border-box;font-family:'Helvetica Neue',Helvetica,Arial,sans-serif;font-size:14px"
    head = f'<!doctype html><html><body style="{style}"><table class="body" style="{style};background-color:#f6f6f6">'
    rows = []
    size_bytes = len(head)
    while size_bytes < TEXT_BYTES:
        line = next(lines)
        if len(rows) % LINK_EVERY == 1:
            target = f"https://shop.example/items/{seed}-{len(rows)}?utm_source=mail&amp;utm_medium=email"
            line = f'<a href="{target}" style="{style};color:#348eda">{line}</a>'
        rows.append(f'<tr style="{style}"><td class="content" style="{style};vertical-align:top">{line}</td></tr>\n')
        size_bytes += len(rows[-1])
    return f"{head}{''.join(rows[:-1])}</table></body></html>\n"


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
    return _batches(ours, mails, connections, [_message(seed) for seed in range(BATCH_MAILS)])


def html_batches(ours: postroad.Postroad, mails: int, connections: int, *, tracked: bool) -> Load:
    """As `batches`, of HTML; with opens and clicks tracked, or not."""
    switches = {"track_opens": tracked, "track_clicks": tracked}
    messages = [_message(seed) | {"html": html(seed)} | switches for seed in range(BATCH_MAILS)]
    for message in messages:
        del message["text"]
    return _batches(ours, mails, connections, messages)


def _batches(ours: postroad.Postroad, mails: int, connections: int, messages: list[dict[str, Any]]) -> Load:
    count = -(-mails // BATCH_MAILS)
    content = json.dumps({"messages": messages})
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
