"""list and delete_tree."""

from __future__ import annotations

import asyncio

import pytest

from aiolibkv import AsyncStore, KeyNotFoundError
from aiolibkv.testing.conformance.suite import Suite, needs


async def _keys(store: AsyncStore, directory: str = "") -> list[str]:
    return [pair.key for pair in await store.list(directory)]


class Directories(Suite):
    """list."""

    async def test_list_gives_every_key_below_with_its_pair(self, store: AsyncStore, other: AsyncStore) -> None:
        written = [await store.put(key, key.encode()) for key in ("dir/a", "dir/b/c", "dir/b/d/e", "dir/f")]
        await store.put("elsewhere", b"")
        assert list(await other.list("dir")) == written
        assert list(await other.list("dir/b")) == written[1:3]

    async def test_list_is_sorted_by_key(self, store: AsyncStore) -> None:
        keys = ["d/b", "d/a/z", "d/a", "d/a b", "d/a-b", "d/a0", "d/A", "d/é", "d/a/b/c", "d/~", "d/日", "d/10", "d/9"]
        for key in keys:
            await store.put(key, b"")
        assert await _keys(store, "d") == sorted(keys)
        assert await _keys(store) == sorted(keys)

    async def test_list_tells_a_directory_from_a_longer_name(self, store: AsyncStore) -> None:
        for key in ("foo/a", "foobar", "foobar/b", "foo-bar", "foo0", "fo", "foo."):
            await store.put(key, b"")
        assert await _keys(store, "foo") == ["foo/a"]
        assert await _keys(store, "foobar") == ["foobar/b"]
        with pytest.raises(KeyNotFoundError):
            await store.list("f")

    async def test_list_leaves_out_the_directory_itself(self, store: AsyncStore) -> None:
        await store.put("dir", b"a key too")
        await store.put("dir/key", b"")
        assert await _keys(store, "dir") == ["dir/key"]

    async def test_list_below_a_key_with_nothing_below_is_empty(self, store: AsyncStore) -> None:
        await store.put("key", b"")
        await store.put("keys/other", b"")
        assert list(await store.list("key")) == []

    async def test_list_of_a_missing_directory(self, store: AsyncStore) -> None:
        with pytest.raises(KeyNotFoundError):
            await store.list("missing")
        await store.put("missing-too/a", b"")
        with pytest.raises(KeyNotFoundError):
            await store.list("missing")

    async def test_a_directory_goes_with_its_last_key(self, store: AsyncStore) -> None:
        await store.put("a/b/c", b"")
        await store.put("a/d", b"")
        await store.delete("a/b/c")
        with pytest.raises(KeyNotFoundError):
            await store.list("a/b")
        assert await _keys(store, "a") == ["a/d"]
        await store.delete("a/d")
        with pytest.raises(KeyNotFoundError):
            await store.list("a")

    async def test_list_of_the_root(self, store: AsyncStore) -> None:
        assert list(await store.list("")) == []
        await store.put("z", b"")
        await store.put("a/b", b"")
        assert await _keys(store) == ["a/b", "z"]
        assert await _keys(store, "/") == ["a/b", "z"]
        await store.delete("z")
        await store.delete("a/b")
        assert list(await store.list("")) == []

    async def test_list_of_many_keys(self, store: AsyncStore, other: AsyncStore) -> None:
        written = await asyncio.gather(
            *(store.put(f"many/{number % 7}/{number:04}", str(number).encode()) for number in range(500))
        )
        assert list(await other.list("many")) == sorted(written, key=lambda pair: pair.key)

    async def test_a_list_is_the_state_of_one_instant(self, store: AsyncStore, other: AsyncStore) -> None:
        needs(store, "atomic_list")
        await asyncio.gather(
            *(store.put(f"dir/{key}", b"0") for key in ("a", *(f"m{number}" for number in range(30)), "z"))
        )
        done = False

        async def write() -> None:
            nonlocal done
            try:
                for number in range(1, 60):
                    await store.put("dir/a", str(number).encode())
                    await store.put("dir/z", str(number).encode())
            finally:
                done = True

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            while not done:
                values = {pair.key: int(pair.value) for pair in await other.list("dir")}
                assert values["dir/a"] >= values["dir/z"] >= values["dir/a"] - 1
                # A list that nothing has to be waited for leaves the writer no time.
                await asyncio.sleep(0)

    async def test_the_order_of_writes_shows_in_every_list(self, store: AsyncStore, other: AsyncStore) -> None:
        """A list that began after a write was answered has it, whether or not it is of one instant."""
        await store.put("dir/kept", b"")
        for number in range(20):
            await store.put(f"dir/{number}", b"")
            assert f"dir/{number}" in await _keys(other, "dir")
            await store.delete(f"dir/{number}")
            assert await _keys(other, "dir") == ["dir/kept"]

    async def test_a_list_does_not_change_later(self, store: AsyncStore) -> None:
        await store.put("dir/a", b"")
        before = await store.list("dir")
        await store.put("dir/b", b"")
        assert [pair.key for pair in before] == ["dir/a"]


class DeletingTrees(Suite):
    """delete_tree."""

    async def test_delete_tree_deletes_what_list_lists(self, store: AsyncStore, other: AsyncStore) -> None:
        for key in ("dir/a", "dir/b/c", "dir/b/d/e"):
            await store.put(key, b"")
        assert await other.delete_tree("dir") == 3
        with pytest.raises(KeyNotFoundError):
            await store.list("dir")
        for key in ("dir/a", "dir/b/c", "dir/b/d/e"):
            assert not await store.exists(key)

    async def test_delete_tree_keeps_the_directory_itself_and_its_neighbours(self, store: AsyncStore) -> None:
        kept = [await store.put(key, b"kept") for key in ("fo", "foo", "foo-bar", "foo0", "foobar", "foobar/b")]
        await store.put("foo/a", b"")
        assert await store.delete_tree("foo") == 1
        assert list(await store.list("")) == kept

    async def test_delete_tree_below_a_key_with_nothing_below(self, store: AsyncStore) -> None:
        pair = await store.put("key", b"")
        assert await store.delete_tree("key") == 0
        assert await store.get("key") == pair

    async def test_delete_tree_of_a_missing_directory(self, store: AsyncStore) -> None:
        await store.put("missing-too/a", b"")
        with pytest.raises(KeyNotFoundError):
            await store.delete_tree("missing")
        await store.delete_tree("missing-too")
        with pytest.raises(KeyNotFoundError):
            await store.delete_tree("missing-too")

    async def test_delete_tree_of_the_root(self, store: AsyncStore) -> None:
        assert await store.delete_tree("") == 0
        for key in ("a", "b/c", "b"):
            await store.put(key, b"")
        assert await store.delete_tree("/") == 3
        assert list(await store.list("")) == []

    async def test_delete_tree_of_many_keys(self, store: AsyncStore) -> None:
        await asyncio.gather(*(store.put(f"many/{number % 7}/{number}", b"") for number in range(300)))
        await store.put("many", b"kept")
        assert await store.delete_tree("many") == 300
        assert await _keys(store) == ["many"]

    async def test_a_tree_goes_at_one_instant(self, store: AsyncStore, other: AsyncStore) -> None:
        needs(store, "atomic_delete_tree", "atomic_list")
        await asyncio.gather(*(store.put(f"dir/{number}", b"") for number in range(50)))
        sizes: list[int] = []
        deleting = asyncio.ensure_future(store.delete_tree("dir"))
        try:
            while not deleting.done():
                try:
                    sizes.append(len(await other.list("dir")))
                except KeyNotFoundError:
                    sizes.append(0)
        finally:
            assert await deleting == 50
        assert set(sizes) <= {0, 50}

    async def test_deleted_keys_can_be_created_again(self, store: AsyncStore) -> None:
        first = await store.put("dir/a/b", b"")
        await store.delete_tree("dir")
        again = await store.atomic_put("dir/a/b", b"", None)
        assert again.last_index > first.last_index
