"""get_many, keys, children, scan."""

from __future__ import annotations

import asyncio

import pytest

from aiolibkv import AsyncStore, Delete, InvalidKeyError, KeyNotFoundError, KVPair, Put
from aiolibkv.testing.conformance.suite import Stores, Suite, needs
from aiolibkv.testing.scale import eventually, scaled

_TREE = ("a", "a-b", "a/b", "a/b/c/d", "a0", "a/bc", "é/ü", "z z/%?#", "z z/y")


async def _fill(store: AsyncStore, *keys: str) -> list[KVPair]:
    """Write some keys and return their pairs in order."""
    pairs = [await store.put(key, key.encode()) for key in keys]
    return sorted(pairs, key=lambda pair: pair.key)


class Listing(Suite):
    """What is read of several keys."""

    async def test_get_many(self, store: AsyncStore, other: AsyncStore) -> None:
        pairs = await _fill(other, *_TREE)
        found = await store.get_many([*_TREE, "missing", "a/b/c", "/a/"])
        assert found == {pair.key: pair for pair in pairs}
        assert await store.get_many([]) == {}
        assert await store.get_many(iter(["missing"])) == {}
        with pytest.raises(InvalidKeyError):
            await store.get_many(["a", "a//b"])
        with pytest.raises(TypeError):
            await store.get_many("ab")

    async def test_get_many_is_one_instant(self, store: AsyncStore, other: AsyncStore) -> None:
        """Of as many keys as a commit takes, read while commits write the first and the last of them."""
        needs(store, "atomic_list")
        keys = [f"dir/{number:04}" for number in range(store.capabilities.max_operations)]
        ends = (keys[0], keys[-1])
        await store.commit(*(Put(key, b"0") for key in keys))

        async def write() -> None:
            for number in range(1, 25):
                await store.commit(*(Put(key, b"%d" % number) for key in ends))

        writing = asyncio.ensure_future(write())
        seen: list[set[bytes]] = []
        while not writing.done():
            found = await other.get_many(keys)
            seen.append({found[key].value for key in ends})
            assert len(found) == len(keys)
            await asyncio.sleep(0)
        await writing
        assert all(len(values) == 1 for values in seen)

    async def test_get_many_of_many(self, store: AsyncStore) -> None:
        keys = [f"dir/{number:03}" for number in range(250)]
        await asyncio.gather(*(store.put(key, b"") for key in keys[::2]))
        assert sorted(await store.get_many(keys)) == keys[::2]

    async def test_keys(self, store: AsyncStore, other: AsyncStore) -> None:
        await _fill(other, *_TREE)
        assert await store.keys("") == sorted(_TREE)
        assert await store.keys("a") == ["a/b", "a/b/c/d", "a/bc"]
        assert await store.keys("/z z/") == ["z z/%?#", "z z/y"]
        assert await store.keys("a0") == []
        with pytest.raises(KeyNotFoundError) as caught:
            await store.keys("a/b/c/d/e")
        assert caught.value.key == "a/b/c/d/e"

    async def test_children(self, store: AsyncStore, other: AsyncStore) -> None:
        await _fill(other, *_TREE)
        assert await store.children("") == ["a", "a-b", "a/", "a0", "z z/", "é/"]
        assert await store.children("a") == ["b", "b/", "bc"]
        assert await store.children("a/b") == ["c/"]
        assert await store.children("/z z") == ["%?#", "y"]
        assert await store.children("a0") == []
        with pytest.raises(KeyNotFoundError) as caught:
            await store.children("missing")
        assert caught.value.key == "missing"

    async def test_children_with_many_below(self, store: AsyncStore) -> None:
        for first in "abc":
            await store.commit(*(Put(f"dir/{first}/{number}", b"") for number in range(20)))
        await store.put("dir/b", b"")
        assert await store.children("dir") == ["a/", "b", "b/", "c/"]

    async def test_the_root_of_an_empty_store(self, store: AsyncStore) -> None:
        assert await store.keys("") == []
        assert await store.children("") == []
        assert [pair async for pair in store.scan("")] == []

    @pytest.mark.parametrize("page", [1, 2, 4, 1000])
    async def test_scan(self, store: AsyncStore, other: AsyncStore, page: int) -> None:
        pairs = await _fill(other, *_TREE)
        # One that goes round in a circle ends by this.
        async with asyncio.timeout(scaled(10)):
            assert [pair async for pair in store.scan("", page=page)] == pairs
            assert [pair async for pair in store.scan("a", page=page)] == pairs[2:5]
            assert [pair async for pair in store.scan("a0", page=page)] == []

    async def test_scan_of_a_missing_directory(self, store: AsyncStore) -> None:
        await store.put("key", b"")
        with pytest.raises(KeyNotFoundError) as caught:
            await anext(store.scan("missing"))
        assert caught.value.key == "missing"
        for page in (0, -1):
            with pytest.raises(ValueError, match="page"):
                store.scan("key", page=page)

    async def test_scan_while_others_write(self, store: AsyncStore, other: AsyncStore) -> None:
        """What is there throughout is given once, whatever comes and goes around it."""
        stays = [f"dir/{number:02}/k" for number in range(30)]
        await asyncio.gather(*(store.put(key, b"") for key in stays))
        seen: list[str] = []
        async with store.scan("dir", page=4) as scan:
            async for pair in scan:
                seen.append(pair.key)
                number = len(seen)
                await other.put(f"dir/{number % 30:02}/a{number}", b"")
                if number % 3 == 0:
                    await other.delete(f"dir/{number % 30:02}/a{number}")
        assert len(seen) == len(set(seen))
        assert seen == sorted(seen)
        assert set(stays) <= set(seen)

    async def test_each_pair_is_current_when_its_page_is_read(self, store: AsyncStore, other: AsyncStore) -> None:
        await _fill(store, "dir/a", "dir/b", "dir/c")
        async with store.scan("dir", page=1) as scan:
            assert (await anext(scan)).key == "dir/a"
            changed = await other.put("dir/c", b"new")
            await other.commit(Delete("dir/b"))
            assert [pair async for pair in scan] == [changed]

    async def test_a_scan_whose_rest_is_deleted_meanwhile_ends(self, store: AsyncStore, other: AsyncStore) -> None:
        pairs = await _fill(store, "dir/a", "dir/b", "dir/c")
        async with store.scan("dir", page=1) as scan:
            assert await anext(scan) == pairs[0]
            await other.delete_tree("dir")
            assert [pair async for pair in scan] == []

    async def test_a_cancelled_anext_of_a_scan_loses_nothing(self, store: AsyncStore) -> None:
        pairs = await _fill(store, *(f"dir/{number:02}" for number in range(12)))
        seen: list[KVPair] = []
        steps = 0
        async with store.scan("dir", page=2) as scan:
            while len(seen) < len(pairs):
                task = asyncio.ensure_future(anext(scan))
                for _ in range(steps % 9):
                    await asyncio.sleep(0)
                steps += 1
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled():
                    seen.append(task.result())
                elif steps % 5 == 0:
                    seen.append(await anext(scan))
        assert seen == pairs

    async def test_a_scan_ends_when_it_is_closed(self, store: AsyncStore) -> None:
        await _fill(store, "a", "b", "c")
        scan = store.scan("", page=2)
        await anext(scan)
        await scan.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(scan)
        scan = store.scan("", page=1)
        reading = asyncio.ensure_future(anext(scan))
        await asyncio.sleep(0)
        await scan.aclose()
        if not reading.done():  # SQLite reads at once
            with pytest.raises(StopAsyncIteration):
                await reading
        with pytest.raises(StopAsyncIteration):
            await anext(scan)

    async def test_prefixes(self, stores: Stores) -> None:
        inner, outer = await stores.open("sub"), await stores.open()
        await inner.commit(Put("a/b", b"1"), Put("c", b"2"))
        await outer.put("subway/x", b"3")
        assert await inner.keys("") == ["a/b", "c"]
        assert await inner.children("") == ["a/", "c"]
        assert [pair.key async for pair in inner.scan("", page=1)] == ["a/b", "c"]
        assert sorted(await inner.get_many(["a/b", "c", "x"])) == ["a/b", "c"]
        assert await outer.keys("sub") == ["sub/a/b", "sub/c"]

    async def test_what_is_reserved_is_not_seen(self, stores: Stores) -> None:
        store, other, above = await stores.open("sub"), await stores.open("sub"), await stores.open()

        async def is_in_line() -> bool:
            return any("/waiters/" in key for key in await above.keys("sub"))

        async with store.new_lock("lock", ttl=10):
            task = asyncio.ensure_future(other.new_lock("lock", ttl=10).acquire())
            await eventually(is_in_line, within=10, message="it waits")
            assert await store.keys("") == ["lock"]
            assert await store.children("") == ["lock"]
            assert [pair.key async for pair in store.scan("", page=1)] == ["lock"]
            task.cancel()
            await asyncio.wait({task})
