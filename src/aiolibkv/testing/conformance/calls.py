"""The calls on one key, and what they raise."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine
from typing import Any

import pytest

from aiolibkv import (
    AsyncStore,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    PreviousNotSpecifiedError,
    Put,
    StoreError,
)
from aiolibkv.testing.conformance.suite import Suite, next_of
from aiolibkv.testing.scale import eventually


class Calls(Suite):
    """put, get, exists, delete."""

    async def test_put_returns_what_get_reads(self, store: AsyncStore, other: AsyncStore) -> None:
        pair = await store.put("key", b"value")
        assert pair == KVPair("key", b"value", pair.last_index)
        assert pair.last_index > 0
        assert await store.get("key") == pair
        assert await other.get("key") == pair

    async def test_put_writes_whatever_was_there(self, store: AsyncStore, other: AsyncStore) -> None:
        await store.put("key", b"one")
        second = await other.put("key", b"two")
        assert await store.get("key") == second
        assert second.value == b"two"

    async def test_every_put_advances_the_index(self, store: AsyncStore, other: AsyncStore) -> None:
        indexes = [(await writer.put("key", b"same")).last_index for writer in (store, other, store, store, other)]
        assert indexes == sorted(set(indexes))
        assert (await store.get("key")).last_index == indexes[-1]

    async def test_a_write_leaves_the_index_of_other_keys_alone(self, store: AsyncStore) -> None:
        first = await store.put("one", b"1")
        await store.put("two", b"2")
        await store.delete("two")
        assert await store.get("one") == first

    async def test_a_key_created_again_has_a_higher_index(self, store: AsyncStore, other: AsyncStore) -> None:
        first = await store.put("key", b"value")
        changed = await store.put("key", b"value")
        await other.delete("key")
        again = await store.put("key", b"value")
        assert first.last_index < changed.last_index < again.last_index

    async def test_get_of_a_missing_key(self, store: AsyncStore) -> None:
        with pytest.raises(KeyNotFoundError):
            await store.get("missing")

    async def test_exists(self, store: AsyncStore, other: AsyncStore) -> None:
        assert await store.exists("key") is False
        await other.put("key", b"")
        assert await store.exists("key") is True
        await other.delete("key")
        assert await store.exists("key") is False

    async def test_a_directory_alone_is_no_key(self, store: AsyncStore) -> None:
        await store.put("directory/key", b"value")
        assert await store.exists("directory") is False
        with pytest.raises(KeyNotFoundError):
            await store.get("directory")
        with pytest.raises(KeyNotFoundError):
            await store.delete("directory")
        assert await store.exists("directory/key") is True

    async def test_delete(self, store: AsyncStore, other: AsyncStore) -> None:
        await store.put("key", b"value")
        await other.delete("key")
        with pytest.raises(KeyNotFoundError):
            await store.get("key")

    async def test_delete_of_a_missing_key(self, store: AsyncStore) -> None:
        with pytest.raises(KeyNotFoundError):
            await store.delete("missing")
        await store.put("missing", b"")
        await store.delete("missing")
        with pytest.raises(KeyNotFoundError):
            await store.delete("missing")

    async def test_of_concurrent_deletes_one_succeeds(self, store: AsyncStore, other: AsyncStore) -> None:
        await store.put("key", b"value")
        results = await asyncio.gather(*(s.delete("key") for s in [store, other] * 5), return_exceptions=True)
        assert results.count(None) == 1
        assert sum(isinstance(result, KeyNotFoundError) for result in results) == len(results) - 1

    async def test_inconsistent_reads_arrive_at_the_current_state(self, store: AsyncStore, other: AsyncStore) -> None:
        pair = await store.put("directory/key", b"value")

        async def is_seen() -> bool:
            try:
                return (
                    await other.exists("directory/key", consistent=False)
                    and await other.get("directory/key", consistent=False) == pair
                    and list(await other.list("directory", consistent=False)) == [pair]
                    and await other.get_many(["directory/key"], consistent=False) == {"directory/key": pair}
                    and await other.keys("directory", consistent=False) == ["directory/key"]
                    and await other.children("directory", consistent=False) == ["key"]
                )
            except KeyNotFoundError:
                return False

        await eventually(is_seen, within=5, message="reads that need not be consistent see the key")
        await store.delete("directory/key")

        async def is_gone() -> bool:
            reads = [
                other.get("directory/key", consistent=False),
                *(read("directory", consistent=False) for read in (other.list, other.keys, other.children)),
            ]
            found = await asyncio.gather(*reads, return_exceptions=True)
            return all(isinstance(each, KeyNotFoundError) for each in found) and not (
                await other.exists("directory/key", consistent=False)
                or await other.get_many(["directory/key"], consistent=False)
            )

        await eventually(is_gone, within=5, message="reads that need not be consistent see that the key is gone")

    async def test_calls_run_at_once(self, store: AsyncStore, other: AsyncStore) -> None:
        keys = [f"many/{number:03}" for number in range(100)]
        written = await asyncio.gather(*(store.put(key, key.encode()) for key in keys))
        read = await asyncio.gather(*(other.get(key) for key in keys))
        assert written == read
        assert [pair.value for pair in read] == [key.encode() for key in keys]
        assert len({pair.last_index for pair in read}) == len(keys)

    async def test_concurrent_puts_of_a_key_are_ordered_by_index(self, store: AsyncStore, other: AsyncStore) -> None:
        written = await asyncio.gather(
            *((store, other)[number % 2].put("key", str(number).encode()) for number in range(20))
        )
        assert len({pair.last_index for pair in written}) == len(written)
        assert await store.get("key") == max(written, key=lambda pair: pair.last_index)

    async def test_a_pair_cannot_be_changed(self, store: AsyncStore) -> None:
        pair = await store.put("key", b"value" * 1000)
        with pytest.raises(dataclasses.FrozenInstanceError):
            pair.value = b"other"  # type: ignore[misc]
        assert type((await store.get("key")).value) is bytes
        assert len(repr(pair)) < 200


class CompareAndSwap(Suite):
    """atomic_put, atomic_delete."""

    async def test_atomic_put_replaces_the_previous(self, store: AsyncStore, other: AsyncStore) -> None:
        first = await store.put("key", b"one")
        second = await other.atomic_put("key", b"two", first)
        assert second == KVPair("key", b"two", second.last_index)
        assert second.last_index > first.last_index
        assert await store.get("key") == second

    async def test_atomic_put_refuses_what_has_changed(self, store: AsyncStore, other: AsyncStore) -> None:
        first = await store.put("key", b"one")
        second = await other.put("key", b"two")
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("key", b"three", first)
        assert await store.get("key") == second

    async def test_atomic_put_refuses_what_was_written_again_with_the_same_value(self, store: AsyncStore) -> None:
        first = await store.put("key", b"one")
        second = await store.put("key", b"one")
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("key", b"one", first)
        assert await store.get("key") == second

    async def test_atomic_put_refuses_what_is_gone(self, store: AsyncStore, other: AsyncStore) -> None:
        first = await store.put("key", b"one")
        await other.delete("key")
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("key", b"two", first)
        assert not await store.exists("key")

    async def test_a_key_created_again_is_not_the_same_previous(self, store: AsyncStore, other: AsyncStore) -> None:
        first = await store.put("key", b"one")
        await other.delete("key")
        again = await other.put("key", b"one")
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("key", b"two", first)
        with pytest.raises(KeyModifiedError):
            await store.atomic_delete("key", first)
        assert await store.get("key") == again

    async def test_atomic_put_advances_the_index_also_with_the_value_already_there(self, store: AsyncStore) -> None:
        pair = await store.put("key", b"same")
        for _ in range(3):
            after = await store.atomic_put("key", b"same", pair)
            assert after.last_index > pair.last_index
            pair = after

    async def test_create(self, store: AsyncStore, other: AsyncStore) -> None:
        pair = await store.atomic_put("key", b"mine", None)
        with pytest.raises(KeyExistsError):
            await other.atomic_put("key", b"theirs", None)
        with pytest.raises(KeyExistsError):
            await store.atomic_put("key", b"mine", None)
        assert await other.get("key") == pair

    async def test_create_after_a_deletion(self, store: AsyncStore) -> None:
        first = await store.atomic_put("key", b"one", None)
        await store.delete("key")
        second = await store.atomic_put("key", b"two", None)
        assert second.last_index > first.last_index

    async def test_create_over_an_empty_value(self, store: AsyncStore) -> None:
        await store.put("key", b"")
        with pytest.raises(KeyExistsError):
            await store.atomic_put("key", b"value", None)

    async def test_create_a_key_that_is_a_directory(self, store: AsyncStore) -> None:
        below = await store.put("directory/key", b"below")
        pair = await store.atomic_put("directory", b"value", None)
        assert await store.get("directory") == pair
        assert await store.get("directory/key") == below

    async def test_atomic_delete(self, store: AsyncStore, other: AsyncStore) -> None:
        pair = await store.put("key", b"value")
        await other.atomic_delete("key", pair)
        assert not await store.exists("key")

    async def test_atomic_delete_refuses_what_has_changed(self, store: AsyncStore, other: AsyncStore) -> None:
        first = await store.put("key", b"value")
        second = await other.put("key", b"value")
        with pytest.raises(KeyModifiedError):
            await store.atomic_delete("key", first)
        assert await store.get("key") == second

    async def test_atomic_delete_of_a_missing_key(self, store: AsyncStore) -> None:
        pair = await store.put("key", b"value")
        await store.delete("key")
        with pytest.raises(KeyNotFoundError):
            await store.atomic_delete("key", pair)

    async def test_atomic_delete_needs_the_previous(self, store: AsyncStore) -> None:
        await store.put("key", b"value")
        with pytest.raises(PreviousNotSpecifiedError):
            await store.atomic_delete("key", None)  # type: ignore[arg-type]
        with pytest.raises(PreviousNotSpecifiedError):
            await store.atomic_delete("missing", None)  # type: ignore[arg-type]
        assert await store.exists("key")

    async def test_what_is_refused_certainly_was_not_applied(self, store: AsyncStore, other: AsyncStore) -> None:
        stale = await store.put("dir/key", b"old")
        current = await other.put("dir/key", b"new")
        gone = await store.put("dir/gone", b"")
        await other.delete("dir/gone")
        calls: dict[type[StoreError], list[Coroutine[Any, Any, object]]] = {
            KeyExistsError: [
                store.atomic_put("dir/key", b"", None),
                store.atomic_put("dir/key", b"", None, ttl=60),
                store.atomic_put("dir/key", b"", None, keep_alive=True),
            ],
            KeyModifiedError: [
                store.atomic_put("dir/key", b"", stale),
                store.atomic_put("dir/key", b"", stale, ttl=60),
                store.atomic_put("dir/key", b"", stale, keep_alive=True),
                store.atomic_put("dir/gone", b"", gone),
                store.atomic_delete("dir/key", stale),
            ],
            KeyNotFoundError: [
                store.delete("dir/gone"),
                store.atomic_delete("dir/gone", gone),
                store.delete_tree("dir/gone"),
            ],
        }
        for kind, refused in calls.items():
            for call in refused:
                with pytest.raises(kind) as caught:
                    await call
                assert not caught.value.maybe_applied
        assert await other.list("dir") == [current]

    async def test_previous_from_everywhere(self, store: AsyncStore, other: AsyncStore) -> None:
        written = await store.put("a/key", b"0")
        got = await other.atomic_put("a/key", b"1", written)
        read = await store.get("a/key")
        assert read == got
        by_get = await other.atomic_put("a/key", b"2", read)
        (listed,) = await store.list("a")
        by_list = await other.atomic_put("a/key", b"3", listed)
        assert by_list.last_index > by_get.last_index
        async with store.watch("a/key") as watch:
            watched = await next_of(watch)
        assert watched is not None
        await other.atomic_put("a/key", b"4", watched)
        async with store.watch_tree("a") as tree:
            (seen,) = await next_of(tree)
        rebuilt = KVPair(str(seen.key), bytes(seen.value), int(str(seen.last_index)))
        by_rebuilt = await other.atomic_put("a/key", b"5", rebuilt)
        by_get_many = await store.atomic_put("a/key", b"5", (await other.get_many(["a/key"]))["a/key"])
        assert by_get_many.last_index > by_rebuilt.last_index
        by_scan = await store.atomic_put("a/key", b"5", await anext(other.scan("a")))
        (by_commit,) = await other.commit(Put("a/key", b"5", previous=by_scan))
        assert by_commit is not None
        only_the_index_counts = dataclasses.replace(by_commit, value=b"never written")
        last = await other.atomic_put("a/key", b"6", only_the_index_counts)
        another_spelling = dataclasses.replace(last, key="/a/key/")
        await other.atomic_delete("a/key", another_spelling)
        assert not await store.exists("a/key")

    async def test_an_index_of_another_time_is_refused(self, store: AsyncStore) -> None:
        pair = await store.put("key", b"value")
        for index in (pair.last_index + 1, pair.last_index + 1000, max(1, pair.last_index - 1)):
            if index != pair.last_index:
                with pytest.raises(KeyModifiedError):
                    await store.atomic_put("key", b"new", dataclasses.replace(pair, last_index=index))
                with pytest.raises(KeyModifiedError):
                    await store.atomic_delete("key", dataclasses.replace(pair, last_index=index))
        assert await store.get("key") == pair

    async def test_previous_of_another_key(self, store: AsyncStore) -> None:
        one, two = await store.put("one", b"1"), await store.put("two", b"2")
        with pytest.raises(ValueError, match="one"):
            await store.atomic_put("two", b"new", one)
        with pytest.raises(ValueError, match="one"):
            await store.atomic_delete("two", one)
        assert [await store.get("one"), await store.get("two")] == [one, two]

    @pytest.mark.parametrize("value", [b"already there", b"new"])
    async def test_of_concurrent_swaps_one_succeeds(self, store: AsyncStore, other: AsyncStore, value: bytes) -> None:
        previous = await store.put("key", b"already there")
        for _ in range(3):
            results = await asyncio.gather(
                *(writer.atomic_put("key", value, previous) for writer in [store, other] * 10), return_exceptions=True
            )
            winners = [result for result in results if isinstance(result, KVPair)]
            assert len(winners) == 1, results
            assert sum(isinstance(result, KeyModifiedError) for result in results) == len(results) - 1
            previous = await other.get("key")
            assert previous == winners[0]

    async def test_of_concurrent_creates_one_succeeds(self, store: AsyncStore, other: AsyncStore) -> None:
        results = await asyncio.gather(
            *(writer.atomic_put("a/key", b"same", None) for writer in [store, other] * 10), return_exceptions=True
        )
        winners = [result for result in results if isinstance(result, KVPair)]
        assert len(winners) == 1, results
        assert sum(isinstance(result, KeyExistsError) for result in results) == len(results) - 1
        assert await store.get("a/key") == winners[0]

    async def test_of_concurrent_atomic_deletes_one_succeeds(self, store: AsyncStore, other: AsyncStore) -> None:
        pair = await store.put("key", b"value")
        results = await asyncio.gather(
            *(writer.atomic_delete("key", pair) for writer in [store, other] * 10), return_exceptions=True
        )
        assert results.count(None) == 1
        refusals = [result for result in results if isinstance(result, KeyNotFoundError | KeyModifiedError)]
        assert len(refusals) == len(results) - 1

    async def test_of_a_swap_and_a_deletion_one_succeeds(self, store: AsyncStore, other: AsyncStore) -> None:
        for number in range(10):
            previous = await store.put("key", b"value")
            calls = [store.atomic_put("key", b"new", previous), other.atomic_delete("key", previous)]
            results = await asyncio.gather(*(calls if number % 2 else calls[::-1]), return_exceptions=True)
            assert sum(isinstance(result, KeyNotFoundError | KeyModifiedError) for result in results) == 1, results

    async def test_a_counter_loses_no_increment(self, store: AsyncStore, other: AsyncStore) -> None:
        await store.put("counter", b"0")

        async def increment(writer: AsyncStore) -> None:
            while True:
                pair = await writer.get("counter")
                try:
                    await writer.atomic_put("counter", str(int(pair.value) + 1).encode(), pair)
                except KeyModifiedError:
                    continue
                return

        await asyncio.gather(*(increment(writer) for writer in [store, other] * 4))
        assert (await store.get("counter")).value == b"8"
