"""A part of a store that is used as a store of its own."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar
from weakref import WeakSet

from aiolibkv.coordination.removal import Removal, instead_of_removal
from aiolibkv.errors import (
    CallNotSupportedError,
    CannotLockError,
    InvalidKeyError,
    KeyNotFoundError,
    LockLostError,
    StoreClosedError,
    StoreError,
)
from aiolibkv.iteration import ClosableIterator
from aiolibkv.keys import RESERVED, check_same_key, normalize_directory, normalize_key
from aiolibkv.parts import in_parts
from aiolibkv.protocol import AsyncStore, HeldLock, Lock, Scan, Watch
from aiolibkv.starting import start
from aiolibkv.types import Any_, Bytes, Capabilities, Check, Delete, KVPair, Operation, Put, Snapshot, updated

T = TypeVar("T")

_RESERVED_NAMES = frozenset({RESERVED, f"{RESERVED}/"})
_CLOSING_TIME = 1.5
"""Seconds that close waits for the server."""

_log = logging.getLogger("aiolibkv")


class Namespace:
    """What lies below a directory of a store, as a store that shares its connection; see ``AsyncStore``.

    Keys, pairs, errors, locks and watches are without the directory. Guards of the store's own locks and of other
    namespaces of the same store are accepted, and the other way round. It may be used at once; entering and closing it
    does nothing to the store, which has to be open. Closing ends what was begun through it, as a store's close does:
    calls, watches and waits with StoreClosedError, locks, and the keys that it keeps alive.
    """

    def __init__(self, store: AsyncStore, directory: str) -> None:
        """Make a namespace; nothing is sent.

        Args:
            store: where it is; it may be a namespace too.
            directory: its root.

        Raises:
            InvalidKeyError: the directory breaks a rule for keys.
        """
        self.capabilities: Capabilities = store.capabilities
        self._store = store
        self._root = normalize_directory(directory)
        self._start = f"{self._root}/" if self._root else ""
        self._base: AsyncStore = store._base if isinstance(store, Namespace) else store
        self._is_closed = False
        self._closing: asyncio.Task[None] | None = None
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._pending: set[asyncio.Timeout] = set()
        self._watches: WeakSet[_Watch[KVPair | None] | _Watch[Snapshot]] = WeakSet()
        self._held: set[_Lock] = set()
        self._kept_alive: dict[str, KVPair] = {}

    def __repr__(self) -> str:
        return f"<Namespace {self._root!r} of {self._store!r}{', closed' if self._is_closed else ''}>"

    # -- calls -----------------------------------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        value: Bytes,
        *,
        ttl: float | None = None,
        keep_alive: bool = False,
        guard: HeldLock | None = None,
    ) -> KVPair:
        """Write a value, whatever was there; see AsyncStore."""
        outer, held = self._outer(key), _unwrapped(guard)
        async with self._inside(outer, guard):
            with self._writing(outer):
                pair = await self._store.put(outer, value, ttl=ttl, keep_alive=keep_alive, guard=held)
        return self._written(pair, keep_alive=keep_alive)

    async def atomic_put(
        self,
        key: str,
        value: Bytes,
        previous: KVPair | None,
        *,
        ttl: float | None = None,
        keep_alive: bool = False,
        guard: HeldLock | None = None,
    ) -> KVPair:
        """Write a value if the key is as in previous; see AsyncStore."""
        outer, before, held = self._outer(key), self._outer_pair(key, previous), _unwrapped(guard)
        async with self._inside(outer, guard):
            with self._writing(outer):
                pair = await self._store.atomic_put(outer, value, before, ttl=ttl, keep_alive=keep_alive, guard=held)
        return self._written(pair, keep_alive=keep_alive)

    async def get(self, key: str, *, consistent: bool = True) -> KVPair:
        """Read the current pair; see AsyncStore."""
        outer = self._outer(key)
        async with self._inside(outer):
            return self._inner_pair(await self._store.get(outer, consistent=consistent))

    async def exists(self, key: str, *, consistent: bool = True) -> bool:
        """Tell whether there is such a key; see AsyncStore."""
        outer = self._outer(key)
        async with self._inside(outer):
            return await self._store.exists(outer, consistent=consistent)

    async def delete(self, key: str, *, guard: HeldLock | None = None) -> None:
        """Delete a key; see AsyncStore."""
        outer = self._outer(key)
        async with self._inside(outer, guard):
            await self._store.delete(outer, guard=_unwrapped(guard))
        self._kept_alive.pop(outer, None)

    async def atomic_delete(self, key: str, previous: KVPair, *, guard: HeldLock | None = None) -> None:
        """Delete a key if it is as in previous; see AsyncStore."""
        outer, before = self._outer(key), self._outer_pair(key, previous)
        async with self._inside(outer, guard):
            await self._store.atomic_delete(outer, before, guard=_unwrapped(guard))  # type: ignore[arg-type] # is checked there
        self._kept_alive.pop(outer, None)

    async def list(self, directory: str, *, consistent: bool = True) -> Sequence[KVPair]:
        """Read every pair strictly below a directory; see AsyncStore."""
        outer = self._outer_directory(directory)
        async with self._inside(outer):
            pairs = await self._of_root(outer, self._store.list(outer, consistent=consistent), [])
            return await in_parts(self._inner_pairs, pairs)

    async def keys(self, directory: str, *, consistent: bool = True) -> Sequence[str]:
        """Read every key strictly below a directory; see AsyncStore."""
        outer = self._outer_directory(directory)
        async with self._inside(outer):
            keys = await self._of_root(outer, self._store.keys(outer, consistent=consistent), [])
            return await in_parts(self._inner_keys, keys)

    async def children(self, directory: str, *, consistent: bool = True) -> Sequence[str]:
        """Read the names one level below a directory; see AsyncStore."""
        outer = self._outer_directory(directory)
        async with self._inside(outer):
            names = await self._of_root(outer, self._store.children(outer, consistent=consistent), [])
            if outer == self._root:
                names = [name for name in names if name not in _RESERVED_NAMES]
            return names

    async def get_many(self, keys: Iterable[str], *, consistent: bool = True) -> Mapping[str, KVPair]:
        """Read the pairs of those keys that exist; see AsyncStore."""
        if isinstance(keys, str):
            raise TypeError("keys are an iterable of str, not one str")
        outer = [self._outer(key) for key in keys]
        async with self._inside():
            found = await self._store.get_many(outer, consistent=consistent)
            pairs = [self._inner_pair(pair) for pair in found.values()]
            return {pair.key: pair for pair in pairs}

    async def delete_tree(self, directory: str, *, guard: HeldLock | None = None) -> int:
        """Delete what list would list; see AsyncStore.

        Of the root it costs one round trip more. When others have written below its reserved segment, it is a commit,
        and CallNotSupportedError for more than max_operations keys.
        """
        outer, held = self._outer_directory(directory), _unwrapped(guard)
        async with self._inside(outer, guard):
            number = await (
                self._delete_root(held) if outer == self._root else self._store.delete_tree(outer, guard=held)
            )
        for key in [key for key in self._kept_alive if key.startswith(f"{outer}/" if outer else "")]:
            del self._kept_alive[key]
        return number

    async def _delete_root(self, guard: HeldLock | None) -> int:
        keys = await self._of_root(self._root, self._store.keys(self._root), [])
        visible = [key for key in keys if self._is_visible(key)]
        if len(visible) == len(keys):
            return await self._of_root(self._root, self._store.delete_tree(self._root, guard=guard), 0)
        if len(visible) > self.capabilities.max_operations:
            raise CallNotSupportedError("others have written below the reserved segment: too many keys for one commit")
        if visible:
            await self._store.commit(*(Delete(key) for key in visible), guard=guard)
        return len(visible)

    async def commit(self, *operations: Operation, guard: HeldLock | None = None) -> Sequence[KVPair | None]:
        """Carry out several writes and conditions, all or nothing; see AsyncStore."""
        outer = [self._outer_operation(operation) for operation in operations]
        async with self._inside(guard=guard):
            with self._writing(*(each.key for each in outer if not isinstance(each, Check))):
                pairs = await self._store.commit(*outer, guard=_unwrapped(guard))
        for operation in outer:
            if not isinstance(operation, Check):
                self._kept_alive.pop(operation.key, None)
        return [pair and self._inner_pair(pair) for pair in pairs]

    def scan(self, directory: str, *, page: int = 1000) -> Scan:
        """Read a directory in pages; see AsyncStore."""
        outer = self._outer_directory(directory)
        with self._inner_errors():
            return _Scan(self, outer, page)

    def watch(self, key: str) -> Watch[KVPair | None]:
        """Watch a key; see AsyncStore."""
        outer = self._outer(key)
        with self._inner_errors():
            watch = self._store.watch(outer)
        return _Watch(self, watch, lambda pair: (pair and self._inner_pair(pair),))

    def watch_tree(self, directory: str) -> Watch[Snapshot]:
        """Watch what list would give; see AsyncStore."""
        outer = self._outer_directory(directory)
        with self._inner_errors():
            watch = self._store.watch_tree(outer)
        return _Watch(self, watch, _Snapshots(self).next)

    def new_lock(self, key: str, *, value: Bytes = b"", ttl: float = 15.0) -> Lock:
        """Make a lock on a key; see AsyncStore."""
        outer = self._outer(key)
        with self._inner_errors():
            return _Lock(self, self._store.new_lock(outer, value=value, ttl=ttl))

    # -- open and closed -------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Do nothing but refuse when it is closed; see AsyncStore."""
        self._check_home()
        if self._is_closed:
            raise self._closed()
        return self

    async def close(self) -> None:
        """End what was begun through the namespace; the store stays open. See AsyncStore.

        Keys kept alive that no server deletes now are deleted as soon as one does, while the store is open.
        """
        self._check_home()
        if self._closing is None:
            self._is_closed = True
            now = asyncio.get_running_loop().time()
            for timeout in self._pending:
                timeout.reschedule(now)
            self._closing = start(self._end())
        await _wait_shielded(self._closing)

    async def _end(self) -> None:
        removals = [
            Removal(self._base, KVPair(self._base_key(pair.key), pair.value, pair.last_index))
            for pair in self._kept_alive.values()
        ]
        self._kept_alive.clear()
        try:
            async with asyncio.timeout(_CLOSING_TIME):
                await asyncio.gather(
                    *(watch.aclose() for watch in tuple(self._watches)),
                    *(lock.give_up() for lock in tuple(self._held)),
                    *(removal.wait() for removal in removals),
                )
        except TimeoutError:
            _log.warning(
                "%r: its kept-alive keys could not be removed yet; they are removed as soon as a server answers", self
            )

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- names -----------------------------------------------------------------------------------------------------

    def _outer(self, key: str) -> str:
        try:
            return self._start + normalize_key(key)
        except InvalidKeyError:
            # The store says the same, and where it happened.
            self._store.watch(key)
            raise

    def _outer_directory(self, directory: str) -> str:
        try:
            name = normalize_directory(directory)
        except InvalidKeyError:
            self._store.watch_tree(directory)
            raise
        return self._start + name if name else self._root

    def _outer_pair(self, key: str, pair: KVPair | None) -> KVPair | None:
        # What is no pair is told by the store.
        if not isinstance(pair, KVPair):
            return pair
        check_same_key(key, pair.key)
        return KVPair(self._outer(pair.key), pair.value, pair.last_index)

    def _outer_operation(self, operation: Operation) -> Operation:
        if not isinstance(operation, Put | Delete | Check):
            raise TypeError(f"an operation is a Put, Delete or Check, not {type(operation).__name__}")
        key, previous = self._outer(operation.key), operation.previous
        before = previous if isinstance(previous, Any_) else self._outer_pair(operation.key, previous)
        if isinstance(operation, Put):
            return Put(key, operation.value, before)
        return Delete(key, before) if isinstance(operation, Delete) else Check(key, before)  # type: ignore[arg-type]

    def _inner(self, key: str) -> str:
        return key.removeprefix(self._start)

    def _inner_pair(self, pair: KVPair) -> KVPair:
        return KVPair(self._inner(pair.key), pair.value, pair.last_index)

    def _inner_pairs(self, pairs: Sequence[KVPair]) -> Sequence[KVPair]:
        return [self._inner_pair(pair) for pair in pairs if self._is_visible(pair.key)]

    def _inner_keys(self, keys: Sequence[str]) -> Sequence[str]:
        return [self._inner(key) for key in keys if self._is_visible(key)]

    def _is_visible(self, key: str) -> bool:
        return self._inner(key).partition("/")[0] != RESERVED

    def _written(self, pair: KVPair, *, keep_alive: bool) -> KVPair:
        if keep_alive and not self._is_closed:
            self._kept_alive[pair.key] = pair
        else:
            self._kept_alive.pop(pair.key, None)
        return self._inner_pair(pair)

    def _base_key(self, outer: str) -> str:
        """Return a key of the store below all namespaces."""
        return self._store._base_key(self._store._start + outer) if isinstance(self._store, Namespace) else outer

    def _writing(self, *outer: str) -> AbstractContextManager[None]:
        """Write keys that a namespace closed before may still remove."""
        return instead_of_removal(self._base, [self._base_key(key) for key in outer])

    def _closed(self, key: str | None = None) -> StoreClosedError:
        message = "the namespace is closed"
        return StoreClosedError(message, backend="namespace", endpoint=self._root or "/", key=key)

    def _check_home(self) -> None:
        """Remember where the namespace is used first, and refuse anything else."""
        process = os.getpid()
        if self._home is None:
            self._home = (process, asyncio.get_running_loop())
        if self._home[0] != process or self._home[1] is not asyncio.get_running_loop():
            message = "the namespace belongs to another event loop or process; make one here"
            raise StoreError(message, backend="namespace", endpoint=self._root or "/")

    async def _of_root(self, outer: str, read: Awaitable[T], nothing: T) -> T:
        """Read a directory; the root is there also when there is nothing."""
        try:
            return await read
        except KeyNotFoundError:
            if outer != self._root:
                raise
            return nothing

    @contextmanager
    def _inner_errors(self, guard: HeldLock | None = None) -> Iterator[None]:
        """Have errors of the store name keys without the directory, and a guard as its holder does."""
        try:
            yield
        except StoreError as error:
            if guard is not None and isinstance(error, LockLostError):
                error.key = guard.key
            elif error.key is not None:
                error.key = self._inner(error.key)
            raise

    @asynccontextmanager
    async def _inside(self, outer: str | None = None, guard: HeldLock | None = None) -> AsyncIterator[None]:
        """Do something of the store's, until the namespace is closed; see ``_inner_errors``."""
        self._check_home()
        key = None if outer is None else self._inner(outer)
        if self._is_closed:
            raise self._closed(key)
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                self._pending.add(timeout)
                try:
                    with self._inner_errors(guard):
                        yield
                finally:
                    self._pending.discard(timeout)
        except StoreError:
            raise
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise self._closed(key) from error


class _Snapshots:
    """Snapshots without the directory, each made of the one before and what has changed."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._last: Snapshot | None = None

    def next(self, snapshot: Snapshot) -> tuple[Snapshot, ...]:
        """Return the snapshot; nothing when nothing of it is seen."""
        namespace = self._namespace
        changed = {
            namespace._inner(change.key): change.pair and namespace._inner_pair(change.pair)
            for change in snapshot.changes
            if namespace._is_visible(change.key)
        }
        if self._last is not None and not changed:
            return ()
        self._last = updated(self._last or Snapshot(), changed, snapshot.last_index)
        return (self._last,)


class _Watch(ClosableIterator, Generic[T]):
    """A watch whose items are without the directory."""

    def __init__(self, namespace: Namespace, watch: Watch[T], item: Callable[[T], tuple[T, ...]]) -> None:
        self._namespace = namespace
        self._watch = watch
        self._item = item

    @property
    def is_stale(self) -> bool:
        """Tell whether the watch is cut off from the server."""
        return self._watch.is_stale

    async def __anext__(self) -> T:
        namespace = self._namespace
        while True:
            if namespace._is_closed:
                raise namespace._closed()
            namespace._watches.add(self)  # type: ignore[arg-type] # of one of two kinds
            try:
                with namespace._inner_errors():
                    for item in self._item(await anext(self._watch)):
                        return item
            except StopAsyncIteration:
                if namespace._is_closed:
                    raise namespace._closed() from None
                raise

    async def __aenter__(self) -> Self:
        if self._namespace._is_closed:
            raise self._namespace._closed()
        self._namespace._watches.add(self)  # type: ignore[arg-type] # of one of two kinds
        await self._watch.__aenter__()
        return self

    async def aclose(self) -> None:
        """Release the watch."""
        await self._watch.aclose()


class _Scan(ClosableIterator):
    """A scan whose pairs are without the directory."""

    def __init__(self, namespace: Namespace, directory: str, page: int) -> None:
        self._namespace = namespace
        self._is_root = directory == namespace._root
        self._scan = namespace._store.scan(directory, page=page)

    async def __anext__(self) -> KVPair:
        namespace = self._namespace
        async with namespace._inside():
            try:
                while True:
                    pair = await anext(self._scan)
                    if namespace._is_visible(pair.key):
                        return namespace._inner_pair(pair)
            except KeyNotFoundError:
                if not self._is_root:
                    raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the scan."""
        await self._scan.aclose()


class _HeldLock:
    """An acquisition whose key is without the directory; ``__wrapped__`` is the store's own."""

    def __init__(self, held: HeldLock, key: str) -> None:
        self.__wrapped__ = held
        self.key = key
        self.value = held.value
        self.fencing_token = held.fencing_token

    def __repr__(self) -> str:
        return f"<HeldLock {self.key!r}, {'held' if self.is_held else 'not held'}, token {self.fencing_token}>"

    @property
    def ttl(self) -> float:
        """Seconds from a renewal to the end of the lease."""
        return self.__wrapped__.ttl

    @property
    def freed_within(self) -> float:
        """Seconds after the last renewal within which a dead holder's lock is free."""
        return self.__wrapped__.freed_within

    @property
    def is_held(self) -> bool:
        """Tell whether the lock is still held."""
        return self.__wrapped__.is_held

    async def wait_lost(self) -> None:
        """Return when the lock is not held any more."""
        await self.__wrapped__.wait_lost()


class _Lock:
    """A lock whose key is without the directory."""

    def __init__(self, namespace: Namespace, lock: Lock) -> None:
        self._namespace = namespace
        self._lock = lock
        self._is_given_up = False

    async def acquire(self) -> HeldLock:
        """Wait until the lock is held."""
        async with self._namespace._inside():
            return self._taken(await self._lock.acquire())

    async def try_acquire(self) -> HeldLock | None:
        """Acquire the lock if it is free."""
        async with self._namespace._inside():
            held = await self._lock.try_acquire()
            return None if held is None else self._taken(held)

    async def release(self) -> None:
        """Free the lock; nothing is done when it was lost with the namespace."""
        if self._is_given_up:
            return
        self._namespace._held.discard(self)
        with self._namespace._inner_errors():
            await self._lock.release()

    async def give_up(self) -> None:
        """Free the lock because the namespace is closed."""
        self._is_given_up = True
        self._namespace._held.discard(self)
        try:
            await self._lock.release()
        except CannotLockError:
            return

    async def __aenter__(self) -> HeldLock:
        async with self._namespace._inside():
            return self._taken(await self._lock.__aenter__())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._namespace._held.discard(self)
        with self._namespace._inner_errors():
            return await self._lock.__aexit__(kind, error, trace)

    def _taken(self, held: HeldLock) -> HeldLock:
        self._namespace._held.add(self)
        return _HeldLock(held, self._namespace._inner(held.key))


async def _wait_shielded(task: asyncio.Task[None]) -> None:
    """Wait until a clean-up has ended, whatever cancels the caller meanwhile; raise that afterwards."""
    # Here, so that importing this library does not load AnyIO.
    from anyio import CancelScope

    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled


def _unwrapped(held: HeldLock | None) -> HeldLock | None:
    """Return the lock of the store itself behind that of a namespace."""
    while isinstance(held, _HeldLock):
        held = held.__wrapped__
    return held
