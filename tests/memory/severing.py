"""Memory stores that can be cut off from their space, as from a server."""

from __future__ import annotations

import asyncio
from typing import Any

from aiolibkv import AsyncStore, Config
from aiolibkv.backends.memory import MemoryStore
from aiolibkv.backends.memory.space import Space
from aiolibkv.store import Feed
from aiolibkv.testing.conformance import CutOff


class SeverableStore(MemoryStore):
    """Is not answered any more when ``cut`` is set."""

    cut: asyncio.Event

    async def _reach(self) -> Space:
        if self.cut.is_set():
            await asyncio.get_running_loop().create_future()
        return await super()._reach()

    async def _follow(self, feed: Feed) -> None:
        following = asyncio.ensure_future(super()._follow(feed))
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
        store = SeverableStore([space], Config(**overrides, prefix=prefix or ""))
        store.cut = cut
        return store

    return CutOff(make, cut.set)
