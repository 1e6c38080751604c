"""Memory stores that can be cut off from their space, as from a server."""

from __future__ import annotations

import asyncio
from typing import Any

from aiolibkv import AsyncStore, Config
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.memory.space import Space
from aiolibkv.store import UNSEEN, Feed, Store, Unseen
from aiolibkv.testing.conformance import CutOff
from aiolibkv.types import KVPair


class SeverableDriver(MemoryDriver):
    """Is not answered any more when ``cut`` is set."""

    cut: asyncio.Event

    def read_at_once(self, path: str) -> KVPair | Unseen | None:
        return UNSEEN if self.cut.is_set() else super().read_at_once(path)

    async def _reach(self) -> Space:
        if self.cut.is_set():
            await asyncio.get_running_loop().create_future()
        return await super()._reach()

    async def follow(self, feed: Feed) -> None:
        following = asyncio.ensure_future(super().follow(feed))
        try:
            await self.cut.wait()
        finally:
            following.cancel()
            await asyncio.wait({following})
        await asyncio.get_running_loop().create_future()


def severable(space: str) -> CutOff:
    """Make stores of a space that can be cut off from it."""
    cut = asyncio.Event()

    def make(*, prefix: str | None = None, **overrides: Any) -> AsyncStore:
        driver = SeverableDriver([space], Config(**overrides, prefix=prefix or ""))
        driver.cut = cut
        return Store(driver)

    return CutOff(make, cut.set)
