"""`make bench ARGS="--backlog 1000000"`: does a long queue slow delivery down, and does it fill the workers' memory?

A few mails of 1 KB, one to each of twenty sites, are accepted through the API while no worker runs. Their rows are
then copied in the database until the queue is as long as wanted, each copy under ids and a due time of its own, as the
accept path would have written them. A worker starts; when it is under way, a number of arrivals at the sink are timed.
"""

import asyncio
import dataclasses
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from tests.bench import mails, postroad, sink, usage
from tests.faults.house import Process

SHORT = 10_000
SITES = tuple(f"site{number:02d}.backlog.test" for number in range(20))
TEXT_BYTES = 1000
# Connections are opened and names looked up within the first ones; the last ones of the short queue are not timed, as
# no worker can be busy with what is not there.
WARM_UP_MAILS = 1000
TIMED_MAILS = 8000
RATIO_MIN = 0.9
ARRIVAL_TIMEOUT_SECONDS = 600
SETTLE_TIMEOUT_SECONDS = 60
# What accepting a mail writes, each with what stands in its column `id`.
TABLES = {
    "messages": "message",
    "message_bodies": "",
    "deliveries": "delivery",
    "delivery_queue": "",
    "events": "event",
}
# UUIDv7s (RFC 9562): milliseconds, version 7, a counter; the variant's nibble tells the kinds of rows apart.
FUNCTION = """
CREATE FUNCTION bench_id(milliseconds bigint, variant text, number bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
  SELECT (lpad(to_hex(milliseconds), 12, '0') || '7' || lpad(to_hex(number & 4095), 3, '0')
          || variant || lpad(to_hex(number), 15, '0'))::uuid
$$
"""
VARIANTS = {"message": "8", "delivery": "9", "event": "a"}
ROWS_PER_MILLISECOND = 10


@dataclass(frozen=True, slots=True)
class Backlog:
    """What one length of the queue came to."""

    queued: int
    per_second: list[float]
    worker_megabytes: list[float]
    fill_seconds: float


class Copies:
    """The mails that are copied, and how many copies there are already."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._made = 0
        self._statements: list[str] = []

    async def prepare(self) -> None:
        """Keep the rows of the mails that were accepted: one of each table for each site."""
        await self._connection.execute(FUNCTION)
        for table, kind in TABLES.items():
            message = "id" if table == "messages" else "message_id"
            await self._connection.execute(
                f"CREATE TABLE bench_{table} AS SELECT row_number() OVER (ORDER BY {message}) - 1 AS bench_row, t.* "
                f"FROM {table} t JOIN (SELECT m.id AS bench_message FROM messages m, jsonb_array_elements(m.to) a "
                f"WHERE a ->> 'email' LIKE '%.backlog.test') w ON {message} = bench_message"
            )
            kept = await self._connection.fetchval(f"SELECT count(*) FROM bench_{table}")
            assert kept == len(SITES), f"{kept} rows in {table}"
            self._statements.append(await self._statement(table, kind))

    async def _statement(self, table: str, kind: str) -> str:
        """Copies of one table's rows, numbered from $1 to $2, the first of them of the millisecond $3."""
        rows = await self._connection.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped "
            "AND attgenerated = '' ORDER BY attnum",
            table,
        )
        columns = [row["attname"] for row in rows]
        milliseconds = f"$3::bigint + (n - $1) / {ROWS_PER_MILLISECOND}"
        new = {f"{one}_id": f"bench_id({milliseconds}, '{digit}', n)" for one, digit in VARIANTS.items()}
        new["next_attempt_at"] = f"to_timestamp(($3::bigint + (n - $1) / {ROWS_PER_MILLISECOND}.0) / 1000.0)"
        if kind:
            new["id"] = new[f"{kind}_id"]
        chosen = ", ".join(new.get(column, f"t.{_quoted(column)}") for column in columns)
        return (
            f"INSERT INTO {table} ({', '.join(map(_quoted, columns))}) SELECT {chosen} "
            f"FROM generate_series($1::bigint, $2::bigint) n JOIN bench_{table} t ON t.bench_row = n % {len(SITES)}"
        )

    async def queued(self) -> int:
        """How many deliveries wait."""
        count: int = await self._connection.fetchval("SELECT count(*) FROM delivery_queue")
        return count

    async def queue_up(self, wanted: int) -> float:
        """Make the queue this long, and let the database be at rest then. Returns how many seconds it took."""
        began = time.monotonic()
        missing = wanted - await self.queued()
        if missing > 0:
            first, last = self._made, self._made + missing - 1
            self._made += missing
            milliseconds = int(time.time() * 1000) - missing // ROWS_PER_MILLISECOND - 1000
            async with self._connection.transaction():
                for statement in self._statements:
                    await self._connection.execute(statement, first, last, milliseconds)
        # As autovacuum and the checkpointer would have done by and by while mail came in.
        for table in TABLES:
            await self._connection.execute(f"VACUUM (ANALYZE) {table}")
        await self._connection.execute("CHECKPOINT")
        return time.monotonic() - began


def _quoted(column: str) -> str:
    return f'"{column}"'


async def measure(directory: Path, target: sink.Sink, queued: int, rounds: int) -> Backlog:
    """The rate at the sink with this many deliveries in the queue, each round from a full queue and a new worker."""
    async with postroad.running(directory, target, SITES) as ours:
        connection = await asyncpg.connect(ours.house.postgres.url().replace("+asyncpg", ""))
        try:
            await _accept_originals(ours)
            copies = Copies(connection)
            await copies.prepare()
            found = Backlog(queued, [], [], 0.0)
            longest = 0.0
            for number in range(rounds):
                longest = max(longest, await copies.queue_up(queued))
                waiting, arrived = await copies.queued(), await target.count()
                worker = await ours.worker()
                found.per_second.append(await _timed(target))
                found.worker_megabytes.append(usage.of(worker.pid).resident_megabytes)
                sys.stderr.write(
                    f"round {number + 1}, {queued} queued ({longest:.0f} s): {found.per_second[-1]:.0f} mails/s, "
                    f"worker {found.worker_megabytes[-1]:.0f} MB\n"
                )
                await _stop(worker)
                # Each that left the queue has arrived, and arrived once.
                assert waiting - await copies.queued() == await target.count() - arrived
            return Backlog(queued, found.per_second, found.worker_megabytes, longest)
        finally:
            await connection.close()


async def _accept_originals(ours: postroad.Postroad) -> None:
    async with httpx.AsyncClient(base_url=ours.house.base_url, trust_env=False, timeout=30) as client:
        for number, site in enumerate(SITES):
            body = {
                "from": f"Bench <hello@{postroad.DOMAIN}>",
                "to": [f"somebody@{site}"],
                "subject": f"Mail {number}",
                "text": mails.text(TEXT_BYTES, number),
            }
            response = await client.post("/api/v1/messages/send", json=body, headers={"X-API-Key": ours.key})
            assert response.status_code == 202, response.text


async def _timed(target: sink.Sink) -> float:
    before = await target.count()
    began, ended = await asyncio.gather(
        target.reach(before + WARM_UP_MAILS, timeout_seconds=ARRIVAL_TIMEOUT_SECONDS),
        target.reach(before + WARM_UP_MAILS + TIMED_MAILS, timeout_seconds=ARRIVAL_TIMEOUT_SECONDS),
    )
    return TIMED_MAILS / (ended - began)


async def _stop(worker: Process) -> None:
    """Let it end what it has begun, so that nothing of it is under lease in the next round."""
    worker.send_all(signal.SIGTERM)
    await asyncio.to_thread(worker.wait, SETTLE_TIMEOUT_SECONDS)


def report(short: Backlog, long: Backlog) -> dict[str, Any]:
    """The ratio of the medians, which must not fall below RATIO_MIN."""
    sides = {"short": short, "long": long}
    medians = {name: statistics.median(side.per_second) for name, side in sides.items()}
    ratio = medians["long"] / medians["short"]
    for name, side in sides.items():
        memory = max(side.worker_megabytes)
        sys.stderr.write(f"{side.queued:>10} queued: {medians[name]:.0f} mails/s, worker {memory:.0f} MB at most\n")
    sys.stderr.write(f"ratio {ratio:.2f}, {'as' if ratio >= RATIO_MIN else 'LESS than'} wanted ({RATIO_MIN})\n")
    return {
        "median": medians,
        "ratio": ratio,
        "rounds": {name: dataclasses.asdict(side) for name, side in sides.items()},
    }
