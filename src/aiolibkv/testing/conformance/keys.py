"""What a key and a value may be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from itertools import permutations
from typing import Any

import pytest

from aiolibkv import AsyncStore, Check, Delete, InvalidKeyError, KeyNotFoundError, KVPair, Put, ValueTooLargeError
from aiolibkv.testing.conformance.suite import Stores, Suite, next_of

_BAD_SEGMENTS = ["a//b", "a///b", ".", "..", "a/.", "a/..", "./a", "../a", "a/./b", "a/../b"]
_BAD_CHARACTERS = [
    *("\x00", "\t", "\n", "\r", "\x1f", "\x7f", "\x80", "\x9f"),
    *("\u00a0", "\u00ad", "\u200b", "\u2028", "\u2029", "\u3000", "\ufeff", "\ue000", "\ud800", "\udfff"),
    *("\U00010000", "\U0001f600", "\U0010ffff", "\ufff0", "\ufffd", "\uffff", "\u0378"),
]
_BAD_KEYS = [
    *_BAD_SEGMENTS,
    *(f"a{character}b" for character in _BAD_CHARACTERS),
    *("x" * 513, "é" * 256 + "x", "a/" * 255 + "abc"),
    *(".aiolibkv", ".aiolibkv/x", "/.aiolibkv/x/y/"),
]
_GOOD_KEYS = [
    *("a b", " a", "a ", "a/ /b", "%", "100%", "a%2Fb", "%41", "?", "a?b=c", "#", "a#b", "a&b", "a=b", "a+b", "~", "!"),
    *("$HOME", "*", "a:b", "a;b", "a,b", "@", "[0]", "{x}", "(y)", "^", "`", "|", "\\", "a\\b", "'", '"', "<a>", "-"),
    *("_", ".a", "a.", "...", "..a", "a..b", ".aiolibkv2", "a/.aiolibkv/b", "A", "zookeeper", "config", "null"),
    *("ü", "e\u0301", "é", "ß", "日本語", "עברית", "Ω/δ", "\u0e01", "\uffee", "\ud7a3", "0", "00", "-1", "v1", "kv"),
    *("x" * 512, "é" * 256, "日" * 170, "a/" * 255 + "ab"),
]


def _every_call(store: AsyncStore, key: str) -> Iterator[Callable[[], Awaitable[object]]]:
    previous = KVPair(key, b"", 1)
    yield lambda: store.get(key)
    yield lambda: store.get(key, consistent=False)
    yield lambda: store.exists(key)
    yield lambda: store.put(key, b"value")
    yield lambda: store.put(key, b"value", ttl=5)
    yield lambda: store.delete(key)
    yield lambda: store.atomic_put(key, b"value", None)
    yield lambda: store.atomic_put(key, b"value", previous)
    yield lambda: store.atomic_delete(key, previous)
    yield lambda: store.commit(Put("other", b""), Put(key, b"value"))
    yield lambda: store.commit(Delete(key))
    yield lambda: store.commit(Check(key, previous=None))
    yield lambda: store.get_many(["other", key])
    yield lambda: store.new_lock(key).try_acquire()
    yield lambda: next_of(store.watch(key))


def _every_directory_call(store: AsyncStore, directory: str) -> Iterator[Callable[[], Awaitable[object]]]:
    yield lambda: store.list(directory)
    yield lambda: store.keys(directory)
    yield lambda: store.children(directory)
    yield lambda: anext(store.scan(directory))
    yield lambda: store.delete_tree(directory)
    yield lambda: next_of(store.watch_tree(directory))


class Keys(Suite):
    """The rules for keys."""

    async def test_keys_that_break_a_rule(self, store: AsyncStore, other: AsyncStore) -> None:
        for key in _BAD_KEYS:
            for call in (*_every_call(store, key), *_every_directory_call(store, key)):
                with pytest.raises(InvalidKeyError):
                    await call()
        assert list(await other.list("")) == []

    @pytest.mark.parametrize("key", ["", "/", "//"])
    async def test_the_empty_key_is_only_a_directory(self, store: AsyncStore, key: str) -> None:
        for call in _every_call(store, key):
            with pytest.raises(InvalidKeyError):
                await call()
        assert list(await store.list(key)) == []
        assert await store.delete_tree(key) == 0
        async with store.watch_tree(key) as watch:
            assert list(await next_of(watch)) == []

    async def test_an_invalid_key_is_a_value_error_that_names_it(self, store: AsyncStore) -> None:
        with pytest.raises(ValueError, match="a//b") as caught:
            await store.put("a//b", b"")
        assert isinstance(caught.value, InvalidKeyError)
        assert caught.value.key == "a//b"

    async def test_every_other_key_works(self, store: AsyncStore, other: AsyncStore) -> None:
        written: dict[str, KVPair] = {}
        for number, key in enumerate(_GOOD_KEYS):
            written[key] = await store.put(key, str(number).encode())
            assert written[key] == KVPair(key, str(number).encode(), written[key].last_index)
        listed = await other.list("")
        assert list(listed) == [written[key] for key in sorted(written)]
        for key, pair in written.items():
            assert await other.get(key) == pair
            assert await other.exists(key)
        async with other.watch_tree("") as tree:
            assert await next_of(tree) == list(listed)
        for key, pair in written.items():
            async with other.watch(key) as watch:
                assert await next_of(watch) == pair
            changed = await other.atomic_put(key, b"changed", pair)
            await store.atomic_delete(key, changed)
            assert not await other.exists(key)
        assert list(await store.list("")) == []

    @pytest.mark.parametrize("spelling", ["/a/b", "a/b/", "/a/b/", "//a/b//"])
    async def test_slashes_around_a_key_do_not_count(self, store: AsyncStore, spelling: str) -> None:
        pair = await store.put(spelling, b"1")
        assert pair.key == "a/b"
        assert await store.get("a/b") == await store.get(spelling) == pair
        assert await store.exists(spelling)
        async with store.watch(spelling) as watch:
            assert await next_of(watch) == pair
        pair = await store.atomic_put(spelling, b"2", pair)
        assert list(await store.list(spelling)) == []
        assert list(await store.list(spelling[: spelling.index("b")])) == [pair]
        async with store.watch_tree("/a/") as tree:
            snapshot = await next_of(tree)
        assert snapshot == [pair]
        assert snapshot.get(spelling) == pair
        await store.atomic_delete(spelling, pair)
        await store.put("a/b", b"3")
        await store.delete(spelling)
        assert not await store.exists("a/b")
        await store.put("a/b/c", b"4")
        assert await store.delete_tree(spelling) == 1

    @pytest.mark.parametrize("created", [*permutations(["a", "a/b", "a/b/c"])])
    async def test_a_key_may_be_a_value_and_a_directory(self, store: AsyncStore, created: tuple[str, ...]) -> None:
        for deleted in permutations(created):
            pairs = {key: await store.put(key, key.encode()) for key in created}
            for key in deleted:
                assert list(await store.list("")) == sorted(pairs.values(), key=lambda pair: pair.key)
                below = [pairs[name] for name in sorted(pairs) if name.startswith(f"{key}/")]
                assert list(await store.list(key)) == below
                assert await store.get(key) == pairs[key]
                await store.delete(key)
                del pairs[key]
                assert not await store.exists(key)
            assert list(await store.list("")) == []
            with pytest.raises(KeyNotFoundError):
                await store.list("a")

    async def test_the_value_of_a_directory_comes_and_goes(self, store: AsyncStore) -> None:
        below = await store.put("dir/key", b"")
        first = await store.atomic_put("dir", b"", None)
        with pytest.raises(KeyNotFoundError):
            await store.delete("dir/missing")
        await store.atomic_delete("dir", first)
        assert not await store.exists("dir")
        again = await store.atomic_put("dir", b"", None)
        assert again.last_index > first.last_index
        assert list(await store.list("")) == [again, below]

    async def test_what_the_library_keeps_for_itself_stays_out_of_sight(self, stores: Stores) -> None:
        """A store at a directory above sees, as ordinary keys, what is reserved in the one below."""
        above, store = await stores.open(), await stores.open("root")
        reserved = await above.put("root/.aiolibkv/waiters/1", b"")
        pair = await store.put("key", b"")
        assert list(await store.list("")) == [pair]
        async with store.watch_tree("") as watch:
            assert await next_of(watch) == [pair]
            changed = await above.put("root/.aiolibkv/waiters/1", b"changed")
            await above.put("root/.aiolibkv/waiters/2", b"")
            await above.delete("root/.aiolibkv/waiters/2")
            later = await store.put("later", b"")
            snapshot = await next_of(watch)
            assert snapshot == [pair, later]
            assert [change.key for change in snapshot.changes] == ["later"]
        assert changed.last_index > reserved.last_index
        assert await store.delete_tree("") == 2
        assert list(await store.list("")) == []
        assert await store.delete_tree("") == 0
        assert await above.get("root/.aiolibkv/waiters/1") == changed


class Values(Suite):
    """The rules for values."""

    async def test_values_are_kept_as_they_are(self, store: AsyncStore, other: AsyncStore) -> None:
        for value in (b"", b"\x00", bytes(range(256)) * 4, "日本語".encode(), b"\n", b" ", b"null", b"\xff\xfe"):
            put = await store.put("key", value)
            assert put.value == value
            got = await other.get("key")
            assert got == put
            assert type(got.value) is bytes
            assert list(await other.list("")) == [got]
            async with other.watch("key") as watch:
                assert await next_of(watch) == got

    @pytest.mark.parametrize("kind", [bytearray, memoryview])
    async def test_a_value_may_be_any_kind_of_bytes(self, store: AsyncStore, kind: type) -> None:
        pair = await store.put("key", kind(b"value"))
        assert type(pair.value) is bytes
        assert await store.get("key") == pair == KVPair("key", b"value", pair.last_index)
        swapped = await store.atomic_put("key", kind(b"swapped"), pair)
        assert type(swapped.value) is bytes
        assert (await store.get("key")).value == b"swapped"

    async def test_a_value_does_not_change_with_the_buffer_it_came_from(self, store: AsyncStore) -> None:
        buffer: Any = bytearray(b"value")
        pair = await store.put("key", buffer)
        buffer[:] = b"other"
        assert pair.value == b"value"
        assert (await store.get("key")).value == b"value"

    @pytest.mark.parametrize("value", ["text", 1, None, ["list"]])
    async def test_anything_else_is_a_type_error(self, store: AsyncStore, value: object) -> None:
        with pytest.raises(TypeError):
            await store.put("key", value)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await store.atomic_put("key", value, None)  # type: ignore[arg-type]
        assert not await store.exists("key")

    async def test_an_empty_value_is_a_value(self, store: AsyncStore, other: AsyncStore) -> None:
        pair = await store.put("a/key", b"")
        assert await other.exists("a/key")
        assert await other.get("a/key") == pair
        assert list(await other.list("a")) == [pair]
        async with other.watch("a/key") as watch:
            assert await next_of(watch) == pair
        swapped = await store.atomic_put("a/key", b"", pair)
        await other.atomic_delete("a/key", swapped)
        assert not await store.exists("a/key")

    async def test_the_largest_value(self, store: AsyncStore, other: AsyncStore) -> None:
        largest = bytes(range(256)) * (store.capabilities.max_value_bytes // 256 + 1)
        largest = largest[: store.capabilities.max_value_bytes]
        pair = await store.put("key", largest)
        assert (await other.get("key")).value == largest
        async with other.watch("key") as watch:
            assert await next_of(watch) == pair
            swapped = await store.atomic_put("key", largest[::-1], pair)
            assert await next_of(watch) == swapped
        assert list(await other.list("")) == [swapped]
        assert swapped.value == largest[::-1]

    async def test_a_value_that_is_too_large(self, store: AsyncStore, other: AsyncStore) -> None:
        pair = await store.put("key", b"before")
        too_large = bytes(store.capabilities.max_value_bytes + 1)
        with pytest.raises(ValueTooLargeError):
            await store.put("key", too_large)
        with pytest.raises(ValueTooLargeError):
            await store.put("key", too_large, ttl=5)
        with pytest.raises(ValueTooLargeError):
            await store.atomic_put("key", too_large, pair)
        with pytest.raises(ValueError, match="bytes") as caught:
            await store.atomic_put("new", too_large, None)
        assert caught.value.maybe_applied is False  # type: ignore[attr-defined]
        assert list(await other.list("")) == [pair]
