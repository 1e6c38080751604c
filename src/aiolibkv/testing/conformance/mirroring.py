"""Mirrors: a directory's state in the process, and what becomes of who waits for it."""

from __future__ import annotations

import asyncio

import pytest

from aiolibkv import AsyncStore, InvalidKeyError, Mirror, StoreClosedError
from aiolibkv.testing.conformance.suite import Stores, Suite, follow, next_of
from aiolibkv.testing.scale import eventually, scaled


class Mirroring(Suite):
    """What is read without awaiting."""

    async def test_a_mirror_has_the_state_from_the_start(self, store: AsyncStore, other: AsyncStore) -> None:
        pair = await other.put("config/a", b"1")
        await other.put("beside", b"")
        async with asyncio.timeout(scaled(20)), Mirror(store, "/config/") as mirror:
            assert mirror.get("config/a") == mirror.get("/config/a/") == pair
            assert mirror.get("config/b") is mirror.get("beside") is None
            assert mirror.snapshot == [pair]
            assert not mirror.is_stale
            assert mirror.stale_for == 0.0
            with pytest.raises(InvalidKeyError):
                mirror.get("config//a")

    async def test_a_mirror_of_nothing(self, store: AsyncStore) -> None:
        async with asyncio.timeout(scaled(20)), Mirror(store, "config") as mirror:
            assert mirror.snapshot == []

    async def test_wait_for_own_writes(self, store: AsyncStore, other: AsyncStore) -> None:
        async with asyncio.timeout(scaled(30)), Mirror(store, "config") as mirror:
            for number in range(5):
                pair = await (store, other)[number % 2].put("config/a", b"%d" % number)
                await mirror.wait_for(pair.last_index)
                assert mirror.get("config/a") == pair
            await mirror.wait_for(0)
            # Writes of others elsewhere may take the next indexes of a server.
            near, far = (asyncio.ensure_future(mirror.wait_for(pair.last_index + more)) for more in (1, 1000))
            await asyncio.sleep(0.3)
            assert not far.done()
            written = await other.put("config/b", b"")
            await near
            await mirror.wait_for(written.last_index)
            assert mirror.get("config/b") == written
            far.cancel()
            await asyncio.wait([far])

    async def test_wait_for_a_write_that_was_undone(self, store: AsyncStore, other: AsyncStore) -> None:
        """Also when the mirror never saw it."""
        async with asyncio.timeout(scaled(30)), Mirror(store, "config") as mirror:
            for _ in range(5):
                pair = await other.put("config/a", b"")
                await other.delete("config/a")
                await mirror.wait_for(pair.last_index)
            await eventually(lambda: not mirror.snapshot, within=10, message="it is gone in the end")

    async def test_changes_begin_with_the_present_state(self, store: AsyncStore, other: AsyncStore) -> None:
        first = await other.put("config/a", b"1")
        async with asyncio.timeout(scaled(20)), Mirror(store, "config") as mirror:
            second = await other.put("config/b", b"2")
            await mirror.wait_for(second.last_index)
            changes = mirror.changes()
            snapshot = await anext(changes)
            assert snapshot == [first, second]
            assert [(change.pair, change.previous) for change in snapshot.changes] == [(first, None), (second, None)]
            await other.delete("config/a")
            snapshot = (await follow(changes, lambda snapshot: len(snapshot) == 1))[-1]
            assert [(change.key, change.pair, change.previous) for change in snapshot.changes] == [
                ("config/a", None, first)
            ]

    async def test_changes_are_those_since_what_the_consumer_saw(self, store: AsyncStore, other: AsyncStore) -> None:
        """A consumer that was not looking is told of all that happened, at once; another one is not in its way."""
        async with asyncio.timeout(scaled(20)), Mirror(store, "config") as mirror:
            slow, quick = mirror.changes(), mirror.changes()
            assert await anext(slow) == await anext(quick) == []
            pairs = [await other.put(f"config/{name}", b"") for name in "abc"]
            await follow(quick, lambda snapshot: len(snapshot) == 3)
            await other.delete("config/b")
            await follow(quick, lambda snapshot: len(snapshot) == 2)
            snapshot = await anext(slow)
            assert [(change.pair, change.previous) for change in snapshot.changes] == [
                (pairs[0], None),
                (pairs[2], None),
            ]
            waiting = asyncio.ensure_future(_next(slow))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            last = await other.put("config/a", b"2")
            assert [change.pair for change in (await next_of(slow)).changes] == [last]

    async def test_what_waits_ends_when_the_mirror_is_left(self, store: AsyncStore) -> None:
        mirror = Mirror(store, "config")
        async with asyncio.timeout(scaled(20)), mirror:
            changes = mirror.changes()
            await anext(changes)
            waiting = [
                asyncio.ensure_future(_next(changes)),
                asyncio.ensure_future(mirror.wait_for(mirror.snapshot.last_index + 1000)),
            ]
            await asyncio.sleep(scaled(0.15))
            with pytest.raises(RuntimeError):
                await mirror.__aenter__()
        done, _ = await asyncio.wait(waiting, timeout=scaled(1))
        assert done == set(waiting)
        for each in waiting:
            assert isinstance(each.exception(), StoreClosedError)
        _refuses(mirror)
        await store.put("config/a", b"")
        async with asyncio.timeout(scaled(20)), mirror:
            assert mirror.get("config/a") is not None

    async def test_a_mirror_ends_with_its_store(self, stores: Stores) -> None:
        store = await stores.open()
        async with asyncio.timeout(scaled(20)), Mirror(store, "config") as mirror:
            waiting = asyncio.ensure_future(mirror.wait_for(mirror.snapshot.last_index + 1000))
            await asyncio.sleep(0)
            await store.close()
            with pytest.raises(StoreClosedError):
                await waiting
            _refuses(mirror)
        with pytest.raises(StoreClosedError):
            await mirror.__aenter__()

    async def test_a_mirror_that_was_not_entered(self, store: AsyncStore) -> None:
        _refuses(Mirror(store, "config"))


async def _next(changes: object) -> object:
    return await anext(changes)  # type: ignore[call-overload]


def _refuses(mirror: Mirror) -> None:
    for ask in (
        lambda: mirror.get("config/a"),
        lambda: mirror.snapshot,
        lambda: mirror.is_stale,
        lambda: mirror.stale_for,
    ):
        with pytest.raises(StoreClosedError):
            ask()
