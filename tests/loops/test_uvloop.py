"""Another event loop than asyncio's own: what it gives need not be of asyncio's classes."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from aiolibkv import AsyncStore, Discovery, LockLostError, open_store
from aiolibkv.testing.scale import scaled
from locks.services import SERVICES


async def _watch(first: AsyncStore, second: AsyncStore) -> None:
    pair = await first.put("dir/key", b"1")
    async with second.watch_tree("dir") as watch:
        assert list(await anext(watch)) == [pair]
        pair = await first.atomic_put("dir/key", b"2", pair)
        assert list(await anext(watch)) == [pair]
        await first.put("dir/key", b"3", ttl=1)
        while await anext(watch):
            pass


async def _lock(first: AsyncStore, second: AsyncStore) -> None:
    with pytest.raises(LockLostError):
        async with first.new_lock("lock", ttl=30) as held:
            pair = await first.put("guarded", b"", guard=held)
            waiting = [asyncio.create_task(store.new_lock("lock").acquire()) for store in (second, first)]
            await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            await second.delete("lock")
            await asyncio.sleep(scaled(30))
    with pytest.raises(LockLostError):
        await first.atomic_delete("guarded", pair, guard=held)


async def _register(first: AsyncStore, second: AsyncStore) -> None:
    async with Discovery(first, "services").register("web", "h:1", id="a"):
        assert [each.id for each in await Discovery(second, "services").instances("web")] == ["a"]
    assert await Discovery(second, "services").instances("web") == []


@pytest.mark.parametrize("backend", SERVICES)
def test_uvloop(backend: str) -> None:
    async def use() -> None:
        async with SERVICES[backend]() as service:
            url = service.url(service.endpoint, "loops")
            async with open_store(url) as first, open_store(url) as second:
                for work in (_watch, _lock, _register):
                    await asyncio.wait_for(work(first, second), scaled(60))
        # Where tasks have ended, their callbacks may not have.
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    uvloop.run(use())
