"""Reading and writing one key, broken."""

# ruff: noqa: ARG001, ARG005 - what is patched keeps its signature

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import suppress
from typing import Any

import pytest

from aiolibkv import (
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
)
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.memory.space import Space
from aiolibkv.store import Store
from aiolibkv.testing.conformance.calls import Calls, CompareAndSwap
from mutants.broken.registry import mutant, space_of


@mutant(Calls)
def index_stays_when_the_value_does(patch: pytest.MonkeyPatch) -> None:
    """A put of the value already there is no write."""
    put = Space.put

    def same(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        current = self.get(path)
        if current is not None and current.value == value and expected in (None, current.last_index):
            return current.last_index
        return put(self, path, value, expected, lease, guard)

    patch.setattr(Space, "put", same)


@mutant(Calls)
def index_counts_per_store(patch: pytest.MonkeyPatch) -> None:
    """Every store counts its own writes."""
    put, counts = MemoryDriver.put, Counter[MemoryDriver]()

    async def counted(self: MemoryDriver, *args: Any, **conditions: Any) -> int:
        await put(self, *args, **conditions)
        counts[self] += 1
        return counts[self]

    patch.setattr(MemoryDriver, "put", counted)


@mutant(Calls)
def index_starts_again_with_a_new_key(patch: pytest.MonkeyPatch) -> None:
    """The index is a version of the key, which begins at 1 when it is created again."""
    put = Space.put

    def versioned(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        current, index = self.get(path), self.index
        self.index = current.last_index if current is not None else 0
        try:
            return put(self, path, value, expected, lease, guard)
        finally:
            self.index = max(index, self.index)

    patch.setattr(Space, "put", versioned)


@mutant(Calls)
def put_is_sent_twice(patch: pytest.MonkeyPatch) -> None:
    """A put is repeated as though its answer had been lost."""
    put = Space.put

    def twice(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        index = put(self, path, value, expected, lease, guard)
        return put(self, path, value, index, lease, guard)

    patch.setattr(Space, "put", twice)


@mutant(CompareAndSwap)
def swap_is_sent_twice(patch: pytest.MonkeyPatch) -> None:
    """A compare-and-swap is repeated as though its answer had been lost, and then finds itself."""
    put = Space.put

    def twice(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        index = put(self, path, value, expected, lease, guard)
        return index if expected is None else put(self, path, value, expected, lease, guard)

    patch.setattr(Space, "put", twice)


@mutant(CompareAndSwap)
def swap_compares_values(patch: pytest.MonkeyPatch) -> None:
    """atomic_put compares the value, not the index."""
    atomic_put = Store.atomic_put

    async def by_value(self: Store[Any], key: str, value: bytes, previous: KVPair | None, **settings: Any) -> KVPair:
        if previous is not None:
            with suppress(KeyNotFoundError):
                current = await self.get(key)
                if current.value == previous.value:
                    previous = KVPair(previous.key, b"", current.last_index)
        return await atomic_put(self, key, value, previous, **settings)

    patch.setattr(Store, "atomic_put", by_value)


@mutant(CompareAndSwap)
def swap_reads_then_writes(patch: pytest.MonkeyPatch) -> None:
    """Comparing and writing are two steps."""
    put = MemoryDriver.put

    async def two_steps(self: MemoryDriver, call: Any, path: str, value: bytes, *, expected: Any, **rest: Any) -> int:
        if expected is not None:
            current = space_of(self).get(path)
            if expected == 0 and current is not None:
                raise KeyExistsError
            if expected and (current is None or current.last_index != expected):
                raise KeyModifiedError
        return await put(self, call, path, value, expected=None, **rest)

    patch.setattr(MemoryDriver, "put", two_steps)


@mutant(CompareAndSwap)
def swap_creates_what_is_gone(patch: pytest.MonkeyPatch) -> None:
    """atomic_put writes when the key is gone."""
    put = Space.put

    def create(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        return put(self, path, value, None if expected and self.get(path) is None else expected, lease, guard)

    patch.setattr(Space, "put", create)


@mutant(CompareAndSwap)
def swap_takes_any_later_index(patch: pytest.MonkeyPatch) -> None:
    """atomic_put refuses only what is older than the key."""
    put = Space.put

    def lenient(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        current = self.get(path)
        if expected and current is not None and expected > current.last_index:
            expected = current.last_index
        return put(self, path, value, expected, lease, guard)

    patch.setattr(Space, "put", lenient)


@mutant(CompareAndSwap)
def create_overwrites(patch: pytest.MonkeyPatch) -> None:
    """atomic_put without a previous writes whatever was there."""
    put = Space.put

    def overwrite(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        return put(self, path, value, expected or None, lease, guard)

    patch.setattr(Space, "put", overwrite)


@mutant(CompareAndSwap)
def create_raises_modified(patch: pytest.MonkeyPatch) -> None:
    """A refused create says that the key was modified."""
    put = MemoryDriver.put

    async def mixed(self: MemoryDriver, *args: Any, **conditions: Any) -> int:
        try:
            return await put(self, *args, **conditions)
        except KeyExistsError:
            raise KeyModifiedError from None

    patch.setattr(MemoryDriver, "put", mixed)


@mutant(CompareAndSwap)
def swap_of_a_missing_key_raises_not_found(patch: pytest.MonkeyPatch) -> None:
    """A swap says of a key that is gone that it was not found."""
    put = Space.put

    def mixed(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        if expected and self.get(path) is None:
            raise KeyNotFoundError
        return put(self, path, value, expected, lease, guard)

    patch.setattr(Space, "put", mixed)


@mutant(CompareAndSwap)
def atomic_delete_ignores_the_index(patch: pytest.MonkeyPatch) -> None:
    """atomic_delete deletes what was modified."""
    delete = Space.delete
    patch.setattr(Space, "delete", lambda self, path, expected, guard: delete(self, path, None, guard))


@mutant(CompareAndSwap)
def atomic_delete_without_previous_deletes(patch: pytest.MonkeyPatch) -> None:
    """atomic_delete of None is a delete."""
    atomic_delete = Store.atomic_delete

    async def plain(self: Store[Any], key: str, previous: KVPair, **settings: Any) -> None:
        await (self.delete(key) if previous is None else atomic_delete(self, key, previous, **settings))

    patch.setattr(Store, "atomic_delete", plain)


@mutant(CompareAndSwap)
def previous_of_any_key_will_do(patch: pytest.MonkeyPatch) -> None:
    """The key of the previous pair is not looked at."""
    atomic_put = Store.atomic_put

    async def unchecked(self: Store[Any], key: str, value: bytes, previous: KVPair | None, **settings: Any) -> KVPair:
        if previous is not None:
            previous = KVPair(key, previous.value, previous.last_index)
        return await atomic_put(self, key, value, previous, **settings)

    patch.setattr(Store, "atomic_put", unchecked)


@mutant(Calls)
def delete_of_a_missing_key_is_silent(patch: pytest.MonkeyPatch) -> None:
    """delete does not tell that there was nothing."""
    delete = Space.delete

    def silent(self: Space, path: str, expected: Any, guard: Any) -> None:
        with suppress(KeyNotFoundError):
            delete(self, path, expected, guard)

    patch.setattr(Space, "delete", silent)


@mutant(Calls)
def directory_exists(patch: pytest.MonkeyPatch) -> None:
    """A directory is taken for a key by exists."""

    async def exists(self: MemoryDriver, call: Any, path: str, *, consistent: bool) -> bool:
        space = await self._reach()
        return space.get(path) is not None or bool(space.below(path))

    patch.setattr(MemoryDriver, "exists", exists)


@mutant(Calls)
def inconsistent_reads_never_catch_up(patch: pytest.MonkeyPatch) -> None:
    """A read that need not be consistent gives for ever what it gave first."""
    get, seen = MemoryDriver.get, defaultdict[MemoryDriver, dict[str, KVPair | None]](dict)

    async def stale(self: MemoryDriver, call: Any, path: str, *, consistent: bool) -> KVPair | None:
        if not consistent and path in seen[self]:
            return seen[self][path]
        seen[self][path] = await get(self, call, path, consistent=consistent)
        return seen[self][path]

    patch.setattr(MemoryDriver, "get", stale)
