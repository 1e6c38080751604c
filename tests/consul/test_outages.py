"""Servers that are restarted, killed, paused, emptied and restored under running stores."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from aiolibkv import (
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    NotReachableError,
    RequestTimeoutError,
    Snapshot,
    Watch,
)
from aiolibkv.backends.consul import watching
from aiolibkv.store import Lifetime, OwnCall
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ConsulCluster, ConsulServer
from consul.conftest import Make
from disks import enlarge, small_disk
from faults.impostors import OTHER_SERVICES, Front, Handler, consul, passing_on
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[ConsulCluster]:
    async with ConsulCluster() as running:
        yield running


@pytest.fixture
def _old_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have queries as long as in polls that have lived for a while, so that their own end shows nothing."""
    monkeypatch.setattr(watching, "_SHORTEST_WAIT", 10.0)


class Observer:
    """Everything a watch of a key has given so far."""

    def __init__(self, watch: Watch[KVPair | None]) -> None:
        self.watch = watch
        self.items: list[KVPair | None] = []
        self._task = asyncio.ensure_future(self._observe())

    async def _observe(self) -> None:
        async for item in self.watch:
            self.items.append(item)

    async def at(self, pair: KVPair | None, *, within: float) -> None:
        await eventually(
            lambda: self.items and self.items[-1] == pair, within=within, message=f"the watch is at {pair}"
        )

    async def aclose(self) -> None:
        await self.watch.aclose()
        await self._task
        indexes = [item.last_index for item in self.items if item is not None]
        assert indexes == sorted(set(indexes)), "an older state came after a newer one"


async def _put(store: ConsulStore, key: str, value: bytes, *, within: float) -> KVPair:
    """Write through an outage by compare-and-swap.

    A put that is repeated because it was in doubt could take effect again, late: followers keep what they could not
    pass on to a leader for some seconds.
    """
    async with asyncio.timeout(scaled(within)):
        while True:
            try:
                try:
                    previous = await store.get(key)
                except KeyNotFoundError:
                    return await store.atomic_put(key, value, None)
                return previous if previous.value == value else await store.atomic_put(key, value, previous)
            except (NotReachableError, RequestTimeoutError, KeyModifiedError, KeyExistsError):
                await asyncio.sleep(0.05)


async def _at(watch: Watch[Snapshot], pairs: Sequence[KVPair], *, within: float) -> None:
    async with asyncio.timeout(scaled(within)):
        while await anext(watch) != pairs:
            pass


async def test_an_agent_is_restarted_under_watches(make: Make) -> None:
    async with ConsulServer() as server, make(server.endpoint, request_timeout=scaled(1)) as store:
        first = await store.put("dir/key", b"1")
        observer = Observer(store.watch("dir/key"))
        async with store.watch_tree("dir") as tree:
            await observer.at(first, within=5)
            assert await anext(tree) == [first]
            await server.kill()
            await eventually(
                lambda: observer.watch.is_stale and tree.is_stale, within=5, message="the watches are stale"
            )
            with pytest.raises((NotReachableError, RequestTimeoutError)) as caught:
                await store.put("dir/key", b"lost")
            assert not caught.value.maybe_applied
            await server.start()
            await eventually(
                lambda: not observer.watch.is_stale and not tree.is_stale, within=5, message="the watches are back"
            )
            assert observer.items == [first]
            second = await _put(store, "dir/key", b"2", within=10)
            await observer.at(second, within=5)
            await _at(tree, [second], within=5)
            await server.restart()
            third = await _put(store, "dir/key", b"3", within=10)
            await observer.at(third, within=5)
        await observer.aclose()
        assert observer.items == [first, second, third]


@pytest.mark.usefixtures("_old_polls")
async def test_a_paused_agent_makes_watches_stale(make: Make) -> None:
    async with ConsulServer() as server, make(server.endpoint) as store:
        pair = await store.put("key", b"1")
        observer = Observer(store.watch("key"))
        await observer.at(pair, within=5)
        server.pause()
        await eventually(lambda: observer.watch.is_stale, within=4, message="the watch is stale")
        server.resume()
        await eventually(lambda: not observer.watch.is_stale, within=5, message="the watch is back")
        pair = await _put(store, "key", b"2", within=5)
        await observer.at(pair, within=5)
        await observer.aclose()


async def test_an_empty_server_on_the_same_port(make: Make) -> None:
    """Its index is far behind the client's."""
    async with ConsulServer() as server, make(server.endpoint) as store:
        for _ in range(50):
            before = await store.put("dir/key", b"1")
        async with store.watch("dir/key") as watch, store.watch_tree("dir") as tree:
            assert await anext(watch) == before
            assert await anext(tree) == [before]
            await server.wipe()
            async with asyncio.timeout(scaled(10)):
                assert await anext(watch) is None
                assert await anext(tree) == []
            pair = await _put(store, "dir/key", b"1", within=10)
            assert pair.last_index < before.last_index
            # A query that waits for the old index would sleep for the whole wait.
            async with asyncio.timeout(scaled(3)):
                assert await anext(watch) == pair
                assert await anext(tree) == [pair]


async def test_a_restored_snapshot(make: Make) -> None:
    async with ConsulServer() as server, make(server.endpoint) as store, aiohttp.ClientSession() as http:
        url = f"http://{server.endpoint}/v1/snapshot"
        old = await store.put("dir/key", b"old")
        async with http.get(url) as answer:
            snapshot = await answer.read()
        for number in range(50):
            new = await store.put("dir/key", str(number).encode())
        async with store.watch("dir/key") as watch, store.watch_tree("") as tree, store.watch("missing") as missing:
            assert await anext(watch) == new
            assert await anext(tree) == [new]
            assert await anext(missing) is None
            async with http.put(url, data=snapshot) as answer:
                assert answer.status == 200
            async with asyncio.timeout(scaled(15)):
                assert await anext(watch) == old
                assert await anext(tree) == [old]
            pair = await _put(store, "dir/key", b"after", within=5)
            async with asyncio.timeout(scaled(3)):
                assert await anext(watch) == pair
                assert await anext(tree) == [pair]
            pair = await store.put("missing", b"")
            async with asyncio.timeout(scaled(15)):
                assert await anext(missing) == pair


async def test_a_killed_leader(cluster: ConsulCluster, make: Make) -> None:
    leader = await cluster.leader()
    endpoints = [leader.endpoint, *(server.endpoint for server in cluster.servers if server is not leader)]
    async with make(*endpoints) as store:
        first = await store.put("dir/key", b"1")
        alive = await store.put("alive", b"", keep_alive=True)
        observer = Observer(store.watch("dir/key"))
        async with store.watch_tree("dir") as tree:
            await observer.at(first, within=5)
            assert await anext(tree) == [first]
            await leader.kill()
            try:
                second = await _put(store, "dir/key", b"2", within=15)
                await observer.at(second, within=10)
                await _at(tree, [second], within=10)
                assert await store.get("dir/key") == second
                assert await store.get("alive") == alive
            finally:
                await leader.start()
        await observer.aclose()


@pytest.mark.usefixtures("_old_polls")
async def test_a_leader_paused_for_eight_seconds(cluster: ConsulCluster, make: Make) -> None:
    """Parked queries wait for its answers; the others have long elected another leader."""
    leader = await cluster.leader()
    followers = [server.endpoint for server in cluster.servers if server is not leader]
    async with make(leader.endpoint, *followers) as direct, make(*followers) as through:
        first = await direct.put("dir/key", b"1")
        observers = [Observer(store.watch("dir/key")) for store in (direct, through)]
        trees = [store.watch_tree("dir") for store in (direct, through)]
        for observer, tree in zip(observers, trees, strict=True):
            await observer.at(first, within=5)
            assert await anext(tree) == [first]
        began = asyncio.get_running_loop().time()
        leader.pause()
        try:
            second = await _put(through, "dir/key", b"2", within=8)
            for observer, tree in zip(observers, trees, strict=True):
                await observer.at(second, within=7)
                await _at(tree, [second], within=7)
            third = await _put(direct, "dir/key", b"3", within=8)
            for observer in observers:
                await observer.at(third, within=5)
            await asyncio.sleep(began + 8 - asyncio.get_running_loop().time())
        finally:
            leader.resume()
        last = await _put(direct, "dir/key", b"4", within=15)
        for observer, tree in zip(observers, trees, strict=True):
            await observer.at(last, within=15)
            await observer.aclose()
            await _at(tree, [last], within=15)
            await tree.aclose()


@pytest.mark.usefixtures("_old_polls")
async def test_calls_move_on_from_a_mute_agent(cluster: ConsulCluster, make: Make) -> None:
    leader = await cluster.leader()
    follower = next(server for server in cluster.servers if server is not leader)
    loop = asyncio.get_running_loop()
    async with FaultProxy(follower.host, follower.port, protocol="http1") as proxy:
        async with make(proxy.endpoint, leader.endpoint) as store:
            previous = await store.put("key", b"1")
            proxy.blackhole()
            began = loop.time()
            swapped = await store.atomic_put("key", b"2", previous)
            assert loop.time() - began < scaled(2.5)
            began = loop.time()
            assert await store.get("key") == swapped
            assert loop.time() - began < scaled(1)
            proxy.reset()
            proxy.heal()
        async with make(proxy.endpoint, leader.endpoint) as store, store.watch("key") as watch:
            assert await store.get("key") == await anext(watch) == swapped
            proxy.blackhole()
            began = loop.time()
            # One that was taken and not applied is told as being in doubt, and soon.
            with pytest.raises(NotReachableError) as caught:
                await store.put("key", b"3")
            assert caught.value.maybe_applied
            assert loop.time() - began < scaled(3)
            last = await store.put("key", b"4")
            async with asyncio.timeout(scaled(4)):
                assert await anext(watch) == last
            proxy.reset()
            proxy.heal()


async def test_a_session_is_neither_renewed_nor_lost_nor_ended_by_something_else(
    make: Make, server: ConsulServer
) -> None:
    """A lock would be held on beyond its session, or be lost though it stands, or stand though it was released."""
    async with Front(passing_on(server.port)) as front, make(front.endpoint) as store:

        async def become(handler: Handler) -> None:
            await front.become(handler)
            # The connection that was reset may still be taken for one that stands.
            with suppress(NotReachableError):
                await store.driver._connection.read("status/leader")

        call = OwnCall()
        lease = store.driver.new_lease(Lifetime(60, keep_alive=True))
        await store.driver.grant(call, lease)
        for name in ("a web server", "a web server without such a page"):
            await become(OTHER_SERVICES[name])
            with pytest.raises(NotReachableError, match="not Consul's"):
                await store.driver.renew(call, lease)
            with pytest.raises(NotReachableError, match="not Consul's"):
                await store.driver.revoke(call, lease)
        await become(passing_on(server.port))
        assert await store.driver.renew(call, lease)
        for _ in range(2):
            await store.driver.revoke(call, lease)
        assert not await store.driver.renew(call, lease)


@pytest.mark.parametrize("status", ["301 Moved Permanently", "405 Method Not Allowed", "520 Unknown"])
async def test_what_answers_as_consul_does_not_is_left_for_the_next_endpoint(
    make: Make, server: ConsulServer, status: str
) -> None:
    async with Front(consul(status, b"")) as front:
        async with make(front.endpoint, server.endpoint) as store:
            pair = await store.atomic_put("key", b"1", None) if status < "5" else None
            assert await store.exists("key") == (pair is not None)
            assert store.driver._connection.endpoint.port == server.port
        async with make(front.endpoint, request_timeout=scaled(0.5)) as store:
            with pytest.raises((NotReachableError, RequestTimeoutError)) as caught:
                await store.put("key", b"2")
            assert caught.value.maybe_applied == (status > "5")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", 16) as mounted:
        yield mounted


async def test_a_server_whose_disk_is_full(make: Make, disk: Path) -> None:
    """It cannot lead any more, and leads again as soon as there is space."""
    async with (
        ConsulServer(extra_args=[f"-data-dir={disk}"]) as server,
        make(server.endpoint, request_timeout=scaled(2)) as store,
        store.watch_tree("") as watch,
    ):
        assert await anext(watch) == []
        written: list[KVPair] = []
        in_doubt = 0

        async def is_full() -> bool:
            """Write more; an answer that is late once does not say that there is no space."""
            nonlocal in_doubt
            try:
                written.append(await store.put(f"full/{len(written) + in_doubt}", bytes(200_000)))
            except (NotReachableError, RequestTimeoutError) as error:
                in_doubt += error.maybe_applied
            return in_doubt > 0 and watch.is_stale

        await eventually(is_full, within=60, message="the disk is full, and the watch stale")
        assert len(written) > 5
        for pair in written:
            assert await store.get(pair.key, consistent=False) == pair
        enlarge(disk, 100)
        last = await _put(store, "last", b"", within=20)
        await server.restart()
        async with make(server.endpoint, request_timeout=scaled(10)) as patient:
            found = {pair.key: pair for pair in await patient.list("")}
        assert [found[pair.key] for pair in (*written, last)] == [*written, last]
        # Of the others only those that are in doubt may be there.
        assert len(found) <= len(written) + in_doubt + 1
        await _at(watch, [found[key] for key in sorted(found)], within=10)


async def test_close_with_a_paused_agent(make: Make) -> None:
    loop = asyncio.get_running_loop()
    async with ConsulServer() as server:
        store = await make(server.endpoint).__aenter__()
        await store.put("alive", b"", keep_alive=True)
        await store.put("short", b"", ttl=60)
        async with store.watch("key") as watch:
            assert await anext(watch) is None
            server.pause()
            writing = asyncio.ensure_future(store.put("key", b""))
            await asyncio.sleep(0)
            began = loop.time()
            await store.close()
            assert loop.time() - began < scaled(2)
            await asyncio.wait([writing])
            assert writing.exception() is not None
        server.resume()
