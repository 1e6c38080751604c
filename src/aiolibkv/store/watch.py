"""The watch that users see, and the feed that a driver fills for it.

A driver pushes states into a Feed: whole ones (``reset``) and changes (``apply``). The feed computes the differences
and merges states that the user does not take in time; the watch takes one state after the other. Nothing is awaited
between taking a state and returning it, so a cancelled ``anext`` loses nothing.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from copy import copy
from typing import Generic, NamedTuple, Self, TypeVar

from aiolibkv.errors import StoreError
from aiolibkv.iteration import ClosableIterator
from aiolibkv.types import KVPair, Snapshot, updated

T = TypeVar("T")

_PENDING = 256
"""States kept apart for a consumer that keeps up; beyond that all of them are merged into one."""
_PENDING_BYTES = 4 * 1024 * 1024
"""Bytes of values, as above."""


_NOTHING = Snapshot()


class _State(NamedTuple):
    """A state that was not taken yet.

    Attributes:
        changed: what differs from the state before.
        last_index: the index that it reflects.
        size: bytes of values that are kept for its sake.
    """

    changed: dict[str, KVPair | None]
    last_index: int
    size: int = 0


class Feed:
    """The state of one key or directory, filled by a driver, and the changes that the watch has not taken yet.

    Attributes:
        path: the key or directory below the store's prefix, as the server stores it.
        tree: True for everything strictly below path, False for the key itself.
        index: the server's index at the last reset or apply, from which a driver may resume; 0 before the first.
        is_stale: whether the driver is cut off from the server.
        on_heard: called by reset, apply and resumed; set by the library.
        on_cut_off: called by cut_off with the error, if there is one; set by the library.
    """

    def __init__(self, path: str, *, tree: bool, name: Callable[[str], str | None]) -> None:
        """Make an empty feed.

        Args:
            path: see above.
            tree: see above.
            name: gives the key of a path, None for one that users do not see.
        """
        self.path = path
        self.tree = tree
        self.index: int = 0
        self.is_stale: bool = False
        self._name = name
        self._latest: dict[str, KVPair] = {}
        self._pending: deque[_State] = deque()
        self._pending_bytes = 0
        self._taken: Snapshot | None = None
        self._last_index = -1
        self._error: BaseException | None = None
        self._wakeup: asyncio.Future[None] | None = None
        self.on_heard: Callable[[], None] | None = None
        self.on_cut_off: Callable[[StoreError | None], None] | None = None

    def reset(self, pairs: Iterable[KVPair], index: int) -> None:
        """Replace the state by another one; the pairs have paths as keys."""
        state = {key: pair for pair in pairs if (key := self._name(pair.key)) is not None}
        gone: dict[str, KVPair | None] = dict.fromkeys(self._latest.keys() - state.keys())
        self._push({**gone, **{key: _with_key(pair, key) for key, pair in state.items()}}, index)

    def apply(self, changes: Iterable[tuple[str, KVPair | None]], index: int) -> None:
        """Change the state by (path, pair or None) each; all changes of one transaction in one call."""
        named = ((self._name(path), pair) for path, pair in changes)
        self._push({key: pair and _with_key(pair, key) for key, pair in named if key is not None}, index)

    def resumed(self) -> None:
        """Note that the driver is connected again and missed no change."""
        self.is_stale = False
        if self.on_heard is not None:
            self.on_heard()

    def cut_off(self, error: StoreError | None = None) -> None:
        """Note that the driver is cut off from the server, and why if that is known."""
        self.is_stale = True
        if self.on_cut_off is not None:
            self.on_cut_off(error)

    def fail(self, error: BaseException) -> None:
        """End the watch with an error."""
        self._error = self._error or error
        self.interrupt()

    def take(self) -> Snapshot | None:
        """Return the next state that differs from the last one returned, None when there is none yet."""
        if self._error is not None:
            # A copy: whoever it is raised to may fill it in.
            raise copy(self._error).with_traceback(None) from self._error.__cause__
        while self._pending:
            state = self._pending.popleft()
            self._pending_bytes -= state.size
            before = self._taken
            self._taken = updated(before or _NOTHING, state.changed, state.last_index)
            if before is None or self._taken.changes:
                return self._taken
        return None

    async def wait(self) -> None:
        """Wait until there is something to take."""
        self._wakeup = asyncio.get_running_loop().create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None

    def interrupt(self) -> None:
        """Let a pending wait return."""
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def _push(self, changed: dict[str, KVPair | None], index: int) -> None:
        first = self._last_index < 0
        changed = {key: pair for key, pair in changed.items() if self._latest.get(key) != pair}
        self.index = index
        self._last_index = max(self._last_index, index)
        self.resumed()
        if not changed and not first:
            return
        for key, pair in changed.items():
            if pair is None:
                del self._latest[key]
            else:
                self._latest[key] = pair
        state = _State(changed, self._last_index, sum(len(pair.value) for pair in changed.values() if pair is not None))
        self._pending.append(state)
        self._pending_bytes += state.size
        if len(self._pending) > _PENDING or (self._pending_bytes > _PENDING_BYTES and len(self._pending) > 1):
            self._merge()
        self.interrupt()

    def _merge(self) -> None:
        """Merge all states that were not taken into one; a key that came and went meanwhile is in none."""
        merged: dict[str, KVPair | None] = {}
        for state in self._pending:
            merged |= state.changed
        taken = self._taken or _NOTHING
        needed = {key: pair for key, pair in merged.items() if pair is not None or taken.get(key) is not None}
        self._pending.clear()
        # These values are the latest ones, which the feed keeps anyway.
        self._pending.append(_State(needed, self._last_index))
        self._pending_bytes = 0


class StoreWatch(ClosableIterator, Generic[T]):
    """The watch of every backend; see ``aiolibkv.Watch``."""

    def __init__(
        self,
        feed: Feed,
        start: Callable[[Feed], asyncio.Task[None]],
        item: Callable[[Snapshot], T],
        check: Callable[[], None],
    ) -> None:
        """Make a watch that has not started.

        Args:
            feed: what the driver fills.
            start: checks that the store is open and starts the task that fills the feed.
            item: makes the item that is yielded of a state.
            check: raises an error in another event loop or process than that of the store.
        """
        self._feed = feed
        self._check = check
        self._start = start
        self._item = item
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._iterating = False

    @property
    def is_stale(self) -> bool:
        """Tell whether the watch is cut off from the server, so that its last item may be out of date."""
        return self._feed.is_stale

    async def __anext__(self) -> T:
        if self._iterating:
            raise RuntimeError("a watch is iterated by one task at a time")
        self._iterating = True
        try:
            while not self._closed:
                self._ensure_started()
                state = self._feed.take()
                if state is not None:
                    return self._item(state)
                await self._feed.wait()
            raise StopAsyncIteration
        finally:
            self._iterating = False

    async def __aenter__(self) -> Self:
        self._ensure_started()
        return self

    async def aclose(self) -> None:
        """Release the watch; a pending or later ``anext`` ends the iteration."""
        if self._task is not None:
            self._check()
        self._closed = True
        self._feed.interrupt()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _ensure_started(self) -> None:
        if self._task is not None:
            self._check()
        elif not self._closed:
            self._task = self._start(self._feed)
            weakref.finalize(self, _cancel, self._task).atexit = False


def _with_key(pair: KVPair, key: str) -> KVPair:
    return pair if key == pair.key else KVPair(key, pair.value, pair.last_index)


def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task from any thread: the garbage collector may run in any."""
    if not task.done() and not (loop := task.get_loop()).is_closed():
        loop.call_soon_threadsafe(task.cancel)
