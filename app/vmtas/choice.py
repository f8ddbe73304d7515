"""Which vMTA a mail leaves from: drawn when it is accepted, and who stands in when that one cannot send.

A mail may ask for a vMTA by its name or id, or for a pool by its name; where these are alike an id goes before a
vMTA's name, and that before a pool's. Without a wish it is drawn from the pool named `default`, or, when there is
none, from all vMTAs of the organization. An organization without vMTAs uses the platform's own way out.
"""

import random
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary

from cachetools import TTLCache
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import Invalid
from app.vmtas import queries, warmup

DEFAULT_POOL: Final = "default"
FLEET_SECONDS: Final = 1.5

# How long a change may take from its time stamp to its commit, and how soon even a later one is seen.
_OVERLAP_SECONDS = 20.0
_WHOLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Vmta:
    """A vMTA as sending sees it. Names are in lower case; None leaves the choice to the host or the shaping file.

    `warmup` are the settings of a ramp that is under way, None when there is none (any more).
    """

    org_id: UUID
    id: UUID
    name: str
    ip_address: str | None
    hostname: str | None
    pool: str | None
    weight: int
    max_connections: int | None
    max_rate: int | None
    is_paused: bool
    warmup: warmup.Settings | None
    warmup_started_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class _Choice:
    """Some vMTAs, and their weights added up."""

    vmtas: Sequence[Vmta]
    cumulative_weights: Sequence[int]


class Fleet:
    """All vMTAs of one organization, the paused ones too. Does not change."""

    __slots__ = ("_choices", "_everyday", "_pools", "vmtas")

    def __init__(self, vmtas: Iterable[Vmta]) -> None:
        self.vmtas: Mapping[UUID, Vmta] = {one.id: one for one in vmtas}
        pools: defaultdict[str, list[Vmta]] = defaultdict(list)
        for one in self.vmtas.values():
            if one.pool is not None:
                pools[one.pool].append(one)
        self._pools = {name: sorted(members, key=_rank) for name, members in pools.items()}
        self._choices = {name: _choice(members) for name, members in pools.items()}
        self._choices |= {one.name: _choice([one]) for one in self.vmtas.values()}
        self._choices |= {str(one.id): _choice([one]) for one in self.vmtas.values()}
        everyday = pools.get(DEFAULT_POOL) or list(self.vmtas.values())
        self._everyday = _choice(everyday) if everyday else None

    def knows(self, requested: str) -> bool:
        """Whether there is a vMTA or pool of this name or id."""
        return requested.lower() in self._choices

    def draw(self, requested: str | None, rng: random.Random) -> Vmta | None:
        """The vMTA for one mail, by weight; None means the platform's own way out. Raises Invalid (vmta_not_found).

        Of a pool those that are paused are left out while others can stand in, if need be those of weight 0; when all
        are paused one of them is drawn, and its mail waits. A vMTA that is asked for by itself is drawn in any state.
        """
        if requested is None:
            choice = self._everyday
        elif (choice := self._choices.get(requested.lower())) is None:
            detail = "There is no such vMTA or pool in your organization."
            raise Invalid.at("/vmta", detail, code="vmta_not_found")
        if choice is None:
            return None
        if len(choice.vmtas) == 1:
            return choice.vmtas[0]
        return rng.choices(choice.vmtas, cum_weights=choice.cumulative_weights)[0]

    def stand_ins(self, vmta: Vmta) -> list[Vmta]:
        """The other active members of its pool, in the order in which to try them; none when it has no pool.

        Those of weight 0 come last; among equals those that are warm come first, then the heavier ones.
        """
        return [one for one in self._pools.get(vmta.pool or "", ()) if one.id != vmta.id and not one.is_paused]


async def load(session: AsyncSession, org_id: UUID, wanted: Collection[str | None] = ()) -> Fleet:
    """The organization's vMTAs, as they were in the last 1.5 seconds.

    `wanted` are the names that will be asked for: when memory lacks one the database is asked, so that a new vMTA can
    be used at once.
    """
    fleet = _fleets.get(org_id)
    if fleet is None or not all(one is None or fleet.knows(one) for one in wanted):
        rows = await queries.of_organization(session, org_id)
        fleet = _fleets[org_id] = Fleet(map(_vmta, rows))
    return fleet


def forget(org_id: UUID) -> None:
    """Let nothing be drawn because of what this process remembers."""
    _fleets.pop(org_id, None)


async def load_all(session: AsyncSession) -> dict[UUID, Fleet]:
    """The fleets of all organizations that have vMTAs. The answer is kept up to date by the next call: do not write.

    Meant to be asked often: it reads what has changed, and everything once a minute.
    """
    picture = _pictures.setdefault(session.get_bind(), _Picture())
    await picture.refresh(session)
    return picture.fleets


class _Picture:
    """What a process knows of all fleets in one database."""

    def __init__(self) -> None:
        self.fleets: dict[UUID, Fleet] = {}
        self._read_at: float | None = None
        self._whole_due = 0.0

    async def refresh(self, session: AsyncSession) -> None:
        now = time.monotonic()
        within = None if self._read_at is None or now >= self._whole_due else _OVERLAP_SECONDS + now - self._read_at
        rows = await queries.changed(session, within_seconds=within)
        is_whole = within is None
        self._read_at = now
        if is_whole:
            self._whole_due = now + _WHOLE_SECONDS
        changed: defaultdict[UUID, dict[UUID, Any]] = defaultdict(dict)
        for row in rows:
            changed[row.org_id][row.id] = row
        for org_id in self.fleets.keys() - changed.keys() if is_whole else ():
            del self.fleets[org_id]
        for org_id, of_org in changed.items():
            self._change(org_id, of_org, is_whole=is_whole)

    def _change(self, org_id: UUID, rows: Mapping[UUID, Any], *, is_whole: bool) -> None:
        known = self.fleets[org_id].vmtas if org_id in self.fleets else {}
        vmtas = {} if is_whole else dict(known)
        for vmta_id, row in rows.items():
            before = known.get(vmta_id)
            if row.deleted_at is not None:
                vmtas.pop(vmta_id, None)
            elif before is not None and before.updated_at >= row.updated_at:
                vmtas[vmta_id] = before
            else:
                vmtas[vmta_id] = _vmta(row)
        if not vmtas:
            self.fleets.pop(org_id, None)
        elif vmtas != known:
            self.fleets[org_id] = Fleet(vmtas.values())


_fleets: TTLCache[UUID, Fleet] = TTLCache(10_000, FLEET_SECONDS)
_pictures: WeakKeyDictionary[Any, _Picture] = WeakKeyDictionary()


def _vmta(row: Any) -> Vmta:
    is_warming = row.warmup is not None and row.warmup["enabled"] and row.warmup_finished_at is None
    return Vmta(
        org_id=row.org_id,
        id=row.id,
        name=row.name,
        ip_address=row.ip_address,
        hostname=row.hostname,
        pool=row.pool,
        weight=row.weight,
        max_connections=row.max_connections,
        max_rate=row.max_rate,
        is_paused=row.paused_at is not None,
        warmup=warmup.Settings(**row.warmup) if is_warming else None,
        warmup_started_at=row.warmup_started_at if is_warming else None,
        updated_at=row.updated_at,
    )


def _rank(vmta: Vmta) -> tuple[bool, bool, int, str]:
    return vmta.weight == 0, vmta.warmup is not None, -vmta.weight, vmta.name


def _choice(members: Sequence[Vmta]) -> _Choice:
    active = [one for one in members if not one.is_paused] or members
    sharing = [one for one in active if one.weight > 0]
    if sharing:
        return _Choice(sharing, list(accumulate(one.weight for one in sharing)))
    return _Choice(active, list(accumulate(1 for _ in active)))
