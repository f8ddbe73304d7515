"""What became of every mail of one kind of fault: the hosts' account against the database's and the API's."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx

from app.core.ids import time_of
from tests.faults.hosts import Host, Transaction
from tests.faults.house import House
from tests.faults.kinds import Strike
from tests.faults.load import Answers

# The promise: everything goes on within the lease and this.
RESUME_SECONDS = 10.0
# The longest that a mail may have been a host's without being settled, when nothing is the matter.
_SETTLED_SECONDS = 2.0
_SHOWN_MAX = 5

_DELIVERIES = """
    SELECT d.recipient, d.status, d.id, extract(epoch FROM pg_xact_commit_timestamp(d.xmin))::float8, e.ends
    FROM deliveries d
    JOIN (SELECT org_id, delivery_id, count(*) FILTER (WHERE type IN ('delivered', 'hard_bounced', 'failed')) AS ends
          FROM events WHERE recipient LIKE :like GROUP BY org_id, delivery_id) e
      ON e.org_id = d.org_id AND e.delivery_id = d.id
    WHERE d.recipient LIKE :like
    """


@dataclass(frozen=True, slots=True)
class Copy:
    """One delivery as the database has it. Unix times; `settled_at`: when that committed."""

    recipient: str
    status: str
    created_at: float
    settled_at: float
    ends: int


@dataclass(slots=True)
class Verdict:
    """The figures of one kind. `wrong`: each sentence is a broken promise."""

    kind: str
    kills: int = 0
    accepted: int = 0
    unknown: int = 0
    repeated: int = 0
    delivered: int = 0
    lost: int = 0
    in_flight: int = 0
    duplicates: int = 0
    before_dot: int = 0
    fenced: int = 0
    resume_seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def blame(self, what: str, cases: Sequence[object]) -> int:
        """Note broken promises, if there are any; how many."""
        if cases:
            self.wrong.append(f"{what}: {len(cases)}, such as {', '.join(map(str, cases[:_SHOWN_MAX]))}")
        return len(cases)


@dataclass(frozen=True, slots=True)
class Account:
    """All that is known of one kind's mail. `statuses`: what the API says, by message id."""

    answers: Answers
    strikes: Sequence[Strike]
    copies: Sequence[Copy]
    transactions: Mapping[str, Sequence[Transaction]]
    statuses: Mapping[str, str]


async def gather(
    house: House, client: httpx.AsyncClient, hosts: Sequence[Host], label: str, answers: Answers, strikes: list[Strike]
) -> Account:
    """Read everything, when all has come to rest."""
    rows = await house.query(_DELIVERIES, like=f"{label}-%")
    copies = [
        Copy(to, status, time_of(key).timestamp(), settled_at, ends) for to, status, key, settled_at, ends in rows
    ]
    transactions: defaultdict[str, list[Transaction]] = defaultdict(list)
    for host in hosts:
        for transaction in host.transactions:
            if transaction.recipient.startswith(f"{label}-"):
                transactions[transaction.recipient].append(transaction)
    since = datetime.fromtimestamp(min((copy.created_at for copy in copies), default=0.0), UTC)
    return Account(answers, strikes, copies, transactions, await _statuses(client, since - timedelta(seconds=1)))


async def _statuses(client: httpx.AsyncClient, since: datetime) -> dict[str, str]:
    """The status of every message since then, by the list of the API."""
    found: dict[str, str] = {}
    params: dict[str, str | int] = {"limit": 100, "created_from": since.isoformat()}
    while True:
        response = await client.get("/api/v1/messages", params=params)
        assert response.status_code == 200, response.text
        data = response.json()["data"]
        found |= {message["id"]: message["status"] for message in data["messages"]}
        if not data["pagination"]["has_more"]:
            return found
        params["after"] = data["pagination"]["next"]


def judge(kind: str, account: Account, lease_seconds: float, fenced: int) -> Verdict:
    """Hold the promises against what happened."""
    answers = account.answers
    verdict = Verdict(
        kind, len(account.strikes), len(answers.accepted), len(answers.unknown), answers.repeated, fenced=fenced
    )
    _judge_answers(verdict, account)
    _judge_losses(verdict, account)
    _judge_duplicates(verdict, account)
    _judge_resumption(verdict, account, lease_seconds + RESUME_SECONDS)
    return verdict


def _judge_resumption(verdict: Verdict, account: Account, limit_seconds: float) -> None:
    """How long after each fault the last of what was due then was settled."""
    late = []
    for strike in account.strikes:
        due = [copy for copy in account.copies if copy.created_at <= strike.ended_at < copy.settled_at]
        last = max(due, key=lambda copy: copy.settled_at, default=None)
        seconds = last.settled_at - strike.ended_at if last is not None else 0.0
        verdict.resume_seconds.append(seconds)
        if last is not None and seconds > limit_seconds:
            late.append(f"{seconds:.1f} s after {strike.ended_at:.2f} {last.recipient} ({_told(account, last)})")
    verdict.blame("went on later than after the lease and ten seconds", late)


def _judge_answers(verdict: Verdict, account: Account) -> None:
    answers = account.answers
    verdict.blame("refused with a status other than 503", sorted(answers.refused.items()))
    verdict.blame("had a key and were not answered", sorted(answers.unanswered))
    times: defaultdict[str, int] = defaultdict(int)
    for copy in account.copies:
        times[copy.recipient] += 1
    verdict.blame("accepted more than once", [to for to, count in times.items() if count > 1])
    shown = account.statuses
    undelivered = [one for one in set(answers.accepted.values()) if shown.get(one) != "delivered"]
    verdict.blame("the API does not say delivered", undelivered)


def _judge_losses(verdict: Verdict, account: Account) -> None:
    """Whatever the database has was accepted, also where nobody was told."""
    stored = {copy.recipient: copy for copy in account.copies}

    def arrived(recipient: str) -> bool:
        copy = stored.get(recipient)
        taken = any(one.was_taken for one in account.transactions.get(recipient, ()))
        return copy is not None and copy.status == "delivered" and taken

    wanted = stored.keys() | account.answers.accepted.keys()
    verdict.delivered = sum(map(arrived, wanted))
    verdict.lost = verdict.blame("lost", [recipient for recipient in wanted if not arrived(recipient)])
    verdict.blame("ended more than once", [copy.recipient for copy in account.copies if copy.ends != 1])
    strangers = [to for to in account.transactions if to not in stored]
    verdict.blame("sent without being stored", strangers)


def _judge_duplicates(verdict: Verdict, account: Account) -> None:
    """A mail may come again only if it was in flight at a fault."""
    stored = {copy.recipient: copy for copy in account.copies}
    unexplained, torn, differing = [], [], []
    for recipient, transactions in account.transactions.items():
        taken = sorted((one for one in transactions if one.was_taken), key=_whole_at)
        copy = stored.get(recipient)
        in_flight = [one for one in taken if copy is not None and _was_in_flight(one, copy, account.strikes)]
        verdict.in_flight += len(in_flight)
        verdict.duplicates += max(0, len(taken) - 1)
        if copy is not None:
            unexplained += [f"{recipient} ({_told(account, copy)})" for one in taken[:-1] if one not in in_flight]
        torn += [recipient for one in taken if not one.is_intact]
        if len({one.message_id for one in taken}) > 1 or not all(one.message_id for one in taken):
            differing.append(recipient)
    stale = [
        one.recipient
        for transactions in account.transactions.values()
        for one in transactions
        if one.whole_at is not None and _spans_a_stop(one, account.strikes)
    ]
    verdict.before_dot = verdict.blame("duplicates that were not in flight at a fault", unexplained)
    verdict.before_dot += verdict.blame("handed over by a process after it had stood still past its lease", stale)
    verdict.blame("content not as it was sent", torn)
    verdict.blame("copies with different Message-IDs", differing)


def _whole_at(transaction: Transaction) -> float:
    return transaction.whole_at or 0.0


def _was_in_flight(one: Transaction, copy: Copy, strikes: Sequence[Strike]) -> bool:
    """Whether the host had the mail, or was just getting it, and that was not settled, when a fault struck."""
    return any(
        one.ehlo in strike.services
        and strike.began_at - _SETTLED_SECONDS <= _whole_at(one) <= strike.blamed_until
        and copy.settled_at > strike.began_at
        for strike in strikes
    )


def _spans_a_stop(one: Transaction, strikes: Sequence[Strike]) -> bool:
    return any(
        strike.is_stop and one.begun_at < strike.began_at and _whole_at(one) > strike.ended_at for strike in strikes
    )


def _told(account: Account, copy: Copy) -> str:
    """A copy's story, for whoever looks for the cause."""
    words = [
        f"{one.ehlo} from {one.begun_at:.2f}, whole {_whole_at(one):.2f}, {one.answer}"
        for one in account.transactions.get(copy.recipient, ())
    ]
    return "; ".join([f"accepted {copy.created_at:.2f}", *words, f"settled {copy.settled_at:.2f}"])


_COLUMNS: tuple[tuple[str, Callable[[Verdict], object]], ...] = (
    ("kind", lambda one: one.kind),
    ("kills", lambda one: one.kills),
    ("accepted", lambda one: one.accepted),
    ("repeated", lambda one: one.repeated),
    ("unknown", lambda one: one.unknown),
    ("delivered", lambda one: one.delivered),
    ("lost", lambda one: one.lost),
    ("in flight", lambda one: one.in_flight),
    ("twice", lambda one: one.duplicates),
    ("before dot", lambda one: one.before_dot),
    ("fenced", lambda one: one.fenced),
    ("resumed p50", lambda one: f"{sorted(one.resume_seconds)[len(one.resume_seconds) // 2]:.1f} s"),
    ("max", lambda one: f"{max(one.resume_seconds):.1f} s"),
    ("verdict", lambda one: "holds" if not one.wrong else "BROKEN"),
)


def table(verdicts: Sequence[Verdict]) -> str:
    """The figures of all kinds, and below them every broken promise.

    Copies count, not messages. `unknown`: no answer and no key; `in flight`: at a host, and not settled, at a fault.
    """
    rows = [[title for title, _ in _COLUMNS], *([str(cell(one)) for _, cell in _COLUMNS] for one in verdicts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{one.kind}: {sentence}" for one in verdicts for sentence in one.wrong]
    return "\n".join(lines)
