"""commit: several writes and conditions, all or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from aiolibkv import (
    AsyncStore,
    Check,
    Delete,
    InvalidKeyError,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    LockLostError,
    PreviousNotSpecifiedError,
    Put,
    StoreError,
    ValueTooLargeError,
)
from aiolibkv.testing.conformance.suite import Stores, Suite, follow, needs, next_of
from aiolibkv.testing.scale import eventually
from aiolibkv.types import Operation

_GONE = KVPair("gone", b"", 1)


async def _state(store: AsyncStore) -> dict[str, bytes]:
    return {pair.key: pair.value for pair in await store.list("")}


class Committing(Suite):
    """What a commit writes, and what keeps it from writing."""

    async def test_all_operations_take_effect(self, store: AsyncStore, other: AsyncStore) -> None:
        kept, swapped = await store.put("kept", b"k"), await store.put("swapped", b"1")
        await store.put("deleted", b"d")
        exact = await store.put("exact", b"e")
        pairs = await store.commit(
            Put("new", b"n"),
            Put("a/created", b"c", previous=None),
            Put("swapped", b"2", previous=swapped),
            Delete("deleted"),
            Delete("exact", previous=exact),
            Check("kept", previous=kept),
            Check("kept/no", previous=None),
        )
        assert [pair and (pair.key, pair.value) for pair in pairs] == [
            ("new", b"n"),
            ("a/created", b"c"),
            ("swapped", b"2"),
            None,
            None,
            None,
            None,
        ]
        for pair in pairs[:3]:
            assert pair is not None
            assert await other.get(pair.key) == pair
        assert await _state(other) == {"a/created": b"c", "kept": b"k", "new": b"n", "swapped": b"2"}
        assert await other.get("kept") == kept

    @pytest.mark.parametrize("at_first", [True, False])
    @pytest.mark.parametrize(
        ("refused", "error"),
        [
            (Put("there", b"x", previous=None), KeyExistsError),
            (Put("there", b"x", previous=KVPair("there", b"there", 1)), KeyModifiedError),
            (Put("gone", b"x", previous=_GONE), KeyModifiedError),
            (Delete("gone"), KeyNotFoundError),
            (Delete("gone", previous=_GONE), KeyNotFoundError),
            (Delete("there", previous=KVPair("there", b"there", 1)), KeyModifiedError),
            (Check("gone"), KeyNotFoundError),
            (Check("gone", previous=_GONE), KeyModifiedError),
            (Check("there", previous=KVPair("there", b"there", 1)), KeyModifiedError),
            (Check("there", previous=None), KeyExistsError),
        ],
        ids=str,
    )
    async def test_nothing_takes_effect_when_one_is_refused(
        self, store: AsyncStore, refused: Operation, error: type[StoreError], *, at_first: bool
    ) -> None:
        """The error is that of the single call, with the key; wherever the operation stands."""
        await store.put("there", b"there")
        await store.put("there", b"there")
        await store.put("other", b"o")
        others: list[Operation] = [Put("new", b"n"), Put("other", b"p")]
        operations: list[Operation] = [refused, *others] if at_first else [*others, refused]
        with pytest.raises(error) as caught:
            await store.commit(*operations)
        assert type(caught.value) is error
        assert caught.value.key == refused.key
        assert not caught.value.maybe_applied
        assert await _state(store) == {"there": b"there", "other": b"o"}

    async def test_conditions_that_hold_without_a_write(self, store: AsyncStore) -> None:
        pair = await store.put("dir/key", b"v")
        assert await store.commit(Check("dir/key"), Check("none", previous=None)) == [None, None]
        assert await store.commit(Check("dir/key", previous=pair)) == [None]
        with pytest.raises(KeyNotFoundError):
            await store.commit(Check("none"))
        with pytest.raises(KeyNotFoundError):
            await store.commit(Check("dir"))
        assert await store.list("") == [pair]

    async def test_one_operation_is_the_single_call(self, store: AsyncStore) -> None:
        (first,) = await store.commit(Put("key", b"1", previous=None))
        assert first == await store.get("key")
        (second,) = await store.commit(Put("key", b"1"))
        assert first is not None
        assert second is not None
        assert second.last_index > first.last_index
        with pytest.raises(KeyModifiedError):
            await store.commit(Put("key", b"2", previous=first))
        assert await store.commit(Delete("key", previous=second)) == [None]
        assert not await store.exists("key")

    async def test_what_is_put_becomes_permanent(self, store: AsyncStore) -> None:
        await store.put("short", b"1", ttl=0.2)
        await store.put("marker", b"", ttl=0.3)
        await store.commit(Put("short", b"2"))
        await eventually(lambda: _is_missing(store, "marker"), within=15, message="a ttl ends")
        assert (await store.get("short")).value == b"2"

    async def test_what_is_written_is_not_kept_alive_any_more(self, stores: Stores, other: AsyncStore) -> None:
        store = await stores.open()
        for key in ("put", "deleted", "checked"):
            await store.put(key, b"1", keep_alive=True)
        await store.commit(Put("put", b"2"), Delete("deleted"), Check("checked"))
        foreign = await other.put("deleted", b"3")
        await store.close()
        assert await _state(other) == {"put": b"2", "deleted": b"3"}
        assert await other.get("deleted") == foreign

    async def test_a_refused_commit_leaves_lifetimes_alone(self, store: AsyncStore, other: AsyncStore) -> None:
        timed = await store.put("timed", b"1", ttl=1000)
        alive = await store.put("alive", b"1", keep_alive=True)
        refused: list[tuple[list[Operation], type[StoreError]]] = [
            ([Put("timed", b"2"), Put("alive", b"2"), Check("missing")], KeyNotFoundError),
            ([Delete("timed"), Delete("alive"), Delete("missing")], KeyNotFoundError),
            ([Delete("timed"), Put("alive", b"2"), Check("gone", previous=_GONE)], KeyModifiedError),
        ]
        for operations, error in refused:
            with pytest.raises(error):
                await store.commit(*operations)
        # What ends a lifetime does so in the background.
        await asyncio.sleep(0.1)
        assert await other.get_many(["timed", "alive"]) == {"timed": timed, "alive": alive}

    async def test_keys_of_the_same_tree(self, store: AsyncStore) -> None:
        """A key and those below it, new directories and emptied ones, in any order."""
        await store.commit(Put("a/b/c", b"1"), Put("a", b"2"), Put("a/b", b"3"), Put("d/e/f", b"4"))
        assert await _state(store) == {"a": b"2", "a/b": b"3", "a/b/c": b"1", "d/e/f": b"4"}
        await store.commit(Delete("a/b"), Delete("a/b/c"), Put("a/x", b"5"), Delete("d/e/f"))
        assert await _state(store) == {"a": b"2", "a/x": b"5"}
        with pytest.raises(KeyNotFoundError):
            await store.list("d")

    async def test_arguments(self, store: AsyncStore) -> None:
        pair = await store.put("key", b"v")
        with pytest.raises(ValueError, match="operations"):
            await store.commit()
        with pytest.raises(ValueError, match="once"):
            await store.commit(Put("new", b""), Check("/new/"))
        with pytest.raises(ValueError, match="previous"):
            await store.commit(Put("new", b""), Put("other", b"", previous=pair))
        with pytest.raises(PreviousNotSpecifiedError) as caught:
            await store.commit(Put("new", b""), Delete("key", previous=None))  # type: ignore[arg-type]
        assert caught.value.key == "key"
        with pytest.raises(InvalidKeyError):
            await store.commit(Put("new", b""), Put("a//b", b""))
        with pytest.raises(TypeError):
            await store.commit(Put("new", "text"))  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await store.commit(Put("new", b""), "key")  # type: ignore[arg-type]
        assert await store.list("") == [pair]

    async def test_as_many_operations_as_are_promised(self, store: AsyncStore) -> None:
        most = store.capabilities.max_operations
        assert most >= 20
        puts = [Put(f"many/{number:04}", b"v") for number in range(most)]
        assert [pair and pair.key for pair in await store.commit(*puts)] == [put.key for put in puts]
        assert len(await store.list("many")) == most
        with pytest.raises(ValueError, match=str(most)):
            await store.commit(*puts, Put("one/more", b""))
        deletions = [Delete(put.key) for put in puts]
        assert await store.commit(*deletions) == [None] * most
        assert await store.list("") == []

    async def test_as_many_bytes_as_are_promised(self, store: AsyncStore) -> None:
        most = store.capabilities.max_commit_bytes
        assert most >= 256 * 1024
        size = min(most, store.capabilities.max_value_bytes, 8 * 2**20) // 2 - 600
        large: list[Operation] = [Put("one", bytes(size)), Put("two", bytes(size)), Check("three", previous=None)]
        assert [pair and len(pair.value) for pair in await store.commit(*large)] == [size, size, None]
        parts = most // store.capabilities.max_value_bytes + 1
        if parts < store.capabilities.max_operations:
            # Only with their keys are they too many.
            sizes = [most // parts + (part < most % parts) for part in range(parts)]
            too_large = [Put(f"x{part}", bytes(size)) for part, size in enumerate(sizes)]
            with pytest.raises(ValueTooLargeError):
                await store.commit(*too_large)
        with pytest.raises(ValueTooLargeError):
            await store.commit(Put("four", b""), Put("five", bytes(store.capabilities.max_value_bytes + 1)))
        assert [pair.key for pair in await store.list("")] == ["one", "two"]

    async def test_a_guard_that_holds_and_one_that_does_not(self, store: AsyncStore, other: AsyncStore) -> None:
        lock = store.new_lock("locks/one", ttl=10)
        held = await lock.acquire()
        await store.commit(Put("a", b"1"), Put("b", b"1"), guard=held)
        await other.put("locks/one", b"foreign")
        with pytest.raises(LockLostError) as caught:
            await store.commit(Put("a", b"2"), Delete("missing"), guard=held)
        assert caught.value.key == "locks/one"
        await asyncio.wait_for(held.wait_lost(), 10)
        assert not held.is_held
        assert (await store.get("a")).value == b"1"
        await store.delete("locks/one")

    async def test_of_many_that_compare_one_wins(self, store: AsyncStore, other: AsyncStore) -> None:
        first, second = await store.put("first", b""), await store.put("second", b"")

        async def swap(which: AsyncStore, number: int) -> bool:
            value = b"%d" % number
            try:
                await which.commit(Put("first", value, previous=first), Put("second", value, previous=second))
            except KeyModifiedError:
                return False
            return True

        won = await asyncio.gather(*(swap((store, other)[number % 2], number) for number in range(10)))
        assert won.count(True) == 1
        value = b"%d" % won.index(True)
        assert await _state(store) == {"first": value, "second": value}

    async def test_money_moves_and_none_is_lost(self, store: AsyncStore, other: AsyncStore) -> None:
        """Whoever reads all accounts at one instant sees the same sum, while they are written by commits."""
        accounts = [f"accounts/{number}" for number in range(6)]
        await store.commit(*(Put(account, b"100") for account in accounts))

        async def move(which: AsyncStore, source: str, target: str, amount: int) -> None:
            while True:
                found = await which.get_many([source, target])
                try:
                    await which.commit(
                        Put(source, b"%d" % (int(found[source].value) - amount), previous=found[source]),
                        Put(target, b"%d" % (int(found[target].value) + amount), previous=found[target]),
                    )
                except KeyModifiedError:
                    continue
                return

        async def look() -> None:
            while True:
                found = await other.get_many(accounts)
                if store.capabilities.atomic_list:
                    assert sum(int(pair.value) for pair in found.values()) == 600

        looking = asyncio.ensure_future(look())
        await asyncio.gather(
            *(
                move((store, other)[number % 2], accounts[number % 6], accounts[(number * 5 + 1) % 6], number + 1)
                for number in range(12)
                if number % 6 != (number * 5 + 1) % 6
            )
        )
        await asyncio.sleep(0)
        looking.cancel()
        await asyncio.wait({looking})
        assert looking.cancelled()
        assert sum(int(pair.value) for pair in await store.list("accounts")) == 600

    async def test_a_watch_sees_a_commit_as_one_change(self, store: AsyncStore, other: AsyncStore) -> None:
        await store.put("dir/old", b"")
        async with store.watch_tree("dir") as watch:
            assert [pair.key for pair in await next_of(watch)] == ["dir/old"]
            await other.commit(Put("dir/one", b"1"), Delete("dir/old"), Put("dir/two", b"2"))
            snapshots = await follow(watch, lambda snapshot: len(snapshot) == 2 and "dir/two" in snapshot)
            assert [pair.key for pair in snapshots[-1]] == ["dir/one", "dir/two"]
            if store.capabilities.every_change:
                assert len(snapshots) == 1
                assert [change.key for change in snapshots[0].changes] == ["dir/old", "dir/one", "dir/two"]

    async def test_a_cancelled_commit_is_whole_or_not_at_all(self, store: AsyncStore) -> None:
        for steps in range(12):
            keys = [f"{steps}/a", f"{steps}/b/c"]
            task = asyncio.ensure_future(store.commit(*(Put(key, b"v") for key in keys)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            # What was sent may be carried out yet; a later write of one key comes after it.
            await store.put(f"{steps}/b/c", b"later")
            found = await store.get_many(keys)
            assert set(found) in ({keys[1]}, set(keys))

    async def test_a_commit_is_one_instant_for_a_list(self, store: AsyncStore, other: AsyncStore) -> None:
        needs(store, "atomic_list")
        await store.commit(Put("pair/a", b"0"), Put("pair/b", b"0"))

        async def write() -> None:
            for number in range(1, 25):
                await store.commit(Put("pair/a", b"%d" % number), Put("pair/b", b"%d" % number))

        writing = asyncio.ensure_future(write())
        seen: list[Sequence[bytes]] = []
        while not writing.done():
            seen.append([pair.value for pair in await other.list("pair")])
        await writing
        assert all(first == second for first, second in seen)


async def _is_missing(store: AsyncStore, key: str) -> bool:
    return not await store.exists(key)
