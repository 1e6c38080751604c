"""What the index of a snapshot says: everything up to it is in there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aiolibkv import Snapshot, Watch
from aiolibkv.backends.zookeeper import watching
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ZooKeeperServer
from stores import ZooKeeperStore
from zookeeper.conftest import MakeStore, OneShotStore, make_store


@asynccontextmanager
async def _watch_that_reads_a_change(
    server: ZooKeeperServer, make: MakeStore, prefix: str, kind: type[ZooKeeperStore]
) -> AsyncIterator[tuple[Watch[Snapshot], ZooKeeperStore, FaultProxy]]:
    """Watch two keys of "dir" up to where the first one was changed, and the server is asked for it and mute."""
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make() as other,
        make_store([proxy.endpoint], prefix=prefix, kind=kind) as store,
    ):
        await other.put("dir/first", b"")
        await other.put("dir/second", b"")
        async with store.watch_tree("dir") as watch:
            assert len(await anext(watch)) == 2
            proxy.blackhole(to_client=False)
            with proxy.counting() as counts:
                await other.put("dir/first", b"new")
                await eventually(lambda: counts.requests, within=5, message="it is told, and read")
            yield watch, other, proxy


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [ZooKeeperStore, OneShotStore])
async def test_what_changes_while_a_change_is_read(
    server: ZooKeeperServer, make: MakeStore, prefix: str, kind: type[ZooKeeperStore]
) -> None:
    """The server knows the second one when it answers for the first one."""
    async with _watch_that_reads_a_change(server, make, prefix, kind) as (watch, other, proxy):
        with proxy.counting() as counts:
            second = await other.put("dir/second", b"new")
            await eventually(lambda: counts.answered_bytes, within=5, message="it is told")
        proxy.heal()
        async with asyncio.timeout(scaled(10)):
            async for snapshot in watch:
                if snapshot.last_index >= second.last_index:
                    break
        assert snapshot["dir/second"] == second


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [ZooKeeperStore, OneShotStore])
async def test_what_changes_while_a_watch_begins(
    server: ZooKeeperServer, make: MakeStore, prefix: str, kind: type[ZooKeeperStore]
) -> None:
    """The names below the directory are read already, what they stand for is not yet."""
    held = asyncio.Event()
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make() as other,
        make_store([proxy.endpoint], prefix=prefix, kind=kind) as store,
    ):
        await other.put("dir/first", b"")
        watch = store.watch_tree("dir")

        def hold(request: bytes) -> bool:
            if b"/dir/first" in request:
                proxy.blackhole(to_client=False)
                held.set()
            return False

        proxy.cut_answers(matching=hold)
        beginning = asyncio.ensure_future(anext(watch))
        async with asyncio.timeout(scaled(5)):
            await held.wait()
        with proxy.counting() as counts:
            second = await other.put("dir/second", b"")
            await eventually(lambda: counts.answered_bytes, within=5, message="it is told")
        proxy.heal()
        snapshot = await beginning
        while snapshot.last_index < second.last_index:
            snapshot = await anext(watch)
        assert snapshot["dir/second"] == second
        await watch.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [ZooKeeperStore, OneShotStore])
async def test_changes_that_come_faster_than_they_are_read(
    server: ZooKeeperServer,
    make: MakeStore,
    prefix: str,
    kind: type[ZooKeeperStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is read of the first key is newer than a change of the second one, which was told and is not read yet."""
    monkeypatch.setattr(watching, "_CATCHING_UP", 0.0)
    async with _watch_that_reads_a_change(server, make, prefix, kind) as (watch, other, proxy):
        with proxy.counting() as counts:
            second = await other.put("dir/second", b"new")
            first = await other.put("dir/first", b"newer")
            await eventually(lambda: counts.answered_bytes, within=5, message="they are told")
        proxy.heal()
        async with asyncio.timeout(scaled(10)):
            async for snapshot in watch:
                if snapshot.last_index >= second.last_index:
                    assert snapshot["dir/second"] == second
                if snapshot.last_index >= first.last_index:
                    break
        assert list(snapshot) == [first, second]
