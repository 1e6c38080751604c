"""How the shared watch behaves when a backend stumbles."""

from __future__ import annotations

import asyncio

import pytest

from aiolibkv import AccessDeniedError, NotReachableError, StoreError
from aiolibkv.testing.scale import eventually
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
        denied = AccessDeniedError("no")
        denied.__cause__ = PermissionError()
        store.faults["follow"].append(denied)
        watch = store.watch("k")
        for _ in range(2):
            with pytest.raises(AccessDeniedError, match=r"no \(memory, key 'k'\)") as caught:
                await anext(watch)
            assert caught.value.__cause__ is denied.__cause__


async def test_a_defect_is_told_to_the_consumer_and_the_loop() -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with FaultyStore() as store:
        store.faults["follow"].append(LookupError("defect"))
        with pytest.raises(StoreError, match=r"the watch failed \(memory, key 'k'\)") as caught:
            await anext(store.watch("k"))
    assert isinstance(caught.value.__cause__, LookupError)
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


async def test_one_iteration_of_a_scan_at_a_time() -> None:
    async with FaultyStore() as store:
        pair = await store.put("k", b"v")
        scan = store.scan("")
        reading = asyncio.ensure_future(anext(scan))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await anext(scan)
        assert await reading == pair


async def test_a_watch_that_is_given_up_in_another_thread_is_released() -> None:
    """As by a garbage collection that happens there."""
    asyncio.get_running_loop().set_debug(True)
    async with FaultyStore() as store:
        watches = [store.watch("k")]
        await anext(watches[0])
        await asyncio.to_thread(watches.clear)
        await eventually(lambda: not store.space.feeds, within=2, message="it is released")
