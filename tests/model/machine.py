"""A state machine that does the same to a store and to a dict, and compares them after every step."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aiolibkv import KeyExistsError, KeyModifiedError, KeyNotFoundError, KVPair, Snapshot, StoreError, Watch
from aiolibkv.testing.conformance import StoreFactory
from aiolibkv.testing.scale import scaled

T = TypeVar("T")

_SEGMENTS = st.sampled_from(["a", "b", "ab", "a b", "é", "%"])
_KEYS = st.lists(_SEGMENTS, min_size=1, max_size=3).map("/".join)
_DIRECTORIES = st.lists(_SEGMENTS, max_size=2).map("/".join)
_VALUES = st.sampled_from([b"", b"same", b"other"])

_NOTHING = object()
"""What a watch has given before its first item."""


async def _arrive(watch: Watch[Any], seen: object, current: object) -> object:
    """Take a watch's items until it is at the current state, and return that.

    Raises:
        AssertionError: it does not get there, or gives the same state twice.
    """
    async with asyncio.timeout(scaled(10)):
        while seen != current:
            item = await anext(watch)
            if isinstance(item, Snapshot):
                assert item.changes or seen is _NOTHING
                item = [*item]
            assert item != seen
            seen = item
    return seen


class StoreMachine(RuleBasedStateMachine):
    """Two stores on the same data against a dict. Subclasses set the factory.

    Attributes:
        store_factory: makes the stores; every run works at a prefix of its own.
    """

    store_factory: ClassVar[StoreFactory]

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        prefix = f"model/{uuid4().hex}"
        factory = type(self).store_factory
        self._stores = [self._run(factory(prefix=prefix).__aenter__()) for _ in range(2)]
        self._model: dict[str, KVPair] = {}
        self._past: list[KVPair] = []
        self._seen: dict[str, object] = {}
        self._watches: dict[str, Watch[KVPair | None]] = {}
        self._trees: dict[str, Watch[Any]] = {}

    def teardown(self) -> None:
        """Remove what was written and close the stores."""
        self._run(self._stores[0].delete_tree(""))
        for store in self._stores:
            self._run(store.close())
        self._runner.close()

    @initialize(key=_KEYS, directory=_DIRECTORIES)
    def watch(self, key: str, directory: str) -> None:
        """Watch one key and one directory from the beginning."""
        self._watch(key, directory)

    @rule(key=_KEYS, directory=_DIRECTORIES)
    def watch_more(self, key: str, directory: str) -> None:
        """Watch another key and directory."""
        if len(self._watches) < 4:
            self._watch(key, directory)

    @rule(number=st.integers(0, 1), key=_KEYS, value=_VALUES)
    def put(self, number: int, key: str, value: bytes) -> None:
        """Write a key."""
        self._wrote(self._run(self._stores[number].put(key, value)), key, value)

    @rule(number=st.integers(0, 1), key=_KEYS)
    def delete(self, number: int, key: str) -> None:
        """Delete a key."""
        self._expect(self._stores[number].delete(key), None if key in self._model else KeyNotFoundError)
        self._model.pop(key, None)

    @rule(number=st.integers(0, 1), key=_KEYS, value=_VALUES)
    def create(self, number: int, key: str, value: bytes) -> None:
        """Create a key."""
        call = self._stores[number].atomic_put(key, value, None)
        pair = self._expect(call, KeyExistsError if key in self._model else None)
        if pair is not None:
            self._wrote(pair, key, value)

    @rule(number=st.integers(0, 1), data=st.data(), value=_VALUES)
    def swap(self, number: int, data: st.DataObject, value: bytes) -> None:
        """Swap a key against any pair that there ever was."""
        if self._past:
            previous = data.draw(st.sampled_from(self._past))
            is_current = self._model.get(previous.key) == previous
            call = self._stores[number].atomic_put(previous.key, value, previous)
            pair = self._expect(call, None if is_current else KeyModifiedError)
            if pair is not None:
                self._wrote(pair, previous.key, value)

    @rule(number=st.integers(0, 1), data=st.data())
    def atomic_delete(self, number: int, data: st.DataObject) -> None:
        """Delete a key against any pair that there ever was."""
        if self._past:
            previous = data.draw(st.sampled_from(self._past))
            current = self._model.get(previous.key)
            refusal = KeyNotFoundError if current is None else KeyModifiedError
            call = self._stores[number].atomic_delete(previous.key, previous)
            self._expect(call, None if current == previous else refusal)
            if current == previous:
                del self._model[previous.key]

    @rule(number=st.integers(0, 1), directory=_DIRECTORIES)
    def delete_tree(self, number: int, directory: str) -> None:
        """Delete what is below a directory."""
        below = self._below(directory)
        known = below or not directory or directory in self._model
        count = self._expect(self._stores[number].delete_tree(directory), None if known else KeyNotFoundError)
        assert count == (len(below) if known else None)
        for pair in below:
            del self._model[pair.key]

    @rule(number=st.integers(0, 1), key=_KEYS)
    def read(self, number: int, key: str) -> None:
        """Read a key."""
        pair = self._expect(self._stores[number].get(key), None if key in self._model else KeyNotFoundError)
        assert pair == self._model.get(key)
        assert self._run(self._stores[number].exists(key)) is (key in self._model)

    @rule(number=st.integers(0, 1), directory=_DIRECTORIES)
    def list(self, number: int, directory: str) -> None:
        """List a directory."""
        below = self._below(directory)
        known = below or not directory or directory in self._model
        pairs = self._expect(self._stores[number].list(directory), None if known else KeyNotFoundError)
        assert pairs is None or [*pairs] == below

    @invariant()
    def everything_is_listed(self) -> None:
        """Compare the whole store."""
        for store in self._stores:
            assert [*self._run(store.list(""))] == self._below("")

    @invariant()
    def watches_arrive_at_the_current_state(self) -> None:
        """Follow the watches, each of which gives the current state if it has not already."""
        for key, watch in self._watches.items():
            self._seen[f"key {key}"] = self._run(
                _arrive(watch, self._seen.get(f"key {key}", _NOTHING), self._model.get(key))
            )
        for directory, tree in self._trees.items():
            self._seen[f"tree {directory}"] = self._run(
                _arrive(tree, self._seen.get(f"tree {directory}", _NOTHING), self._below(directory))
            )

    def _watch(self, key: str, directory: str) -> None:
        self._watches.setdefault(key, self._stores[0].watch(key))
        self._trees.setdefault(directory, self._stores[1].watch_tree(directory))

    def _wrote(self, pair: KVPair, key: str, value: bytes) -> None:
        assert pair == KVPair(key, value, pair.last_index)
        assert all(pair.last_index > older.last_index for older in self._past if older.key == key)
        self._model[key] = pair
        self._past.append(pair)

    def _below(self, directory: str) -> builtins.list[KVPair]:
        start = f"{directory}/" if directory else ""
        return [self._model[key] for key in sorted(self._model) if key.startswith(start)]

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)

    def _expect(self, call: Coroutine[Any, Any, T], refusal: type[StoreError] | None) -> T | None:
        if refusal is None:
            return self._run(call)
        with pytest.raises(refusal):
            self._run(call)
        return None
