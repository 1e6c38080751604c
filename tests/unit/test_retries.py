"""What waits for a server that answers each request at once, but never as it should, does not flood it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from aiolibkv import Candidate, Config, Discovery, NotReachableError, StoreError
from aiolibkv.store import Call, Feed
from aiolibkv.testing.scale import eventually
from unit.faulty import WRITES, FaultyDriver, FaultyStore

pytestmark = pytest.mark.asyncio
T = TypeVar("T")

WATCHED_FOR = 0.5
MOST = 12
"""Requests in that time for one who waits: the pauses grow from 0.05 s."""


class Breaking(FaultyDriver):
    """Fails everything in one way, and leaves it open whether writes were applied if nothing refuses them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failure: type[StoreError] | None = None
        self.broken = 0

    async def request(self, name: str, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        if name in WRITES and self.failure is NotReachableError:
            call.writing()
        self._break()
        return await super().request(name, call, work)

    async def following(self, feed: Feed, follow: Callable[[], Awaitable[None]]) -> None:
        self._break()
        await super().following(feed, follow)

    def _break(self) -> None:
        if self.failure is not None:
            self.broken += 1
            raise self.failure("the connection broke")


async def _broken_meanwhile(driver: Breaking) -> int:
    before = driver.broken
    await asyncio.sleep(WATCHED_FOR)
    return driver.broken - before


@pytest.mark.parametrize("failure", [NotReachableError, StoreError])
async def test_nothing_floods_a_server_that_breaks_what_it_is_sent(failure: type[StoreError]) -> None:
    async with FaultyStore([], Config(request_timeout=1), driver=Breaking) as store:
        driver = store.driver
        assert isinstance(driver, Breaking)
        await store.put("alive", b"", ttl=1.5, keep_alive=True)
        candidate = Candidate(store, "leader", node="a")
        async with Discovery(store, "services").register("web", "a", id="1", ttl=60), store.new_lock("held"):
            driver.failure = failure
            waiting: list[asyncio.Future[Any]] = [
                asyncio.ensure_future(store.new_lock(f"lock/{number}").acquire()) for number in range(3)
            ]
            waiting.append(asyncio.ensure_future(candidate.run(lambda _: asyncio.sleep(0))))
            assert 0 < await _broken_meanwhile(driver) <= MOST * (len(waiting) + 2)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        # What is given back is given back once the server takes it; until then, no faster.
        assert await _broken_meanwhile(driver) <= MOST * (len(waiting) + 2)
        driver.failure = None
        await eventually(lambda: _is_there(store, "alive"), within=10, message="it is alive again")


async def _is_there(store: FaultyStore, key: str) -> bool:
    return await store.exists(key)
