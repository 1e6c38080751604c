"""Namespaces on a store: what is shared with it, and what ends with them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from aiolibkv import (
    AsyncStore,
    Delete,
    HeldLock,
    InvalidKeyError,
    KeyNotFoundError,
    LockLostError,
    Namespace,
    Put,
    Snapshot,
    StoreClosedError,
    ValueTooLargeError,
    Watch,
)
from aiolibkv.testing.conformance.closing import CALLS
from aiolibkv.testing.conformance.suite import Suite, follow, next_of
from aiolibkv.testing.scale import scaled


class Namespaces(Suite):
    """A directory of a store, used as a store."""

    async def test_a_namespace_is_a_part_of_its_store(self, store: AsyncStore) -> None:
        eu, us = Namespace(store, "/app/eu/"), Namespace(store, "app/us")
        pair = await eu.put("config/limit", b"1")
        assert (pair.key, (await store.get("app/eu/config/limit")).last_index) == ("config/limit", pair.last_index)
        with pytest.raises(KeyNotFoundError) as caught:
            await us.get("config/limit")
        assert caught.value.key == "config/limit"
        assert isinstance(eu, AsyncStore)
        assert await us.delete_tree("") == 0
        assert await us.list("") == []
        assert await us.keys("") == []
        assert await us.children("") == []
        assert [found async for found in us.scan("")] == []
        assert await eu.children("") == ["config/"]
        for read in (us.list, us.keys, us.children):
            with pytest.raises(KeyNotFoundError) as caught:
                await read("missing")
            assert caught.value.key == "missing"
        (again, _) = await eu.commit(Put("config/limit", b"2", previous=pair), Put("b", b""))
        assert await eu.get_many(["config/limit", "c"]) == {"config/limit": again}
        assert await eu.delete_tree("") == 2
        assert await store.list("") == []

    async def test_watches_of_a_namespace(self, store: AsyncStore) -> None:
        eu = Namespace(store, "app/eu")
        async with eu.watch_tree("") as tree, eu.watch("key") as key:
            assert await next_of(tree) == []
            assert await next_of(key) is None
            await store.put("app/us/key", b"")
            pair = await eu.put("key", b"1")
            snapshots = await follow(tree, lambda snapshot: "key" in snapshot)
            assert list(snapshots[-1]) == [pair]
            assert await next_of(key) == pair

    async def test_guards_of_the_store_and_of_other_namespaces(self, store: AsyncStore) -> None:
        eu = Namespace(store, "app/eu")
        inner = Namespace(eu, "inner")
        locks = [one.new_lock("lock", ttl=10) for one in (store, inner, Namespace(store, "app/us"))]
        held: list[HeldLock] = [await lock.acquire() for lock in locks]
        for writer in (store, eu, inner):
            for guard in held:
                await writer.put("key", b"", guard=guard)
        await store.delete("app/eu/inner/lock")
        with pytest.raises(LockLostError) as caught:
            await inner.commit(Put("key", b""), guard=held[1])
        assert caught.value.key == "lock"
        for lock in (locks[0], locks[2]):
            await lock.release()

    async def test_errors_of_a_namespace_name_keys_as_its_user_does(self, store: AsyncStore) -> None:
        space, other = Namespace(store, "app/eu"), Namespace(store, "app/us")
        with pytest.raises(ValueTooLargeError) as too_large:
            space.new_lock("key", value=bytes(store.capabilities.max_value_bytes + 1))
        assert too_large.value.key == "key"
        held = await other.new_lock("lock", ttl=10).acquire()
        await store.put("app/us/lock", b"foreign")
        with pytest.raises(LockLostError) as lost:
            await Namespace(space, "deep").put("key", b"", guard=held)
        assert lost.value.key == held.key == "lock"
        await other.delete("lock")
        one = await space.put("one", b"")
        calls: list[Coroutine[Any, Any, object]] = [
            space.atomic_put("two", b"", one),
            space.atomic_delete("two", one),
            space.commit(Put("two", b"", previous=one)),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="previous is of key 'one', not 'two'"):
                await call
        long = "x" * 300
        deep = Namespace(Namespace(store, "app"), long)
        calls = [deep.put(long, b""), deep.list(long), deep.get_many([long])]
        for call in calls:
            with pytest.raises(InvalidKeyError) as invalid:
                await call
            assert invalid.value.key == long

    async def test_entering_and_leaving_a_namespace_leaves_its_store_open(self, store: AsyncStore) -> None:
        async with Namespace(store, "app/eu") as eu, Namespace(eu, "inner") as inner:
            assert eu.capabilities == store.capabilities
            await inner.put("key", b"")
        assert await store.exists("app/eu/inner/key")
        with pytest.raises(StoreClosedError):
            await inner.put("key", b"")

    async def test_closing_a_namespace_ends_what_was_begun_through_it(self, store: AsyncStore) -> None:
        """And nothing else."""
        eu = Namespace(store, "app/eu")
        own, waited = store.new_lock("own", ttl=10), store.new_lock("app/eu/waited", ttl=10)
        own_held, waited_held = await own.acquire(), await waited.acquire()
        await store.put("stays", b"", ttl=10, keep_alive=True)
        for key in ("kept", "permanent"):
            await eu.put(key, b"", ttl=10, keep_alive=True)
        await eu.put("permanent", b"")
        lock = eu.new_lock("held", ttl=10)
        held = await lock.acquire()
        watch = eu.watch_tree("")
        await next_of(watch)
        waiting = asyncio.ensure_future(eu.new_lock("waited", ttl=10).acquire())
        watching = asyncio.ensure_future(_until_the_end(watch))
        still = eu.watch("never")
        assert await next_of(still) is None
        idle = asyncio.ensure_future(anext(still))
        await asyncio.sleep(0.05)
        await eu.close()
        for task in (waiting, watching, idle):
            with pytest.raises(StoreClosedError):
                await asyncio.wait_for(task, scaled(10))
        assert not held.is_held
        assert [pair.key for pair in await store.list("")] == ["app/eu/permanent", "app/eu/waited", "own", "stays"]
        assert own_held.is_held
        assert waited_held.is_held
        for call in CALLS.values():
            with pytest.raises(StoreClosedError):
                await call(eu)
        with pytest.raises(StoreClosedError):
            await eu.open()
        await eu.close()
        await lock.release()
        await own.release()
        await waited.release()

    async def test_the_body_of_a_lock_ends_when_its_namespace_is_closed(self, store: AsyncStore) -> None:
        eu = Namespace(store, "app/eu")
        closing: list[asyncio.Task[None]] = []
        with pytest.raises(LockLostError) as caught:
            async with eu.new_lock("lock", ttl=10):
                closing.append(asyncio.create_task(eu.close()))
                await asyncio.get_running_loop().create_future()
        assert caught.value.key == "lock"
        await closing[0]
        lock = store.new_lock("app/eu/lock")
        assert await lock.try_acquire() is not None
        await lock.release()

    async def test_the_reserved_segment_of_a_namespace_is_left_alone(self, store: AsyncStore) -> None:
        await store.put("app/eu/.aiolibkv/x", b"foreign")
        eu = Namespace(store, "app/eu")
        for call in (eu.put(".aiolibkv/x", b""), eu.commit(Delete(".aiolibkv/x")), eu.list(".aiolibkv")):
            with pytest.raises(InvalidKeyError):
                await call
        await eu.put("a", b"")
        await eu.put("b/c", b"")
        assert [pair.key for pair in await eu.list("")] == ["a", "b/c"]
        assert await eu.children("") == ["a", "b/"]
        assert [pair.key async for pair in eu.scan("", page=1)] == ["a", "b/c"]
        async with eu.watch_tree("") as watch:
            assert [pair.key for pair in await next_of(watch)] == ["a", "b/c"]
            await store.put("app/eu/.aiolibkv/y", b"foreign")
            await eu.put("d", b"")
            assert [change.key for change in (await next_of(watch)).changes] == ["d"]
        assert await eu.delete_tree("") == 3
        assert await store.keys("app") == ["app/eu/.aiolibkv/x", "app/eu/.aiolibkv/y"]


async def _until_the_end(watch: Watch[Snapshot]) -> None:
    """Take one item after the other."""
    while True:
        await anext(watch)
