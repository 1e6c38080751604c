"""A namespace is a store: the suite runs on it, and on one of a namespace."""

from __future__ import annotations

from typing import Any, Self
from uuid import uuid4

import pytest

from aiolibkv import AsyncStore, Config, Namespace, new_store
from aiolibkv.testing.conformance import ConformanceSuite, StoreFactory
from aiolibkv.testing.scale import eventually
from stores import MemoryStore


class InNamespace(Namespace):
    """A namespace with a store of its own, for tests that open and close what they use."""

    def __init__(self, store: AsyncStore, directory: str, *, is_nested: bool) -> None:
        super().__init__(Namespace(store, "outer/most") if is_nested else store, directory)
        self._own = store

    async def open(self) -> Self:
        await self._own.open()
        return await super().open()

    async def close(self) -> None:
        await super().close()
        await self._own.close()


def _factory(space: str, *, is_nested: bool) -> StoreFactory:
    def make(*, prefix: str | None = None, **overrides: Any) -> AsyncStore:
        store = new_store("memory", [space], Config(**overrides))
        return InNamespace(store, prefix or "", is_nested=is_nested)

    return make


@pytest.mark.parametrize("nested", [False, True], ids=["namespace", "nested"])
class TestNamespace(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def store_factory(self, nested: bool) -> StoreFactory:  # noqa: FBT001 - a parameter of the test
        return _factory(uuid4().hex, is_nested=nested)

    test_every_other_key_works = test_the_longest_key_below_a_prefix = None  # type: ignore[assignment]
    """The longest key is that of the store, the directory included."""
    test_what_is_reserved_is_not_seen = None  # type: ignore[assignment]
    test_trying_does_not_wait_behind_one_who_waits_for_others = None  # type: ignore[assignment]
    """What the library keeps for locks is below the store's root, which the observer of these tests does not see."""
    test_each_call_is_told_once = test_locks_are_told = None  # type: ignore[assignment]
    """What is told is the store's: its calls, with its keys."""
    test_cancelling_close = None  # type: ignore[assignment]
    """Here the namespace and its store are closed by two calls, of which the first may be cancelled."""


@pytest.mark.asyncio
async def test_a_watch_that_nobody_refers_to_is_released() -> None:
    async with MemoryStore() as store:
        async for _ in Namespace(store, "app/eu").watch("key"):
            break
        await eventually(lambda: not store._watches._feeds, within=5, message="it is released")
