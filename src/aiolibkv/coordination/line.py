"""Locks that several hold at once, or wait for in one line: each holder and waiter has a place, which is itself a lock.

A place is a lock at ``<name>/line/<n>``, so it goes with its holder, is guarded and fenced. Places are ordered by their
index. Those ahead of a place only become fewer: what admits it once admits it for good, however late it learns.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain, count, islice
from types import TracebackType
from uuid import uuid4

from aiolibkv.coordination.attempts import Attempts
from aiolibkv.coordination.holding import WhileHeld
from aiolibkv.errors import CannotLockError, KeyNotFoundError, LockLostError, NotReachableError, RequestTimeoutError
from aiolibkv.keys import normalize_key
from aiolibkv.protocol import AsyncStore, HeldLock, Lock
from aiolibkv.types import KVPair

DEFAULT_TTL = 15.0

_CHOICE = 16
"""Of the first so many places a newcomer takes any: those that come together do not all try for one."""


class PlaceLock(ABC):
    """A lock that is held as soon as its place in a line admits it; used like a Lock."""

    def __init__(self, store: AsyncStore, name: str, *, kind: str, ttl: float) -> None:
        """Make a lock; nothing is sent until it is acquired.

        Args:
            store: where the line is.
            name: the directory of the line.
            kind: what the value of a place begins with.
            ttl: seconds after which a dead holder's place is free.
        """
        self._store = store
        self._name = normalize_key(name)
        self._kind = kind
        self._ttl = ttl
        self._attempts = Attempts(store, self._name, f"a place at {self._name!r}", ttl)
        self._number = random.randrange(_CHOICE)
        self._lock: Lock | None = None
        self._held: HeldLock | None = None
        self._block: WhileHeld | None = None
        self._is_waiting = False
        # As a Lock does, it refuses at once a ttl that cannot be.
        store.new_lock(self._place(0), ttl=ttl)

    @abstractmethod
    async def _is_admitted(self, pairs: Sequence[KVPair], ahead: Sequence[KVPair], *, is_current: bool) -> bool:
        """Tell whether a place is admitted.

        Args:
            pairs: what is below the name.
            ahead: the places that come before, among them.
            is_current: whether the pairs are of one moment since this was asked for.
        """

    def __repr__(self) -> str:
        state = "waiting" if self._is_waiting else "not held" if self._held is None else repr(self._held)
        return f"<{type(self).__name__.strip('_')} {self._name!r}, {state}>"

    async def acquire(self) -> HeldLock:
        """Take a place in the line and wait until it is admitted, through outages; see ``Lock.acquire``.

        Returns:
            The place, held as a lock.

        Raises:
            CannotLockError: it is held or waited for already.

        Cancellation: the place is given up, and nothing of it is left behind.
        Cost: that of acquiring a lock, and a list; a list more when the place that it had before, or at first chose
            at random, is taken. While it waits, a watch of the line.
        """
        held = await self._contend(wait=True)
        assert held is not None, "waited"
        return held

    async def try_acquire(self) -> HeldLock | None:
        """Acquire it if that needs no waiting; see ``Lock.try_acquire``.

        Returns:
            The place, held as a lock; None when it is not admitted now.

        Raises:
            CannotLockError: it is held or waited for already.

        Cancellation: it is not held, and nothing is left behind.
        Cost: that of acquiring a lock, and a list; a list more when the place that it had before, or at first chose
            at random, is taken.
        """
        return await self._contend(wait=False)

    async def release(self) -> None:
        """Give up the place; nothing is done when it was lost. A body in another task is cancelled, as by a loss.

        Raises:
            CannotLockError: it was never acquired, or released already.

        Cancellation: the place is given up all the same.
        Cost: that of releasing a lock.
        """
        held, lock = self._held, self._lock
        if held is None or lock is None:
            raise CannotLockError("the lock was not acquired", key=self._name)
        if held.is_held:
            self._held = None
            if self._block is not None and self._block.is_own:
                self._block.release()
            await lock.release()

    async def __aenter__(self) -> HeldLock:
        """Acquire it, and have the body cancelled when the place is lost."""
        held = await self.acquire()
        self._block = WhileHeld(held)
        await self._block.__aenter__()
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up the place; raise LockLostError when it was lost, unless the body failed by itself."""
        block, self._block = self._block, None
        assert block is not None, "entered"
        try:
            await block.__aexit__(kind, error, trace)
        finally:
            if self._held is not None:
                await self.release()

    async def _contend(self, *, wait: bool) -> HeldLock | None:
        if self._is_waiting or self._block is not None or (self._held is not None and self._held.is_held):
            raise CannotLockError(
                "it is held or waited for already; make another object for another holder", key=self._name
            )
        self._is_waiting = True
        try:
            while True:
                try:
                    return await self._try_once(wait=wait)
                except (NotReachableError, RequestTimeoutError) as error:
                    if not wait:
                        raise
                    await self._attempts.failed(error)
                except LockLostError:
                    if not wait:
                        return None
        finally:
            self._is_waiting = False

    async def _try_once(self, *, wait: bool) -> HeldLock | None:
        """Take a place and see, or wait, whether it is admitted."""
        lock, held = await self._take_place()
        is_admitted = False
        try:
            async with WhileHeld(held):
                is_admitted = await (self._wait(held) if wait else self._is_next_now(held))
            if not is_admitted:
                return None
            self._lock, self._held = lock, held
            self._attempts.succeeded()
            return held
        finally:
            if self._held is not held:
                await lock.release()

    async def _wait(self, held: HeldLock) -> bool:
        """Wait until a place is admitted; an outage does not cost it."""
        while True:
            try:
                if await self._is_next_now(held) or await self._follow(held):
                    return True
            except (NotReachableError, RequestTimeoutError) as error:
                await self._attempts.failed(error)

    async def _follow(self, held: HeldLock) -> bool:
        async with self._store.watch_tree(self._name) as watch:
            async for snapshot in watch:
                if await self._is_next(snapshot, held, is_current=False):
                    return True
        return False

    async def _is_next_now(self, held: HeldLock) -> bool:
        can = self._store.capabilities
        return await self._is_next(await self._list(), held, is_current=can.atomic_list and can.linearizable_reads)

    async def _is_next(self, pairs: Sequence[KVPair], held: HeldLock, *, is_current: bool) -> bool:
        own = next((pair for pair in pairs if pair.key == held.key and pair.value == held.value), None)
        if own is None:
            return False
        places = f"{self._name}/line/"
        ahead = [pair for pair in pairs if pair.key.startswith(places) and pair.last_index < own.last_index]
        return await self._is_admitted(pairs, ahead, is_current=is_current) and held.is_held

    async def _take_place(self) -> tuple[Lock, HeldLock]:
        """Take the place of the last time, at first any, or else one that is free: numbers are used again."""
        if (taken := await self._try_place(self._number)) is not None:
            return taken
        others = {pair.key for pair in await self._list()}
        free = (number for number in count() if self._place(number) not in others)
        for number in chain(random.sample(list(islice(free, _CHOICE)), _CHOICE), free):
            if (taken := await self._try_place(number)) is not None:
                return taken
        raise AssertionError("there is no end of numbers")

    async def _try_place(self, number: int) -> tuple[Lock, HeldLock] | None:
        value = f"{self._kind} {uuid4().hex}".encode()
        lock = self._store.new_lock(self._place(number), value=value, ttl=self._ttl)
        held = await lock.try_acquire()
        if held is None:
            return None
        self._number = number
        return lock, held

    async def _list(self) -> Sequence[KVPair]:
        try:
            return await self._store.list(self._name)
        except KeyNotFoundError:
            return []

    def _place(self, number: int) -> str:
        return f"{self._name}/line/{number}"
