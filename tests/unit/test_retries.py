"""What waits for a server that breaks each write at once, as a proxy with nobody behind it does, does not flood it."""

import asyncio
from typing import Any

import pytest

from aiolibkv import Candidate, Config, Discovery, NotReachableError
from aiolibkv.backends.memory.space import Space
from aiolibkv.testing.scale import eventually
from unit.faulty import FaultyDriver, FaultyStore

pytestmark = pytest.mark.asyncio

WATCHED_FOR = 0.5
MOST = 12
"""Requests in that time for one who waits: the pauses grow from 0.05 s."""


class Breaking(FaultyDriver):
    """Takes writes and grants, and breaks the connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.breaks = False
        self.broken = 0

    async def _reach(self) -> Space:
        if self.breaks:
            self.broken += 1
            raise NotReachableError("the connection broke")
        return await super()._reach()


async def _broken_meanwhile(driver: Breaking) -> int:
    before = driver.broken
    await asyncio.sleep(WATCHED_FOR)
    return driver.broken - before


async def test_nothing_floods_a_server_that_breaks_what_it_is_sent() -> None:
    async with FaultyStore([], Config(request_timeout=1), driver=Breaking) as store:
        driver = store.driver
        assert isinstance(driver, Breaking)
        await store.put("alive", b"", ttl=1.5, keep_alive=True)
        candidate = Candidate(store, "leader", node="a")
        async with Discovery(store, "services").register("web", "a", id="1", ttl=60), store.new_lock("held"):
            driver.breaks = True
            waiting: list[asyncio.Future[Any]] = [
                asyncio.ensure_future(store.new_lock(f"lock/{number}").acquire()) for number in range(3)
            ]
            waiting.append(asyncio.ensure_future(candidate.run(lambda _: asyncio.sleep(0))))
            assert 0 < await _broken_meanwhile(driver) <= MOST * (len(waiting) + 2)
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
        # What is given back is given back once the server takes it; until then, no faster.
        assert await _broken_meanwhile(driver) <= MOST * (len(waiting) + 2)
        driver.breaks = False
        await eventually(lambda: _is_there(store, "alive"), within=10, message="it is alive again")


async def _is_there(store: FaultyStore, key: str) -> bool:
    return await store.exists(key)
