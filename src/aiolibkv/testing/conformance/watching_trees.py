"""Watches of directories."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from aiolibkv import AsyncStore, Change, KVPair, Snapshot, Watch
from aiolibkv.testing.conformance.suite import Suite, follow, needs, next_of
from aiolibkv.testing.scale import scaled


def _check_chain(store: AsyncStore, snapshots: Sequence[Snapshot]) -> None:
    """Check that every snapshot is the one before and its changes, and that none comes too late or twice."""
    state: dict[str, KVPair] = {}
    index = 0
    for number, snapshot in enumerate(snapshots):
        assert snapshot.changes or not number, "a snapshot that brings nothing"
        for change in snapshot.changes:
            assert isinstance(change, Change)
            assert change.previous == state.get(change.key)
            assert change.pair != change.previous
            if change.pair is None:
                del state[change.key]
            else:
                assert change.pair.key == change.key
                assert change.previous is None or change.pair.last_index > change.previous.last_index
                state[change.key] = change.pair
        assert list(snapshot) == [state[key] for key in sorted(state)]
        assert snapshot.last_index >= index
        if store.capabilities.atomic_list:
            assert all(pair.last_index <= snapshot.last_index for pair in snapshot)
        index = snapshot.last_index


def _holds(*keys: str) -> object:
    return lambda snapshot: [pair.key for pair in snapshot] == sorted(keys)


class WatchingTrees(Suite):
    """watch_tree."""

    async def test_a_tree_watch_begins_with_the_current_state(self, store: AsyncStore, other: AsyncStore) -> None:
        written = [await store.put(key, key.encode()) for key in ("dir/a", "dir/b/c", "dir/b/d/e")]
        async with other.watch_tree("dir") as watch:
            snapshot = await next_of(watch)
        assert isinstance(snapshot, Snapshot)
        assert list(snapshot) == written == list(await store.list("dir"))
        assert sorted(snapshot.changes) == [Change(pair.key, pair, None) for pair in written]
        _check_chain(store, [snapshot])

    async def test_a_tree_watch_of_nothing_begins_empty(self, store: AsyncStore) -> None:
        async with store.watch_tree("missing") as watch:
            snapshot = await next_of(watch)
            assert list(snapshot) == []
            assert snapshot.changes == ()
            pair = await store.put("missing/key", b"")
            snapshot = await next_of(watch)
            assert list(snapshot) == [pair]
            assert snapshot.changes == (Change("missing/key", pair, None),)

    async def test_a_tree_watch_sees_every_kind_of_change(self, store: AsyncStore, other: AsyncStore) -> None:
        async with other.watch_tree("dir") as watch:
            snapshots = [await next_of(watch)]

            async def expect(*changes: Change) -> None:
                snapshots.append(await next_of(watch))
                assert snapshots[-1].changes == changes

            for writer in (store, other):
                one = await writer.atomic_put("dir/one", b"1", None)
                await expect(Change("dir/one", one, None))
                again = await writer.put("dir/one", b"1")
                await expect(Change("dir/one", again, one))
                deep = await writer.put("dir/a/b/c", b"")
                await expect(Change("dir/a/b/c", deep, None))
                middle = await writer.put("dir/a/b", b"")
                await expect(Change("dir/a/b", middle, None))
                swapped = await writer.atomic_put("dir/one", b"2", again)
                await expect(Change("dir/one", swapped, again))
                await writer.delete("dir/a/b")
                await expect(Change("dir/a/b", None, middle))
                await writer.atomic_delete("dir/one", swapped)
                await expect(Change("dir/one", None, swapped))
                one = await writer.put("dir/one", b"3")
                await expect(Change("dir/one", one, None))
                await writer.delete("dir/a/b/c")
                await expect(Change("dir/a/b/c", None, deep))
                await writer.delete("dir/one")
                await expect(Change("dir/one", None, one))
        _check_chain(store, snapshots)

    async def test_a_tree_watch_sees_a_tree_deleted(self, store: AsyncStore, other: AsyncStore) -> None:
        for number in range(20):
            await store.put(f"dir/{number}/key", b"")
        await store.put("dir", b"kept")
        async with other.watch_tree("dir") as watch, other.watch_tree("") as whole, other.watch_tree("dir/7") as part:
            first, second, third = await next_of(watch), await next_of(whole), await next_of(part)
            assert (len(first), len(second), len(third)) == (20, 21, 1)
            assert await store.delete_tree("dir") == 20
            _check_chain(store, [first, *await follow(watch, lambda snapshot: not snapshot)])
            _check_chain(store, [second, *await follow(whole, _holds("dir"))])  # type: ignore[arg-type]
            _check_chain(store, [third, *await follow(part, lambda snapshot: not snapshot)])

    async def test_a_tree_watch_is_not_woken_for_other_keys(self, store: AsyncStore) -> None:
        await store.put("foo/a", b"")
        async with store.watch_tree("foo") as watch:
            assert _holds("foo/a")(await next_of(watch))  # type: ignore[operator]
            for neighbour in ("foo", "foobar", "foobar/a", "fo", "foo-", "foo0", "a/foo/b", "food/a"):
                await store.put(neighbour, b"")
                await store.put(neighbour, b"changed")
                await store.delete(neighbour)
            pair = await store.put("foo/b", b"")
            snapshot = await next_of(watch)
        assert snapshot.changes == (Change("foo/b", pair, None),)
        assert [pair.key for pair in snapshot] == ["foo/a", "foo/b"]

    async def test_a_tree_watch_of_a_directory_that_is_a_key(self, store: AsyncStore) -> None:
        await store.put("dir", b"a key too")
        async with store.watch_tree("dir") as watch:
            assert await next_of(watch) == []
            await store.put("dir", b"changed")
            below = await store.put("dir/key", b"")
            assert await next_of(watch) == [below]
            await store.delete("dir")
            later = await store.put("dir/later", b"")
            assert await next_of(watch) == [below, later]

    @pytest.mark.parametrize("root", ["", "/"])
    async def test_a_tree_watch_of_the_root(self, store: AsyncStore, root: str) -> None:
        async with store.watch_tree(root) as watch:
            snapshots = [await next_of(watch)]
            assert snapshots[0] == []
            for key in ("z", "a/b/c", "a"):
                await store.put(key, b"")
                snapshots.append(await next_of(watch))
            await store.delete("z")
            snapshots.append(await next_of(watch))
        _check_chain(store, snapshots)
        assert [pair.key for pair in snapshots[-2]] == ["a", "a/b/c", "z"]
        assert [pair.key for pair in snapshots[-1]] == ["a", "a/b/c"]

    async def test_a_snapshot_finds_its_keys(self, store: AsyncStore) -> None:
        pairs = {key: await store.put(key, b"") for key in ("d/b", "d/a", "d/a/c", "d/a-c", "d/é")}
        async with store.watch_tree("d") as watch:
            snapshot = await next_of(watch)
        for key, pair in pairs.items():
            assert snapshot.get(key) == pair
            assert snapshot.get(f"/{key}/") == pair
            assert pair in snapshot
            assert key in snapshot
            assert snapshot[key] == pair
        assert "d/c" not in snapshot
        with pytest.raises(KeyError):
            snapshot["d/c"]
        for key in ("d", "d/", "d/c", "d/a/", "d/zzz", "", "b"):
            assert snapshot.get(key) == pairs.get(key.strip("/"))
        assert len(snapshot) == len(pairs)
        assert snapshot[0] == pairs["d/a"]
        assert snapshot[-1] == pairs["d/é"]
        assert [pair.key for pair in snapshot[1:3]] == sorted(pairs)[1:3]

    async def test_a_snapshot_cannot_be_changed(self, store: AsyncStore) -> None:
        first = await store.put("d/a", b"")
        async with store.watch_tree("d") as watch:
            snapshot = await next_of(watch)
            index, changes = snapshot.last_index, snapshot.changes
            with pytest.raises(TypeError):
                snapshot[0] = first  # type: ignore[index]
            for name in ("append", "sort", "clear", "extend"):
                assert not hasattr(snapshot, name)
            for name in ("changes", "last_index"):
                with pytest.raises(AttributeError):
                    setattr(snapshot, name, None)
            await store.put("d/a", b"changed")
            await store.put("d/b", b"")
            _check_chain(store, [snapshot, *await follow(watch, lambda later: len(later) == 2)])
        assert list(snapshot) == [first]
        assert (snapshot.last_index, snapshot.changes) == (index, changes)

    async def test_nothing_is_lost_between_the_first_snapshot_and_the_changes(
        self, store: AsyncStore, other: AsyncStore
    ) -> None:
        """Watches begin at many moments; what was missed in one of them would be missing for good."""

        async def consume(watch: Watch[Snapshot]) -> list[Snapshot]:
            return await follow(watch, lambda snapshot: snapshot.get("dir/last") is not None, within=20)

        async with asyncio.TaskGroup() as tasks:
            consumers = []
            for number in range(60):
                consumers.append(tasks.create_task(consume(other.watch_tree("dir"))))
                for _ in range(number % 6):
                    await asyncio.sleep(0)
                if number % 5 == 4:
                    await store.delete(f"dir/{number - 3}")
                await store.put(f"dir/{number}", b"")
            await store.put("dir/last", b"")
        expected = await store.list("dir")
        for consumer in consumers:
            _check_chain(store, consumer.result())
            assert list(consumer.result()[-1]) == list(expected)

    async def test_one_that_keeps_up_sees_every_change_of_a_tree(self, store: AsyncStore, other: AsyncStore) -> None:
        needs(store, "every_change")
        async with other.watch_tree("dir") as watch:
            assert await next_of(watch) == []
            written: list[tuple[str, KVPair | None]] = []

            async def write() -> None:
                for number in range(60):
                    key = f"dir/{number % 9}"
                    written.append((key, await store.put(key, b"same")))
                    if number % 7 == 6:
                        await store.delete(key)
                        written.append((key, None))
                written.append(("dir/last", await store.put("dir/last", b"")))

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(write())
                snapshots = await follow(watch, lambda snapshot: snapshot.get("dir/last") is not None)
        _check_chain(store, snapshots)
        assert [(change.key, change.pair) for snapshot in snapshots for change in snapshot.changes] == written

    async def test_a_slow_consumer_of_a_tree_sees_changes_coalesced(self, store: AsyncStore, other: AsyncStore) -> None:
        async with other.watch_tree("dir") as watch, other.watch_tree("dir") as second:
            snapshots = [await next_of(watch)]
            await next_of(second)
            for _ in range(20):
                await asyncio.gather(*(store.put(f"dir/{number % 10}", b"") for number in range(50)))
            for number in range(5):
                await store.delete(f"dir/{number}")
            await store.put("dir/last", b"")
            # Once the one has heard of the last change, the other has waited long enough to be slow.
            await follow(second, lambda snapshot: snapshot.get("dir/last") is not None)
            snapshots += await follow(watch, lambda snapshot: snapshot.get("dir/last") is not None)
        _check_chain(store, snapshots)
        assert list(snapshots[-1]) == list(await store.list("dir"))
        assert len(snapshots) < 600, "what a slow consumer is to see must not grow with the changes"

    async def test_cancelling_anext_of_a_tree_loses_nothing(self, store: AsyncStore, other: AsyncStore) -> None:
        async with other.watch_tree("dir") as watch:
            snapshots = [await next_of(watch)]

            async def write() -> None:
                for number in range(50):
                    await store.put(f"dir/{number}", b"")
                    for _ in range(number % 4):
                        await asyncio.sleep(0)
                await store.put("dir/last", b"")

            steps = 0
            async with asyncio.timeout(scaled(20)), asyncio.TaskGroup() as tasks:
                tasks.create_task(write())
                while snapshots[-1].get("dir/last") is None:
                    pending = asyncio.ensure_future(anext(watch))
                    steps = (steps + 1) % 7
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    pending.cancel()
                    await asyncio.wait([pending])
                    if not pending.cancelled():
                        snapshots.append(pending.result())
        _check_chain(store, snapshots)
        assert len(snapshots[-1]) == 51
        if store.capabilities.every_change:
            assert len(snapshots) == 52

    async def test_watches_of_one_tree_do_not_disturb_each_other(self, store: AsyncStore) -> None:
        async with (
            store.watch_tree("a") as one,
            store.watch_tree("a/b") as two,
            store.watch("a/b/c") as key,
            store.watch_tree("") as three,
        ):
            for watch in (one, two, three):
                assert await next_of(watch) == []
            assert await next_of(key) is None
            pair = await store.put("a/b/c", b"")
            for watch in (one, two, three):
                assert await next_of(watch) == [pair]
            assert await next_of(key) == pair
            await two.aclose()
            late = await store.put("a/d", b"")
            for watch in (one, three):
                assert await next_of(watch) == [pair, late]
            await store.delete("a/b/c")
            for watch in (one, three):
                assert await next_of(watch) == [late]
            assert await next_of(key) is None
