"""Stores rooted at a prefix, and what a store says of itself."""

from __future__ import annotations

import dataclasses
import math

import pytest

from aiolibkv import AsyncStore, Capabilities, Change, KeyModifiedError, KeyNotFoundError
from aiolibkv.testing.conformance.suite import Stores, Suite, next_of

_KIB = 1024


class Rooting(Suite):
    """The prefix."""

    async def test_stores_of_two_prefixes_do_not_see_each_other(self, stores: Stores) -> None:
        app, app2 = await stores.open("app"), await stores.open("app2")
        one, two = await app.put("key", b"1"), await app2.put("key", b"2")
        only = await app.put("dir/only", b"")
        assert [await app.get("key"), await app2.get("key")] == [one, two]
        assert not await app2.exists("dir/only")
        with pytest.raises(KeyNotFoundError):
            await app2.list("dir")
        assert list(await app.list("")) == [only, one]
        assert list(await app2.list("")) == [two]
        async with app2.watch_tree("") as tree, app2.watch("key") as watch:
            assert await next_of(tree) == [two]
            assert await next_of(watch) == two
            await app.put("key", b"changed")
            assert await app.delete_tree("") == 2
            three = await app2.put("key", b"3")
            assert await next_of(tree) == [three]
            assert await next_of(watch) == three
        assert list(await app2.list("")) == [three]
        assert list(await app.list("")) == []

    async def test_keys_go_in_and_come_out_without_the_prefix(self, stores: Stores) -> None:
        above, store = await stores.open(), await stores.open("app/sub/")
        pair = await store.put("dir/key", b"value")
        seen = await above.get("app/sub/dir/key")
        assert seen == dataclasses.replace(pair, key="app/sub/dir/key")
        assert list(await store.list("dir")) == [pair] == list(await store.list(""))
        assert list(await above.list("app")) == [seen]
        async with store.watch("dir/key") as watch, store.watch_tree("dir") as tree, above.watch_tree("app") as whole:
            assert await next_of(watch) == pair
            snapshot = await next_of(tree)
            assert snapshot.changes == (Change("dir/key", pair, None),)
            assert snapshot.get("dir/key") == pair
            assert await next_of(whole) == [seen]
            swapped = await above.atomic_put("app/sub/dir/key", b"swapped", seen)
            expected = dataclasses.replace(swapped, key="dir/key")
            assert await next_of(watch) == expected
            snapshot = await next_of(tree)
            assert snapshot.changes == (Change("dir/key", expected, pair),)
            assert await next_of(whole) == [swapped]
        with pytest.raises(KeyModifiedError) as caught:
            await store.atomic_delete("dir/key", pair)
        assert caught.value.key == "dir/key"
        await store.atomic_delete("dir/key", expected)
        assert not await above.exists("app/sub/dir/key")

    async def test_a_store_does_not_see_the_key_that_is_its_prefix(self, stores: Stores) -> None:
        above, store = await stores.open(), await stores.open("app")
        root = await above.put("app", b"")
        await above.put("apple", b"")
        assert list(await store.list("")) == []
        assert await store.delete_tree("") == 0
        async with store.watch_tree("") as tree:
            assert await next_of(tree) == []
            await above.put("app", b"changed")
            await above.put("apple/pie", b"")
            await above.delete("app")
            key = await store.put("key", b"")
            assert await next_of(tree) == [key]
        assert root.key == "app"

    async def test_a_prefix_obeys_the_rules_for_keys(self, stores: Stores) -> None:
        for prefix in ("a//b", "a/../b", "a\nb", "x" * 513):
            with pytest.raises(ValueError, match="key"):
                stores.make(prefix)

    async def test_the_longest_key_below_a_prefix(self, stores: Stores) -> None:
        store = await stores.open("p" * 200)
        pair = await store.put("k" * 512, b"")
        assert list(await store.list("")) == [pair]
        await store.delete("k" * 512)


class SelfDescription(Suite):
    """The capabilities."""

    async def test_the_capabilities_are_complete(self, store: AsyncStore) -> None:
        capabilities = store.capabilities
        assert isinstance(capabilities, Capabilities)
        for name in (
            *("distributed", "durable", "linearizable_reads", "exact_compare", "atomic_list", "atomic_delete_tree"),
            *("every_change", "lifetime_with_children", "ttl_survives_client", "survives_failover"),
        ):
            assert isinstance(getattr(capabilities, name), bool), name
        assert capabilities.atomic_delete_tree, "every backend deletes a tree in one transaction"
        assert 0 <= capabilities.min_ttl < math.inf
        assert capabilities.max_value_bytes >= 256 * _KIB
        assert capabilities.max_commit_bytes >= 256 * _KIB
        assert capabilities.max_operations >= 20
        for ttl in (0.5, 1, 2, 10, 15.0, 60, 3600):
            assert 0 <= capabilities.ttl_overshoot(ttl) < math.inf

    async def test_the_capabilities_cannot_be_changed(self, store: AsyncStore) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            store.capabilities.durable = True  # type: ignore[misc]

    async def test_the_capabilities_are_known_before_entering(self, stores: Stores, store: AsyncStore) -> None:
        assert isinstance(stores.make().capabilities, Capabilities)
        assert isinstance(store, AsyncStore)
