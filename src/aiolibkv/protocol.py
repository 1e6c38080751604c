"""The interface of a store, as its users see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar, runtime_checkable

from aiolibkv.types import Bytes, Capabilities, KVPair, Operation, Snapshot

T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class Watch(Protocol[T_co]):
    """An endless iterator over the states of a key or directory, and an async context manager.

    The first item is the current state; then one follows whenever it has changed. A consumer that is slower than
    the changes sees several of them as one, ends up with the last state, and never sees a state twice or an older one
    after a newer one. It goes on through outages, failovers and compaction.

    Iteration raises AccessDeniedError when the server refuses, and StoreClosedError once the store is closed.

    Cancellation: cancelling ``anext`` loses nothing; the next ``anext`` goes on.
    Cost: one read at the start and after a gap that the server cannot replay; nothing while nothing changes.
    """

    @property
    def is_stale(self) -> bool:
        """Tell whether the watch is cut off from the server, so that its last item may be out of date."""
        ...

    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> T_co: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def aclose(self) -> None:
        """Release the watch; a pending or later ``anext`` ends the iteration.

        Cancellation: the watch is released all the same.
        Cost: none that is waited for.
        """
        ...


@runtime_checkable
class HeldLock(Protocol):
    """One acquisition of a lock.

    Attributes:
        key: the lock's key.
        value: what ``get(key)`` gives while it is held.
        fencing_token: strictly increases over the acquisitions of the key.
    """

    key: str
    value: bytes
    fencing_token: int

    @property
    def ttl(self) -> float:
        """Seconds from a renewal to the end of the lease, as agreed with the server last."""
        ...

    @property
    def freed_within(self) -> float:
        """Seconds after the last renewal within which a dead holder's lock is free."""
        ...

    @property
    def is_held(self) -> bool:
        """Tell whether the lock is still held, by the holder's own clock; in any thread."""
        ...

    async def wait_lost(self) -> None:
        """Return when the lock is not held any more.

        Cancellation: harmless; the lock is held as before.
        Cost: none; what watches over the lock runs anyway.
        """
        ...


@runtime_checkable
class Lock(Protocol):
    """A lock on a key, acquired by ``async with`` or by hand; it may be used again.

    ``async with`` waits until the lock is held, and frees it at the end. When the lock is lost meanwhile, the body is
    cancelled, and LockLostError is raised in place of the cancellation. A cancellation from outside stays one.

    Cancellation: of the wait, nothing of it is left behind; of the body, the lock is freed.
    Cost: those of ``acquire`` and ``release``.
    """

    async def acquire(self) -> HeldLock:
        """Wait until the lock is held, through outages and as long as the key exists, whoever wrote it.

        Returns:
            This acquisition.

        Raises:
            CannotLockError: this Lock is held or waited for already.

        Cancellation: the wait ends, and nothing of it is left behind.
        Cost: two round trips when the lock is free (ZooKeeper: three, and a connection); at most 10 requests for each
            hand-over.
        """
        ...

    async def try_acquire(self) -> HeldLock | None:
        """Acquire the lock if it is free.

        Returns:
            This acquisition; None when the key exists.

        Raises:
            CannotLockError: this Lock is held or waited for already.

        Cancellation: the lock is not held, and nothing is left behind.
        Cost: two round trips (ZooKeeper: three, and a connection).
        """
        ...

    async def release(self) -> None:
        """Free the lock; nothing is done when it was lost.

        Raises:
            CannotLockError: it was never acquired, or released already.

        Cancellation: the lock is freed all the same.
        Cost: one round trip (ZooKeeper: two).
        """
        ...

    async def __aenter__(self) -> HeldLock: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...


@runtime_checkable
class Scan(Protocol):
    """The pairs below a directory, read in pages, in order: an async iterator and an async context manager.

    A key that is there throughout is given once; each pair is current when its page was read. The first ``anext``
    raises KeyNotFoundError as ``list`` does.

    Cancellation: cancelling ``anext`` loses nothing; the next ``anext`` goes on.
    Cost: one round trip for each page.
    """

    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> KVPair: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def aclose(self) -> None:
        """End the scan; a later ``anext`` ends the iteration.

        Cancellation: the scan is ended all the same.
        Cost: none.
        """
        ...


@runtime_checkable
class AsyncStore(Protocol):
    """A key/value store.

    Keys are "/"-separated paths; values are bytes; times are float seconds. Every call raises, besides what it
    names: InvalidKeyError, AccessDeniedError, StoreClosedError, NotReachableError when no server can be reached,
    RequestTimeoutError when one does not answer within ``request_timeout``. For a write, the last two tell by
    ``maybe_applied`` whether it may have been applied. ``guard`` is a lock held through this store: when the lock is
    not held any more, the server refuses the write, which raises LockLostError.

    Cancellation: of a read, harmless; of a write, leaves open whether it was applied.
    """

    capabilities: Capabilities

    async def put(
        self,
        key: str,
        value: Bytes,
        *,
        ttl: float | None = None,
        keep_alive: bool = False,
        guard: HeldLock | None = None,
    ) -> KVPair:
        """Write a value, whatever was there.

        Args:
            key: the key.
            value: bytes, bytearray or memoryview.
            ttl: seconds that the key lives; for ever when not given.
            keep_alive: renew the ttl (15 s when not given) while this store is open, remove the key at close, and
                create it again when its lease was lost.
            guard: a lock that must be held.

        Returns:
            The pair as written.

        Raises:
            ValueTooLargeError: nothing was sent.
            ValueError: the ttl is not above 0, not finite, or above the server's maximum.
            LockLostError: the guard is not held any more.

        Cancellation: leaves open whether the value was written.
        Cost: one round trip (ZooKeeper: two for a new key); on etcd and Consul one more with ttl, or with the first
            keep_alive of that ttl.
        """
        ...

    async def get(self, key: str, *, consistent: bool = True) -> KVPair:
        """Read the current pair.

        Args:
            key: the key.
            consistent: False may give an older state, at less cost to the servers.

        Returns:
            The pair: key, value and last_index.

        Raises:
            KeyNotFoundError: there is no such key.

        Cancellation: harmless.
        Cost: one round trip.
        """
        ...

    async def delete(self, key: str, *, guard: HeldLock | None = None) -> None:
        """Delete a key.

        Args:
            key: the key.
            guard: a lock that must be held.

        Raises:
            KeyNotFoundError: there is no such key.
            LockLostError: the guard is not held any more.

        Cancellation: leaves open whether the key was deleted.
        Cost: one round trip (ZooKeeper: two for a key with keys below it, with a guard, and for the last of a
            directory).
        """
        ...

    async def exists(self, key: str, *, consistent: bool = True) -> bool:
        """Tell whether there is such a key. A directory is not one unless it was written itself.

        Args:
            key: the key.
            consistent: as for get.

        Returns:
            True when the key exists.

        Cancellation: harmless.
        Cost: one round trip.
        """
        ...

    def watch(self, key: str) -> Watch[KVPair | None]:
        """Watch a key: its current pair, or None while it is absent, then each later state.

        Args:
            key: the key.

        Cost: nothing until the first ``anext`` or ``async with``; then that of a Watch.
        """
        ...

    def watch_tree(self, directory: str) -> Watch[Snapshot]:
        """Watch what list would give: snapshots with their changes; an empty one when nothing is below.

        Args:
            directory: the directory; ``""`` is the root.

        Cost: nothing until the first ``anext`` or ``async with``; then that of a Watch.
        """
        ...

    def new_lock(self, key: str, *, value: Bytes = b"", ttl: float = 15.0) -> Lock:
        """Make a lock on a key; nothing is sent until it is acquired.

        Args:
            key: the key, which exists while the lock is held and not while it is free.
            value: what it has while the lock is held; bytes, bytearray or memoryview.
            ttl: seconds after which a dead holder's lock is free. A server may agree to another ttl, and take
                longer: see ``ttl`` and ``freed_within`` of HeldLock.

        Raises:
            ValueTooLargeError: as for put.
            ValueError: the ttl is not valid, as for put.
        """
        ...

    async def list(self, directory: str, *, consistent: bool = True) -> Sequence[KVPair]:
        """Read every pair strictly below a directory, at any depth, sorted by key.

        Args:
            directory: the directory; ``""`` is the root.
            consistent: as for get.

        Returns:
            The pairs. Empty when the directory is a key with nothing below it, or is the root of an empty store.

        Raises:
            KeyNotFoundError: nothing is below the directory, and it is not a key itself.

        Cancellation: harmless.
        Cost: one round trip, and one for each further page of a long list (ZooKeeper: one per level).
        """
        ...

    async def delete_tree(self, directory: str, *, guard: HeldLock | None = None) -> int:
        """Delete what list would list; locks held below are lost.

        Args:
            directory: the directory; ``""`` is the root.
            guard: a lock that must be held.

        Returns:
            How many keys were deleted.

        Raises:
            KeyNotFoundError: as for list.
            LockLostError: the guard is not held any more.

        Cancellation: leaves open whether they were deleted.
        Cost: one round trip (ZooKeeper: one per level and one more).
        """
        ...

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
        """Write a value if the key is still at ``previous.last_index``; with None, if there is no such key.

        Args:
            key: the key, and that of previous.
            value: as for put.
            previous: from get, list, a watch, another process; only its last_index is compared.
            ttl: as for put.
            keep_alive: as for put.
            guard: as for put.

        Returns:
            The pair as written.

        Raises:
            KeyModifiedError: the key was changed, created again, or is gone.
            KeyExistsError: previous is None and the key exists.
            ValueError: previous belongs to another key, or as for put.
            ValueTooLargeError: nothing was sent.
            LockLostError: the guard is not held any more.

        Cancellation: leaves open whether the value was written.
        Cost: as put (ZooKeeper: two round trips, one to create).
        """
        ...

    async def atomic_delete(self, key: str, previous: KVPair, *, guard: HeldLock | None = None) -> None:
        """Delete a key if it is still at ``previous.last_index``.

        Args:
            key: the key, and that of previous.
            previous: as for atomic_put, but not None.
            guard: a lock that must be held.

        Raises:
            KeyModifiedError: the key was changed or created again.
            KeyNotFoundError: there is no such key.
            PreviousNotSpecifiedError: previous is None.
            ValueError: previous belongs to another key.
            LockLostError: the guard is not held any more.

        Cancellation: leaves open whether the key was deleted.
        Cost: one round trip (ZooKeeper: two).
        """
        ...

    async def commit(self, *operations: Operation, guard: HeldLock | None = None) -> Sequence[KVPair | None]:
        """Carry out several writes and conditions in one transaction of the server: all of them, or nothing.

        Args:
            operations: each of another key; their order means nothing. Keys that are put become permanent.
            guard: a lock that must be held.

        Returns:
            For each operation, in order, the pair that a Put has written, None for others.

        Raises:
            KeyModifiedError: a key is not at its previous index; also when the key of a Check is gone.
            KeyExistsError: a key exists that a Put or Check wants not to exist.
            KeyNotFoundError: the key of a Delete, or of a Check without previous, does not exist.
            LockLostError: the guard is not held any more.
            PreviousNotSpecifiedError: a Delete whose previous is None.
            ValueError: no operation, more than max_operations, or a key that stands twice.
            ValueTooLargeError: more than max_commit_bytes, or a value of more than max_value_bytes; nothing was sent.

        Cancellation: leaves open whether all or nothing was written.
        Cost: one round trip (ZooKeeper: two).
        """
        ...

    async def get_many(self, keys: Iterable[str], *, consistent: bool = True) -> Mapping[str, KVPair]:
        """Read the pairs of several keys.

        Args:
            keys: the keys; one that stands twice counts once.
            consistent: as for get.

        Returns:
            The pairs of those that exist, by key; up to max_operations keys are of one instant where atomic_list holds.

        Cancellation: harmless.
        Cost: one round trip for each 100 keys (Consul: 60).
        """
        ...

    async def keys(self, directory: str, *, consistent: bool = True) -> Sequence[str]:
        """Read every key strictly below a directory, without values, sorted.

        Args:
            directory: the directory; ``""`` is the root.
            consistent: as for get.

        Raises:
            KeyNotFoundError: as for list.

        Cancellation: harmless.
        Cost: one round trip (ZooKeeper: as list).
        """
        ...

    async def children(self, directory: str, *, consistent: bool = True) -> Sequence[str]:
        """Read the names one level below a directory, sorted by code point.

        Args:
            directory: the directory; ``""`` is the root.
            consistent: as for get.

        Returns:
            Names relative to the directory: ``name`` for a key, ``name/`` for what has keys below it, both for both.

        Raises:
            KeyNotFoundError: as for list.

        Cancellation: harmless.
        Cost: few round trips; it grows with the children, not with what lies below them.
        """
        ...

    def scan(self, directory: str, *, page: int = 1000) -> Scan:
        """Read what list would give, in pages, so that only one page is in memory at a time.

        Args:
            directory: the directory; ``""`` is the root.
            page: how many pairs are read at once, at most.

        Raises:
            ValueError: page is below 1.

        Cost: nothing until the first ``anext``; then one round trip for each page.
        """
        ...

    async def open(self) -> Self:
        """Connect, as entering does: for start-up hooks and notebooks; end it with close.

        The endpoints are tried again and again, with growing pauses, until connection_timeout is over.

        Raises:
            NotReachableError: no server could be reached in that time; with the last reason.
            AccessDeniedError: the server refuses these credentials.
            StoreClosedError: the store was closed.

        Cancellation: the store is not open, and may be opened again.
        Cost: a few round trips.
        """
        ...

    async def close(self) -> None:
        """Close the store; calls under way fail with StoreClosedError, keep_alive keys are removed.

        Idempotent, and done within 2 s even when the servers are gone.

        Cancellation: the store is closed all the same, then the cancellation goes on.
        Cost: one round trip when there are keep_alive keys.
        """
        ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
