"""The driver that fails on demand, as an application's own tests use it; wrapped, a driver still passes the suite."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from aiolibkv import AccessDeniedError, AsyncStore, Config, KeyNotFoundError, NotReachableError, Put, StoreError
from aiolibkv.store import Store
from aiolibkv.testing.conformance import StoreFactory
from aiolibkv.testing.conformance.calls import Calls, CompareAndSwap
from aiolibkv.testing.conformance.committing import Committing
from aiolibkv.testing.conformance.directories import DeletingTrees, Directories
from aiolibkv.testing.conformance.listing import Listing
from aiolibkv.testing.conformance.locking import Guarding, Locking
from aiolibkv.testing.conformance.watching import Watching
from aiolibkv.testing.faults import FaultyDriver
from aiolibkv.testing.scale import eventually, scaled

pytestmark = pytest.mark.asyncio


class TestWrapped(Guarding, Locking, Watching, Committing, Listing, DeletingTrees, Directories, CompareAndSwap, Calls):
    """A wrapped driver does what the one inside does."""

    @pytest.fixture
    def store_factory(self) -> StoreFactory:
        space = uuid4().hex

        def make(*, prefix: str | None = None, **overrides: Any) -> AsyncStore:
            config = Config(prefix=prefix or "", **overrides)
            return Store(FaultyDriver.around(f"memory://{space}", config))

        return make


async def test_an_outage_and_its_end() -> None:
    driver = FaultyDriver.around("memory://", Config(request_timeout=scaled(0.2)))
    async with Store(driver) as store:
        await store.put("key", b"1")
        async with store.watch("key") as watch:
            await anext(watch)
            driver.is_down = True
            await eventually(lambda: watch.is_stale, within=2, message="the watch is stale")
            with pytest.raises(NotReachableError, match="connection refused") as caught:
                await store.put("key", b"2")
            assert not caught.value.maybe_applied
            driver.is_down = False
            pair = await store.put("key", b"3")
            assert await asyncio.wait_for(anext(watch), scaled(5)) == pair
            assert not watch.is_stale


async def test_a_refusal_and_a_lost_answer() -> None:
    driver = FaultyDriver.around("memory://")
    async with Store(driver) as store:
        driver.fail("get", AccessDeniedError("no"))
        with pytest.raises(AccessDeniedError):
            await store.get("key")
        with pytest.raises(KeyNotFoundError):
            await store.get("key")
        driver.lose_answer("commit")
        with pytest.raises(StoreError) as caught:
            await store.commit(Put("key", b"applied"))
        assert caught.value.maybe_applied
        assert (await store.get("key")).value == b"applied"
        driver.requests.clear()
        driver.delay = 0.01
        await store.delete("key")
        assert driver.requests == ["delete"]


async def test_entering_waits_for_a_server_that_is_down() -> None:
    driver = FaultyDriver.around("memory://", Config(connection_timeout=scaled(5)))
    driver.is_down = True
    store = Store(driver)
    entering = asyncio.ensure_future(store.open())
    await eventually(lambda: len(driver.requests) > 2, within=5, message="it tries")
    driver.is_down = False
    await entering
    await store.close()
