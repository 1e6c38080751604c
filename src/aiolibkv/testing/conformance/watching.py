"""Watches of one key, and what holds for every watch."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from operator import eq

import pytest

from aiolibkv import AsyncStore, KeyExistsError, KeyModifiedError, KVPair, StoreClosedError, Watch
from aiolibkv.testing.conformance.suite import Stores, Suite, follow, needs, next_of
from aiolibkv.testing.scale import eventually, scaled


def _check_order(items: Sequence[KVPair | None]) -> None:
    """Check that no state comes twice in a row, and none after a newer one."""
    for before, after in pairwise(items):
        assert before != after
    indexes = [pair.last_index for pair in items if pair is not None]
    assert indexes == sorted(set(indexes))


class Watching(Suite):
    """watch."""

    async def test_a_watch_begins_with_the_current_pair(self, store: AsyncStore, other: AsyncStore) -> None:
        pair = await store.put("key", b"value")
        async with other.watch("key") as watch:
            assert await next_of(watch) == pair

    async def test_a_watch_of_a_missing_key_begins_with_none(self, store: AsyncStore) -> None:
        async with store.watch("missing") as watch:
            assert await next_of(watch) is None
            pair = await store.put("missing", b"")
            assert await next_of(watch) == pair

    async def test_a_watch_of_a_directory_that_is_no_key(self, store: AsyncStore) -> None:
        await store.put("dir/key", b"")
        async with store.watch("dir") as watch:
            assert await next_of(watch) is None
            await store.put("dir/other", b"")
            pair = await store.put("dir", b"a key now")
            assert await next_of(watch) == pair
            await store.delete("dir")
            assert await next_of(watch) is None

    async def test_a_watch_sees_every_kind_of_change(self, store: AsyncStore, other: AsyncStore) -> None:
        async with other.watch("key") as watch:
            assert await next_of(watch) is None
            for writer in (store, other):
                created = await writer.atomic_put("key", b"1", None)
                assert await next_of(watch) == created
                put = await writer.put("key", b"2")
                assert await next_of(watch) == put
                same = await writer.put("key", b"2")
                assert await next_of(watch) == same
                swapped = await writer.atomic_put("key", b"3", same)
                assert await next_of(watch) == swapped
                await writer.delete("key")
                assert await next_of(watch) is None
                again = await writer.put("key", b"3")
                assert await next_of(watch) == again
                await writer.atomic_delete("key", again)
                assert await next_of(watch) is None
            await store.put("key/below", b"")
            below = await store.put("key", b"4")
            assert await next_of(watch) == below
            await store.delete("key")
            assert await next_of(watch) is None

    async def test_a_watch_sees_a_tree_deleted(self, store: AsyncStore, other: AsyncStore) -> None:
        await store.put("dir/sub/key", b"")
        async with other.watch("dir/sub/key") as watch:
            assert await next_of(watch) is not None
            await store.delete_tree("dir")
            assert await next_of(watch) is None

    async def test_what_a_watch_gives_is_a_previous(self, store: AsyncStore, other: AsyncStore) -> None:
        async with store.watch("key") as watch:
            for number in range(5):
                previous = await next_of(watch)
                await other.atomic_put("key", str(number).encode(), previous)
            last = await next_of(watch)
        assert last is not None
        assert last.value == b"4"

    async def test_a_watch_is_not_woken_for_other_keys(self, store: AsyncStore) -> None:
        await store.put("key", b"")
        async with store.watch("key") as watch:
            await next_of(watch)
            for neighbour in ("ke", "keys", "key/below", "key2", "kez", "a/key", "key/key"):
                await store.put(neighbour, b"")
                await store.delete(neighbour)
            with pytest.raises(KeyExistsError):
                await store.atomic_put("key", b"", None)
            pair = await store.put("key", b"changed")
            assert await next_of(watch) == pair

    async def test_refused_writes_are_no_change(self, store: AsyncStore, other: AsyncStore) -> None:
        old = await store.put("key", b"1")
        await store.put("key", b"2")
        async with other.watch("key") as watch:
            await next_of(watch)
            with pytest.raises(KeyModifiedError):
                await store.atomic_put("key", b"refused", old)
            with pytest.raises(KeyModifiedError):
                await store.atomic_delete("key", old)
            pair = await store.put("key", b"3")
            assert await next_of(watch) == pair

    async def test_one_that_keeps_up_sees_every_change(self, store: AsyncStore, other: AsyncStore) -> None:
        needs(store, "every_change")
        async with other.watch("key") as watch:
            assert await next_of(watch) is None
            written: list[KVPair | None] = []

            async def write() -> None:
                for number in range(60):
                    written.append(await store.put("key", str(number % 3).encode()))
                    if number % 7 == 6:
                        await store.delete("key")
                        written.append(None)
                written.append(await store.put("key", b"last"))

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(write())
                seen = await follow(watch, lambda pair: pair is not None and pair.value == b"last")
        assert seen == written

    async def test_a_watch_ends_up_with_the_current_state(self, store: AsyncStore, other: AsyncStore) -> None:
        for number in range(10):
            async with other.watch("key") as watch:
                written = await asyncio.gather(*(store.put("key", b"value") for _ in range(number + 1)))
                last = max(written, key=lambda pair: pair.last_index)
                assert await store.get("key") == last
                _check_order(await follow(watch, partial(eq, last)))

    async def test_nothing_is_lost_between_the_first_item_and_the_changes(
        self, store: AsyncStore, other: AsyncStore
    ) -> None:
        """Watches begin at many moments of a row of changes; each ends up with the last one."""

        async def consume(watch: Watch[KVPair | None]) -> list[KVPair | None]:
            return await follow(watch, lambda pair: pair is not None and pair.value == b"last", within=20)

        async with asyncio.TaskGroup() as tasks:
            consumers = []
            for number in range(40):
                consumers.append(tasks.create_task(consume(other.watch("key"))))
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                await store.put("key", str(number).encode())
            await store.put("key", b"last")
        for consumer in consumers:
            items = consumer.result()
            _check_order(items)
            if store.capabilities.every_change:
                numbers = [-1 if pair is None else int(pair.value) for pair in items[:-1]]
                assert numbers == list(range(numbers[0], 40)) if numbers else True

    async def test_a_slow_consumer_sees_changes_coalesced(self, store: AsyncStore, other: AsyncStore) -> None:
        async with other.watch("key") as watch, other.watch("key") as second:
            await next_of(watch)
            await next_of(second)
            for _ in range(20):
                await asyncio.gather(*(store.put("key", b"value") for _ in range(50)))
            last = await store.put("key", b"last")
            # Once the one has heard of the last change, the other has waited long enough to be slow.
            await follow(second, partial(eq, last))
            items = await follow(watch, partial(eq, last))
        _check_order(items)
        assert len(items) < 600, "what a slow consumer is to see must not grow with the changes"

    async def test_a_slow_consumer_learns_that_the_key_is_gone(self, store: AsyncStore, other: AsyncStore) -> None:
        await store.put("key", b"")
        async with other.watch("key") as watch:
            items = [await next_of(watch)]
            for _ in range(20):
                await store.put("key", b"")
            await store.delete("key")
            items += await follow(watch, lambda pair: pair is None)
            last = await store.put("key", b"")
            assert await next_of(watch) == last
        _check_order(items)

    async def test_the_same_state_never_comes_twice(self, store: AsyncStore, other: AsyncStore) -> None:
        async with other.watch("key") as watch:
            items = [await next_of(watch)]
            for number in range(5):
                await store.put("key", b"value")
                items.append(await next_of(watch))
                if number % 2:
                    await store.delete("key")
                    items.append(await next_of(watch))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 0.1)
        _check_order(items)

    async def test_cancelling_anext_loses_nothing(self, store: AsyncStore, other: AsyncStore) -> None:
        async with other.watch("key") as watch:
            assert await next_of(watch) is None
            written: list[KVPair | None] = []

            async def write() -> None:
                for number in range(50):
                    written.append(await store.put("key", str(number).encode()))
                    for _ in range(number % 4):
                        await asyncio.sleep(0)
                written.append(await store.put("key", b"last"))

            seen: list[KVPair | None] = []
            steps = 0
            async with asyncio.timeout(scaled(20)), asyncio.TaskGroup() as tasks:
                tasks.create_task(write())
                while not seen or seen[-1] is None or seen[-1].value != b"last":
                    pending = asyncio.ensure_future(anext(watch))
                    steps = (steps + 1) % 7
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    pending.cancel()
                    await asyncio.wait([pending])
                    if not pending.cancelled():
                        seen.append(pending.result())
        _check_order(seen)
        if store.capabilities.every_change:
            assert seen == written

    async def test_the_first_anext_may_be_cancelled(self, store: AsyncStore, other: AsyncStore) -> None:
        pair = await store.put("key", b"value")
        for steps in range(10):
            async with other.watch("key") as watch:
                pending = asyncio.ensure_future(anext(watch))
                for _ in range(steps):
                    await asyncio.sleep(0)
                pending.cancel()
                await asyncio.wait([pending])
                assert (await next_of(watch) if pending.cancelled() else pending.result()) == pair

    async def test_a_timeout_around_anext_is_the_callers(self, store: AsyncStore) -> None:
        async with store.watch("key") as watch:
            assert await next_of(watch) is None
            for number in range(3):
                with pytest.raises(TimeoutError) as caught:
                    async with asyncio.timeout(0.01):
                        await anext(watch)
                assert type(caught.value) is TimeoutError
                with pytest.raises(TimeoutError) as caught:
                    await asyncio.wait_for(anext(watch), 0.01)
                assert type(caught.value) is TimeoutError
                pair = await store.put("key", str(number).encode())
                assert await next_of(watch) == pair

    async def test_a_loop_that_was_cancelled_can_be_gone_on_with(self, store: AsyncStore, other: AsyncStore) -> None:
        watch = other.watch("key")
        seen: list[KVPair | None] = []
        arrived = asyncio.Event()

        async def loop() -> None:
            async for pair in watch:
                seen.append(pair)
                arrived.set()

        for number in range(3):
            task = asyncio.ensure_future(loop())
            pair = await store.put("key", str(number).encode())
            async with asyncio.timeout(scaled(10)):
                while not seen or seen[-1] != pair:
                    await arrived.wait()
                    arrived.clear()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        _check_order(seen)
        last = await store.put("key", b"last")
        assert await next_of(watch) == last
        await watch.aclose()

    async def test_aclose_ends_the_iteration(self, store: AsyncStore) -> None:
        watch = store.watch("key")
        assert await next_of(watch) is None
        pending = asyncio.ensure_future(anext(watch, "ended"))
        await asyncio.sleep(0)
        await watch.aclose()
        assert await asyncio.wait_for(pending, scaled(5)) == "ended"
        await store.put("key", b"")
        assert await anext(watch, "ended") == "ended"
        assert [pair async for pair in watch] == []
        await watch.aclose()

    async def test_aclose_before_the_start(self, store: AsyncStore) -> None:
        watch = store.watch("key")
        await watch.aclose()
        assert [pair async for pair in watch] == []

    async def test_leaving_the_block_ends_the_iteration(self, store: AsyncStore) -> None:
        async with store.watch("key") as watch:
            async for pair in watch:
                assert pair is None
                break
        assert [pair async for pair in watch] == []
        with pytest.raises(ZeroDivisionError):
            async with store.watch("key") as watch:
                await next_of(watch)
                raise ZeroDivisionError
        assert [pair async for pair in watch] == []

    async def test_a_watch_is_an_iterator(self, store: AsyncStore) -> None:
        for watch in (store.watch("key"), store.watch_tree("key")):
            assert isinstance(watch, Watch)
            assert aiter(watch) is watch
            assert watch.is_stale is False
            await next_of(watch)
            assert watch.is_stale is False
            await watch.aclose()

    async def test_two_watches_of_a_key(self, store: AsyncStore, other: AsyncStore) -> None:
        async with store.watch("key") as first, store.watch("key") as second, other.watch("key") as third:
            for watch in (first, second, third):
                assert await next_of(watch) is None
            pair = await store.put("key", b"1")
            for watch in (first, second, third):
                assert await next_of(watch) == pair
            await second.aclose()
            pair = await store.put("key", b"2")
            for watch in (first, third):
                assert await next_of(watch) == pair
            async with store.watch("key") as late:
                assert await next_of(late) == pair
            await store.delete("key")
            for watch in (first, third):
                assert await next_of(watch) is None

    async def test_many_watches(self, store: AsyncStore, other: AsyncStore) -> None:
        keys = [f"dir/{number % 10}/{number}" for number in range(100)]
        watches = [other.watch(key) for key in keys for _ in range(3)]
        assert await asyncio.gather(*(next_of(watch, within=30) for watch in watches)) == [None] * len(watches)
        written = await asyncio.gather(*(store.put(key, key.encode()) for key in keys))
        seen = await asyncio.gather(*(next_of(watch, within=30) for watch in watches))
        assert seen == [pair for pair in written for _ in range(3)]
        await asyncio.gather(*(watch.aclose() for watch in watches[::2]))
        assert await store.delete_tree("dir") == len(keys)
        assert set(await asyncio.gather(*(next_of(watch, within=30) for watch in watches[1::2]))) == {None}
        await asyncio.gather(*(watch.aclose() for watch in watches))

    async def test_a_watch_that_nobody_refers_to_is_released(self, store: AsyncStore) -> None:
        async with store.watch("key") as warm_up, store.watch_tree("") as tree:
            await next_of(warm_up)
            await next_of(tree)
        before = len(asyncio.all_tasks())
        for _ in range(5):
            await next_of(store.watch("key"))
            await next_of(store.watch_tree(""))

            async def consume() -> None:
                async for _ in store.watch("key"):
                    pass

            task = asyncio.ensure_future(consume())
            await store.put("key", b"")
            task.cancel()
            await asyncio.wait([task])
            del task
            async for _ in store.watch("key"):
                break

        async def are_gone() -> bool:
            gc.collect()
            return len(asyncio.all_tasks()) <= before

        # The condition runs in this test's own task, so it adds none.
        await eventually(are_gone, within=5, message="the tasks of watches that nobody refers to have ended")

    async def test_a_watch_is_made_without_any_input_or_output(self, stores: Stores) -> None:
        store = stores.make()
        before = asyncio.all_tasks()
        watch, tree = store.watch("key"), store.watch_tree("")
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        with pytest.raises(StoreClosedError):
            await next_of(watch)
        async with store:
            assert await next_of(watch) is None
            assert await next_of(tree) == []
            unused = store.watch("key")
            await watch.aclose()
        closed = store.watch("key")
        for late in (unused, closed, tree, store.watch_tree("key")):
            with pytest.raises(StoreClosedError):
                await next_of(late)

    async def test_closing_the_store_fails_its_watches(self, stores: Stores) -> None:
        store = await stores.open()
        pending, between, entered = store.watch("key"), store.watch_tree(""), store.watch("other")
        assert await next_of(pending) is None
        assert await next_of(between) == []
        waiting = asyncio.ensure_future(anext(pending))
        async with entered:
            await asyncio.sleep(0)
            await store.close()
            with pytest.raises(StoreClosedError):
                await asyncio.wait_for(waiting, scaled(5))
            for watch in (pending, between, entered):
                for _ in range(2):
                    with pytest.raises(StoreClosedError):
                        await next_of(watch)
