"""What a lock makes of its lease: the ttl agreed upon, renewals, and leases that were not renewed in time."""

from __future__ import annotations

import asyncio
import logging

import pytest

from aiolibkv import AsyncStore, HeldLock
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.errors import NotReachableError
from aiolibkv.store import Call, Lease, Store
from aiolibkv.testing.scale import scaled
from stores import MemoryStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


@pytest.mark.parametrize(
    ("asked", "told"), [(0.3, ["memory: the server keeps locks of 0.3 s, such as 'lock', for 1 s"]), (5, [])]
)
async def test_a_ttl_that_is_not_what_was_asked_for_is_told_once(
    caplog: pytest.LogCaptureFixture, asked: float, told: list[str]
) -> None:
    caplog.set_level(logging.INFO, "aiolibkv")
    async with MemoryStore() as store:
        lock = store.new_lock("lock", ttl=asked)
        for _ in range(3):
            async with lock as held:
                assert held.ttl == max(asked, 1)
    assert caplog.messages == told


class HardToReach(MemoryDriver):
    """Renewals fail, but for one."""

    failing = 0.0
    """Seconds for which they fail after the first one; then one succeeds."""
    first: float | None = None
    renewed: float | None = None

    async def renew(self, call: Call, lease: Lease) -> bool:
        now = asyncio.get_running_loop().time()
        self.first = self.first or now
        if now < self.first + self.failing or self.renewed is not None:
            raise NotReachableError
        self.renewed = now
        return await super().renew(call, lease)


async def test_a_lock_counts_from_the_renewal_that_succeeded() -> None:
    """However often it was tried before: two outages that are short enough each cost nothing."""
    driver = HardToReach()
    driver.failing = scaled(1)
    async with Store(driver) as store:
        held = await store.new_lock("lock", ttl=scaled(4)).acquire()
        await asyncio.wait_for(held.wait_lost(), scaled(20))
        assert driver.renewed is not None
        margin = max(0.5, held.ttl / 10)
        assert asyncio.get_running_loop().time() >= driver.renewed + held.ttl - margin


class NotRenewed(MemoryDriver):
    """Renewals fail, as if this process had stood still; the server has not noticed yet."""

    is_failing = True

    async def renew(self, call: Call, lease: Lease) -> bool:
        if self.is_failing:
            raise NotReachableError
        return await super().renew(call, lease)


@pytest.mark.parametrize("how", ["acquire", "async with"])
async def test_what_is_acquired_is_held(how: str) -> None:
    """A waiter whose session was not renewed for too long begins again under a new one."""

    async def work(store: AsyncStore) -> bool:
        lock = store.new_lock("lock", ttl=1)
        if how == "acquire":
            held: HeldLock = await lock.acquire()
            return held.is_held
        async with lock as held:
            return held.is_held

    driver = NotRenewed(["shared"])
    async with MemoryStore(["shared"]) as other, Store(driver) as store:
        async with other.new_lock("lock", ttl=1000):
            task = asyncio.ensure_future(work(store))
            # Beyond the margin of its lease, not beyond its end.
            await asyncio.sleep(0.7)
            driver.is_failing = False
        assert await asyncio.wait_for(task, scaled(10))
