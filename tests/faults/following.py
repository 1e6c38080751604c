"""A writer that counts, and watches of what it writes that check each thing they are given."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count

from aiolibkv import (
    AsyncStore,
    KeyNotFoundError,
    KVPair,
    NotReachableError,
    RequestTimeoutError,
    Snapshot,
    Watch,
)
from aiolibkv.testing.scale import eventually
from aiolibkv.types import Change

DIRECTORY = "tree"
KEY = "tree/0"
CLOCK = "tree/clock"
"""A key that every step writes and none deletes: it tells how much of the rest was seen."""
_KEYS = 4
_DELETES_EVERY = 7
_LASTING_EVERY = 2
_ENDED_EVERY = 8
"""Steps with a key of their own, written once, that stays or is deleted at once: who misses it never learns of it."""
_PAUSE = 0.01
_OUTAGE = (NotReachableError, RequestTimeoutError)


class Writer:
    """Writes and deletes keys in turn; the values are the numbers of the steps.

    Attributes:
        number: of the last step whose writes were all acknowledged.
        is_in_doubt: whether an answer was lost, so that a write may have come to pass after later ones.
    """

    def __init__(self, store: AsyncStore) -> None:
        self.number = 0
        self.is_in_doubt = False
        self._store = store
        self._steps = count(1)
        self._stopping = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End with a whole step, so that nothing is under way any more."""
        self._stopping = True
        await self._task

    async def _run(self) -> None:
        while not self._stopping:
            await self._step()
            await asyncio.sleep(_PAUSE)

    async def _step(self) -> None:
        number = next(self._steps)
        value = str(number).encode()
        key = f"{DIRECTORY}/{number % _KEYS}"
        try:
            if number % _DELETES_EVERY:
                await self._store.put(key, value)
            else:
                await self._delete(key)
            if number % _LASTING_EVERY == 0:
                await self._store.put(f"{DIRECTORY}/once/{number}", value)
            if number % _ENDED_EVERY == 0:
                await self._delete(f"{DIRECTORY}/once/{number}")
            await self._store.put(CLOCK, value)
        except _OUTAGE:
            self.is_in_doubt = True
        else:
            self.number = number

    async def _delete(self, key: str) -> None:
        try:
            await self._store.delete(key)
        except KeyNotFoundError:
            return


class _Follower(ABC):
    """A watch, consumed by a task that checks what it is given.

    Attributes:
        pairs: the last state that was given, by key.
    """

    def __init__(self, watch: Watch[Snapshot] | Watch[KVPair | None], writer: Writer) -> None:
        self.pairs: dict[str, KVPair] = {}
        self._watch = watch
        self._writer = writer
        self._highest: dict[str, KVPair] = {}
        self._task = asyncio.get_running_loop().create_task(self._consume())

    @property
    def is_stale(self) -> bool:
        """Whether the watch says that it is cut off; raises what was wrong with what it gave, and if it has ended."""
        if self._task.done():
            self._task.result()
            raise AssertionError("the watch has ended")
        return self._watch.is_stale

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._watch.aclose()
        if not self._task.cancelled():
            self._task.result()

    @abstractmethod
    async def _consume(self) -> None:
        """Take every item."""

    def _rises(self, pair: KVPair) -> None:
        """Check that a pair is newer than any that was given for its key."""
        highest = self._highest.get(pair.key)
        if highest is not None:
            assert pair.last_index > highest.last_index, f"{pair} after {highest}"
            assert self._writer.is_in_doubt or int(pair.value) > int(highest.value), f"{pair} after {highest}"
        self._highest[pair.key] = pair


class TreeFollower(_Follower):
    """A watch of the directory."""

    def __init__(self, store: AsyncStore, writer: Writer) -> None:
        self._tree = store.watch_tree(DIRECTORY)
        super().__init__(self._tree, writer)

    @property
    def number(self) -> int:
        """The last step that was seen."""
        assert self.is_stale in {True, False}
        clock = self.pairs.get(CLOCK)
        return 0 if clock is None else int(clock.value)

    async def _consume(self) -> None:
        index = 0
        is_first = True
        async for snapshot in self._tree:
            assert is_first or snapshot.changes, "the same state twice"
            assert snapshot.last_index >= index, f"the index went back from {index} to {snapshot.last_index}"
            self.pairs = _changed(self.pairs, snapshot.changes)
            assert list(snapshot) == [pair for _, pair in sorted(self.pairs.items())]
            for change in snapshot.changes:
                if change.pair is not None:
                    self._rises(change.pair)
            index, is_first = snapshot.last_index, False


def _changed(before: dict[str, KVPair], changes: Sequence[Change]) -> dict[str, KVPair]:
    after = dict(before)
    for change in changes:
        assert change.previous == after.pop(change.key, None)
        assert change.pair != change.previous
        if change.pair is not None:
            after[change.key] = change.pair
    return after


class KeyFollower(_Follower):
    """A watch of one of the keys that come and go."""

    def __init__(self, store: AsyncStore, writer: Writer) -> None:
        self._key = store.watch(KEY)
        super().__init__(self._key, writer)

    async def _consume(self) -> None:
        is_first = True
        async for pair in self._key:
            assert is_first or pair != self.pairs.get(KEY), "the same state twice"
            self.pairs = {} if pair is None else {KEY: pair}
            if pair is not None:
                self._rises(pair)
            is_first = False


class Followers:
    """The watches of one store."""

    def __init__(self, store: AsyncStore, writer: Writer) -> None:
        self.tree = TreeFollower(store, writer)
        self.key = KeyFollower(store, writer)

    @property
    def are_stale(self) -> bool:
        return self.tree.is_stale and self.key.is_stale

    @property
    def are_current(self) -> bool:
        return not self.tree.is_stale and not self.key.is_stale

    def have_seen(self, number: int) -> bool:
        """Tell whether the writer's steps up to a number were seen."""
        return self.tree.number >= number and self.are_current

    async def agree_with(self, store: AsyncStore) -> None:
        """See that both arrive at what calls read."""
        tree = {pair.key: pair for pair in await store.list(DIRECTORY)}
        key = {KEY: tree[KEY]} if KEY in tree else {}
        await eventually(
            lambda: self.are_current and self.tree.pairs == tree and self.key.pairs == key,
            within=20,
            message="the watches give what list and get give",
        )
        if key:
            assert await store.get(KEY) == key[KEY]

    async def close(self) -> None:
        await self.tree.close()
        await self.key.close()


@asynccontextmanager
async def followed(store: AsyncStore, writer: Writer) -> AsyncIterator[Followers]:
    """Watch what a writer writes through a store."""
    async with store:
        followers = Followers(store, writer)
        try:
            await eventually(lambda: followers.have_seen(1), within=20, message="the watches have begun")
            yield followers
        finally:
            await followers.close()


@asynccontextmanager
async def writing(store: AsyncStore) -> AsyncIterator[Writer]:
    """Write in the background."""
    async with store:
        writer = Writer(store)
        try:
            yield writer
        finally:
            await writer.stop()
