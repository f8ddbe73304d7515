"""Limits that all workers share through Redis: connections at once, and mails in a time.

While Redis is away each worker goes by its part of them alone. A limit's key names a way out and a site; what the
limit is comes with each call, so that it may change at any time. All times are by Redis' own clock (in µs), so the
clocks of workers need not agree.

When Redis has lost what it knew (FLUSHALL, a restart), or workers have gone by themselves for a while, it knows less
than what is taken. Who notices it closes the gates: for some seconds nothing new is granted, until every worker has
told again what it holds. A worker that has just started cannot notice it: when Redis is emptied in the very seconds of
that start, it may be granted what others hold, until they tell.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from cachetools import LRUCache
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from app.core.ids import new_id
from app.core.redis import Breaker
from app.delivery import limits_lua as lua
from app.delivery.shaping import Rate

_GATES = "shaping:gates"
_MICRO = 1_000_000
# So many scripts in flight of one worker: a burst must not open hundreds of connections to Redis.
_ASKING_MAX = 8
_RENEW_BATCH = 100
# After a refusal the next one is known for a moment: those who wait for a slot ask often.
_REFUSED_SECONDS = 0.1
_PERMITS_BATCH = 20
_BURST_SHARE = 0.05
_LOCAL_ENTRIES = 100_000


@dataclass(slots=True)
class _Slots:
    """What this worker holds of one key. `keep`: how many of them it may go on holding, when told to give some up;
    `leaving`: how many of those who hold them have been told so.
    """

    limit: int
    tokens: list[str] = field(default_factory=list)
    leaving: int = 0
    keep: int | None = None
    refused_until: float = 0.0


@dataclass(slots=True)
class _Wallet:
    """Permits that were granted and not used yet, until when they are good, and when to ask for more."""

    permits: int = 0
    ends_at: float = 0.0
    ask_at: float = 0.0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class _Pace:
    """A rate as a token bucket: one token each `interval` µs, `burst` of them at most.

    A token is used within `slack_seconds` of its grant: within half of that it is taken from the wallet, the rest is
    for the way to the receiving host. In a stretch of P seconds there are then no more uses than grants in P + slack,
    which are fewer than burst + (P + slack) / interval. The interval is such that this is the limit and one: never
    more than the limit. What is reached for long is at least 19/20 · P / (P + slack) of the limit: 92 % of a rate by
    the minute, 86 % of one by the second.
    """

    interval: int
    burst: int
    slack_seconds: float

    @classmethod
    def of(cls, rate: Rate) -> "_Pace":
        slack_seconds = min(2.0, rate.period_seconds / 10)
        burst = max(1, int(rate.permits * _BURST_SHARE))
        stretch = _MICRO * (rate.period_seconds + slack_seconds)
        return cls(math.ceil(stretch / (rate.permits + 1 - burst)), burst, slack_seconds)

    @property
    def hold_seconds(self) -> float:
        """For how long a permit is good: a second, or a twentieth of a short period."""
        return self.slack_seconds / 2


class SharedLimits:
    """The limits as one worker sees them. One a process; `run` has to run beside its use.

    `workers_alive` is to be set to the number of worker processes there are. `ttl_seconds`: after that, the slots of a
    worker that has died are free.
    """

    def __init__(self, redis: Redis, *, ttl_seconds: float = 15.0) -> None:
        self.workers_alive = 1
        self._redis = redis
        self._ttl_seconds = ttl_seconds
        self._renew_seconds = ttl_seconds / 5
        # Long enough for every worker to renew once, one round of it going wrong.
        self._closed_seconds = 2 * self._renew_seconds + 0.5
        self._breaker = Breaker()
        self._asking = asyncio.Semaphore(_ASKING_MAX)
        self._acquire, self._permits, self._renew = (
            redis.register_script(lua.PRELUDE + script) for script in (lua.ACQUIRE, lua.PERMITS, lua.RENEW)
        )
        self._name = new_id().hex
        self._numbers = count(1)
        self._slots: dict[str, _Slots] = {}
        self._given_back: defaultdict[str, list[str]] = defaultdict(list)
        self._to_do = asyncio.Event()
        self._wallets: dict[str, _Wallet] = {}
        # fresh: never talked to Redis; known: as it is; lost: what Redis knows may be less than what is taken.
        self._state = "fresh"
        self._away_since: float | None = None
        self._alone_from = 0.0
        self._alone: LRUCache[str, int] = LRUCache(_LOCAL_ENTRIES)

    async def run(self) -> None:
        """Renew what is held and strike out what was given back, until cancelled: after the last `release`."""
        renew_at = 0.0
        try:
            while True:
                if self._given_back:
                    await self._give_back()
                if time.monotonic() >= renew_at:
                    renew_at = time.monotonic() + self._renew_seconds
                    await self._renew_all()
                self._to_do.clear()
                try:
                    async with asyncio.timeout(max(0.0, renew_at - time.monotonic())):
                        await self._to_do.wait()
                except TimeoutError:
                    pass
        finally:
            await self._give_back()

    async def acquire(self, key: str, limit: int) -> bool:
        """Take one of `limit` slots; whether it was to be had. Whoever was refused may ask again soon.

        A worker that was refused has a claim: those that hold more than their share are told to give some up, and what
        comes free is not given to them again. The claim ends when it is not renewed by asking.
        """
        slots = self._slots.setdefault(key, _Slots(limit))
        slots.limit = limit
        if limit < 1 or time.monotonic() < slots.refused_until:
            return False
        token = f"{self._name}:{next(self._numbers)}"
        try:
            granted = await self._ask(self._acquire, _slot_keys(key), self._name, token, limit, *self._slot_times())
        except BaseException:
            # It may have been granted all the same.
            self._return_token(key, token)
            raise
        if granted is None:
            self._return_token(key, token)
            token = f"{self._name}:{next(self._numbers)}"
            granted = self._acquire_alone(slots)
        if granted:
            # It may have been forgotten meanwhile, as nothing was held.
            self._slots.setdefault(key, slots).tokens.append(token)
            slots.keep = None
            return True
        slots.refused_until = time.monotonic() + _REFUSED_SECONDS
        return False

    def _acquire_alone(self, slots: _Slots) -> bool:
        # At first others may still hold more than their part; they are giving it up.
        if time.monotonic() < self._alone_from or len(slots.tokens) >= self._part(slots.limit):
            return False
        self._state = "lost"
        return True

    def release(self, key: str) -> None:
        """Give one slot back. To be called when the connection is closed, and not before."""
        slots = self._slots[key]
        slots.leaving = max(0, slots.leaving - 1)
        self._return_token(key, slots.tokens.pop())

    def _return_token(self, key: str, token: str) -> None:
        self._given_back[key].append(token)
        self._to_do.set()

    def should_yield(self, key: str, limit: int) -> bool:
        """Whether whoever asks, having ended a mail, is to close the connection and release its slot, and then has to.

        So it is when the limit has become less, when another worker claims a slot while this one has more than its
        share, and while Redis is away and this worker holds more than its part.
        """
        slots = self._slots.get(key)
        if slots is None:
            return False
        slots.limit = limit
        keep = limit if slots.keep is None else min(limit, slots.keep)
        if self._away_since is not None:
            keep = min(keep, self._part(limit))
        if len(slots.tokens) - slots.leaving <= keep:
            return False
        slots.leaving += 1
        return True

    async def take(self, key: str, rate: Rate, waiting: int) -> float:
        """Take the permit for one mail, to be begun at once; 0 if it was to be had, else seconds after which to ask.

        waiting: how many mails are about to ask. Permits for up to 20 of them are fetched at a time.
        """
        wallet = self._wallets.setdefault(key, _Wallet())
        async with wallet.asking:
            now = time.monotonic()
            if wallet.permits and now < wallet.ends_at:
                wallet.permits -= 1
                return 0.0
            if now < wallet.ask_at:
                return wallet.ask_at - now
            granted, more_seconds = await self.permits(key, rate, max(1, min(waiting, _PERMITS_BATCH)))
            wallet.ask_at = now + more_seconds
            if not granted:
                return more_seconds
            # Counted from before the question was sent, so that they end here before they end there.
            wallet.permits, wallet.ends_at = granted - 1, now + _Pace.of(rate).hold_seconds
            return 0.0

    async def permits(self, key: str, rate: Rate, wanted: int) -> tuple[int, float]:
        """Take up to `wanted` permits for mails: (how many were granted, seconds until it is worth asking for more).

        A permit is to be used within a second, or within a twentieth of the rate's period if that is less; else it is
        void. In no stretch of the period are more mails sent than the rate has, whoever sends them; `_Pace` says why,
        and which part of it is reached. It is worth asking when all that are wanted are there, or the time in which
        they would have to be used has passed, but not before there is one: so the round trips are one for 20 mails, or
        one for each such time.
        """
        pace = _Pace.of(rate)
        hold = int(pace.hold_seconds * _MICRO)
        answer = await self._ask(
            self._permits, [_GATES, f"shaping:rate:{key}"], wanted, pace.interval, pace.burst, hold
        )
        if answer is not None:
            self._alone.pop(key, None)
            return int(answer[0]), max(0, int(answer[1])) / _MICRO
        alone = _Pace.of(rate.divided(self.workers_alive))
        # Never faster than a part of the common pace; and what has gathered in Redis is not gathered here again.
        interval = max(alone.interval, pace.interval * self.workers_alive)
        now = int(time.monotonic() * _MICRO)
        began = int((self._away_since or time.monotonic()) * _MICRO)
        spent = max(self._alone.get(key, 0), began, now - alone.burst * interval)
        granted = max(0, min(wanted, (now - spent) // interval))
        spent = self._alone[key] = spent + granted * interval
        if granted:
            self._state = "lost"
        all_there = spent + min(wanted, alone.burst) * interval - now
        return granted, max(0, spent + interval - now, min(all_there, hold)) / _MICRO

    def _part(self, limit: int) -> int:
        """This worker's part of a limit while Redis is away: one at least."""
        return max(1, limit // max(1, self.workers_alive))

    def _slot_times(self) -> tuple[int, int]:
        """For how long a slot and a claim are good, in µs."""
        return int(self._ttl_seconds * _MICRO), int(self._renew_seconds * _MICRO)

    async def _ask(self, script: Any, keys: list[str], *arguments: str | int) -> Any:
        """What a script answers; None while Redis is away."""
        async with self._asking:
            if not self._breaker.closed:
                return None
            state, closed = self._present_state()
            try:
                answer = await script(keys=keys, args=[state, closed, *arguments])
            except (RedisError, OSError, TimeoutError) as error:
                await self._lose(error)
                return None
            self._find(state)
            return answer

    async def _lose(self, error: Exception) -> None:
        self._breaker.trip()
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._alone_from = self._away_since + (0.0 if self._state == "fresh" else 2 * self._renew_seconds)
        # A Redis that closes connections may have been started anew; one that is slow has forgotten nothing.
        if isinstance(error, RedisConnectionError | ConnectionError) and self._state == "known":
            self._state = "lost"
            # The others that wait in the pool are broken too; each would look like one more loss when its turn comes.
            await self._redis.connection_pool.disconnect(inuse_connections=False)

    def _present_state(self) -> tuple[str, int]:
        """The state in which Redis is asked now, and for how long gates are to be closed (µs)."""
        away_seconds = time.monotonic() - self._away_since if self._away_since is not None else 0.0
        if self._state == "known" and away_seconds > 2 * self._renew_seconds:
            # What others hold may have ended there by now.
            self._state = "lost"
        return self._state, int(self._closed_seconds * _MICRO)

    def _find(self, state: str) -> None:
        """Redis has answered a question that was put in that state."""
        if self._away_since is not None:
            self._away_since = None
            # Whoever went on alone until the breaker's time is over would have Redis know too little again.
            self._breaker = Breaker()
        if self._state == state:
            self._state = "known"

    async def _give_back(self) -> None:
        """Strike out what was given back. What cannot be struck out now ends by itself."""
        leaving, self._given_back = self._given_back, defaultdict(list)
        if not self._breaker.closed:
            return
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, tokens in leaving.items():
                    pipe.zrem(_slot_keys(key)[1], *tokens)
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            await self._lose(error)
        for key in leaving:
            if key in self._slots:
                self._slots[key].refused_until = 0.0

    async def _renew_all(self) -> None:
        """Tell Redis of every slot held, also when it seems to be away: this is how it is found again soon."""
        self._forget_idle()
        held = [(key, slots) for key, slots in self._slots.items() if slots.tokens]
        for batch in _batches(held):
            state, closed = self._present_state()
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for key, slots in batch:
                        arguments: list[str | int] = [
                            state,
                            closed,
                            self._name,
                            slots.limit,
                            *self._slot_times(),
                            *slots.tokens,
                        ]
                        await self._renew(keys=_slot_keys(key), args=arguments, client=pipe)
                    answers = await pipe.execute()
            except (RedisError, OSError, TimeoutError) as error:
                await self._lose(error)
                return
            self._find(state)
            for (_, slots), keep in zip(batch, answers, strict=True):
                slots.keep = int(keep) if int(keep) >= 0 else None

    def _forget_idle(self) -> None:
        now = time.monotonic()
        for key, slots in list(self._slots.items()):
            if not slots.tokens and slots.refused_until < now - self._renew_seconds:
                del self._slots[key]
        for key, wallet in list(self._wallets.items()):
            if max(wallet.ends_at, wallet.ask_at) < now and not wallet.asking.locked():
                del self._wallets[key]


def _slot_keys(key: str) -> list[str]:
    return [_GATES, f"shaping:slots:{key}", f"shaping:claims:{key}"]


def _batches(held: list[tuple[str, _Slots]]) -> Iterator[list[tuple[str, _Slots]]]:
    for first in range(0, len(held), _RENEW_BATCH):
        yield held[first : first + _RENEW_BATCH]
