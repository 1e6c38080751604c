"""Ten thousand keys: listed, watched, deleted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiolibkv import KeyNotFoundError, Put
from aiolibkv.backends.zookeeper import operations as ops
from aiolibkv.backends.zookeeper import tree
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ZooKeeperServer
from stores import ZooKeeperStore
from zookeeper.conftest import MakeStore, OneShotStore, make_store
from zookeeper.test_implicit_parents import raw_exists

_AT_ONCE = 500
_TRANSACTION = (14).to_bytes(4)
"""The second word of a request."""


async def _fill(store: ZooKeeperStore, prefix: str, count: int) -> None:
    """Write the keys in a few transactions; how fast puts are is not what is tested."""
    for directory in range(10):
        await store.put(f"dir/{directory}", b"")
    connection = await store.driver._session.connection()
    for start in range(0, count, _AT_ONCE):
        numbers = range(start, start + _AT_ONCE)
        creates = [ops.create(f"/{prefix}/dir/{number % 10}/{number}", b"value", ops.WORLD) for number in numbers]
        await connection.ask(ops.transaction(creates))


@pytest.mark.asyncio
@pytest.mark.parametrize(("kind", "count"), [(ZooKeeperStore, 10_000), (OneShotStore, 3000)])
async def test_many_keys(make: MakeStore, prefix: str, kind: type[ZooKeeperStore], count: int) -> None:
    async with asyncio.timeout(scaled(60)), make(kind=kind) as store, make() as writer:
        await _fill(writer, prefix, count)
        listed = await store.list("dir")
        assert len(listed) == count + 10
        async with store.watch_tree("dir") as watch:
            assert await anext(watch) == list(listed)
            changed = await writer.put("dir/3/3", b"changed")
            snapshot = await anext(watch)
            assert [change.pair for change in snapshot.changes] == [changed]
            assert await writer.delete_tree("dir") == count + 10
            while await anext(watch):
                pass
        with pytest.raises(KeyNotFoundError):
            await store.list("dir")
        assert not await raw_exists(store, prefix)


@pytest.mark.asyncio
async def test_a_directory_of_many_keys_has_the_time_for_a_call_for_each_page(
    server: ZooKeeperServer, make: MakeStore, prefix: str
) -> None:
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make() as writer,
        make_store([proxy.endpoint], prefix=prefix, request_timeout=scaled(1)) as store,
    ):
        await _fill(writer, prefix, 20_000)
        proxy.delay(scaled(0.1))
        began = asyncio.get_running_loop().time()
        assert len(await store.list("dir")) == 20_010
        assert asyncio.get_running_loop().time() - began > 2 * store.driver.config.request_timeout


@pytest.mark.asyncio
async def test_twenty_thousand_keys_go_at_one_instant(server: ZooKeeperServer, prefix: str) -> None:
    short = prefix[:12]
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=short) as store,
    ):
        await store.put("dir/key", b"")
        connection = await store.driver._session.connection()
        for start in range(0, 20_000, _AT_ONCE):
            numbers = range(start, start + _AT_ONCE)
            creates = [ops.create(f"/{short}/dir/{number}", b"", ops.WORLD) for number in numbers]
            await connection.ask(ops.transaction(creates))
        transactions: set[bytes] = set()

        def note(request: bytes) -> bool:
            if request[4:8] == _TRANSACTION:
                transactions.add(request[:4])
            return False

        proxy.cut_answers(matching=note)
        assert await store.delete_tree("dir") == 20_001
        assert len(transactions) == 1


@pytest.mark.asyncio
async def test_a_tree_that_needs_more_than_one_request(make: MakeStore, prefix: str) -> None:
    """Its deletion is more than the server takes at once."""
    async with make(prefix=f"{prefix}/{'p' * 400}") as store, store.new_lock("lock") as held:
        connection = await store.driver._session.connection()
        await store.put("dir/key", b"")
        long = "k" * 400
        for start in range(0, 2000, 200):
            creates = [
                ops.create(f"/{store.driver.config.prefix}/dir/{long}{number}", b"", ops.WORLD)
                for number in range(start, start + 200)
            ]
            await connection.ask(ops.transaction(creates))
        assert await store.delete_tree("dir", guard=held) == 2001
        with pytest.raises(KeyNotFoundError):
            await store.list("dir")


@pytest.mark.asyncio
async def test_a_store_with_many_keys_that_have_a_ttl_is_closed(server: ZooKeeperServer, prefix: str) -> None:
    """There is no time to delete them one by one; they go with the session, which is ended."""
    settings: dict[str, Any] = {"prefix": prefix, "options": {"session_timeout": 10}}
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([server.endpoint], prefix=prefix) as other,
    ):
        store = make_store([proxy.endpoint], **settings)
        async with asyncio.timeout(scaled(60)), store:
            for start in range(0, 10_000, _AT_ONCE):
                await asyncio.gather(*(store.put(f"dir/{start + each}", b"", ttl=1000) for each in range(_AT_ONCE)))
        assert not proxy.connections_open

        async def are_gone() -> bool:
            return not await other.list("")

        await eventually(are_gone, within=3, message="the keys are gone")


@pytest.mark.asyncio
async def test_large_values_are_read_without_ending_the_server() -> None:
    """A server with 128 MB of memory: 18 MB in one answer would be its end."""
    async with ZooKeeperServer() as server, make_store([server.endpoint]) as store:
        for number in range(20):
            await store.put(f"dir/{number}", bytes(900_000))
        assert len(await store.list("dir")) == 20
        async with store.watch_tree("dir") as watch:
            assert len(await anext(watch)) == 20
        assert await store.delete_tree("dir") == 20
        assert server.running


@pytest.mark.asyncio
async def test_as_much_is_read_at_once_as_values_are_large(
    server: ZooKeeperServer, make: MakeStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server holds its answers until they are taken."""
    monkeypatch.setattr(tree, "_BYTES_AT_ONCE", 100_000)
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make() as writer,
        make_store([proxy.endpoint], prefix=prefix) as store,
    ):
        for start in range(0, 300, 100):
            await writer.commit(*(Put(f"dir/{number}", bytes(5000)) for number in range(start, start + 100)))
        with proxy.counting() as counts:
            assert len(await store.list("dir")) == 300
        # Nothing is known of the first hundred; of the others 20 at once are worth as much as may be.
        assert counts.round_trips >= 10
        assert await writer.delete_tree("dir") == 300
