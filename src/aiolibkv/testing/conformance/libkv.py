"""The cases that libkv checked its backends with, on this library's calls."""

from __future__ import annotations

import pytest

from aiolibkv import AsyncStore, KeyExistsError, KeyModifiedError, KeyNotFoundError, KVPair, PreviousNotSpecifiedError
from aiolibkv.testing.conformance.suite import Suite, next_of


class Libkv(Suite):
    """libkv's own cases."""

    async def test_libkv_put_get_delete_exists(self, store: AsyncStore) -> None:
        for key in ("testPutGetDeleteExists", "testPutGetDeleteExists/", "testPutGetDeleteExists/testbar/", "a/b/c/d/"):
            value = b"bar"
            await store.put(key, value)
            pair = await store.get(key)
            assert pair.value == value
            assert pair.last_index != 0
            assert await store.exists(key)
            await store.delete(key)
            with pytest.raises(KeyNotFoundError):
                await store.get(key)
            assert not await store.exists(key)

    async def test_libkv_watch(self, store: AsyncStore) -> None:
        await store.put("testWatch", b"world")
        async with store.watch("testWatch") as events:
            first = await next_of(events)
            assert first is not None
            assert (first.key, first.value) == ("testWatch", b"world")
            for _ in range(3):
                await store.put("testWatch", b"world!")
                event = await next_of(events)
                assert event is not None
                assert (event.key, event.value) == ("testWatch", b"world!")

    async def test_libkv_watch_tree(self, store: AsyncStore) -> None:
        nodes = {"testWatchTree/node1": b"node1", "testWatchTree/node2": b"node2", "testWatchTree/node3": b"node3"}
        for key, value in nodes.items():
            await store.put(key, value)
        async with store.watch_tree("testWatchTree") as events:
            assert {pair.key: pair.value for pair in await next_of(events)} == nodes
            await store.delete("testWatchTree/node3")
            del nodes["testWatchTree/node3"]
            assert {pair.key: pair.value for pair in await next_of(events)} == nodes

    async def test_libkv_atomic_put(self, store: AsyncStore) -> None:
        await store.put("testAtomicPut", b"world")
        pair = await store.get("testAtomicPut")
        # With nothing as the previous, it may only create.
        with pytest.raises(KeyExistsError):
            await store.atomic_put("testAtomicPut", b"WORLD", None)
        swapped = await store.atomic_put("testAtomicPut", b"WORLD", pair)
        assert swapped.last_index > pair.last_index
        stale = KVPair(pair.key, b"", pair.last_index)
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("testAtomicPut", b"WORLDWORLD", stale)
        assert await store.get("testAtomicPut") == swapped

    async def test_libkv_atomic_put_create(self, store: AsyncStore) -> None:
        pair = await store.atomic_put("testAtomicPutCreate", b"putcreate", None)
        with pytest.raises(KeyExistsError):
            await store.atomic_put("testAtomicPutCreate", b"putcreate", None)
        await store.atomic_put("testAtomicPutCreate", b"putcreate", pair)

    async def test_libkv_atomic_put_with_slash_suffix(self, store: AsyncStore) -> None:
        await store.atomic_put("testAtomicPutWithSlashSuffix/key/", b"", None)
        assert await store.exists("testAtomicPutWithSlashSuffix/key")

    async def test_libkv_atomic_delete(self, store: AsyncStore) -> None:
        await store.put("testAtomicDelete", b"world")
        pair = await store.get("testAtomicDelete")
        await store.put("testAtomicDelete", b"WORLD")
        with pytest.raises(KeyModifiedError):
            await store.atomic_delete("testAtomicDelete", pair)
        with pytest.raises(PreviousNotSpecifiedError):
            await store.atomic_delete("testAtomicDelete", None)  # type: ignore[arg-type]
        pair = await store.get("testAtomicDelete")
        await store.atomic_delete("testAtomicDelete", pair)
        with pytest.raises(KeyNotFoundError):
            await store.atomic_delete("testAtomicDelete", pair)

    async def test_libkv_list(self, store: AsyncStore) -> None:
        await store.put("testList/subfolder/first", b"first")
        await store.put("testList/subfolder/second", b"second")
        for directory in ("testList", "testList/"):
            values = {pair.key: pair.value for pair in await store.list(directory)}
            assert values == {"testList/subfolder/first": b"first", "testList/subfolder/second": b"second"}
        with pytest.raises(KeyNotFoundError):
            await store.list("idontexist")

    async def test_libkv_delete_tree(self, store: AsyncStore) -> None:
        keys = ("testDeleteTree/first", "testDeleteTree/second", "testDeleteTree/sub/third")
        for key in keys:
            await store.put(key, b"value")
            assert (await store.get(key)).value == b"value"
        assert await store.delete_tree("testDeleteTree") == len(keys)
        for key in keys:
            with pytest.raises(KeyNotFoundError):
                await store.get(key)

    async def test_libkv_put_with_ttl(self, store: AsyncStore) -> None:
        await store.put("testPutTTL", b"foo", ttl=0.2)
        async with store.watch("testPutTTL") as events:
            while await next_of(events) is not None:
                pass
        assert not await store.exists("testPutTTL")
