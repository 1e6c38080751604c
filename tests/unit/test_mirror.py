"""Mirrors of a watch that is cut off, or refused."""

from __future__ import annotations

import asyncio
from typing import Self, cast

import pytest

from aiolibkv import AccessDeniedError, AsyncStore, KVPair, Mirror, Snapshot

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
