"""Keys that go by themselves: ttl and keep_alive."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import partial
from operator import eq

import pytest

from aiolibkv import AsyncStore, CallNotSupportedError, KeyExistsError, KeyModifiedError, KeyNotFoundError
from aiolibkv.testing.conformance.suite import Stores, Suite, follow, needs, next_of
from aiolibkv.testing.scale import eventually, scaled

_TTL = 0.2
"""Seconds; below what most servers can do on their own, so the client keeps the time."""

_EARLY = 0.01
"""Seconds that clocks may differ."""


def _now() -> float:
    return asyncio.get_running_loop().time()


def _longer_ttl() -> float:
    """Return a ttl of keys that are looked at, or renewed, before they go."""
    return max(_TTL, scaled(0.4))


def _bound(store: AsyncStore, ttl: float) -> float:
    """Return the seconds within which a key is gone, before scaling, when its writer lives."""
    return ttl + store.capabilities.ttl_overshoot(ttl) + 2


async def _until_gone(store: AsyncStore, key: str, within: float) -> float:
    """Return the time at which a watch of another store than the writer's saw that the key is gone."""
    async with store.watch(key) as watch:
        await follow(watch, lambda pair: pair is None, within=within)
        return _now()


async def _outlive(store: AsyncStore, other: AsyncStore, ttl: float = _TTL) -> None:
    """Wait until a key written now with this ttl is gone, and so every earlier one would be."""
    await store.put("outlived", b"", ttl=ttl)
    await _until_gone(other, "outlived", _bound(store, ttl))


class Lifetimes(Suite):
    """ttl, on its own."""

    async def test_a_key_goes_after_its_ttl(self, store: AsyncStore, other: AsyncStore) -> None:
        ttl = _longer_ttl()
        started = _now()
        pair = await store.put("dir/key", b"value", ttl=ttl)
        assert await other.get("dir/key") == pair
        async with other.watch_tree("dir") as tree:
            assert await next_of(tree) == [pair]
            gone = await _until_gone(other, "dir/key", _bound(store, ttl))
            assert gone - started >= ttl - _EARLY
            snapshot = await next_of(tree)
            assert [(change.pair, change.previous) for change in snapshot.changes] == [(None, pair)]
        for reader in (store, other):
            assert not await reader.exists("dir/key")
            with pytest.raises(KeyNotFoundError):
                await reader.get("dir/key")
            with pytest.raises(KeyNotFoundError):
                await reader.list("dir")
            with pytest.raises(KeyNotFoundError):
                await reader.delete("dir/key")
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("dir/key", b"", pair)
        again = await store.atomic_put("dir/key", b"", None)
        assert again.last_index > pair.last_index

    async def test_a_ttl_may_be_an_integer_and_far_away(self, store: AsyncStore, other: AsyncStore) -> None:
        for ttl in (1000, 3600.0):
            pair = await store.put("key", b"", ttl=ttl)
            assert await other.get("key") == pair
        await store.delete("key")
        assert not await other.exists("key")

    async def test_many_keys_go_after_their_ttls(self, store: AsyncStore, other: AsyncStore) -> None:
        started = _now()
        await store.put("dir", b"stays")
        await asyncio.gather(*(store.put(f"dir/{number}", b"", ttl=_TTL + number / 200) for number in range(30)))
        async with other.watch_tree("dir") as watch:
            await follow(watch, lambda snapshot: not snapshot, within=_bound(store, _TTL))
        assert _now() - started >= _TTL + 29 / 200 - _EARLY
        assert await other.exists("dir")

    async def test_a_put_again_begins_the_ttl_anew(self, store: AsyncStore, other: AsyncStore) -> None:
        ttl = _longer_ttl()
        first = await store.put("key", b"", ttl=ttl)
        async with other.watch("key") as watch:
            assert await next_of(watch) in (first, None)
            await asyncio.sleep(ttl / 2)
            for writer in (store, other, store):
                started = _now()
                pair = await writer.put("key", b"", ttl=ttl)
                await follow(watch, partial(eq, pair))
                await asyncio.sleep(ttl / 2)
            await follow(watch, lambda seen: seen is None, within=_bound(store, ttl))
            assert _now() - started >= ttl - _EARLY

    async def test_a_put_may_shorten_or_lengthen_the_ttl(self, store: AsyncStore, other: AsyncStore) -> None:
        await store.put("short", b"", ttl=1000)
        await store.put("short", b"", ttl=_TTL)
        await store.put("long", b"", ttl=_TTL)
        long = await store.put("long", b"", ttl=1000)
        await _until_gone(other, "short", _bound(store, _TTL))
        await _outlive(store, other)
        assert await other.get("long") == long

    async def test_what_ends_a_ttl(self, store: AsyncStore, other: AsyncStore) -> None:
        """A write without ttl makes a key permanent, whoever does it, and the old lifetime does not come back."""
        ttl = _longer_ttl()

        async def by_put(key: str) -> None:
            await store.put(key, b"", ttl=ttl)
            await store.put(key, b"kept")

        async def by_foreign_put(key: str) -> None:
            await store.put(key, b"", ttl=ttl)
            await other.put(key, b"kept")

        async def by_atomic_put(key: str) -> None:
            await store.atomic_put(key, b"kept", await store.put(key, b"", ttl=ttl))

        async def by_foreign_atomic_put(key: str) -> None:
            await other.atomic_put(key, b"kept", await store.put(key, b"", ttl=ttl))

        async def by_deletion(key: str) -> None:
            await store.put(key, b"", ttl=ttl)
            await store.delete(key)
            await store.put(key, b"kept")

        async def by_foreign_deletion(key: str) -> None:
            await store.put(key, b"", ttl=ttl)
            await other.delete(key)
            await other.atomic_put(key, b"kept", None)

        async def by_deletion_of_the_tree(key: str) -> None:
            await store.put(f"tree/{key}", b"", ttl=ttl)
            await store.delete_tree("tree")
            await store.put(f"tree/{key}", b"kept")

        async def by_a_longer_one(key: str) -> None:
            await store.put(key, b"", ttl=ttl)
            await other.put(key, b"kept", ttl=1000)

        cases: list[Callable[[str], Awaitable[None]]] = [
            *(by_put, by_foreign_put, by_atomic_put, by_foreign_atomic_put, by_deletion, by_foreign_deletion),
            *(by_deletion_of_the_tree, by_a_longer_one),
        ]
        names = [case.__name__ for case in cases]
        await asyncio.gather(*(case(name) for case, name in zip(cases, names, strict=True)))
        await _outlive(store, other, ttl)
        kept = [pair.key.removeprefix("tree/") for pair in await other.list("") if pair.value == b"kept"]
        assert sorted(kept) == sorted(names)

    async def test_atomic_puts_with_a_ttl(self, store: AsyncStore, other: AsyncStore) -> None:
        ttl = _longer_ttl()
        started = _now()
        await store.atomic_put("created", b"", None, ttl=ttl)
        await store.atomic_put("swapped", b"", await store.put("swapped", b""), ttl=ttl)
        assert await other.exists("created")
        assert await other.exists("swapped")
        for key in ("created", "swapped"):
            assert await _until_gone(other, key, _bound(store, ttl)) - started >= ttl - _EARLY

    async def test_a_refused_write_leaves_the_lifetime_alone(self, store: AsyncStore, other: AsyncStore) -> None:
        old = await store.put("kept", b"1")
        kept = await store.put("kept", b"2")
        for writer in (store, other):
            with pytest.raises(KeyModifiedError):
                await writer.atomic_put("kept", b"refused", old, ttl=_TTL)
            with pytest.raises(KeyExistsError):
                await writer.atomic_put("kept", b"refused", None, ttl=_TTL)
        await store.put("goes", b"1")
        long_enough = scaled(1)
        gone_soon = await store.put("goes", b"2", ttl=long_enough)
        for ttl in (None, 1000):
            with pytest.raises(KeyExistsError):
                await store.atomic_put("goes", b"refused", None, ttl=ttl)
        assert gone_soon.last_index > kept.last_index
        await _until_gone(other, "goes", _bound(store, long_enough))
        await _outlive(store, other)
        assert await other.get("kept") == kept

    @pytest.mark.parametrize("ttl", [0, -1, 0.0, -0.5, math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("keep_alive", [False, True])
    async def test_a_ttl_that_cannot_be(self, store: AsyncStore, ttl: float, *, keep_alive: bool) -> None:
        with pytest.raises(ValueError, match="ttl"):
            await store.put("key", b"", ttl=ttl, keep_alive=keep_alive)
        with pytest.raises(ValueError, match="ttl"):
            await store.atomic_put("key", b"", None, ttl=ttl, keep_alive=keep_alive)
        assert not await store.exists("key")

    @pytest.mark.parametrize("ttl", [True, False, "5", b"5", [5]])
    async def test_a_ttl_that_is_no_number(self, store: AsyncStore, ttl: object) -> None:
        with pytest.raises((TypeError, ValueError)):
            await store.put("key", b"", ttl=ttl)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            await store.atomic_put("key", b"", None, ttl=ttl)  # type: ignore[arg-type]
        assert not await store.exists("key")

    async def test_a_key_with_a_lifetime_may_have_keys_below(self, store: AsyncStore, other: AsyncStore) -> None:
        needs(store, "lifetime_with_children")
        await store.put("a", b"", ttl=_TTL)
        below = await store.put("a/b", b"")
        above = await store.put("c", b"")
        await store.put("c/d", b"", ttl=_TTL)
        await store.put("e/f", b"", ttl=_TTL)
        await store.put("e", b"", ttl=1000)
        for key in ("a", "c/d", "e/f"):
            await _until_gone(other, key, _bound(store, _TTL))
        assert await other.get("a/b") == below
        assert await other.get("c") == above
        assert list(await other.list("e")) == []

    async def test_where_a_key_with_a_lifetime_has_none_below(self, store: AsyncStore, other: AsyncStore) -> None:
        if store.capabilities.lifetime_with_children:
            pytest.skip("this backend has the capability lifetime_with_children")
        await store.put("parent", b"", ttl=1000)
        await store.put("other/child", b"")
        await store.put("alive", b"", keep_alive=True)
        before = list(await other.list(""))
        for key in ("parent/below", "parent/far/below", "alive/below"):
            for write in (store.put(key, b""), store.atomic_put(key, b"", None), store.put(key, b"", ttl=5)):
                with pytest.raises(CallNotSupportedError):
                    await write
        for write in (store.put("other", b"", ttl=5), store.put("other", b"", keep_alive=True)):
            with pytest.raises(CallNotSupportedError):
                await write
        assert list(await other.list("")) == before


class KeepingAlive(Suite):
    """keep_alive, and the time that the server itself keeps."""

    async def test_a_key_kept_alive_is_removed_at_close(self, stores: Stores, other: AsyncStore) -> None:
        store = await stores.open()
        for number, ttl in enumerate((None, None, 15, 20.5)):
            pair = await store.put(f"dir/{number}", b"", ttl=ttl, keep_alive=True)
            assert await other.get(f"dir/{number}") == pair
        created = await store.atomic_put("dir/created", b"", None, keep_alive=True)
        await store.atomic_put("dir/created", b"", created, keep_alive=True)
        await store.put("kept", b"")
        async with other.watch_tree("dir") as watch:
            assert len(await next_of(watch)) == 5
            await store.close()
            await follow(watch, lambda snapshot: not snapshot)
        assert await other.exists("kept")

    async def test_close_removes_nothing_of_others(self, stores: Stores, other: AsyncStore) -> None:
        store, third = await stores.open(), await stores.open()
        for key in ("put", "swapped", "created", "permanent", "alive", "timed", "own", "own swapped", "own timed"):
            await store.put(key, b"mine", keep_alive=True)
        await store.put("shared ttl", b"mine", keep_alive=True)
        kept = [
            await other.put("put", b"theirs"),
            await other.atomic_put("swapped", b"theirs", await other.get("swapped")),
            await other.put("alive", b"theirs", keep_alive=True),
            await other.put("timed", b"theirs", ttl=1000),
            await store.put("own", b"for good"),
            await store.atomic_put("own swapped", b"for good", await store.get("own swapped")),
            await store.put("own timed", b"for a while", ttl=1000),
        ]
        await other.delete("created")
        kept.append(await other.atomic_put("created", b"theirs", None))
        await store.delete("permanent")
        kept.append(await store.put("permanent", b"for good"))
        if not store.capabilities.ttl_survives_client:
            kept = [pair for pair in kept if pair.key != "own timed"]
        await store.close()

        async def is_removed() -> bool:
            return not await third.exists("shared ttl")

        await eventually(is_removed, within=5, message="what was kept alive is gone")
        left = [
            pair for pair in await third.list("") if store.capabilities.ttl_survives_client or pair.key != "own timed"
        ]
        assert left == sorted(kept, key=lambda pair: pair.key)

    async def test_a_refused_write_does_not_keep_alive(self, stores: Stores, other: AsyncStore) -> None:
        store = await stores.open()
        old = await other.put("key", b"1")
        kept = await other.put("key", b"2")
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("key", b"", old, keep_alive=True)
        with pytest.raises(KeyExistsError):
            await store.atomic_put("key", b"", None, keep_alive=True)
        alive = await store.put("alive", b"", keep_alive=True)
        with pytest.raises(KeyExistsError):
            await store.atomic_put("alive", b"", None)
        assert await other.get("alive") == alive
        await store.close()
        assert list(await other.list("")) == [kept]

    async def test_a_key_kept_alive_that_was_deleted_stays_deleted(self, stores: Stores, other: AsyncStore) -> None:
        store = await stores.open()
        for key in ("own", "tree/key", "foreign"):
            await store.put(key, b"", keep_alive=True)
        await store.delete("own")
        await store.delete_tree("tree")
        await other.delete("foreign")
        await _outlive(store, other)
        assert list(await other.list("")) == []
        await store.close()
        assert list(await other.list("")) == []

    async def test_over_time(self, stores: Stores, other: AsyncStore) -> None:
        """What takes as long as the server's shortest lifetime, all at once."""
        store = await stores.open()
        ttl = max(1.5 * _longer_ttl(), store.capabilities.min_ttl)
        latest = ttl + store.capabilities.ttl_overshoot(ttl)

        async def kept_alive_keys_outlive_their_ttl() -> None:
            pairs = [
                await store.put("alive/long", b"", ttl=ttl, keep_alive=True),
                await store.put("alive/short", b"", ttl=_longer_ttl(), keep_alive=True),
                await store.put("alive/shared", b"", ttl=ttl, keep_alive=True),
            ]
            await store.delete("alive/shared")
            async with other.watch_tree("alive") as watch:
                assert list(await next_of(watch)) == pairs[:2]
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(watch), latest + ttl)
            await store.put("alive/long", b"", ttl=ttl)
            await _until_gone(other, "alive/long", _bound(store, ttl))

        async def a_key_that_others_deleted_stays_deleted() -> None:
            """Though it is the only one of its lease, which is renewed."""
            own = max(ttl, 1) + 0.1
            await store.put("deleted", b"", ttl=own, keep_alive=True)
            await other.delete("deleted")
            async with other.watch("deleted") as watch:
                assert await next_of(watch) is None
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(watch), own)

        async def a_writer_that_lives_ends_its_keys_on_time() -> None:
            started = _now()
            await store.put("lives", b"", ttl=ttl)
            gone = await _until_gone(other, "lives", _bound(store, ttl))
            assert gone - started >= ttl - _EARLY

        async def the_server_ends_the_keys_of_a_writer_that_is_gone() -> None:
            async with stores.make() as writer:
                started = _now()
                pair = await writer.put("orphan", b"", ttl=ttl)
            if store.capabilities.ttl_survives_client:
                assert await other.get("orphan") == pair
            gone = await _until_gone(other, "orphan", latest + 2)
            if store.capabilities.ttl_survives_client:
                assert gone - started >= ttl - _EARLY

        async def a_key_without_ttl_stays() -> None:
            await store.put("stays", b"", ttl=ttl)
            pair = await store.put("stays", b"")
            async with other.watch("stays") as watch:
                assert await next_of(watch) == pair
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(watch), latest + ttl)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kept_alive_keys_outlive_their_ttl())
            tasks.create_task(a_key_that_others_deleted_stays_deleted())
            tasks.create_task(a_writer_that_lives_ends_its_keys_on_time())
            tasks.create_task(the_server_ends_the_keys_of_a_writer_that_is_gone())
            tasks.create_task(a_key_without_ttl_stays())
        assert [pair.key for pair in await other.list("")] == ["alive/short", "stays"]

    async def test_close_with_keys_kept_alive_ends_in_time(self, stores: Stores) -> None:
        store = await stores.open()
        await asyncio.gather(
            *(store.put(f"dir/{number}", b"", ttl=15 + number % 5, keep_alive=True) for number in range(50))
        )
        started = _now()
        await store.close()
        assert _now() - started < scaled(2)
