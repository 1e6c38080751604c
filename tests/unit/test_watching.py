"""How the shared watch behaves when a backend stumbles."""

from __future__ import annotations

import asyncio

import pytest

from aiolibkv import AccessDeniedError, NotReachableError, StoreError
from unit.faulty import FaultyStore

pytestmark = pytest.mark.asyncio


async def test_an_outage_is_outlasted() -> None:
    async with FaultyStore() as store:
        await store.put("k", b"v")
        store.faults["follow"].extend([NotReachableError(), StoreError("odd")])
        watch = store.watch("k")
        pair = await anext(watch)
        assert pair is not None
        assert pair.value == b"v"
        assert store.calls.count("follow") == 3
        assert not watch.is_stale


async def test_is_stale_tells_of_an_outage() -> None:
    async with FaultyStore() as store:
        store.faults["follow"].extend([NotReachableError()] * 1000)
        async with store.watch("k") as watch:
            while "follow" not in store.calls:
                await asyncio.sleep(0)
            assert watch.is_stale
            store.faults["follow"].clear()
            assert await anext(watch) is None
            assert not watch.is_stale


async def test_access_denied_ends_the_watch() -> None:
    async with FaultyStore() as store:
        store.faults["follow"].append(AccessDeniedError("no"))
        watch = store.watch("k")
        for _ in range(2):
            with pytest.raises(AccessDeniedError, match="key 'k'"):
                await anext(watch)


async def test_a_defect_is_told_to_the_consumer_and_the_loop() -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with FaultyStore() as store:
        store.faults["follow"].append(LookupError("defect"))
        with pytest.raises(StoreError, match="the watch failed"):
            await anext(store.watch("k"))
    assert isinstance(told[0]["exception"], LookupError)


async def test_one_iteration_at_a_time() -> None:
    async with FaultyStore() as store, store.watch("k") as watch:
        assert await anext(watch) is None
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await anext(watch)
        await store.put("k", b"v")
        pair = await waiting
        assert pair is not None
        assert pair.value == b"v"
