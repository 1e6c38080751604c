"""Faults: answers that are lost, servers that die, pause or say nothing, sessions that expire."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv import (
    AsyncStore,
    KeyNotFoundError,
    KVPair,
    NotReachableError,
    RequestTimeoutError,
    Snapshot,
    StoreClosedError,
    Watch,
)
from aiolibkv.backends.zookeeper import operations as ops
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ZooKeeperCluster, ZooKeeperServer
from faults.impostors import Front, saying, swallow
from stores import ZooKeeperStore
from zookeeper.conftest import MakeStore, OneShotStore, make_store

_WRITES = {b: struct.pack("!i", b) for b in (1, 2, 5, 14, 15)}
"""create, delete, setData, multi, create2: the second word of a request."""


def _is_write(request: bytes) -> bool:
    return request[4:8] in _WRITES.values()


@pytest_asyncio.fixture
async def proxy(server: ZooKeeperServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.host, server.port, protocol="zookeeper") as running:
        yield running


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as entered:
        yield entered


@pytest_asyncio.fixture
async def mute() -> AsyncIterator[str]:
    """A host that accepts and says nothing."""
    async with Front(swallow) as listening:
        yield listening.endpoint


# -- answers that are lost ---------------------------------------------------------------------------------------------

Write = Callable[[AsyncStore, KVPair], Awaitable[object]]
_CALLS: dict[str, Write] = {
    "put": lambda store, _: store.put("dir/key", b"new"),
    "put a new key": lambda store, _: store.put("dir/new", b"new"),
    "put in new directories": lambda store, _: store.put("a/b/new", b"new"),
    "create": lambda store, _: store.atomic_put("dir/new", b"new", None),
    "swap": lambda store, pair: store.atomic_put("dir/key", b"new", pair),
    "put with ttl": lambda store, _: store.put("dir/new", b"new", ttl=1000),
    "put and keep alive": lambda store, _: store.put("dir/new", b"new", keep_alive=True),
    "delete": lambda store, _: store.delete("dir/key"),
    "remove": lambda store, pair: store.atomic_delete("dir/key", pair),
    "delete_tree": lambda store, _: store.delete_tree("dir"),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("name", _CALLS)
async def test_a_lost_answer(proxy: FaultProxy, make: MakeStore, prefix: str, name: str) -> None:
    """It is reported, and the write is not sent again."""
    async with make() as direct, make_store([proxy.endpoint], prefix=prefix) as store:
        pair = await direct.put("dir/key", b"old")
        await direct.put("dir/other", b"")
        connection = await direct.driver._session.connection()
        version = (await connection.ask(ops.get(f"/{prefix}/dir/key"))).stat.version
        writes: list[bytes] = []

        def is_write(request: bytes) -> bool:
            if _is_write(request):
                writes.append(request)
            # What is refused does not count: a new key is first taken for an old one.
            return _is_write(request) and _applies(name, request)

        proxy.cut_answers(matching=is_write)
        with pytest.raises(NotReachableError) as caught:
            await _CALLS[name](store, pair)
        assert caught.value.maybe_applied
        assert proxy.answers_cut == 1
        assert sum(_applies(name, request) for request in writes) == 1
        listed = {found.key: found.value for found in await direct.list("")}
        match name:
            case "put" | "swap":
                assert listed["dir/key"] == b"new"
                assert (await connection.ask(ops.get(f"/{prefix}/dir/key"))).stat.version == version + 1
            case "delete" | "remove":
                assert listed == {"dir/other": b""}
            case "delete_tree":
                assert listed == {}
            case "put in new directories":
                assert listed["a/b/new"] == b"new"
            case _:
                assert listed["dir/new"] == b"new"
        # The store is as good as before.
        await store.put("after", b"")
        assert await direct.exists("after")


def _applies(name: str, request: bytes) -> bool:
    kind: int = struct.unpack("!i", request[4:8])[0]
    if name in {"put a new key", "put with ttl", "put and keep alive", "create"}:
        return kind == 15
    if name == "put in new directories":
        return kind == 14
    return kind in {2, 5, 14}


@pytest.mark.asyncio
async def test_a_key_with_a_ttl_whose_answer_was_lost_goes_on_time(
    proxy: FaultProxy, make: MakeStore, prefix: str
) -> None:
    async with make() as direct, make_store([proxy.endpoint], prefix=prefix) as store:
        await direct.put("dir/other", b"")
        proxy.cut_answers(matching=lambda request: request[4:8] == _WRITES[15])
        with pytest.raises(NotReachableError):
            await store.put("dir/key", b"", ttl=0.5)
        async with direct.watch("dir/key") as watch:
            assert await anext(watch) is not None
            assert await asyncio.wait_for(anext(watch), scaled(5)) is None


@pytest.mark.asyncio
async def test_a_lock_whose_answer_was_lost_is_held_by_whoever_asked(
    proxy: FaultProxy, make: MakeStore, prefix: str
) -> None:
    async with make() as direct, make_store([proxy.endpoint], prefix=prefix) as store:
        proxy.cut_answers(matching=lambda request: request[4:8] == _WRITES[14] and b"lock" in request)
        held = await store.new_lock("dir/lock", value=b"me").try_acquire()
        while held is None or not proxy.answers_cut:
            held = await store.new_lock("dir/lock", value=b"me").try_acquire()
        assert held is not None
        assert (await direct.get("dir/lock")).value == b"me"
        await store.put("key", b"", guard=held)
        await direct.put("dir/lock", b"foreign")
        with pytest.raises(Exception, match="not held"):
            await store.put("key", b"refused", guard=held)


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["put", "delete"])
async def test_a_lock_that_was_taken_away_before_its_answer_was_looked_for(
    proxy: FaultProxy, make: MakeStore, prefix: str, how: str
) -> None:
    async with (
        make() as direct,
        make_store([proxy.endpoint], prefix=prefix, request_timeout=scaled(60)) as store,
    ):
        await direct.put("dir/key", b"")
        async with direct.new_lock("dir/lock"):
            pass

        def is_acquisition(request: bytes) -> bool:
            if request[4:8] != _WRITES[14] or b"lock" not in request:
                return False
            proxy.refuse()
            return True

        proxy.cut_answers(matching=is_acquisition)
        acquiring = asyncio.ensure_future(store.new_lock("dir/lock", value=b"me").acquire())
        await eventually(lambda: direct.exists("dir/lock"), within=10, message="it is acquired")
        if how == "put":
            await (await direct.driver._session.connection()).ask(ops.set_data(f"/{prefix}/dir/lock", b"foreign"))
        else:
            await direct.delete("dir/lock")
        proxy.accept()
        held = await asyncio.wait_for(acquiring, scaled(10))
        assert (await direct.get("dir/lock")).value == b"me"
        await store.put("key", b"", guard=held)


@pytest.mark.asyncio
async def test_reads_are_repeated(proxy: FaultProxy, make: MakeStore, prefix: str) -> None:
    async with make() as direct, make_store([proxy.endpoint], prefix=prefix) as store:
        pair = await direct.put("dir/key", b"")
        reads: Sequence[tuple[Callable[[], Awaitable[object]], object]] = [
            (lambda: store.get("dir/key"), pair),
            (lambda: store.exists("dir/key"), True),
            (lambda: store.list("dir"), [pair]),
        ]
        for number, (read, expected) in enumerate(reads, 1):
            proxy.cut_answers()
            assert await read() == expected
            assert proxy.answers_cut == number


# -- servers that fail under watches -----------------------------------------------------------------------------------


async def _until(watch: Watch[Snapshot], state: Sequence[KVPair], within: float = 15) -> None:
    async with asyncio.timeout(scaled(within)):
        while await anext(watch) != state:
            pass


class _Followers:
    """A watch of a tree and of a key in it, and what they saw."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self.tree = store.watch_tree("dir")
        self.key = store.watch("dir/key")

    async def check(self, writer: AsyncStore, within: float = 20) -> None:
        """Write, and see that both watches arrive at what a list gives."""
        async with asyncio.timeout(scaled(within)):
            while True:
                try:
                    last = await writer.put("dir/key", b"")
                    listed = list(await writer.list("dir"))
                    break
                except (NotReachableError, RequestTimeoutError):
                    continue
            while await anext(self.tree) != listed:
                pass
            while (seen := await anext(self.key)) != last:
                assert seen is None or seen.last_index < last.last_index
        assert not self.tree.is_stale


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [ZooKeeperStore, OneShotStore])
async def test_a_server_that_is_killed_and_comes_back(stack: AsyncExitStack, kind: type[ZooKeeperStore]) -> None:
    server = await stack.enter_async_context(ZooKeeperServer())
    store = await stack.enter_async_context(make_store([server.endpoint], kind=kind))
    other = await stack.enter_async_context(make_store([server.endpoint]))
    await store.put("dir/gone", b"")
    followers = _Followers(store)
    await followers.check(store)
    await store.put("alive", b"", keep_alive=True)
    await server.kill()
    await eventually(lambda: followers.tree.is_stale, within=5, message="the watch knows that it is cut off")
    await server.start()
    await other.delete("dir/gone")
    await followers.check(other)
    assert await other.exists("alive")


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [ZooKeeperStore, OneShotStore])
async def test_a_session_that_expires(
    proxy: FaultProxy, make: MakeStore, prefix: str, kind: type[ZooKeeperStore]
) -> None:
    """Watches go on, what is kept alive comes back, what had a ttl does not."""
    settings: dict[str, Any] = {"prefix": prefix, "kind": kind, "options": {"session_timeout": 1.0}}
    async with make() as direct, make_store([proxy.endpoint], **settings) as store:
        followers = _Followers(store)
        await followers.check(store)
        await store.put("lives/alive", b"", ttl=1.5, keep_alive=True)
        await store.put("lives/timed", b"", ttl=1000)
        session = (await store.driver._session.connection()).welcome.session
        proxy.blackhole()

        async def are_gone() -> bool:
            return [pair.key for pair in await direct.list("")] == ["dir/key"]

        await eventually(are_gone, within=15, message="the server ends the sessions")
        proxy.reset()
        proxy.heal()
        await followers.check(direct)
        assert (await store.driver._session.connection()).welcome.session != session

        async def is_back() -> bool:
            return await direct.exists("lives/alive")

        await eventually(is_back, within=5, message="what is kept alive is created again")
        assert not await direct.exists("lives/timed")


@pytest.mark.asyncio
async def test_three_servers_of_which_one_fails(stack: AsyncExitStack) -> None:
    """The connected server is paused, the leader killed: watches follow, calls go on, no read is stale."""
    cluster = await stack.enter_async_context(ZooKeeperCluster())
    leader = await cluster.leader()
    others = [server for server in cluster.servers if server is not leader]
    store = await stack.enter_async_context(
        make_store([leader.endpoint, *(server.endpoint for server in others)], request_timeout=scaled(20))
    )
    other = await stack.enter_async_context(
        make_store([server.endpoint for server in others], request_timeout=scaled(20))
    )
    faithful = await stack.enter_async_context(make_store([leader.endpoint], request_timeout=scaled(20)))
    followers = _Followers(store)
    await followers.check(store)
    before = await store.put("key", b"before")
    assert await faithful.get("key") == before
    to_leader = await store.driver._session.connection()
    assert str(to_leader.endpoint) == leader.endpoint

    # The old leader is paused, the others elect one and accept a write, the old one continues.
    leader.pause()
    paused_at = asyncio.get_running_loop().time()
    after = await _write_through(other, before)
    reads = [asyncio.ensure_future(reader.get("key")) for reader in (store, faithful)]
    leader.resume()
    assert await asyncio.gather(*reads) == [after, after]
    assert await store.get("key") == after
    # It was left. The one used now may be the same server, when it has joined the others again.
    assert to_leader.closed.done()
    assert asyncio.get_running_loop().time() - paused_at > 2
    await followers.check(other)

    new_leader = await cluster.leader()
    await new_leader.kill()
    await followers.check(store)
    await new_leader.start()
    await followers.check(other)


async def _write_through(store: AsyncStore, previous: KVPair) -> KVPair:
    while True:
        try:
            return await store.atomic_put("key", b"after", previous)
        except (NotReachableError, RequestTimeoutError):
            found = await store.get("key")
            if found.value == b"after":
                return found


@pytest.mark.asyncio
async def test_a_client_that_stood_still_with_its_leader_reads_what_others_wrote(stack: AsyncExitStack) -> None:
    """Nobody has pinged meanwhile, so nothing but the time shows that others have elected another leader."""
    cluster = await stack.enter_async_context(ZooKeeperCluster())
    leader = await cluster.leader()
    others = [server.endpoint for server in cluster.servers if server is not leader]
    # Its session outlasts the pause.
    options = {"session_timeout": 10}
    store = await stack.enter_async_context(make_store([leader.endpoint, *others], options=options))
    before = await store.put("key", b"before")

    async def write() -> KVPair:
        async with make_store(others, request_timeout=scaled(20)) as other:
            leader.pause()
            return await _write_through(other, before)

    with ThreadPoolExecutor() as threads:
        try:
            # Waited for without giving way: this event loop stands still.
            after = threads.submit(asyncio.run, write()).result()
            reading = asyncio.ensure_future(store.get("key"))
            await asyncio.sleep(0)
        finally:
            leader.resume()
    assert await reading == after


@pytest.mark.asyncio
async def test_a_paused_server_is_left_for_another(stack: AsyncExitStack, cluster: ZooKeeperCluster) -> None:
    """A read takes no longer than the silence after which a connection is given up."""
    leader = await cluster.leader()
    follower, *rest = [server for server in cluster.servers if server is not leader]
    store = await stack.enter_async_context(
        make_store([follower.endpoint, *(server.endpoint for server in rest)], prefix="paused")
    )
    pair = await store.put("key", b"")
    follower.pause()
    try:
        began = asyncio.get_running_loop().time()
        assert await store.get("key") == pair
        assert asyncio.get_running_loop().time() - began < scaled(4)
    finally:
        follower.resume()
    await store.delete("key")


# -- hosts that are not there ------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("position", range(3))
async def test_mute_and_refusing_hosts_at_start(
    server: ZooKeeperServer, proxy: FaultProxy, mute: str, prefix: str, position: int
) -> None:
    proxy.refuse()
    endpoints = [mute, proxy.endpoint]
    endpoints.insert(position, server.endpoint)
    async with asyncio.timeout(scaled(5)), make_store(endpoints, prefix=prefix) as store:
        pair = await store.put("key", b"")
        assert await store.get("key") == pair


@pytest.mark.asyncio
async def test_nobody_answers(proxy: FaultProxy, mute: str) -> None:
    proxy.refuse()
    for endpoints in ([mute], [proxy.endpoint], [mute, proxy.endpoint]):
        store = make_store(endpoints, connection_timeout=0.5)
        began = asyncio.get_running_loop().time()
        with pytest.raises(NotReachableError) as caught:
            await store.__aenter__()
        assert asyncio.get_running_loop().time() - began < scaled(1.5)
        assert any(endpoint in str(caught.value) for endpoint in endpoints)


@pytest.mark.asyncio
async def test_entering_tries_hosts_that_refuse_again(proxy: FaultProxy) -> None:
    proxy.refuse()
    async with FaultProxy(proxy.host, proxy.port) as other:
        other.refuse()
        store = make_store([proxy.endpoint, other.endpoint], connection_timeout=1)
        began = asyncio.get_running_loop().time()
        with pytest.raises(NotReachableError) as caught:
            await store.__aenter__()
        assert 0.9 < asyncio.get_running_loop().time() - began < scaled(3)
        assert caught.value.__cause__ is not None
        assert isinstance(caught.value.__cause__.__cause__, ConnectionRefusedError)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x7f\xff\xff\xff" + bytes(100), b"\x00\x00\x00\x04ABCD"]
)
async def test_what_is_no_zookeeper(garbage: bytes) -> None:
    async with Front(saying(garbage)) as listening:
        store = make_store([listening.endpoint], connection_timeout=0.5)
        with pytest.raises(NotReachableError):
            await store.__aenter__()


@pytest.mark.asyncio
async def test_close_with_a_mute_server(proxy: FaultProxy, prefix: str) -> None:
    store = make_store([proxy.endpoint], prefix=prefix)
    async with store:
        await store.put("alive", b"", keep_alive=True)
        await store.put("timed", b"", ttl=1000)
        held = await store.new_lock("lock").acquire()
        watch = store.watch_tree("")
        await anext(watch)
        proxy.blackhole()
        pending = [asyncio.ensure_future(call) for call in (store.get("key"), store.put("key", b""), anext(watch))]
        await asyncio.sleep(0)
        began = asyncio.get_running_loop().time()
        await store.close()
        assert asyncio.get_running_loop().time() - began < scaled(2)
        for result in await asyncio.gather(*pending, return_exceptions=True):
            assert isinstance(result, StoreClosedError)
        assert not held.is_held
    assert proxy.connections_open >= 0


@pytest.mark.asyncio
async def test_a_server_that_lost_all_data(stack: AsyncExitStack) -> None:
    """The transactions known here are none that the server will ever have."""
    server = await stack.enter_async_context(ZooKeeperServer())
    store = await stack.enter_async_context(
        make_store([server.endpoint], options={"session_timeout": 1.0}, request_timeout=scaled(20))
    )
    for number in range(5):
        await store.put(f"dir/{number}", b"")
    watch = await stack.enter_async_context(store.watch_tree("dir"))
    assert len(await anext(watch)) == 5
    await server.wipe()
    await _until(watch, [])
    with pytest.raises(KeyNotFoundError):
        await store.get("dir/1")
    await store.put("dir/new", b"")
