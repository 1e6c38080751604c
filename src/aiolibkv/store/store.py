"""The store that users see: it checks arguments, maps keys to paths, and hands on to the parts."""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from aiolibkv.config import finite_seconds
from aiolibkv.errors import (
    InvalidKeyError,
    KeyNotFoundError,
    LockLostError,
    PreviousNotSpecifiedError,
    ValueTooLargeError,
)
from aiolibkv.keys import check_same_key
from aiolibkv.parts import in_parts
from aiolibkv.protocol import HeldLock, Lock, Scan, Watch
from aiolibkv.store.calls import Call, Calls
from aiolibkv.store.driver import UNSEEN, Condition, Driver, Guard, Lifetime, Page, Removal, Step, Write
from aiolibkv.store.leases import Sessions
from aiolibkv.store.lifetimes import Lifetimes
from aiolibkv.store.locks import Locks, StoreHeldLock, StoreLock
from aiolibkv.store.scan import StoreScan
from aiolibkv.store.telling import tell_calls
from aiolibkv.store.watches import Watches
from aiolibkv.types import ANY, Any_, Bytes, Capabilities, Check, Delete, KVPair, Operation, Put, Snapshot

D = TypeVar("D", bound=Driver[Any])

DEFAULT_TTL = 15.0
_LARGEST_INDEX = 2**63 - 1
_LARGEST_PAGE = 2**31 - 1
_BYTES = bytes, bytearray, memoryview  # what is built of types with "|" is slower, and built anew each time


class Store(Generic[D]):
    """A driver with all that the library adds; see ``aiolibkv.AsyncStore`` for its users' side.

    Attributes:
        driver: the backend.
        capabilities: what it can do.
    """

    def __init__(self, driver: D) -> None:
        """Compose a store of a driver; no I/O."""
        self.driver: D = driver
        self.capabilities: Capabilities = driver.capabilities
        self._calls = Calls(driver)
        self._paths = self._calls.paths
        self._sessions = Sessions(self._calls)
        self._lifetimes = Lifetimes(self._calls, self._sessions)
        self._watches = Watches(self._calls)
        self._locks = Locks(self._calls, self._sessions, self._watches)
        tell_calls(self, self._calls)

    def __repr__(self) -> str:
        where = " ".join(part for part in (self.driver.name, ", ".join(self.driver.endpoints)) if part)
        prefix = f", prefix {self._paths.root!r}" if self._paths.root else ""
        return f"<Store {where}{prefix}, {self._calls.state}>"

    # -- reads -----------------------------------------------------------------------------------------------------

    async def get(self, key: str, *, consistent: bool = True) -> KVPair:
        """Read the current pair; see AsyncStore."""
        path = self._path(key)
        self._calls.check_open()
        pair = self.driver.read_at_once(path)
        if pair is UNSEEN:
            pair = await self._calls.run(partial(self.driver.get, path=path, consistent=consistent), path)
        if pair is None:
            raise self._calls.located(KeyNotFoundError(), path)
        return self._with_key(pair) if self._paths.root else pair

    async def exists(self, key: str, *, consistent: bool = True) -> bool:
        """Tell whether there is such a key; see AsyncStore."""
        path = self._path(key)
        self._calls.check_open()
        pair = self.driver.read_at_once(path)
        if pair is UNSEEN:
            return await self._calls.run(partial(self.driver.exists, path=path, consistent=consistent), path)
        return pair is not None

    async def list(self, directory: str, *, consistent: bool = True) -> Sequence[KVPair]:
        """Read every pair strictly below a directory; see AsyncStore."""
        path = self._directory(directory)
        listing = await self._calls.run(partial(self.driver.list, directory=path, consistent=consistent), path)
        pairs = await in_parts(self._visible_pairs, listing.pairs)
        self._check_found(path, is_empty=not pairs, exists=listing.exists)
        return pairs

    async def keys(self, directory: str, *, consistent: bool = True) -> Sequence[str]:
        """Read every key strictly below a directory; see AsyncStore."""
        path = self._directory(directory)
        paths, exists = await self._calls.run(partial(self.driver.keys, directory=path, consistent=consistent), path)
        keys = await in_parts(self._paths.all_visible, paths)
        self._check_found(path, is_empty=not keys, exists=exists)
        return keys

    async def children(self, directory: str, *, consistent: bool = True) -> Sequence[str]:
        """Read the names one level below a directory; see AsyncStore."""
        path = self._directory(directory)
        names, exists = await self._calls.run(
            partial(self.driver.children, directory=path, consistent=consistent), path
        )
        start = f"{path}/" if path else ""
        visible = self._paths.visible

        def select(part: Sequence[str]) -> Sequence[str]:
            return [name for name in part if visible(start + name.removesuffix("/")) is not None]

        children = await in_parts(select, names)
        self._check_found(path, is_empty=not children, exists=exists)
        return children

    async def get_many(self, keys: Iterable[str], *, consistent: bool = True) -> Mapping[str, KVPair]:
        """Read the pairs of those keys that exist; see AsyncStore."""
        if isinstance(keys, str):
            raise TypeError("keys are an iterable of str, not one str")
        paths = [*dict.fromkeys(self._path(key) for key in keys)]
        self._calls.check_open()
        if not paths:
            return {}
        read = partial(self.driver.get_many, paths=paths, consistent=consistent)
        found = await self._calls.run(read, paths[0] if len(paths) == 1 else None)
        return {pair.key: pair for pair in self._with_keys([pair for pair in found if pair is not None])}

    def scan(self, directory: str, *, page: int = 1000) -> Scan:
        """Read a directory in pages; see AsyncStore."""
        path = self._directory(directory)
        if isinstance(page, bool) or not isinstance(page, int):
            raise TypeError(f"page is a number of pairs, not {type(page).__name__}")
        if page < 1:
            raise ValueError(f"a page has at least one pair, not {page}")

        limit = min(page, _LARGEST_PAGE)

        async def read(after: str) -> Page:
            return await self._calls.run(partial(self.driver.page, directory=path, after=after, limit=limit), path)

        return StoreScan(read, self._visible_pairs, lambda: self._not_found(path))

    # -- writes ----------------------------------------------------------------------------------------------------

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
        return await self._write(key, value, None, self._lifetime(ttl, keep_alive=keep_alive), guard)

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
        self._path(key)
        expected = 0 if previous is None else _expected_index(key, previous)
        return await self._write(key, value, expected, self._lifetime(ttl, keep_alive=keep_alive), guard)

    async def delete(self, key: str, *, guard: HeldLock | None = None) -> None:
        """Delete a key; see AsyncStore."""
        await self._remove(self._path(key), None, guard)

    async def atomic_delete(self, key: str, previous: KVPair, *, guard: HeldLock | None = None) -> None:
        """Delete a key if it is as in previous; see AsyncStore."""
        path = self._path(key)
        if previous is None:
            raise self._calls.located(PreviousNotSpecifiedError(), path)
        await self._remove(path, _expected_index(key, previous), guard)

    async def delete_tree(self, directory: str, *, guard: HeldLock | None = None) -> int:
        """Delete what list would list; see AsyncStore."""
        path, held = self._directory(directory), self._guard(guard)

        def delete(call: Call) -> Awaitable[tuple[int, bool]]:
            deleting = self.driver.delete_tree(call, path, guard=held)
            return self._lifetimes.ended_by(deleting, call, self._lifetimes.below(path))

        with _Guarded(guard):
            number, exists = await self._calls.run(delete, path)
        self._check_found(path, is_empty=not number, exists=exists)
        return number

    async def commit(self, *operations: Operation, guard: HeldLock | None = None) -> Sequence[KVPair | None]:
        """Carry out several writes and conditions, all or nothing; see AsyncStore."""
        steps = [self._step(operation) for operation in operations]
        self._check_size(steps)
        held = self._guard(guard)
        written = [step.path for step in steps if not isinstance(step, Condition)]

        def commit(call: Call) -> Awaitable[Sequence[int]]:
            return self._lifetimes.ended_by(self.driver.commit(call, steps, guard=held), call, written)

        with _Guarded(guard):
            indexes = await self._calls.run(commit, steps[0].path if len(steps) == 1 else None)
        return [
            KVPair(self._paths.name(step.path), step.value, index) if isinstance(step, Write) else None
            for step, index in zip(steps, indexes, strict=True)
        ]

    # -- watches and locks -----------------------------------------------------------------------------------------

    def watch(self, key: str) -> Watch[KVPair | None]:
        """Watch a key; see AsyncStore."""
        return self._watches.watch(self._path(key))

    def watch_tree(self, directory: str) -> Watch[Snapshot]:
        """Watch what list would give; see AsyncStore."""
        return self._watches.watch_tree(self._directory(directory))

    def new_lock(self, key: str, *, value: Bytes = b"", ttl: float = DEFAULT_TTL) -> Lock:
        """Make a lock on a key; see AsyncStore."""
        path = self._path(key)
        return StoreLock(self._locks, path, self._value(value, path), self._seconds(ttl))

    # -- open and closed -------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect; see AsyncStore."""
        await self._calls.open()
        # Some capabilities depend on the server.
        self.capabilities = self.driver.capabilities
        return self

    async def close(self) -> None:
        """Close the store; see AsyncStore."""
        await self._calls.close(self._end_parts, self._shut_down)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _end_parts(self) -> None:
        self._watches.fail_all()
        self._locks.lose_all()

    async def _shut_down(self) -> None:
        await self._watches.close()
        await self._locks.close()
        await self._lifetimes.close()
        await self._sessions.close()

    # -- arguments -------------------------------------------------------------------------------------------------

    async def _write(
        self, key: str, value: Bytes, expected: int | None, lifetime: Lifetime | None, guard: HeldLock | None
    ) -> KVPair:
        path, held = self._path(key), self._guard(guard)
        data = self._value(value, path)

        def write(call: Call) -> Awaitable[int]:
            putting = self.driver.put(call, path, data, expected=expected, lease=None, guard=held)
            return self._lifetimes.ended_by(putting, call, (path,))

        if lifetime is None and guard is None:
            return KVPair(self._paths.name(path), data, await self._calls.run(write, path))
        with _Guarded(guard):
            if lifetime is None:
                index = await self._calls.run(write, path)
            else:
                index = await self._lifetimes.put(path, data, expected=expected, lifetime=lifetime, guard=held)
        return KVPair(self._paths.name(path), data, index)

    async def _remove(self, path: str, expected: int | None, guard: HeldLock | None) -> None:
        held = self._guard(guard)

        def delete(call: Call) -> Awaitable[None]:
            deleting = self.driver.delete(call, path, expected=expected, guard=held)
            return self._lifetimes.ended_by(deleting, call, (path,))

        with _Guarded(guard):
            await self._calls.run(delete, path)

    def _path(self, key: str) -> str:
        try:
            return self._paths.path(key)
        except InvalidKeyError as error:
            error.locate(self.driver.name, self.driver.hosts(), None)
            raise

    def _directory(self, directory: str) -> str:
        try:
            return self._paths.directory(directory)
        except InvalidKeyError as error:
            error.locate(self.driver.name, self.driver.hosts(), None)
            raise

    def _with_key(self, pair: KVPair) -> KVPair:
        return KVPair(self._paths.name(pair.key), pair.value, pair.last_index)

    def _with_keys(self, pairs: Sequence[KVPair]) -> Sequence[KVPair]:
        return [self._with_key(pair) for pair in pairs] if self._paths.root else pairs

    def _visible_pair(self, pair: KVPair) -> KVPair | None:
        name = self._paths.visible(pair.key)
        if name is None:
            return None
        return KVPair(name, pair.value, pair.last_index) if self._paths.root else pair

    def _visible_pairs(self, pairs: Sequence[KVPair]) -> Sequence[KVPair]:
        if self._paths.are_plain([pair.key for pair in pairs]):
            return self._with_keys(pairs)
        return [named for pair in pairs if (named := self._visible_pair(pair)) is not None]

    def _not_found(self, path: str) -> KeyNotFoundError | None:
        if path == self._paths.root:
            return None
        error = KeyNotFoundError("nothing is below this directory, and it is not a key itself")
        self._calls.located(error, path)
        return error

    def _check_found(self, path: str, *, is_empty: bool, exists: bool) -> None:
        """Raise an error for a directory with nothing below it that is neither a key nor the root."""
        if is_empty and not exists and (error := self._not_found(path)) is not None:
            raise error

    def _value(self, value: Bytes, path: str) -> bytes:
        if not isinstance(value, _BYTES):
            raise _no_value(value)
        data = bytes(value)
        limit = self.capabilities.max_value_bytes
        if len(data) > limit:
            raise self._calls.located(ValueTooLargeError(f"a value has at most {limit} bytes, not {len(data)}"), path)
        return data

    def _step(self, operation: Operation) -> Step:
        if not isinstance(operation, Put | Delete | Check):
            raise TypeError(f"an operation is a Put, Delete or Check, not {type(operation).__name__}")
        key, previous = operation.key, operation.previous
        path = self._path(key)
        if isinstance(operation, Delete) and previous is None:
            raise self._calls.located(PreviousNotSpecifiedError(), path)
        expected = _expected(key, previous)
        if isinstance(operation, Put):
            return Write(path, self._value(operation.value, path), expected)
        return Removal(path, expected) if isinstance(operation, Delete) else Condition(path, expected)

    def _check_size(self, steps: builtins.list[Step]) -> None:
        most, most_bytes = self.capabilities.max_operations, self.capabilities.max_commit_bytes
        if not 0 < len(steps) <= most:
            raise ValueError(f"{self.driver.name}: a commit has 1 to {most} operations, not {len(steps)}")
        if len({step.path for step in steps}) < len(steps):
            raise ValueError("each key stands once in a commit")
        size = sum(len(step.path.encode()) + (len(step.value) if isinstance(step, Write) else 0) for step in steps)
        if size > most_bytes:
            message = f"the keys and values of a commit have at most {most_bytes} bytes, not {size}"
            raise self._calls.located(ValueTooLargeError(message))

    def _lifetime(self, ttl: float | None, *, keep_alive: bool) -> Lifetime | None:
        if ttl is None:
            return Lifetime(min(DEFAULT_TTL, self.driver.longest_ttl), keep_alive=True) if keep_alive else None
        return Lifetime(self._seconds(ttl), keep_alive)

    def _seconds(self, ttl: float) -> float:
        seconds = finite_seconds("a ttl", ttl)
        longest = self.driver.longest_ttl
        if seconds > longest:
            raise ValueError(f"{self.driver.name}: a ttl is at most {longest:g} s, not {seconds:g}")
        return seconds

    def _guard(self, guard: HeldLock | None) -> Guard | None:
        if guard is None:
            return None
        held = _unwrapped(guard)
        if not isinstance(held, StoreHeldLock) or held.calls is not self._calls:
            raise ValueError("the guard is not held by this store: give what acquiring a lock of the same store gave")
        if not held.is_held:
            raise self._calls.located(LockLostError(), held.path)
        return Guard(held.path, held.token)


class _Guarded:
    """A context for a guarded write: when the server refuses the guard, its lock counts as lost."""

    __slots__ = ("_guard",)

    def __init__(self, guard: HeldLock | None) -> None:
        self._guard = guard

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._guard is not None and isinstance(error, LockLostError):
            held = _unwrapped(self._guard)
            assert isinstance(held, StoreHeldLock), "checked"
            error.key = held.key
            held.lose("the server refused a write that it guards")


def _no_value(value: object) -> TypeError:
    return TypeError(f"a value is bytes, not {type(value).__name__}" + "; encode it first" * isinstance(value, str))


def _unwrapped(held: object) -> object:
    """Return the lock of the store itself behind that of a namespace."""
    while (inner := getattr(held, "__wrapped__", None)) is not None:
        held = inner
    return held


def _expected(key: str, previous: KVPair | Any_ | None) -> int | None:
    if previous is ANY:
        return None
    return 0 if previous is None else _expected_index(key, previous)


def _expected_index(key: str, previous: object) -> int:
    if not isinstance(previous, KVPair):
        raise TypeError(f"previous is a KVPair, not {type(previous).__name__}")
    check_same_key(key, previous.key)
    index = previous.last_index
    if isinstance(index, bool) or not isinstance(index, int):
        raise TypeError(f"the last_index of previous is an int, not {type(index).__name__}")
    if not 0 < index <= _LARGEST_INDEX:
        raise ValueError(f"the last_index of previous is {index}, which no pair of a store has")
    return index
