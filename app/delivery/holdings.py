"""All deliveries in one worker's hands, and how many more of whom it may take.

A tenant, a site and a size each have their bound, so that none of them fills the worker.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar
from uuid import UUID

import structlog

from app.core.config import Settings
from app.delivery.lease import ByteBudget, Gate, Held, Lease
from app.delivery.outcome import Claimed
from app.delivery.queries import Key
from app.delivery.tally import Taken

KeyT = TypeVar("KeyT")

log = structlog.get_logger(__name__)

_CHUNK_BYTES = 4 * 2**20
_MEMORY_BYTES = 96 * 2**20
# A content exists as stored, as composed, as this copy of it and as written to the socket, two of them encoded.
_COPIES = 5
_OVERHEAD_BYTES = 4096
_ANY_SIZE_BYTES = 2**62
# Claimed mail that a site may have waiting: so many times its connections, or what it has lately taken in a second.
# More would let one slow site fill the worker, less would let a quick one wait for claims.
_SITE_BACKLOG = 3
_BACKLOG_SECONDS = 1.0
# Nor may one tenant, however many slow sites it names, fill a worker: it gets no more mail claimed once it holds half.
_TENANT_SHARE = 0.5


class Holdings:
    """What one engine holds. `connections_of` tells how many connections a domain's mail may have."""

    def __init__(self, settings: Settings, connections_of: Callable[[str], int]) -> None:
        self._settings = settings
        self._connections_of = connections_of
        self._held: dict[Key, Held] = {}
        self._of_tenant: Counter[UUID] = Counter()
        self._of_domain: Counter[str] = Counter()
        self._gates: dict[str, Gate] = {}
        self._pace: Counter[str] = Counter()
        self._pace_before: Counter[str] = Counter()
        self._budget = ByteBudget(_MEMORY_BYTES)
        # Claimed, but there is no memory for them yet.
        self._ready: list[Held] = []

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter([*self._held.values()])

    @property
    def has_ready(self) -> bool:
        """Whether claimed mail waits for memory."""
        return bool(self._ready)

    def take(self, claimed: Claimed, asked_at: float) -> None:
        """A delivery was claimed; the database was asked for its lease at this moment of the monotonic clock."""
        key = (claimed.org_id, claimed.delivery_id)
        if (known := self._held.get(key)) is not None:
            # Its lease had ended, during an outage of the database perhaps, while the attempt goes on here.
            known.claimed = claimed
            known.lease.renew(asked_at)
            return
        held = self._held[key] = Held(claimed, Lease.asked_at(asked_at, self._settings.lease_seconds))
        self._of_tenant[claimed.org_id] += 1
        self._of_domain[claimed.domain] += 1
        self._ready.append(held)

    def next_chunks(self) -> list[list[Held]]:
        """As much of the claimed mail as memory allows, in chunks that are to be loaded together."""
        waiting: list[Held] = []
        chunks: list[list[Held]] = []
        room_bytes = 0
        for held in self._ready:
            needed = _memory_bytes(held.claimed)
            if not self._budget.try_take(needed):
                waiting.append(held)
                continue
            held.taken_bytes = needed
            if room_bytes <= 0:
                chunks.append([])
                room_bytes = _CHUNK_BYTES
            chunks[-1].append(held)
            room_bytes -= needed
        self._ready = waiting
        return chunks

    def take_back_ready(self) -> list[Held]:
        """What was claimed and not begun: to be given back."""
        unbegun, self._ready = self._ready, []
        return unbegun

    def enter(self, held: Held, key: str, connections: int) -> None:
        """A delivery leaves by a way out to a site; `key` names both."""
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = Gate(key, connections)
        gate.held += 1
        gate.domains[held.claimed.domain] += 1
        held.gate = gate

    def leave_way(self, held: Held) -> Taken | None:
        """It does not leave that way after all, or has ended; returns what it had taken of a warm-up and not used."""
        gate, held.gate = held.gate, None
        if gate is not None:
            gate.held -= 1
            _count_down(gate.domains, held.claimed.domain)
            if not gate.held:
                self._gates.pop(gate.key, None)
        taken, held.taken = held.taken, None
        return taken

    def let_go(self, held: Held) -> None:
        """The delivery is no longer this worker's; its way was left before."""
        claimed = held.claimed
        if self._held.pop((claimed.org_id, claimed.delivery_id), None) is None:
            # It would be a fault of ours, and no reason to stop delivering.
            log.error("let_go_twice", delivery_id=str(claimed.delivery_id))
            return
        _count_down(self._of_tenant, claimed.org_id)
        _count_down(self._of_domain, claimed.domain)
        self._pace[claimed.domain] += 1
        if held.taken_bytes:
            self._budget.give_back(held.taken_bytes)

    def tick(self) -> None:
        """A second has passed: see how quickly domains take mail."""
        self._pace_before, self._pace = self._pace, Counter()

    def busy_tenants(self, times: int) -> list[UUID]:
        """The tenants that have so many times their share of this worker."""
        share = self._settings.delivery_concurrency * _TENANT_SHARE * times
        return [org_id for org_id, count in self._of_tenant.items() if count >= share]

    def busy_domains(self, times: int) -> list[str]:
        """The domains that have so many times enough mail here, by themselves or together with others of their site."""
        busy = set()
        for domain, count in self._of_domain.items():
            if self._is_enough(count / times, self._connections_of(domain), [domain]):
                busy.add(domain)
        for gate in self._gates.values():
            if self._is_enough(gate.held / times, gate.connections, gate.domains):
                busy.update(gate.domains)
        return list(busy)

    def _is_enough(self, count: float, connections: int, domains: Iterable[str]) -> bool:
        if count < _SITE_BACKLOG * connections:
            return False
        lately = sum(max(self._pace[domain], self._pace_before[domain]) for domain in domains)
        return count >= lately * _BACKLOG_SECONDS

    def claimable_bytes(self) -> int:
        """The largest mail to claim now: large ones wait their turn in the queue, not here."""
        if self._budget.has_large or any(self._budget.is_large(_memory_bytes(held.claimed)) for held in self._ready):
            return (_MEMORY_BYTES // 4 - _OVERHEAD_BYTES) // _COPIES
        return _ANY_SIZE_BYTES

    @staticmethod
    def is_any_size(size_bytes: int) -> bool:
        """Whether mail of any size was claimable."""
        return size_bytes >= _ANY_SIZE_BYTES


def _count_down(counter: Counter[KeyT], key: KeyT) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _memory_bytes(claimed: Claimed) -> int:
    return claimed.size_bytes * _COPIES + _OVERHEAD_BYTES
