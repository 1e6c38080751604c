"""Mirrors of a watch that is cut off, refused, or sees a server without its data."""

from __future__ import annotations

import asyncio
from typing import Any, Self, cast

import pytest

from aiolibkv import AccessDeniedError, AsyncStore, KVPair, Mirror, Snapshot
from aiolibkv.store import Feed
from aiolibkv.testing.scale import scaled
from unit.faulty import FaultyDriver, FaultyStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


class _Watch:
    """A watch, and the store that has it, of one state; it is cut off and refused on demand."""

    def __init__(self) -> None:
        self.is_stale = False
        self.refusal: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._items = [Snapshot([KVPair("config/a", b"", 1)], last_index=1)]

    def watch_tree(self, directory: str) -> _Watch:
        assert directory == "config"
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Snapshot:
        return self._items.pop() if self._items else await asyncio.shield(self.refusal)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        self.refusal.cancel()


async def test_how_long_a_mirror_is_stale() -> None:
    watch = _Watch()
    async with Mirror(cast("AsyncStore", watch), "config") as mirror:
        assert (mirror.is_stale, mirror.stale_for) == (False, 0.0)
        watch.is_stale = True
        await asyncio.sleep(0.6)
        assert mirror.is_stale
        assert mirror.stale_for > 0.3, "it counts from when nobody asked"
        assert mirror.get("config/a") is not None
        watch.is_stale = False
        assert mirror.stale_for == 0.0
        watch.is_stale = True
        assert mirror.stale_for < 0.3


async def test_a_refusal_is_told_by_whatever_is_asked() -> None:
    watch = _Watch()
    async with Mirror(cast("AsyncStore", watch), "config") as mirror:
        waiting = asyncio.ensure_future(mirror.wait_for(2))
        await asyncio.sleep(0)
        watch.refusal.set_exception(AccessDeniedError())
        with pytest.raises(AccessDeniedError):
            await waiting
        for _ in range(2):
            with pytest.raises(AccessDeniedError):
                mirror.get("config/a")
            with pytest.raises(AccessDeniedError):
                _ = mirror.stale_for
            with pytest.raises(AccessDeniedError):
                await anext(mirror.changes())


class _Scripted(FaultyDriver):
    """Watches begin with ``state``, and have what is told to ``feeds``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state: tuple[list[KVPair], int] = [], 0
        self.feeds: list[Feed] = []

    async def follow(self, feed: Feed) -> None:
        self.feeds.append(feed)
        feed.reset(*self.state)
        await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("begins", ["cut off", "emptied", "at once"])
async def test_own_writes_are_waited_for_when_the_server_counts_anew(begins: str) -> None:
    async with FaultyStore(driver=_Scripted) as store, asyncio.timeout(scaled(10)):
        driver = cast("_Scripted", store.driver)
        driver.state = [KVPair("config/a", b"old", 30)], 30
        async with Mirror(store, "config") as mirror:
            await mirror.wait_for(30)
            feed = driver.feeds[0]
            if begins == "cut off":
                feed.cut_off()
            else:
                driver.state = ([], 3) if begins == "emptied" else ([KVPair("config/a", b"new", 4)], 4)
                feed.reset(*driver.state)
                await anext(mirror.changes())
                await asyncio.sleep(0)
            for index in range(5, 8):
                driver.state = [KVPair("config/a", b"%d" % index, index)], index
                waiting = asyncio.ensure_future(mirror.wait_for(index))
                await asyncio.sleep(0.01)
                assert not waiting.done(), index
                feed.reset(*driver.state)
                await waiting
                assert mirror.snapshot == driver.state[0]


async def test_a_mirror_that_missed_nothing_reflects_what_was_undone() -> None:
    """After an outage its watch brings nothing: what it reads does."""
    async with FaultyStore(driver=_Scripted) as store, asyncio.timeout(scaled(10)):
        driver = cast("_Scripted", store.driver)
        driver.state = [KVPair("config/a", b"", 30)], 30
        async with Mirror(store, "config") as mirror:
            driver.feeds[0].cut_off()
            driver.state = driver.state[0], 32
            await mirror.wait_for(31)
            await mirror.wait_for(30)
