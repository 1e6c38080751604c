"""How often each call waits for the server, counted on the wire."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv import KeyExistsError, KVPair, Put
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually
from aiolibkv.testing.servers import ZooKeeperServer
from faults.impostors import Front, between
from zookeeper.conftest import MakeStore, OneShotStore, make_store

Proxied = tuple[FaultProxy, MakeStore]


@pytest_asyncio.fixture
async def proxied(server: ZooKeeperServer, prefix: str) -> AsyncIterator[Proxied]:
    async with FaultProxy(server.host, server.port, protocol="zookeeper") as proxy:

        def make(**settings: Any) -> Any:
            return make_store([proxy.endpoint], **{"prefix": prefix, **settings})

        yield proxy, make


async def _cost(proxy: FaultProxy, call: Callable[[], Awaitable[Any]]) -> tuple[int, Any]:
    with proxy.counting() as counts:
        result = await call()
    return counts.round_trips, result


@pytest.mark.asyncio
async def test_calls_on_a_key(proxied: Proxied) -> None:
    proxy, make = proxied
    async with make() as store:
        assert (await _cost(proxy, lambda: store.put("new/directory/key", b"")))[0] <= 4
        assert (await _cost(proxy, lambda: store.put("new/directory/second", b"")))[0] == 2
        assert (await _cost(proxy, lambda: store.put("new/directory/key", b"")))[0] == 1
        assert (await _cost(proxy, lambda: store.get("new/directory/key")))[0] == 1
        assert (await _cost(proxy, lambda: store.get("new/directory/key", consistent=False)))[0] == 1
        assert (await _cost(proxy, lambda: store.exists("new/directory/key")))[0] == 1
        cost, pair = await _cost(proxy, lambda: store.atomic_put("new/directory/third", b"", None))
        assert cost == 1
        cost, pair = await _cost(proxy, lambda: store.atomic_put("new/directory/third", b"", pair))
        assert cost == 2
        assert (await _cost(proxy, lambda: store.atomic_delete("new/directory/third", pair)))[0] == 2
        assert (await _cost(proxy, lambda: store.delete("new/directory/second")))[0] == 1
        # With the directories that go with it.
        assert (await _cost(proxy, lambda: store.delete("new/directory/key")))[0] == 2
        await store.put("both", b"")
        await store.put("both/key", b"")
        assert (await _cost(proxy, lambda: store.delete("both")))[0] == 2


@pytest.mark.asyncio
async def test_reads_that_leave_together_sync_once_and_later_ones_again(server: ZooKeeperServer, prefix: str) -> None:
    kinds: list[int] = []
    answering = asyncio.Event()
    answering.set()

    async def up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            length = await reader.readexactly(4)
            request = await reader.readexactly(*struct.unpack("!i", length))
            kinds.append(struct.unpack_from("!ii", request)[1])
            writer.write(length + request)

    async def down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await answering.wait()
            writer.write(data)

    def reads() -> str:
        return "".join({9: "s", 4: "g"}.get(kind, "") for kind in kinds)

    async with (
        Front(between(server.host, server.port, up, down)) as front,
        make_store([front.endpoint], prefix=prefix) as store,
    ):
        await store.put("key", b"")
        kinds.clear()
        answering.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(store.get("key"))
            await eventually(lambda: reads() == "sg", within=5, message="an idle connection sends at once")
            for _ in range(3):
                group.create_task(store.get("key"))
            await eventually(lambda: reads() == "sgsggg", within=5, message="the next ones leave together")
            group.create_task(store.exists("key"))
            # What others were answered before this call the server may know only since the last sync.
            await eventually(lambda: reads() == "sgsgggsg", within=5, message="a later one syncs again")
            answering.set()
        kinds.clear()
        await store.get("key", consistent=False)
        assert reads() == "g"
        await store.delete("key")


@pytest.mark.asyncio
async def test_a_read_behind_a_sync_that_is_refused_is_made_again(server: ZooKeeperServer, prefix: str) -> None:
    """As a server does that has too much to do: what it reads for the next request may be old."""
    syncs: list[int] = []
    refused: list[int] = []

    async def up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            length = await reader.readexactly(4)
            request = await reader.readexactly(*struct.unpack("!i", length))
            xid, kind = struct.unpack_from("!ii", request)
            if kind == 9:
                syncs.append(xid)
            writer.write(length + request)

    async def down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            length = await reader.readexactly(4)
            answer = await reader.readexactly(*struct.unpack("!i", length))
            xid, zxid, _ = struct.unpack_from("!iqi", answer)
            if xid in refused:
                answer = struct.pack("!iqi", xid, zxid, -127)
            writer.write(struct.pack("!i", len(answer)) + answer)

    async with (
        Front(between(server.host, server.port, up, down)) as front,
        make_store([front.endpoint], prefix=prefix) as store,
    ):
        pair = await store.put("key", b"")
        await store.get("key")
        refused.append(syncs[-1] + 2)
        syncs.clear()
        assert await store.get("key") == pair
        assert len(syncs) == 2
        refused.append(syncs[-1] + 2)
        assert await store.get_many(["key"]) == {"key": pair}
        assert len(syncs) == 4
        await store.delete("key")


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [None, OneShotStore])
async def test_calls_on_a_directory(proxied: Proxied, kind: type[OneShotStore] | None) -> None:
    proxy, make = proxied
    async with make(**({"kind": kind} if kind else {})) as store:
        for number in range(30):
            await store.put(f"flat/{number}", b"")
            await store.put(f"deep/{number % 3}/{number}", b"")
        # One for the directory, one for each level below.
        assert (await _cost(proxy, lambda: store.list("flat")))[0] == 2
        assert (await _cost(proxy, lambda: store.list("deep")))[0] == 3
        assert (await _cost(proxy, lambda: store.delete_tree("flat")))[0] == 3
        assert (await _cost(proxy, lambda: store.delete_tree("deep")))[0] == 4


@pytest.mark.asyncio
async def test_a_directory_that_was_flat_is_read_by_half_the_requests(proxied: Proxied, make: MakeStore) -> None:
    """What has come below meanwhile is seen all the same, for a round trip more, once."""
    proxy, make_proxied = proxied
    keys = [f"dir/{number}" for number in range(30)]
    async with make() as other, make_proxied() as store:
        await other.commit(*(Put(key, b"") for key in keys))

        async def read() -> tuple[int, int]:
            with proxy.counting() as counts:
                assert [pair.key for pair in await store.list("dir")] == sorted(keys)
            return counts.requests, counts.round_trips

        assert await read() == (63, 2)
        assert await read() == (33, 2)
        for below in ("dir/7/below", "dir/7/below/deep", "dir/9/below"):
            keys.append(below)
            await other.put(below, b"")
            levels = max(key.count("/") for key in keys)
            assert (await read())[1] <= 1 + levels + 1
            assert (await read())[1] == 1 + levels
        await other.delete("dir/7")
        keys.remove("dir/7")
        assert (await read())[1] == 4
        assert await store.delete_tree("dir") == len(keys)


@pytest.mark.asyncio
async def test_lifetimes(proxied: Proxied) -> None:
    proxy, make = proxied
    async with make() as store:
        await store.put("dir/other", b"")
        lives: list[dict[str, Any]] = [{"ttl": 1000}, {"ttl": 15, "keep_alive": True}]
        for live in lives:
            await store.put("dir/first", b"", **live)

            async def put(live: dict[str, Any] = live) -> KVPair:
                return await store.put("dir/key", b"", **live)

            async def swap(previous: KVPair | None, live: dict[str, Any] = live) -> KVPair:
                return await store.atomic_put("dir/new", b"", previous, **live)

            assert (await _cost(proxy, put))[0] <= 2
            assert (await _cost(proxy, put))[0] == 1
            created, pair = await _cost(proxy, partial(swap, None))
            assert created == 1
            assert (await _cost(proxy, partial(swap, pair)))[0] == 2
            await store.delete("dir/key")
            await store.delete("dir/new")
            await store.delete("dir/first")


@pytest.mark.asyncio
async def test_a_guard_costs_nothing(proxied: Proxied) -> None:
    proxy, make = proxied
    async with make() as store, store.new_lock("lock") as held:
        await store.put("dir/other", b"")
        assert (await _cost(proxy, lambda: store.put("dir/key", b"", guard=held)))[0] <= 2
        cost, pair = await _cost(proxy, lambda: store.put("dir/key", b"", guard=held))
        assert cost == 1
        cost, pair = await _cost(proxy, lambda: store.atomic_put("dir/key", b"", pair, guard=held))
        assert cost == 2
        assert (await _cost(proxy, lambda: store.delete("dir/key", guard=held)))[0] == 2
        assert (await _cost(proxy, lambda: store.delete_tree("dir", guard=held)))[0] == 3


@pytest.mark.asyncio
async def test_a_refusal_is_not_repeated(proxied: Proxied) -> None:
    proxy, make = proxied
    async with make() as store:
        await store.put("key", b"")
        with proxy.counting() as counts, pytest.raises(KeyExistsError):
            await store.atomic_put("key", b"", None)
        assert counts.round_trips <= 2


@pytest.mark.asyncio
async def test_a_thousand_watches_share_the_connection(proxied: Proxied) -> None:
    proxy, make = proxied
    async with make() as store:
        watches = [store.watch(f"dir/{number % 500}") for number in range(1000)]
        for watch in watches:
            await watch.__aenter__()
        for watch in watches:
            assert await anext(watch) is None
        assert proxy.connections_total == 1
        pair = await store.put("dir/7", b"")
        assert [await anext(watches[number]) for number in (7, 507)] == [pair, pair]
        for watch in watches:
            await watch.aclose()
        assert not store.driver._watches._interests
        assert not store.driver._watches._armed


@pytest.mark.asyncio
async def test_a_released_watch_is_removed_at_the_server(proxied: Proxied, server: ZooKeeperServer) -> None:
    _, make = proxied

    async def count() -> int:
        for line in (await server.four_letter_word("mntr")).splitlines():
            name, _, value = line.partition("\t")
            if name == "zk_watch_count":
                return int(value)
        raise AssertionError

    for kind in (None, OneShotStore):
        async with make(**({"kind": kind} if kind else {})) as store:
            await store.put("dir/key", b"")
            before = await count()
            async with store.watch("dir/key") as key, store.watch("none") as none, store.watch_tree("dir") as tree:
                for watch in (key, none, tree):
                    await anext(watch)
                assert await count() >= before + 3

            async def are_gone(before: int = before) -> bool:
                return await count() == before

            await eventually(are_gone, within=5, message="the server watches nothing for released watches")
