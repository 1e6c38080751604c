"""Stores of another class than the library's: what has the methods is used like any other, and the suite runs on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self
from uuid import uuid4

import pytest

from aiolibkv import (
    AsyncStore,
    Config,
    HeldLock,
    KVPair,
    Lock,
    Scan,
    Snapshot,
    Watch,
    new_store,
    register_backend,
    registry,
)
from aiolibkv.store import Store
from aiolibkv.testing.conformance import StoreFactory, factory_of
from aiolibkv.testing.conformance.calls import Calls, CompareAndSwap
from aiolibkv.testing.conformance.coordinating import Coordinating
from aiolibkv.testing.conformance.locking import Guarding, Locking
from aiolibkv.testing.conformance.rooting import SelfDescription
from aiolibkv.types import Bytes, Operation


class Wrapped:
    """A class of its own around a store, as one that counts or logs would be: no hash, no weak references."""

    __slots__ = ("_store", "capabilities")

    def __init__(self, endpoints: Sequence[str], config: Config) -> None:
        self._store = new_store("memory", endpoints, config)
        self.capabilities = self._store.capabilities

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wrapped) and other._store is self._store

    async def put(
        self,
        key: str,
        value: Bytes,
        *,
        ttl: float | None = None,
        keep_alive: bool = False,
        guard: HeldLock | None = None,
    ) -> KVPair:
        return await self._store.put(key, value, ttl=ttl, keep_alive=keep_alive, guard=guard)

    async def get(self, key: str, *, consistent: bool = True) -> KVPair:
        return await self._store.get(key, consistent=consistent)

    async def delete(self, key: str, *, guard: HeldLock | None = None) -> None:
        await self._store.delete(key, guard=guard)

    async def exists(self, key: str, *, consistent: bool = True) -> bool:
        return await self._store.exists(key, consistent=consistent)

    def watch(self, key: str) -> Watch[KVPair | None]:
        return self._store.watch(key)

    def watch_tree(self, directory: str) -> Watch[Snapshot]:
        return self._store.watch_tree(directory)

    def new_lock(self, key: str, *, value: Bytes = b"", ttl: float = 15.0) -> Lock:
        return self._store.new_lock(key, value=value, ttl=ttl)

    async def list(self, directory: str, *, consistent: bool = True) -> Sequence[KVPair]:
        return await self._store.list(directory, consistent=consistent)

    async def delete_tree(self, directory: str, *, guard: HeldLock | None = None) -> int:
        return await self._store.delete_tree(directory, guard=guard)

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
        return await self._store.atomic_put(key, value, previous, ttl=ttl, keep_alive=keep_alive, guard=guard)

    async def atomic_delete(self, key: str, previous: KVPair, *, guard: HeldLock | None = None) -> None:
        await self._store.atomic_delete(key, previous, guard=guard)

    async def commit(self, *operations: Operation, guard: HeldLock | None = None) -> Sequence[KVPair | None]:
        return await self._store.commit(*operations, guard=guard)

    async def get_many(self, keys: Iterable[str], *, consistent: bool = True) -> Mapping[str, KVPair]:
        return await self._store.get_many(keys, consistent=consistent)

    async def keys(self, directory: str, *, consistent: bool = True) -> Sequence[str]:
        return await self._store.keys(directory, consistent=consistent)

    async def children(self, directory: str, *, consistent: bool = True) -> Sequence[str]:
        return await self._store.children(directory, consistent=consistent)

    def scan(self, directory: str, *, page: int = 1000) -> Scan:
        return self._store.scan(directory, page=page)

    async def open(self) -> Self:
        await self._store.open()
        return self

    async def close(self) -> None:
        await self._store.close()

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._store.__aexit__(kind, error, trace)


@pytest.fixture
def wrapped(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(registry, "_registered", {})
    register_backend("wrapped", Wrapped)
    return "wrapped"


def test_a_class_that_has_the_methods_is_a_store(wrapped: str) -> None:
    store = new_store(wrapped)
    assert isinstance(store, AsyncStore)
    assert not isinstance(store, Store)
    assert not isinstance(object(), AsyncStore)


class TestWrapped(Guarding, Locking, Coordinating, SelfDescription, CompareAndSwap, Calls):
    """The parts of the suite that use a store from outside: locks, elections, services, update."""

    @pytest.fixture
    def store_factory(self, wrapped: str) -> StoreFactory:
        return factory_of(wrapped, [uuid4().hex])
