"""Locks, broken."""

# ruff: noqa: ARG001, ARG005 - what is patched keeps its signature

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from aiolibkv import CannotLockError, LockLostError
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.memory.space import Space
from aiolibkv.store import Acquired, Driver, Lease, Store
from aiolibkv.store.leases import Session, Sessions
from aiolibkv.store.locks import Locks, Mutex, StoreHeldLock, StoreLock
from aiolibkv.testing.conformance.locking import Guarding, Locking, Losing
from mutants.broken.registry import mutant


@mutant(Guarding)
def guards_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """A guarded write is made whether or not the lock is held."""
    patch.setattr(Store, "_guard", lambda self, held: None)


@mutant(Guarding)
def guards_are_checked_by_the_holder_only(patch: pytest.MonkeyPatch) -> None:
    """A put is made though the lock was lost meanwhile."""
    _patch_guard(patch, "put", lambda arguments: True)


@mutant(Guarding)
def guards_of_keys_with_a_lifetime_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """A put with a ttl is made though the lock was lost meanwhile."""
    _patch_guard(patch, "put", lambda arguments: arguments[3] is not None)


@mutant(Guarding)
def guards_of_deletions_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """A key is deleted though the lock was lost meanwhile."""
    _patch_guard(patch, "delete", lambda arguments: arguments[1] is None)


@mutant(Guarding)
def guards_of_atomic_deletions_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """A key that is as before is deleted though the lock was lost meanwhile."""
    _patch_guard(patch, "delete", lambda arguments: arguments[1] is not None)


@mutant(Guarding)
def guards_of_trees_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """A tree is deleted though the lock was lost meanwhile."""
    _patch_guard(patch, "delete_tree", lambda arguments: True)


def _patch_guard(patch: pytest.MonkeyPatch, name: str, is_ignored: Callable[[tuple[Any, ...]], bool]) -> None:
    """Have writes of a space made without their guard, which is the last of their arguments."""
    write = getattr(Space, name)

    def unguarded(self: Space, *arguments: Any) -> Any:
        return write(self, *arguments[:-1], None if is_ignored(arguments) else arguments[-1])

    patch.setattr(Space, name, unguarded)


@mutant(Guarding)
def guards_of_any_store_are_taken(patch: pytest.MonkeyPatch) -> None:
    """A guard may come from another store."""

    def guard(self: Store[Any], held: Any) -> None:
        if held is not None and not held.is_held:
            raise LockLostError

    patch.setattr(Store, "_guard", guard)


@mutant(Locking)
def tokens_are_used_again(patch: pytest.MonkeyPatch) -> None:
    """Every acquisition has the same token."""
    patch.setattr(StoreHeldLock, "fencing_token", property(lambda self: 1, lambda self, token: None), raising=False)


@mutant(Locking)
def keys_that_exist_are_taken(patch: pytest.MonkeyPatch) -> None:
    """Acquiring overwrites whatever is there."""

    async def take(self: Any, call: Any, path: str, value: bytes, lease: Lease, *, line: Any) -> Acquired:
        index = await self.put(call, path, value, expected=None, lease=lease, guard=None)
        return Acquired(index, index)

    patch.setattr(MemoryDriver, "acquire", take)


@mutant(Locking)
def release_leaves_the_key(patch: pytest.MonkeyPatch) -> None:
    """The lock's key stays after a release until its lease ends."""

    async def leave(self: Any, call: Any, path: str, index: int, place: Any, lease: Lease) -> None:
        """Do nothing."""

    patch.setattr(Driver, "release", leave)


@mutant(Losing)
def cancelled_waiters_stay_in_line(patch: pytest.MonkeyPatch) -> None:
    """Whoever gives up waiting leaves its place behind."""

    async def leave(self: Sessions, session: Session) -> None:
        session._tasks.cancel()

    patch.setattr(Sessions, "end_and_wait", leave)


@mutant(Locking)
def locks_are_not_renewed(patch: pytest.MonkeyPatch) -> None:
    """A lock is lost after its ttl."""

    async def never(self: Session) -> None:
        await asyncio.get_running_loop().create_future()

    patch.setattr(Session, "_keep_renewed", never)


@mutant(Losing)
def no_margin(patch: pytest.MonkeyPatch) -> None:
    """A holder that is cut off counts on the lock until the server may let go of it."""
    patch.setattr(Session, "deadline", property(lambda self: self.renewed + self.lease.ttl))


@mutant(Losing)
def never_lost_by_the_clock(patch: pytest.MonkeyPatch) -> None:
    """A holder that is cut off counts on the lock as long as nobody tells it anything else."""
    patch.setattr(Session, "deadline", property(lambda self: self.renewed + 1000 * self.lease.ttl))


@mutant(Losing)
def bodies_go_on(patch: pytest.MonkeyPatch) -> None:
    """The body of a lost lock is not cancelled."""
    patch.setattr(StoreLock, "_cancel_body", lambda self: None)


@mutant(Losing)
def ending_bodies_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """A lock whose body has not ended can be acquired once it was lost."""
    using = StoreLock._using

    async def at_once(self: StoreLock, acquire: Any) -> StoreHeldLock | None:
        self._body = None
        return await using(self, acquire)

    patch.setattr(StoreLock, "_using", at_once)


@mutant(Losing)
def foreign_writes_go_unnoticed(patch: pytest.MonkeyPatch) -> None:
    """The holder does not look at its key."""

    async def look_away(self: StoreHeldLock) -> None:
        """Do nothing."""

    patch.setattr(StoreHeldLock, "_watch", look_away)


@mutant(Losing)
def cancellations_become_losses(patch: pytest.MonkeyPatch) -> None:
    """An outside cancellation is turned into LockLostError."""
    leave = StoreLock.__aexit__

    async def lost(self: StoreLock, kind: Any, error: Any, trace: Any) -> None:
        await leave(self, kind, error, trace)
        if kind is asyncio.CancelledError:
            raise LockLostError

    patch.setattr(StoreLock, "__aexit__", lost)


@mutant(Losing)
def cancellations_that_come_with_a_loss_become_losses(patch: pytest.MonkeyPatch) -> None:
    """A body that was cancelled from outside and lost its lock at once is told of the loss only."""
    leave = StoreLock.__aexit__

    async def lost(self: StoreLock, kind: Any, error: Any, trace: Any) -> None:
        is_lost = self._is_body_cancelled
        await leave(self, kind, error, trace)
        if is_lost and kind is asyncio.CancelledError:
            raise LockLostError

    patch.setattr(StoreLock, "__aexit__", lost)


@mutant(Losing)
def cancellations_are_not_taken_back(patch: pytest.MonkeyPatch) -> None:
    """A body's task counts as cancelled after its lock was lost."""
    leave = StoreLock.__aexit__

    async def keep(self: StoreLock, kind: Any, error: Any, trace: Any) -> None:
        try:
            await leave(self, kind, error, trace)
        except LockLostError:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                pass
            raise

    patch.setattr(StoreLock, "__aexit__", keep)


@mutant(Losing)
def losses_are_kept_quiet(patch: pytest.MonkeyPatch) -> None:
    """A body that ended after its lock was lost is not told."""
    leave = StoreLock.__aexit__

    async def quiet(self: StoreLock, kind: Any, error: Any, trace: Any) -> None:
        try:
            await leave(self, kind, error, trace)
        except LockLostError:
            if kind is not None:
                raise

    patch.setattr(StoreLock, "__aexit__", quiet)


@mutant(Locking)
def tries_see_no_holder_of_their_store(patch: pytest.MonkeyPatch) -> None:
    """Who tries waits for another task of its store, though that one holds the lock."""
    patch.setattr(Mutex, "is_held", property(lambda self: False, lambda self, is_held: None), raising=False)
    patch.setattr(StoreLock, "_key_exists", _never)


async def _never(self: StoreLock) -> bool:
    return False


@mutant(Locking)
def close_keeps_locks(patch: pytest.MonkeyPatch) -> None:
    """A held lock is not told of its store's close."""
    patch.setattr(Locks, "lose_all", lambda self: None)


@mutant(Locking)
def misuse_is_not_noticed(patch: pytest.MonkeyPatch) -> None:
    """A lock that was never acquired can be released."""
    release = StoreLock.release

    async def anyway(self: StoreLock) -> None:
        try:
            await release(self)
        except CannotLockError:
            pass

    patch.setattr(StoreLock, "release", anyway)
