"""Watches, broken."""

# ruff: noqa: ARG005 - what is patched keeps its signature

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import pytest

import aiolibkv.keys
import aiolibkv.store.calls
import aiolibkv.store.watch
import aiolibkv.types
from aiolibkv import (
    Change,
    KVPair,
    Snapshot,
    StoreClosedError,
)
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.memory.space import Space
from aiolibkv.store import Feed, Lease, Store
from aiolibkv.store.watch import StoreWatch, _State
from aiolibkv.testing.conformance.watching import Watching
from aiolibkv.testing.conformance.watching_trees import WatchingTrees
from mutants.broken.registry import mutant


@mutant(WatchingTrees)
def watch_begins_from_now(patch: pytest.MonkeyPatch) -> None:
    """A watch reads, and then asks for the changes from now on."""

    async def from_now(self: MemoryDriver, feed: Feed) -> None:
        space = await self._reach()
        space.attach(feed)
        space.detach(feed)
        await asyncio.sleep(0)
        space._feeds.add(feed, feed)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            space.detach(feed)

    patch.setattr(MemoryDriver, "follow", from_now)


@mutant(Watching)
def watch_begins_with_the_next_change(patch: pytest.MonkeyPatch) -> None:
    """A watch does not give the current state."""
    take, begun = Feed.take, WeakKeyDictionary[Feed, bool]()

    def later(self: Feed) -> Snapshot | None:
        state = take(self)
        if state is not None and self not in begun:
            begun[self] = True
            return take(self)
        return state

    patch.setattr(Feed, "take", later)


@mutant(Watching)
def watch_does_not_begin_for_a_missing_key(patch: pytest.MonkeyPatch) -> None:
    """A watch of a key that is not there begins when it is."""
    take = Feed.take

    def waiting(self: Feed) -> Snapshot | None:
        state = take(self)
        return take(self) if state is not None and not state and not state.changes and not self.tree else state

    patch.setattr(Feed, "take", waiting)


@mutant(Watching)
def watch_gives_a_state_twice(patch: pytest.MonkeyPatch) -> None:
    """Every seventh state comes a second time."""
    take, numbers = Feed.take, itertools.count(1)
    again: WeakKeyDictionary[Feed, Snapshot] = WeakKeyDictionary()

    def twice(self: Feed) -> Snapshot | None:
        if self in again:
            return again.pop(self)
        state = take(self)
        if state is not None and state.changes and next(numbers) % 7 == 0:
            again[self] = state
        return state

    patch.setattr(Feed, "take", twice)


@mutant(Watching)
def watch_gives_an_older_state(patch: pytest.MonkeyPatch) -> None:
    """A slow consumer gets the last two states the wrong way round, and then the last one."""
    take = Feed.take

    def swapped(self: Feed) -> Snapshot | None:
        if len(self._pending) == 2 and self._taken is not None:
            self._pending.append(self._pending[0])
            self._pending.append(self._pending[1])
            self._pending.popleft()
        return take(self)

    patch.setattr(Feed, "take", swapped)


@mutant(Watching)
def watch_does_not_see_deletions(patch: pytest.MonkeyPatch) -> None:
    """A deletion is not reported."""
    apply = Feed.apply
    patch.setattr(
        Feed, "apply", lambda self, changes, index: apply(self, [change for change in changes if change[1]], index)
    )


@mutant(Watching)
def watch_does_not_see_expiry(patch: pytest.MonkeyPatch) -> None:
    """A key that goes by itself goes without a word."""
    revoke = Space.revoke

    def silent(self: Space, lease: Lease) -> None:
        with pytest.MonkeyPatch.context() as silence:
            silence.setattr(Space, "_tell", lambda self, paths: None)
            revoke(self, lease)

    patch.setattr(Space, "revoke", silent)


@mutant(Watching)
def watch_does_not_see_the_same_value(patch: pytest.MonkeyPatch) -> None:
    """A put of the value already there is not reported."""
    apply = Feed.apply

    def by_value(self: Feed, changes: Iterable[tuple[str, KVPair | None]], index: int) -> None:
        known = {path: self._latest.get(self._name(path) or "") for path, _ in changes}
        apply(self, [(path, pair) for path, pair in changes if not _same_value(pair, known[path])], index)

    patch.setattr(Feed, "apply", by_value)


def _same_value(one: KVPair | None, two: KVPair | None) -> bool:
    return one is not None and two is not None and one.value == two.value


@mutant(Watching)
def watch_sees_keys_below(patch: pytest.MonkeyPatch) -> None:
    """A watch of a key is woken for the keys below it, and tells of them."""
    tell = Space._tell

    def more(self: Space, paths: list[str]) -> None:
        tell(self, paths)
        for feed in chain.from_iterable(self._feeds._of_key.values()):
            if any(path.startswith(f"{feed.path}/") for path in paths):
                feed._pending.append(_State({}, self.index))
                feed._taken = None
                feed.interrupt()

    patch.setattr(Space, "_tell", more)


@mutant(WatchingTrees)
def watch_of_a_tree_sees_longer_names(patch: pytest.MonkeyPatch) -> None:
    """A watch of foo tells of foobar."""
    tell = Space._tell

    def more(self: Space, paths: list[str]) -> None:
        tell(self, paths)
        for feed in chain.from_iterable(self._feeds._of_directory.values()):
            longer = [path for path in paths if path.startswith(feed.path) and path[len(feed.path) :][:3] == "bar"]
            if longer:
                feed.apply([(path, self._pairs.get(path)) for path in longer], self.index)

    patch.setattr(Space, "_tell", more)


@mutant(Watching)
def watch_loses_the_last_state_of_many(patch: pytest.MonkeyPatch) -> None:
    """What a slow consumer has not taken is capped by dropping what is new."""
    apply = Feed.apply

    def capped(self: Feed, changes: Iterable[tuple[str, KVPair | None]], index: int) -> None:
        if len(self._pending) < 100:
            apply(self, changes, index)

    patch.setattr(Feed, "apply", capped)


@mutant(Watching)
def watch_queues_without_bounds(patch: pytest.MonkeyPatch) -> None:
    """A slow consumer gets every state there ever was."""
    patch.setattr(aiolibkv.store.watch, "_PENDING", 10**9)


@mutant(Watching)
def watch_always_coalesces(patch: pytest.MonkeyPatch) -> None:
    """What has not been taken at once is merged, also for one that keeps up."""
    take = Feed.take

    def merged(self: Feed) -> Snapshot | None:
        if self._pending:
            changed = {key: pair for state in self._pending for key, pair in state.changed.items()}
            index = self._pending[-1].last_index
            self._pending.clear()
            self._pending.append(_State(changed, index))
        return take(self)

    patch.setattr(Feed, "take", merged)


@mutant(Watching)
def watch_loses_an_item_to_a_cancellation(patch: pytest.MonkeyPatch) -> None:
    """An item is taken before the last await of anext."""
    anext_ = StoreWatch.__anext__

    async def late(self: StoreWatch[Any]) -> Any:
        item = await anext_(self)
        await asyncio.sleep(0)
        return item

    patch.setattr(StoreWatch, "__anext__", late)


@mutant(Watching)
def watch_ends_with_a_cancelled_anext(patch: pytest.MonkeyPatch) -> None:
    """A cancelled anext ends the watch, as it would end a generator."""
    anext_ = StoreWatch.__anext__

    async def fragile(self: StoreWatch[Any]) -> Any:
        try:
            return await anext_(self)
        except asyncio.CancelledError:
            self._closed = True
            raise

    patch.setattr(StoreWatch, "__anext__", fragile)


@mutant(Watching)
def watch_ends_at_an_error(patch: pytest.MonkeyPatch) -> None:
    """A watch whose store is closed just ends."""
    anext_ = StoreWatch.__anext__

    async def ending(self: StoreWatch[Any]) -> Any:
        try:
            return await anext_(self)
        except StoreClosedError:
            raise StopAsyncIteration from None

    patch.setattr(StoreWatch, "__anext__", ending)


@mutant(Watching)
def watch_goes_on_after_aclose(patch: pytest.MonkeyPatch) -> None:
    """A released watch begins again."""
    aclose = StoreWatch.aclose

    async def reopen(self: StoreWatch[Any]) -> None:
        await aclose(self)
        self._closed, self._task = False, None

    patch.setattr(StoreWatch, "aclose", reopen)


@mutant(Watching)
def watch_outlives_its_references(patch: pytest.MonkeyPatch) -> None:
    """A watch that nobody refers to goes on."""
    patch.setattr(aiolibkv.store.watch, "_cancel", lambda task: None)


@mutant(Watching)
def watch_starts_when_it_is_made(patch: pytest.MonkeyPatch) -> None:
    """Making a watch asks the server already."""
    watch = Store.watch

    def eager(self: Store[Any], key: str) -> Any:
        made: Any = watch(self, key)
        made._ensure_started()
        return made

    patch.setattr(Store, "watch", eager)


@mutant(Watching)
def watch_is_shared_by_key(patch: pytest.MonkeyPatch) -> None:
    """Two watches of a key are one, and share its items."""
    watch, made = Store.watch, defaultdict[Any, dict[str, Any]](dict)
    patch.setattr(
        Store,
        "watch",
        lambda self, key: (
            made[self].setdefault(key, None) or made[self].update({key: watch(self, key)}) or made[self][key]
        ),
    )


@mutant(WatchingTrees)
def changes_forget_the_previous(patch: pytest.MonkeyPatch) -> None:
    """A change does not tell what there was before."""
    patch.setattr(aiolibkv.types, "Change", lambda key, pair, previous: Change(key, pair, None))


@mutant(WatchingTrees)
def snapshots_index_goes_back(patch: pytest.MonkeyPatch) -> None:
    """A snapshot's index is the newest among its pairs."""

    def newest(self: Snapshot) -> int:
        return max((pair.last_index for pair in self), default=0)

    patch.setattr(Snapshot, "last_index", property(newest))


@mutant(WatchingTrees)
def snapshots_find_prefixes(patch: pytest.MonkeyPatch) -> None:
    """A snapshot finds the next key when there is none of the name."""
    patch.setattr(Snapshot, "get", lambda self, key: next((pair for pair in self if pair.key >= key.strip("/")), None))
