"""The rules for keys and values, broken."""

# ruff: noqa: ARG005 - what is patched keeps its signature

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import pytest

import aiolibkv.keys
import aiolibkv.store.paths
import aiolibkv.store.watch
from aiolibkv import (
    InvalidKeyError,
    KVPair,
)
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.memory.space import Space
from aiolibkv.store import Store
from aiolibkv.testing.conformance.keys import Keys, Values
from mutants.broken.registry import mutant


@mutant(Values)
def value_is_kept_by_reference(patch: pytest.MonkeyPatch) -> None:
    """A bytearray is stored itself, not its bytes."""
    patch.setattr(Store, "_value", lambda self, value, path: value)


@mutant(Values)
def buffer_is_stored_as_it_is_later(patch: pytest.MonkeyPatch) -> None:
    """The bytes of a buffer are taken when it is read."""
    written: WeakKeyDictionary[Any, dict[bytes, bytearray]] = WeakKeyDictionary()
    value_of, get = Store._value, MemoryDriver.get

    def remember(self: Store[Any], value: Any, path: str) -> bytes:
        data = value_of(self, value, path)
        if isinstance(value, bytearray):
            written.setdefault(self.driver, {})[data] = value
        return data

    async def later(self: MemoryDriver, *args: Any, **settings: Any) -> KVPair | None:
        pair = await get(self, *args, **settings)
        if pair is None or pair.value not in written.get(self, {}):
            return pair
        return KVPair(pair.key, bytes(written[self][pair.value]), pair.last_index)

    patch.setattr(Store, "_value", remember)
    patch.setattr(MemoryDriver, "get", later)


@mutant(Values)
def empty_value_is_absent(patch: pytest.MonkeyPatch) -> None:
    """A key with an empty value is not found."""
    get = MemoryDriver.get

    async def absent(self: MemoryDriver, *args: Any, **settings: Any) -> KVPair | None:
        pair = await get(self, *args, **settings)
        return pair if pair and pair.value else None

    patch.setattr(MemoryDriver, "get", absent)


@mutant(Values)
def text_is_encoded(patch: pytest.MonkeyPatch) -> None:
    """A str is taken for a value."""
    value_of = Store._value
    patch.setattr(
        Store,
        "_value",
        lambda self, value, path: value_of(self, value.encode() if isinstance(value, str) else value, path),
    )


@mutant(Values)
def size_is_not_checked(patch: pytest.MonkeyPatch) -> None:
    """A value may have any size."""
    patch.setattr(Store, "_value", lambda self, value, path: bytes(memoryview(value)))


@mutant(Values)
def size_is_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """The largest value is refused."""
    value_of = Store._value

    def strict(self: Store[Any], value: Any, path: str) -> bytes:
        data = value_of(self, value, path)
        value_of(self, data + b"x", path)
        return data

    patch.setattr(Store, "_value", strict)


@mutant(Keys)
def unprintable_keys_are_taken(patch: pytest.MonkeyPatch) -> None:
    """A no-break space may be in a key."""
    normalize = aiolibkv.keys.normalize_key

    def lenient(key: str) -> str:
        return normalize(key.replace("\u00a0", "_"))

    patch.setattr(aiolibkv.store.paths, "normalize_key", lenient)


@mutant(Keys)
def keys_of_513_bytes_are_taken(patch: pytest.MonkeyPatch) -> None:
    """The longest key is one byte longer."""
    patch.setattr(aiolibkv.keys, "MAX_KEY_BYTES", 513)


@mutant(Keys)
def key_length_counts_characters(patch: pytest.MonkeyPatch) -> None:
    """A key of 257 bytes that are not ASCII is refused, as by one who counts them twice."""
    normalize = aiolibkv.keys.normalize_key

    def strict(key: str) -> str:
        name = normalize(key)
        if len(name.encode()) > 512 - (len(name.encode()) - len(name)):
            raise InvalidKeyError(key=key)
        return name

    patch.setattr(aiolibkv.store.paths, "normalize_key", strict)


@mutant(Keys)
def keys_are_unquoted(patch: pytest.MonkeyPatch) -> None:
    """A key goes through a URL and back without being escaped."""
    path_of = Store._path
    patch.setattr(Store, "_path", lambda self, key: path_of(self, key).replace("%2F", "/"))


@mutant(Keys)
def keys_are_normalised(patch: pytest.MonkeyPatch) -> None:
    """Two spellings of the same letter are one key."""
    path_of = Store._path
    patch.setattr(Store, "_path", lambda self, key: path_of(self, key).replace("e\u0301", "é"))


@mutant(Keys)
def keys_come_back_as_they_went_in(patch: pytest.MonkeyPatch) -> None:
    """A put gives the key with the slashes of the caller."""
    put = Store.put

    async def verbatim(self: Store[Any], key: str, value: bytes, **settings: Any) -> KVPair:
        pair = await put(self, key, value, **settings)
        return KVPair(key, pair.value, pair.last_index)

    patch.setattr(Store, "put", verbatim)


@mutant(Keys)
def key_below_a_key_replaces_it(patch: pytest.MonkeyPatch) -> None:
    """A key is a value or a directory, not both."""
    put = Space.put

    def exclusive(self: Space, path: str, value: bytes, expected: Any, lease: Any, guard: Any) -> int:
        parent = path.rpartition("/")[0]
        if parent and self.get(parent) is not None:
            self.delete(parent, None, None)
        return put(self, path, value, expected, lease, guard)

    patch.setattr(Space, "put", exclusive)
