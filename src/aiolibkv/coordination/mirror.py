"""A directory's present state in the process, to be read without awaiting."""

from __future__ import annotations

import asyncio
from copy import copy
from types import TracebackType
from typing import Self

from aiolibkv.errors import StoreClosedError, StoreError
from aiolibkv.iteration import ClosableIterator
from aiolibkv.keys import normalize_directory, normalize_key
from aiolibkv.protocol import AsyncStore, Watch
from aiolibkv.starting import start
from aiolibkv.types import Change, KVPair, Snapshot

_STALE_INTERVAL = 0.25
"""Seconds between two looks at whether the watch is stale: so exact is ``stale_for``."""
_FIRST_SETTLING = 0.1
_LAST_SETTLING = 1.0
"""Seconds that ``wait_for`` waits for the watch before it reads the directory anew, at first and at last."""


class Mirror:
    """What is below a directory, kept up to date in the process while its ``async with`` lasts.

    Entering waits for the first state, through outages. Before and afterwards, whatever is asked of it raises
    StoreClosedError; so it does when the store is closed, and AccessDeniedError once the server has refused the watch.

    Cancellation: of entering, nothing is left behind; of leaving, it stops all the same.
    Cost: that of a watch of the directory; what is asked of the mirror costs nothing but memory.
    """

    def __init__(self, store: AsyncStore, directory: str) -> None:
        """Make a mirror; nothing is sent until it is entered.

        Args:
            store: where the directory is.
            directory: ``""`` is the root.
        """
        self._store = store
        self._directory = normalize_directory(directory)
        self._watch: Watch[Snapshot] | None = None
        self._following: asyncio.Task[None] | None = None
        self._snapshot: Snapshot | None = None
        self._previous: Snapshot | None = None
        self._reflected = 0
        self._error: StoreError | None = self._left()
        self._changed = asyncio.Event()
        self._waits: set[asyncio.Timeout] = set()
        self._stale_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The present state, immutable; its changes are those since the state before."""
        self._check()
        assert self._snapshot is not None, "entered"
        return self._snapshot

    @property
    def is_stale(self) -> bool:
        """Tell whether the mirror is cut off from the server, so that it may be out of date."""
        self._check()
        return self._watch is not None and self._watch.is_stale

    @property
    def stale_for(self) -> float:
        """Seconds since the mirror was cut off from the server; 0.0 when it is not."""
        self._check()
        self._note_staleness()
        if self._stale_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._stale_since

    def get(self, key: str) -> KVPair | None:
        """Return the pair of a key, by the same key as the store's ``get``; None when it is not there."""
        return self.snapshot.get(normalize_key(key))

    async def wait_for(self, index: int) -> None:
        """Wait until the mirror reflects a write of your own below the directory, by the write's ``last_index``.

        It returns also when the write was undone before the mirror saw it.

        Args:
            index: the index.

        Raises:
            StoreClosedError: the mirror was left, or the store closed.
            AccessDeniedError: the server has refused the watch.

        Cancellation: harmless.
        Cost: none when the watch brings the index within 0.1 s; else, and after an outage, a read of the directory now
        and then.
        """
        self._check()
        until_failure = asyncio.timeout(None)
        self._waits.add(until_failure)
        try:
            async with until_failure:
                await self._reach(index)
        except TimeoutError:
            if until_failure.expired():
                self._check()
            raise
        finally:
            self._waits.discard(until_failure)

    def changes(self) -> MirrorChanges:
        """Iterate over the states: the current one first, then a new one after each change.

        A slow consumer gets several changes in one snapshot. The ``changes`` of a snapshot are those since the one that
        this iterator gave before; in the first one, everything.

        Cost: none; the mirror's watch runs anyway.
        """
        return MirrorChanges(self)

    async def __aenter__(self) -> Self:
        """Start, and wait for the first state.

        Raises:
            RuntimeError: it is entered already.
        """
        if self._watch is not None:
            raise RuntimeError(f"the mirror of {self._directory!r} is entered already")
        self._snapshot = None
        watch = self._watch = self._store.watch_tree(self._directory)
        try:
            self._set(await anext(watch))
        except BaseException:
            self._watch = None
            await watch.aclose()
            raise
        self._error = None
        self._stale_since = None
        self._note_staleness_again()
        self._following = start(self._follow(watch))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; what waits ends with StoreClosedError."""
        self._fail(self._left())
        watch, following = self._watch, self._following
        self._watch = self._following = None
        if self._timer is not None:
            self._timer.cancel()
        if following is not None:
            following.cancel()
        try:
            if watch is not None:
                await watch.aclose()
        finally:
            if following is not None:
                await asyncio.wait({following})

    async def _follow(self, watch: Watch[Snapshot]) -> None:
        try:
            async for snapshot in watch:
                self._set(snapshot)
        except StoreError as error:
            self._fail(error)

    def _set(self, snapshot: Snapshot) -> None:
        before = self._previous = self._snapshot
        self._snapshot = snapshot
        if before is None or snapshot.last_index > before.last_index:
            self._reflected = snapshot.last_index
        else:
            # The server lost its data and counts anew, which a snapshot's index, that never decreases, does not show.
            self._reflected = max((pair.last_index for pair in snapshot), default=0)
        self._tell()

    def _fail(self, error: StoreError) -> None:
        self._error = error
        for wait in self._waits:
            wait.reschedule(asyncio.get_running_loop().time())
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _check(self) -> None:
        if self._error is not None:
            raise copy(self._error) from self._error.__cause__

    def _left(self) -> StoreClosedError:
        return StoreClosedError(
            "the mirror is not entered: use it inside 'async with Mirror(...) as mirror:'", key=self._directory
        )

    async def _reach(self, index: int) -> None:
        self._note_staleness()
        pause = _FIRST_SETTLING
        while self._reflected < index:
            try:
                async with asyncio.timeout(pause):
                    while self._reflected < index:
                        await self._changed.wait()
            except TimeoutError:
                if await self._settle() >= index:
                    return
            pause = min(2 * pause, _LAST_SETTLING)

    async def _settle(self) -> int:
        """Read the directory anew, and return the index that the mirror is known to reflect: when it is equal to it.

        A write that was undone before the watch saw it may never come by the watch.
        """
        async with self._store.watch_tree(self._directory) as watch:
            fresh = await anext(watch)
        if fresh == self._snapshot:
            self._reflected = fresh.last_index
        return self._reflected

    def _note_staleness(self) -> None:
        if self._watch is None or not self._watch.is_stale:
            self._stale_since = None
            return
        # The server may come back without its data, and count anew.
        self._reflected = 0
        if self._stale_since is None:
            self._stale_since = asyncio.get_running_loop().time()

    def _note_staleness_again(self) -> None:
        self._note_staleness()
        self._timer = asyncio.get_running_loop().call_later(_STALE_INTERVAL, self._note_staleness_again)


class MirrorChanges(ClosableIterator):
    """The iterator of ``Mirror.changes``; it has the methods of a watch."""

    def __init__(self, mirror: Mirror) -> None:
        """Make an iterator that has given nothing yet."""
        self._mirror = mirror
        self._seen: Snapshot | None = None
        self._is_closed = False

    @property
    def is_stale(self) -> bool:
        """Tell whether the mirror is cut off from the server."""
        return self._mirror.is_stale

    async def __anext__(self) -> Snapshot:
        mirror = self._mirror
        while not self._is_closed:
            changed = mirror._changed
            snapshot, seen = mirror.snapshot, self._seen
            if snapshot is not seen:
                self._seen = snapshot
                if seen is not None and seen is mirror._previous:
                    return snapshot
                differences = _differences(seen or Snapshot(), snapshot)
                if differences or seen is None:
                    return Snapshot(snapshot, changes=differences, last_index=snapshot.last_index)
            await changed.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the iteration, a pending ``anext`` too.

        Cancellation: it ends all the same.
        Cost: none.
        """
        self._is_closed = True
        self._mirror._tell()


def _differences(before: Snapshot, after: Snapshot) -> list[Change]:
    """Return what differs between two snapshots, sorted by key."""
    old, new = ({pair.key: pair for pair in snapshot} for snapshot in (before, after))
    return [
        Change(key, new.get(key), old.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
