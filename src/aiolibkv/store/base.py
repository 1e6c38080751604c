"""The abstract base of a store: all that the author of a backend has to read.

A backend subclasses BaseStore, sets ``name`` and ``capabilities``, and implements the abstract methods. It is given
*paths*: keys that were checked and rooted at the store's prefix, as the server is to keep them. It raises the errors of
``aiolibkv.errors`` bare; where they happened is filled in here. What a backend may rely on:

- Keys, values, lifetimes and previous pairs were checked; nothing needs to be checked again.
- Every call has a deadline: it is cancelled when its time is over, and when the store is closed.
- NotReachableError means: try again. It is repeated, on the next endpoint if the backend moves on, unless the call
  said ``call.writing()`` and no ``call.settled()`` since. Any other error raised then says that the write may have been
  applied.
- A method may be cancelled at every await. What it leaves half done, it must be able to find again.

Everything a backend starts, it ends in ``_disconnect``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from random import uniform
from types import TracebackType
from typing import ClassVar, Self, TypeVar

from aiolibkv.config import Config, finite_seconds
from aiolibkv.errors import (
    AccessDeniedError,
    InvalidKeyError,
    KeyNotFoundError,
    LockLostError,
    NotReachableError,
    PreviousNotSpecifiedError,
    RequestTimeoutError,
    StoreClosedError,
    StoreError,
    ValueTooLargeError,
)
from aiolibkv.keys import RESERVED, normalize_directory, normalize_key
from aiolibkv.protocol import HeldLock, Lock, Watch
from aiolibkv.store.driver import UNSEEN, Call, Guard, Lease, LeaseLost, Lifetime, Listing, Unseen
from aiolibkv.store.lifetimes import Lifetimes
from aiolibkv.store.lock import Locks, StoreHeldLock, StoreLock
from aiolibkv.store.tasks import Tasks, finish, prepare
from aiolibkv.store.watch import Feed, StoreWatch
from aiolibkv.types import Bytes, Capabilities, KVPair, Snapshot

T = TypeVar("T")

DEFAULT_TTL = 15.0
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
_DISCONNECTING_TIME = 0.6
_LARGEST_INDEX = 2**63 - 1

_log = logging.getLogger("aiolibkv")


class BaseStore(ABC):
    """A store whose backend is in the abstract methods; see ``aiolibkv.AsyncStore`` for its users' side."""

    name: ClassVar[str]
    """The backend's name, in errors and logs."""

    capabilities: Capabilities

    option_names: ClassVar[frozenset[str]] = frozenset()
    """What ``Config.options`` may hold for this backend."""

    endpoint_is_path: ClassVar[bool] = False
    """Whether the endpoint is a path, which in a URL stands after three slashes, where others have their prefix."""

    longest_ttl: ClassVar[float] = math.inf
    """Seconds; a longer ttl is a ValueError."""

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a store; no I/O.

        Args:
            endpoints: what the backend connects to.
            config: settings; the defaults when not given.

        Raises:
            ValueError: an option that the backend does not have.
        """
        self.config = config or Config()
        self.endpoints = tuple(endpoints)
        unknown = sorted(set(self.config.options) - self.option_names)
        if unknown:
            raise ValueError(f"{self.name}: unknown option {unknown[0]!r}")
        self._root = f"{self.config.prefix}/" if self.config.prefix else ""
        self._hidden = f"{self._root}{RESERVED}/"
        self._lifetimes = Lifetimes(self)
        self._locks = Locks()
        self._watching = Tasks()
        self._feeds: set[Feed] = set()
        self._pending: set[asyncio.Timeout] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._entered = False
        self._open = False
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    # -- what a backend implements ---------------------------------------------------------------------------------

    @abstractmethod
    async def _connect(self) -> None:
        """Reach a server, or raise NotReachableError, AccessDeniedError, or ValueError for settings that cannot be.

        Cancelled after connection_timeout. May be called again after it failed and ``_disconnect`` ran.
        """

    @abstractmethod
    async def _disconnect(self) -> None:
        """End all that was started. Never raises; cancelled when it takes too long."""

    @abstractmethod
    async def _get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        """Return the pair, with the path as its key, or None."""

    async def _exists(self, call: Call, path: str, *, consistent: bool) -> bool:
        """Tell whether there is such a key."""
        return await self._get(call, path, consistent=consistent) is not None

    def _glance(self, path: str) -> KVPair | Unseen | None:
        """Return what a consistent ``_get`` would, or UNSEEN to have that called.

        For a backend that has its data at hand: what is read without a wait needs no deadline and no repetition, which
        cost several times as much. It raises nothing, and is UNSEEN now and then, so that others run as well.
        """
        return UNSEEN

    @abstractmethod
    async def _list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        """Return what is strictly below a directory; ``""`` is everything. The reserved subtree may be among it."""

    @abstractmethod
    async def _put(
        self, call: Call, path: str, value: bytes, *, expected: int | None, lease: Lease | None, guard: Guard | None
    ) -> int:
        """Write in one transaction and return the key's new index.

        Args:
            call: told when the write is sent and when its answer is known.
            path: the key.
            value: its value.
            expected: None whatever is there; 0 only when there is nothing; else only when the key is at this index.
            lease: how long the key lives; None for ever, and the lease that it had does not matter any more.
            guard: the lock's key must be at the guard's token.

        Raises:
            KeyExistsError: expected is 0 and the key exists.
            KeyModifiedError: the key is not at expected.
            LockLostError: the guard does not hold.
            LeaseLost: the server does not know the lease.
        """

    @abstractmethod
    async def _delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        """Delete in one transaction.

        Args:
            call: as for ``_put``.
            path: the key.
            expected: None whatever is there; else only when the key is at this index.
            guard: as for ``_put``.

        Raises:
            KeyNotFoundError: there is no such key.
            KeyModifiedError: the key is not at expected.
            LockLostError: the guard does not hold.
        """

    @abstractmethod
    async def _delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> int:
        """Delete in one transaction what is strictly below a directory, the reserved subtree excepted.

        Returns:
            How many keys were deleted; 0 when the directory is itself a key or the store's root.

        Raises:
            KeyNotFoundError: nothing is below and the directory is no key.
            LockLostError: the guard does not hold.
        """

    @abstractmethod
    async def _follow(self, feed: Feed) -> None:
        """Keep a feed equal to the server's state until cancelled.

        Begin with ``feed.reset`` of a consistent read, or resume after ``feed.index`` when nothing was missed
        (``feed.resumed``); then ``feed.apply`` or ``feed.reset`` as things change. It may return to be called again,
        and raises NotReachableError when the connection broke: the watch is then stale, and this is called again.
        AccessDeniedError ends the watch. When it is cancelled the server must not be left watching.
        """

    @abstractmethod
    def _lease(self, lifetime: Lifetime) -> Lease:
        """Make a lease that is not granted yet, under an identifier by which a lost grant can be found again."""

    @abstractmethod
    async def _grant(self, call: Call, lease: Lease) -> None:
        """Have the server begin a lease; set its ttl to what the server gives."""

    @abstractmethod
    async def _renew(self, call: Call, lease: Lease) -> bool:
        """Renew a lease; False when the server does not know it any more."""

    @abstractmethod
    async def _revoke(self, call: Call, lease: Lease) -> None:
        """End a lease, with the keys that are still under it. One that the server does not know is no error."""

    async def _acquire(self, call: Call, path: str, value: bytes, lease: Lease) -> tuple[int, int]:
        """Create a lock's key in one transaction; a backend whose guards compare something else overrides it.

        Returns:
            The key's index, and the token that guards of this acquisition compare.

        Raises:
            KeyExistsError: the key exists.
            LeaseLost: the server does not know the lease.
        """
        index = await self._put(call, path, value, expected=0, lease=lease, guard=None)
        return index, index

    async def _follow_under(self, lease: Lease, feed: Feed) -> None:
        """Keep a feed of one key equal to the server's state for the holder of a lock, or for one who waits for it.

        As ``_follow``, which does it unless a backend overrides this because it knows a cheaper way: the watch is over
        soon, and at the latest with the lease, which is nobody else's.

        Raises:
            LeaseLost: the server does not know the lease any more.
        """
        await self._follow(feed)

    def _hosts(self) -> str:
        """Name the servers, for errors."""
        return ", ".join(self.endpoints)

    # -- the calls -------------------------------------------------------------------------------------------------

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

    async def get(self, key: str, *, consistent: bool = True) -> KVPair:
        """Read the current pair; see AsyncStore."""
        path = self._path(key)
        self._check_open()
        pair = self._glance(path)
        if pair is UNSEEN:
            pair = await self._run(partial(self._get, path=path, consistent=consistent), path)
        if pair is None:
            raise self._located(KeyNotFoundError(), path)
        return self._named(pair) if self._root else pair

    async def exists(self, key: str, *, consistent: bool = True) -> bool:
        """Tell whether there is such a key; see AsyncStore."""
        path = self._path(key)
        self._check_open()
        pair = self._glance(path)
        if pair is UNSEEN:
            return await self._run(partial(self._exists, path=path, consistent=consistent), path)
        return pair is not None

    async def list(self, directory: str, *, consistent: bool = True) -> Sequence[KVPair]:
        """Read every pair strictly below a directory; see AsyncStore."""
        path = self._directory(directory)
        listing = await self._run(lambda call: self._list(call, path, consistent=consistent), path)
        pairs = [self._named(pair) for pair in listing.pairs if not pair.key.startswith(self._hidden)]
        if not pairs and not listing.exists and normalize_directory(directory):
            raise self._located(KeyNotFoundError(), path)
        return pairs

    async def delete(self, key: str, *, guard: HeldLock | None = None) -> None:
        """Delete a key; see AsyncStore."""
        await self._remove(key, None, guard)

    async def atomic_delete(self, key: str, previous: KVPair, *, guard: HeldLock | None = None) -> None:
        """Delete a key if it is as in previous; see AsyncStore."""
        path = self._path(key)
        if previous is None:
            raise self._located(PreviousNotSpecifiedError(), path)
        await self._remove(key, _expected_index(key, previous), guard)

    async def delete_tree(self, directory: str, *, guard: HeldLock | None = None) -> int:
        """Delete what list would list; see AsyncStore."""
        path, held = self._directory(directory), self._guard(guard)

        async def delete(call: Call) -> int:
            with self._lifetimes.ending(call, self._lifetimes.below(path)):
                return await self._delete_tree(call, path, guard=held)

        return await self._run(delete, path)

    def watch(self, key: str) -> Watch[KVPair | None]:
        """Watch a key; see AsyncStore."""
        path = self._path(key)
        name = self._name(path)
        feed = Feed(path, tree=False, name=self._visible_name)
        return StoreWatch(feed, self._start_watch, lambda snapshot: snapshot.get(name))

    def watch_tree(self, directory: str) -> Watch[Snapshot]:
        """Watch what list would give; see AsyncStore."""
        feed = Feed(self._directory(directory), tree=True, name=self._visible_name)
        return StoreWatch(feed, self._start_watch, lambda snapshot: snapshot)

    def new_lock(self, key: str, *, value: Bytes = b"", ttl: float = DEFAULT_TTL) -> Lock:
        """Make a lock on a key; see AsyncStore."""
        path = self._path(key)
        return StoreLock(self, path, self._value(value, path), self._seconds(ttl))

    async def close(self) -> None:
        """Close the store; see AsyncStore."""
        if not self._entered:
            self._closed = True
            return
        self._check_home()
        if self._closing is None:
            self._closed = True
            now = asyncio.get_running_loop().time()
            for deadline in self._pending:
                if not deadline.expired():
                    deadline.reschedule(now)
            for feed in self._feeds:
                feed.fail(self._located(StoreClosedError(), feed.path))
            self._locks.lose_all()
            self._closing = asyncio.get_running_loop().create_task(self._shut_down())
        await finish(self._closing)

    async def __aenter__(self) -> Self:
        """Connect; see AsyncStore."""
        if self._closed:
            raise self._located(StoreClosedError())
        if self._entered:
            raise self._located(StoreError("the store is entered already"))
        self._loop, self._process, self._entered = asyncio.get_running_loop(), os.getpid(), True
        prepare()
        deadline = asyncio.timeout(self.config.connection_timeout)
        self._pending.add(deadline)
        try:
            async with deadline:
                await self._connect()
        except BaseException as error:
            try:
                await finish(self._loop.create_task(self._disconnect_in_time()))
            finally:
                self._entered = False
            if isinstance(error, StoreError):
                self._located(error)
            elif isinstance(error, TimeoutError) and deadline.expired():
                raise self._located(self._not_connected()) from error
            raise
        finally:
            self._pending.discard(deadline)
        self._open = True
        return self

    def _not_connected(self) -> StoreError:
        if self._closed:
            return StoreClosedError()
        return NotReachableError(f"no server answered within {self.config.connection_timeout:g} s")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        await self.close()

    # -- the machinery ---------------------------------------------------------------------------------------------

    async def _run(self, operation: Callable[[Call], Awaitable[T]], path: str | None = None) -> T:
        """Carry out a call within request_timeout, and before the store is closed."""
        self._check_open()
        deadline = asyncio.timeout(self.config.request_timeout)
        self._pending.add(deadline)
        try:
            return await self._perform(operation, path, deadline)
        finally:
            self._pending.discard(deadline)

    async def _perform(
        self, operation: Callable[[Call], Awaitable[T]], path: str | None, deadline: asyncio.Timeout
    ) -> T:
        """Carry out a call until its deadline, repeating what certainly was not applied."""
        limit = self.config.request_timeout
        unreachable: NotReachableError | None = None
        pauses: Iterator[float] | None = None
        call = Call(deadline, limit)
        try:
            async with deadline:
                while True:
                    call.rewind()
                    try:
                        return await operation(call)
                    except NotReachableError as error:
                        unreachable = error
                        if call.maybe_applied:
                            break
                    pauses = pauses or _pauses()
                    await asyncio.sleep(next(pauses))
        except StoreError as error:
            error.maybe_applied = error.maybe_applied or call.maybe_applied
            self._located(error, path)
            raise
        except TimeoutError:
            if not deadline.expired():
                raise
        late = unreachable or RequestTimeoutError(f"no answer within {limit:g} s")
        failure = StoreClosedError() if self._closed else late
        failure.maybe_applied = call.maybe_applied
        raise self._located(failure, path) from failure.__cause__

    async def _write(
        self, key: str, value: Bytes, expected: int | None, lifetime: Lifetime | None, guard: HeldLock | None
    ) -> KVPair:
        path, held = self._path(key), self._guard(guard)
        data = self._value(value, path)

        async def write(call: Call) -> int:
            if lifetime is not None:
                return await self._lifetimes.put(call, path, data, expected=expected, lifetime=lifetime, guard=held)
            with self._lifetimes.ending(call, [path]):
                return await self._put(call, path, data, expected=expected, lease=None, guard=held)

        index = await self._run(write, path)
        return KVPair(self._name(path), data, index)

    async def _remove(self, key: str, expected: int | None, guard: HeldLock | None) -> None:
        path, held = self._path(key), self._guard(guard)

        async def delete(call: Call) -> None:
            with self._lifetimes.ending(call, [path]):
                await self._delete(call, path, expected=expected, guard=held)

        await self._run(delete, path)

    def _start_watch(self, feed: Feed, lease: Lease | None = None) -> asyncio.Task[None]:
        self._check_open()
        self._feeds.add(feed)
        return self._watching.start(self._keep_following(feed, lease))

    async def _keep_following(self, feed: Feed, lease: Lease | None) -> None:
        try:
            pauses = _pauses()
            while True:
                began = feed.index
                try:
                    await (self._follow(feed) if lease is None else self._follow_under(lease, feed))
                except (NotReachableError, RequestTimeoutError) as error:
                    _log.debug("%s: a watch waits for its server: %s", self.name, error)
                except LeaseLost as error:
                    feed.fail(error)
                    return
                except AccessDeniedError as error:
                    feed.fail(self._located(error, feed.path))
                    return
                except StoreError as error:
                    _log.warning("%s: a watch begins again: %s", self.name, error)
                feed.cut_off()
                if feed.index != began:
                    pauses = _pauses()
                await asyncio.sleep(next(pauses))
        except Exception as error:
            # A bug: whoever waits for the watch is told, and the owner of this task reports it.
            failure = self._located(StoreError("the watch failed"), feed.path)
            failure.__cause__ = error
            feed.fail(failure)
            raise
        finally:
            self._feeds.discard(feed)

    async def _shut_down(self) -> None:
        await self._watching.close()
        await self._locks.tasks.close()
        await self._lifetimes.close()
        await self._disconnect_in_time()

    async def _disconnect_in_time(self) -> None:
        try:
            async with asyncio.timeout(_DISCONNECTING_TIME):
                await self._disconnect()
        except TimeoutError:
            _log.debug("%s: the connection was dropped, not closed", self.name)

    def _check_open(self) -> None:
        if self._closed or not self._open:
            raise self._located(StoreClosedError("" if self._closed else "the store is not open: async with"))
        self._check_home()

    def _check_home(self) -> None:
        if os.getpid() != self._process:
            raise self._located(StoreError("the store was opened before a fork; open one in the new process"))
        if asyncio.get_running_loop() is not self._loop:
            raise self._located(StoreError("the store belongs to another event loop"))

    def _path(self, key: str) -> str:
        try:
            return self._root + normalize_key(key)
        except InvalidKeyError as error:
            self._located(error)
            raise

    def _directory(self, directory: str) -> str:
        try:
            return (self._root + normalize_directory(directory)).rstrip("/")
        except InvalidKeyError as error:
            self._located(error)
            raise

    def _name(self, path: str) -> str:
        return path[len(self._root) :]

    def _visible_name(self, path: str) -> str | None:
        return None if path.startswith(self._hidden) else path[len(self._root) :]

    def _named(self, pair: KVPair) -> KVPair:
        return KVPair(self._name(pair.key), pair.value, pair.last_index) if self._root else pair

    def _located(self, error: StoreError, path: str | None = None) -> StoreError:
        error.locate(self.name, self._hosts(), None if path is None else self._name(path))
        return error

    def _value(self, value: Bytes, path: str) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"a value is bytes, not {type(value).__name__}")
        data = bytes(value)
        if len(data) > self.capabilities.max_value_bytes:
            limit = self.capabilities.max_value_bytes
            raise self._located(ValueTooLargeError(f"a value has at most {limit} bytes, not {len(data)}"), path)
        return data

    def _lifetime(self, ttl: float | None, *, keep_alive: bool) -> Lifetime | None:
        if ttl is None:
            return Lifetime(min(DEFAULT_TTL, self.longest_ttl), keep_alive=True) if keep_alive else None
        return Lifetime(self._seconds(ttl), keep_alive)

    def _seconds(self, ttl: float) -> float:
        seconds = finite_seconds("a ttl", ttl)
        if seconds > self.longest_ttl:
            raise ValueError(f"{self.name}: a ttl is at most {self.longest_ttl:g} s, not {seconds:g}")
        return seconds

    def _guard(self, held: HeldLock | None) -> Guard | None:
        if held is None:
            return None
        if not isinstance(held, StoreHeldLock) or held.store is not self:
            raise ValueError("a guard is a lock held through the same store")
        if not held.is_held:
            raise self._located(LockLostError(), held.path)
        return Guard(held.path, held.token)


def _expected_index(key: str, previous: KVPair) -> int:
    if not isinstance(previous, KVPair):
        raise TypeError(f"previous is a KVPair, not {type(previous).__name__}")
    if normalize_key(previous.key) != normalize_key(key):
        raise ValueError(f"previous is of key {previous.key!r}, not {key!r}")
    if not 0 < previous.last_index <= _LARGEST_INDEX:
        raise ValueError(f"no pair has the last_index {previous.last_index}")
    return previous.last_index


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE
    while True:
        yield pause * uniform(0.5, 1.0)
        pause = min(pause * 2, _LONGEST_PAUSE)
