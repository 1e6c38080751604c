"""Jobs that one of many processes runs at each slot of time, never twice."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from aiolibkv.coordination.attempts import Attempts
from aiolibkv.coordination.election import Candidate
from aiolibkv.errors import KeyExistsError, KeyModifiedError, KeyNotFoundError, LockLostError, StoreError
from aiolibkv.keys import normalize_key
from aiolibkv.protocol import AsyncStore, HeldLock
from aiolibkv.types import KVPair

DEFAULT_TTL = 15.0

Next = Callable[[datetime], datetime]

_LONGEST_SLEEP = 10.0
"""Seconds between two looks at the wall clock, which may be set."""
_AHEAD = 5.0
"""Seconds by which clocks differ without a word."""
_MOST_STEPS = 100
"""Steps from slot to slot, and halvings after them, until the latest one must be found."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_log = logging.getLogger("aiolibkv")


class PeriodicJob:
    """A job that many processes run, and one of them does in each slot of time.

    A slot never begins twice, whichever process dies and however the clocks differ: it is claimed before the work
    begins, by a write that is guarded by the leader's lock and compares the last slot claimed. Of the slots that were
    missed, only the latest one is made up for. The lock is at ``<name>/leader``, the last slot at ``<name>/slot``.
    """

    def __init__(self, store: AsyncStore, name: str, *, every: float | Next, ttl: float = DEFAULT_TTL) -> None:
        """Make a job; nothing is sent until it runs.

        Args:
            store: where the processes agree on who does it.
            name: the directory in which lock and last slot are kept.
            every: seconds; slots are their multiples since 1970 in UTC. Or a function: given a datetime in UTC, it
                returns the first slot after that, a datetime with a time zone.
            ttl: seconds after which another process may run the job when this one died.

        Raises:
            ValueError: ``every`` is not above 0 or too large, or the ttl is not valid.
            TypeError: ``every`` is neither a number nor a function.
        """
        self._store = store
        self._name = normalize_key(name)
        self._ttl = ttl
        self._every = every if callable(every) else _multiples(every)
        # Of a function it is not known which slots there were before it was asked for the first time.
        self._due_at_first = timedelta(0) if callable(every) else timedelta(seconds=every)
        self._leader = f"{self._name}/leader"
        self._key = f"{self._name}/slot"
        self._attempts = Attempts(store, self._key, f"the claim of a slot of {self._name!r}", ttl)
        store.new_lock(self._leader, ttl=ttl)

    async def run(self, work: Callable[[datetime, HeldLock], Awaitable[object]]) -> None:
        """Run the job for ever, whenever this process is the one to do it.

        When no slot was ever claimed, the present multiple of ``every`` is due at once; of a function, its next slot.

        Args:
            work: is called with the slot, in UTC, and the leader's lock, for guards, and awaited. It is cancelled, and
                awaited to its end, when the leadership is lost.

        Raises:
            Exception: what work or the function raised; the other processes go on.
            StoreClosedError: the store was closed.

        Cancellation: work is cancelled and awaited, and the leadership given up.
        Cost: waiting for a lock while another process leads; then a read and a write for each slot.
        """

        async def lead(held: HeldLock) -> None:
            while True:
                slot = await self._claim_next(held)
                if not held.is_held:
                    # This process stood still after the claim: another one may be at work.
                    raise LockLostError(key=held.key)
                await work(slot, held)

        node = f"{socket.gethostname()}:{os.getpid()}"
        await Candidate(self._store, self._leader, node, ttl=self._ttl).run(lead)

    async def _claim_next(self, held: HeldLock) -> datetime:
        """Wait until a slot is due, and claim it."""
        began = _now()
        # A claim whose answer was lost is known by what it wrote, though it may come to pass late.
        claims: dict[bytes, datetime] = {}
        while True:
            try:
                record = await self._read()
                if record is not None and record.value in claims:
                    return claims[record.value]
                slot = await self._wait_until_due(_slot_of(record) or began - self._due_at_first)
                value = json.dumps({"slot": slot.isoformat(), "claim": uuid4().hex}).encode()
                claims[value] = slot
                await self._store.atomic_put(self._key, value, record, guard=held)
            except (KeyExistsError, KeyModifiedError) as error:
                _log.debug("a slot was claimed meanwhile: %s", error)
            except LockLostError:
                raise
            except StoreError as error:
                await self._attempts.failed(error)
            else:
                self._attempts.succeeded()
                return slot

    async def _wait_until_due(self, last: datetime) -> datetime:
        """Wait until there is a slot after the last one, and return the latest."""
        following = self._following(last)
        is_told = False
        while (now := _now()) < following:
            ahead = (last - now).total_seconds()
            if ahead > _AHEAD and not is_told:
                is_told = True
                _log.warning("the last slot of %r is %.0f s ahead of this clock: none begins before", self._name, ahead)
            await asyncio.sleep(min((following - now).total_seconds(), _LONGEST_SLEEP))
        return self._latest(following, now)

    def _latest(self, slot: datetime, now: datetime) -> datetime:
        """Return the last slot up to now, from one that is due."""
        for _ in range(_MOST_STEPS):
            following = self._following(slot)
            if following > now:
                return slot
            slot = following
        end = now
        for _ in range(_MOST_STEPS):
            middle = slot + (end - slot) / 2
            following = self._following(middle)
            if following > now:
                end = middle
            else:
                slot = following
                if self._following(slot) > now:
                    break
        return slot

    def _following(self, moment: datetime) -> datetime:
        slot = self._every(moment)
        if slot.tzinfo is None or slot <= moment:
            raise ValueError(f"every has to give a later time with a time zone for {moment}, not {slot}")
        return slot.astimezone(UTC)

    async def _read(self) -> KVPair | None:
        try:
            return await self._store.get(self._key)
        except KeyNotFoundError:
            return None


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


def _multiples(seconds: float) -> Next:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"every is a number of seconds, not {type(seconds).__name__}")
    try:
        step = timedelta(seconds=seconds)
        _EPOCH + 2 * ((_now() - _EPOCH) + step)
    except (OverflowError, ValueError) as error:
        raise ValueError(f"every is too large, or no number of seconds: {seconds}") from error
    if step <= timedelta(0):
        raise ValueError(f"every is a number of seconds above 0, not {seconds}")
    return lambda moment: _EPOCH + ((moment - _EPOCH) // step + 1) * step


def _slot_of(record: KVPair | None) -> datetime | None:
    """Return the last slot that was claimed; None when there is none that can be read."""
    if record is None:
        return None
    try:
        return datetime.fromisoformat(json.loads(record.value)["slot"]).astimezone(UTC)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        _log.warning("the last slot at %r cannot be read: %s", record.key, error)
        return None
