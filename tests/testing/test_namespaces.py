"""A namespace is a store: the suite runs on it, on one of a namespace, and beside the store that it is in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self
from uuid import uuid4

import pytest
import pytest_asyncio

from aiolibkv import (
    AsyncStore,
    Config,
    HeldLock,
    KeyNotFoundError,
    LockLostError,
    Namespace,
    Put,
    StoreClosedError,
    new_store,
)
from aiolibkv.testing.conformance import ConformanceSuite, StoreFactory
from aiolibkv.testing.scale import eventually, scaled


class InNamespace(Namespace):
    """A namespace with a store of its own, for tests that open and close what they use."""

    def __init__(self, store: AsyncStore, directory: str, *, is_nested: bool) -> None:
        super().__init__(Namespace(store, "outer/most") if is_nested else store, directory)
        self._own = store

    async def open(self) -> Self:
        await self._own.open()
        return await super().open()

    async def close(self) -> None:
        await super().close()
        await self._own.close()


def _factory(space: str, *, is_nested: bool) -> StoreFactory:
    def make(*, prefix: str | None = None, **overrides: Any) -> AsyncStore:
        store = new_store("memory", [space], Config(**overrides))
        return InNamespace(store, prefix or "", is_nested=is_nested)

    return make


@pytest.mark.parametrize("nested", [False, True], ids=["namespace", "nested"])
class TestNamespace(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def store_factory(self, nested: bool) -> StoreFactory:  # noqa: FBT001 - a parameter of the test
        return _factory(uuid4().hex, is_nested=nested)

    test_every_other_key_works = test_the_longest_key_below_a_prefix = None  # type: ignore[assignment]
    """The longest key is that of the store, the directory included."""
    test_cancelling_close = None  # type: ignore[assignment]
    """Here the namespace and its store are closed by two calls, of which the first may be cancelled."""


@pytest_asyncio.fixture
async def store() -> AsyncIterator[AsyncStore]:
    async with new_store("memory") as store:
        yield store


pytestmark = pytest.mark.asyncio


async def test_it_is_a_part_of_its_store(store: AsyncStore) -> None:
    eu, us = Namespace(store, "/app/eu/"), Namespace(store, "app/us")
    pair = await eu.put("config/limit", b"1")
    assert (pair.key, (await store.get("app/eu/config/limit")).last_index) == ("config/limit", pair.last_index)
    with pytest.raises(KeyNotFoundError) as caught:
        await us.get("config/limit")
    assert caught.value.key == "config/limit"
    assert await us.list("") == []
    assert await us.delete_tree("") == 0
    assert isinstance(eu, AsyncStore)


async def test_guards_of_the_store_and_of_other_namespaces(store: AsyncStore) -> None:
    eu = Namespace(store, "app/eu")
    inner = Namespace(eu, "inner")
    held: list[HeldLock] = [
        await one.new_lock("lock", ttl=10).acquire() for one in (store, eu, inner, Namespace(store, "app/us"))
    ]
    for writer in (store, eu, inner):
        for guard in held:
            await writer.put("key", b"", guard=guard)
            await writer.commit(Put("key", b""), guard=guard)
    await store.delete("app/eu/inner/lock")
    with pytest.raises(LockLostError) as caught:
        await inner.put("key", b"", guard=held[2])
    assert caught.value.key == "lock"
    async with new_store("memory") as other:
        foreign = await other.new_lock("lock").acquire()
        with pytest.raises(ValueError, match="same store"):
            await eu.put("key", b"", guard=foreign)


async def test_closing_ends_what_was_begun_through_it_and_nothing_else(store: AsyncStore) -> None:
    eu = Namespace(store, "app/eu")
    own = await store.new_lock("own", ttl=10).acquire()
    await store.put("stays", b"", ttl=10, keep_alive=True)
    await eu.put("kept", b"", ttl=10, keep_alive=True)
    await eu.put("permanent", b"", ttl=10, keep_alive=True)
    await eu.put("permanent", b"")
    held = await eu.new_lock("held", ttl=10).acquire()
    holder = await store.new_lock("app/eu/waited", ttl=10).acquire()
    watch = eu.watch_tree("")
    await anext(watch)
    waiting = asyncio.ensure_future(eu.new_lock("waited", ttl=10).acquire())
    watching = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.01)
    await eu.close()
    for task in (waiting, watching):
        with pytest.raises(StoreClosedError):
            await asyncio.wait_for(task, scaled(5))
    assert not held.is_held
    assert [pair.key for pair in await store.list("")] == ["app/eu/permanent", "app/eu/waited", "own", "stays"]
    assert own.is_held
    assert holder.is_held
    for call in (eu.get("key"), eu.put("key", b""), eu.list(""), eu.open(), eu.new_lock("lock").acquire()):
        with pytest.raises(StoreClosedError):
            await call
    await eu.close()


async def test_the_body_of_a_lock_ends_when_its_namespace_is_closed(store: AsyncStore) -> None:
    eu = Namespace(store, "app/eu")
    asyncio.get_running_loop().call_later(0.02, lambda: tasks.append(asyncio.ensure_future(eu.close())))
    tasks: list[asyncio.Future[None]] = []
    with pytest.raises(LockLostError) as caught:
        async with eu.new_lock("lock", ttl=10):
            await asyncio.get_running_loop().create_future()
    assert caught.value.key == "lock"
    await tasks[0]
    assert await store.new_lock("app/eu/lock").try_acquire() is not None


async def test_its_reserved_segment_is_left_alone(store: AsyncStore) -> None:
    await store.put("app/eu/.aiolibkv/x", b"foreign")
    eu = Namespace(store, "app/eu")
    await eu.put("a", b"")
    await eu.put("b/c", b"")
    assert [pair.key for pair in await eu.list("")] == ["a", "b/c"]
    assert await eu.children("") == ["a", "b/"]
    assert [pair.key async for pair in eu.scan("", page=1)] == ["a", "b/c"]
    async with eu.watch_tree("") as watch:
        assert [pair.key for pair in await anext(watch)] == ["a", "b/c"]
        await store.put("app/eu/.aiolibkv/y", b"foreign")
        await eu.put("d", b"")
        assert [change.key for change in (await anext(watch)).changes] == ["d"]
    assert await eu.delete_tree("") == 3
    assert await store.keys("app") == ["app/eu/.aiolibkv/x", "app/eu/.aiolibkv/y"]


async def test_a_watch_that_nobody_refers_to_is_released(store: AsyncStore) -> None:
    eu = Namespace(store, "app/eu")
    async for _ in eu.watch("key"):
        break
    await eventually(lambda: not store._watches._feeds, within=5, message="it is released")  # type: ignore[attr-defined]
