"""Watches through outages of real servers: each ends up with the current state, and none goes back."""

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv import (
    AccessDeniedError,
    AsyncStore,
    Config,
    KeyNotFoundError,
    KVPair,
    NotReachableError,
    Snapshot,
    StoreError,
    Watch,
)
from aiolibkv.backends.etcd.codec import WatchCreate, encode
from aiolibkv.backends.etcd.connection import Connection
from aiolibkv.backends.etcd.watching import _FIRST_ID, Watching, _Watched, _WatchStream
from aiolibkv.store import Feed
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import EtcdCluster, EtcdServer
from etcd.fronts import swallowing
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

WATCHERS = "etcd_debugging_mvcc_watcher_total"
STREAMS = "etcd_debugging_mvcc_watch_stream_total"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer() as running:
        yield running


@pytest_asyncio.fixture
async def proxy(server: EtcdServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.host, server.port, protocol="http2") as running:
        yield running


class Watcher:
    """Follows a watch to its end, which must not come, and checks each item."""

    def __init__(self, watch: Watch[Any]) -> None:
        self.watch = watch
        self.items: list[Any] = []
        self.task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        async for item in self.watch:
            if isinstance(item, Snapshot) and self.items:
                assert item.last_index >= self.items[-1].last_index
                assert item != self.items[-1]
            self.items.append(item)

    @property
    def last(self) -> Any:
        assert not self.task.done(), "the watch has ended"
        return self.items[-1] if self.items else None

    async def stop(self) -> None:
        assert not self.task.done(), "the watch has ended"
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.watch.aclose()


@contextlib.asynccontextmanager
async def watching(store: AsyncStore) -> AsyncIterator[Sequence[Watcher]]:
    """Watch five keys and five times the directory."""
    watchers = [Watcher(store.watch(f"dir/{number}")) for number in range(5)]
    watchers += [Watcher(store.watch_tree("dir")) for _ in range(5)]
    try:
        await eventually(lambda: all(watcher.items for watcher in watchers), within=10, message="all have begun")
        yield watchers
    finally:
        for watcher in watchers:
            await watcher.stop()


async def settled(watchers: Sequence[Watcher], other: AsyncStore, *, within: float = 20) -> None:
    """Wait until every watch shows what list gives, and is not stale."""

    async def all_equal() -> bool:
        try:
            current = list(await other.list("dir"))
        except KeyNotFoundError:
            current = []
        except StoreError:
            return False
        by_key = {pair.key: pair for pair in current}
        keys = [watcher.last == by_key.get(f"dir/{number}") for number, watcher in enumerate(watchers[:5])]
        return (
            all(keys)
            and all(watcher.last == current for watcher in watchers[5:])
            and not any(watcher.watch.is_stale for watcher in watchers)
        )

    await eventually(all_equal, within=within, message="every watch equals list()")


async def write_until(done: asyncio.Event, store: AsyncStore) -> int:
    """Write to the watched keys, through whatever happens."""
    number = 0
    while not done.is_set():
        number += 1
        try:
            await store.put(f"dir/{number % 7}", b"%d" % number)
            if number % 5 == 0:
                await store.delete(f"dir/{number % 3}")
        except StoreError:
            pass
        await asyncio.sleep(0.01)
    return number


async def test_the_server_is_killed_and_started_again(server: EtcdServer) -> None:
    async with EtcdStore([server.endpoint]) as store, EtcdStore([server.endpoint]) as other:
        await store.put("dir/1", b"")
        async with watching(store) as watchers:
            done = asyncio.Event()
            writing = asyncio.ensure_future(write_until(done, other))
            for _ in range(2):
                await asyncio.sleep(0.3)
                await server.kill()
                await eventually(
                    lambda: all(watcher.watch.is_stale for watcher in watchers), within=5, message="all are stale"
                )
                await server.start()
            done.set()
            assert await writing > 0
            await settled(watchers, other)
            await other.put("dir/1", b"last")
            await settled(watchers, other)


async def test_changes_of_an_outage_are_not_lost(server: EtcdServer, proxy: FaultProxy) -> None:
    # Every change is delivered, none is coalesced: the stream resumed where it broke.
    async with EtcdStore([proxy.endpoint]) as store, EtcdStore([server.endpoint]) as other:
        watcher = Watcher(store.watch("key"))
        await other.put("key", b"0")
        await eventually(lambda: watcher.last is not None, within=5, message="the watch has begun")
        proxy.refuse()
        proxy.reset()
        await eventually(lambda: watcher.watch.is_stale, within=5, message="the watch is stale")
        for number in range(1, 20):
            await other.put("key", b"%d" % number)
        proxy.accept()
        await eventually(lambda: watcher.last.value == b"19", within=10, message="the last change has come")
        assert [item.value for item in watcher.items if item is not None] == [b"%d" % number for number in range(20)]
        assert not watcher.watch.is_stale
        await watcher.stop()


async def test_a_watch_whose_creation_is_lost_while_others_hear_of_changes(
    server: EtcdServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path to the server swallows all from just before the creation; what comes from the server still arrives."""
    read = Watching._read

    async def read_and_cut(watches: Watching, feed: Feed) -> None:
        await read(watches, feed)
        if not feed.tree:
            proxy.blackhole(to_client=False)

    async with EtcdStore([proxy.endpoint, server.endpoint]) as store, EtcdStore([server.endpoint]) as other:
        written = asyncio.Event()
        tree = Watcher(store.watch_tree("dir"))
        await eventually(lambda: tree.items, within=5, message="the first watch has begun")
        monkeypatch.setattr(Watching, "_read", read_and_cut)
        writer = asyncio.create_task(write_until(written, other))
        late = Watcher(store.watch("key"))
        await eventually(lambda: late.items, within=5, message="the second watch has begun")
        monkeypatch.undo()
        pair = await other.put("key", b"changed")
        await eventually(lambda: late.last == pair, within=8, message="the second watch goes on at the other endpoint")
        written.set()
        await writer
        for watcher in (tree, late):
            await watcher.stop()


async def test_the_connected_node_is_paused() -> None:
    async with EtcdCluster() as cluster:
        first, *others = cluster.servers
        healthy = [server.endpoint for server in others]
        async with EtcdStore(cluster.endpoints) as store, EtcdStore(healthy, Config(request_timeout=10)) as other:
            await other.put("dir/1", b"")
            async with watching(store) as watchers:
                done = asyncio.Event()
                writing = asyncio.ensure_future(write_until(done, other))
                before = len(watchers[5].items)
                first.pause()
                paused_at = asyncio.get_running_loop().time()
                await eventually(
                    lambda: len(watchers[5].items) > before + 20, within=8, message="the watch goes on elsewhere"
                )
                await asyncio.sleep(max(0.0, paused_at + 8 - asyncio.get_running_loop().time()))
                first.resume()
                done.set()
                await writing
                await settled(watchers, other)


async def test_the_history_is_compacted_during_an_outage(server: EtcdServer, proxy: FaultProxy) -> None:
    async with EtcdStore([proxy.endpoint]) as store, EtcdStore([server.endpoint]) as other:
        for number in range(7):
            await other.put(f"dir/{number}", b"")
        async with watching(store) as watchers:
            proxy.refuse()
            proxy.reset()
            await eventually(
                lambda: all(watcher.watch.is_stale for watcher in watchers), within=5, message="all are stale"
            )
            for number in range(20):
                await other.put(f"dir/{number % 3}", b"%d" % number)
            await other.delete("dir/3")
            await server.compact()
            proxy.accept()
            await settled(watchers, other)
            assert watchers[3].last is None
            await other.put("dir/1", b"last")
            await settled(watchers, other)


@pytest.mark.parametrize("writes", [1, 50])
async def test_the_server_comes_back_empty(server: EtcdServer, writes: int) -> None:
    # With 50 writes the new server has passed every revision that the watches know, before they see it.
    async with (
        FaultProxy(server.host, server.port) as proxy,
        EtcdStore([proxy.endpoint]) as store,
        EtcdStore([server.endpoint]) as other,
    ):
        for number in range(7):
            await other.put(f"dir/{number}", b"old")
        async with watching(store) as watchers:
            proxy.refuse()
            proxy.reset()
            await server.wipe()
            for number in range(writes):
                await other.put(f"dir/{3 + number % 3}", b"new")
            proxy.accept()
            await settled(watchers, other)
            assert watchers[0].last is None
            await other.put("dir/0", b"last")
            await settled(watchers, other)
            # And once more, now that the newest pair is one of the new server.
            proxy.reset()
            await other.put("dir/0", b"very last")
            await settled(watchers, other)


@pytest.mark.parametrize("writes", [0, 20])
async def test_the_server_is_restored_from_a_backup(server: EtcdServer, writes: int) -> None:
    # What was deleted after the backup is there again, as it was. With 20 writes elsewhere the restored server has
    # passed every revision that the watches know, before they see it.
    async with (
        FaultProxy(server.host, server.port) as proxy,
        EtcdStore([proxy.endpoint]) as store,
        EtcdStore([server.endpoint], Config(request_timeout=scaled(10))) as other,
    ):
        for number in range(3):
            await other.put(f"dir/{number}", b"old")
        await server.stop()
        backup = server.directory / "backup"
        shutil.copytree(server.data_directory, backup)
        await server.start()
        async with watching(store) as watchers:
            await other.delete("dir/1")
            await settled(watchers, other)
            proxy.refuse()
            proxy.reset()
            await server.kill()
            shutil.rmtree(server.data_directory)
            backup.rename(server.data_directory)
            await server.start()
            for _ in range(writes):
                await _put_in_the_end(other, "elsewhere", b"new")
            proxy.accept()
            await settled(watchers, other)
            assert watchers[1].last.value == b"old"
            await other.put("dir/1", b"last")
            await settled(watchers, other)


async def test_a_stream_that_breaks_again_and_again(server: EtcdServer, proxy: FaultProxy) -> None:
    async with EtcdStore([proxy.endpoint]) as store, EtcdStore([server.endpoint]) as other:
        await other.put("dir/1", b"")
        async with watching(store) as watchers:
            done = asyncio.Event()
            writing = asyncio.ensure_future(write_until(done, other))
            for _ in range(15):
                await asyncio.sleep(0.15)
                proxy.reset()
            done.set()
            await writing
            await settled(watchers, other)


async def test_a_leaderless_member_is_left() -> None:
    # Its peers cannot be heard by the first member, which still answers; it must not be followed any more.
    async with EtcdCluster() as cluster, EtcdStore([cluster.servers[0].endpoint]) as store:
        await store.put("dir/1", b"")
        watcher = Watcher(store.watch("dir/1"))
        await eventually(lambda: watcher.last is not None, within=5, message="the watch has begun")
        for server in cluster.servers[1:]:
            server.pause()
        await eventually(lambda: watcher.watch.is_stale, within=15, message="the watch is stale")
        for server in cluster.servers[1:]:
            server.resume()
        await eventually(lambda: not watcher.watch.is_stale, within=15, message="the watch goes on")
        pair = await _put_in_the_end(store, "dir/1", b"new")
        await eventually(lambda: watcher.last == pair, within=10, message="the change has come")
        await watcher.stop()


async def _put_in_the_end(store: AsyncStore, key: str, value: bytes) -> KVPair:
    async with asyncio.timeout(scaled(20)):
        while True:
            with contextlib.suppress(NotReachableError):
                return await store.put(key, value)


async def test_a_thousand_watches_are_one_stream(server: EtcdServer, proxy: FaultProxy) -> None:
    before = (await server.metrics())[WATCHERS]
    async with EtcdStore([proxy.endpoint]) as store:
        watches = [store.watch(f"dir/{number}") for number in range(1000)]
        async with asyncio.timeout(scaled(5)):
            assert await asyncio.gather(*(anext(watch) for watch in watches)) == [None] * 1000

        async def watchers() -> float:
            return (await server.metrics())[WATCHERS] - before

        await eventually(_is(watchers, 1000), within=10, message="the server has all watches")
        assert (await server.metrics())[STREAMS] == 1
        assert proxy.connections_total == 1
        pair = await store.put("dir/999", b"")
        assert await anext(watches[999]) == pair
        for watch in watches[:500]:
            await watch.aclose()
        await eventually(_is(watchers, 500), within=10, message="released watches are cancelled")
        watches.clear()
        del watch
        await eventually(_is(watchers, 0), within=10, message="dropped watches are cancelled")
        await store.get("dir/999")
        assert proxy.connections_total == 1


async def test_a_watch_that_is_released_before_it_was_created(server: EtcdServer, proxy: FaultProxy) -> None:
    async def watchers() -> float:
        return (await server.metrics())[WATCHERS]

    async with EtcdStore([proxy.endpoint]) as store:
        other = store.watch("other")
        await anext(other)
        await eventually(_is(watchers, 1), within=5, message="the server has one watch")
        proxy.blackhole(to_server=False)
        # Its first item needs an answer; the creation goes out after it.
        proxy.heal()
        for steps in range(30):
            watch = store.watch("key")
            async with asyncio.timeout(scaled(5)):
                await anext(watch)
            for _ in range(steps):
                await asyncio.sleep(0)
            await watch.aclose()
        await eventually(_is(watchers, 1), within=5, message="no watch is left but the other one")
        pair = await store.put("other", b"")
        assert await anext(other) == pair


def _is(measure: Any, expected: float) -> Any:
    async def check() -> bool:
        return bool(await measure() == expected)

    return check


async def test_no_server_side_watch_is_left_after_close(server: EtcdServer) -> None:
    async with EtcdStore([server.endpoint]) as store:
        await asyncio.gather(*(anext(store.watch(f"key/{number}")) for number in range(10)))

    async def left() -> bool:
        metrics = await server.metrics()
        return metrics[WATCHERS] == metrics[STREAMS] == 0

    await eventually(left, within=5, message="nothing is left on the server")


async def test_one_revision_is_one_change_however_large(server: EtcdServer) -> None:
    # etcd splits an answer of more than 2 MiB into fragments: 30 000 deletions of long keys in one revision.
    async with EtcdStore([server.endpoint]) as store:
        name = "k" * 200

        async def fill(start: int) -> None:
            for number in range(start, 15_000, 50):
                await store.put(f"dir/{name}{number}", b"")

        await asyncio.gather(*(fill(start) for start in range(50)))
        watch = store.watch_tree("dir")
        assert len(await anext(watch)) == 15_000
        assert await store.delete_tree("dir") == 15_000
        gone = await anext(watch)
        assert (len(gone), len(gone.changes)) == (0, 15_000)


async def test_a_long_replay(server: EtcdServer, proxy: FaultProxy) -> None:
    # 40 MiB of changes were missed: they come in fragments, one revision after the other.
    async with EtcdStore([proxy.endpoint]) as store, EtcdStore([server.endpoint]) as other:
        watcher = Watcher(store.watch("key"))
        await eventually(lambda: watcher.items, within=5, message="the watch has begun")
        await other.put("key", b"first")
        await eventually(lambda: watcher.last is not None, within=5, message="a change has come")
        proxy.refuse()
        proxy.reset()
        for number in range(40):
            await other.put("key", b"%d" % number + bytes(1024 * 1024 - 10))
        pair = await other.put("key", b"last")
        proxy.accept()
        await eventually(lambda: watcher.last == pair, within=20, message="the last change has come")
        assert len(watcher.items) == 43
        await watcher.stop()


async def test_watches_that_are_never_created_though_reads_are_answered(server: EtcdServer) -> None:
    """As by grpc-proxy, for keys whose watches it has dropped."""
    first_of_a_stream = encode(WatchCreate(b"", b"", 0, _FIRST_ID))
    async with (
        swallowing(server, first_of_a_stream) as front,
        EtcdStore([front], Config(request_timeout=0.5)) as store,
        EtcdStore([server.endpoint]) as other,
        store.watch("dir/key") as watch,
        store.watch_tree("dir") as tree,
        asyncio.TaskGroup() as group,
    ):
        assert await anext(watch) is None
        assert len(await anext(tree)) == 0
        lock = other.new_lock("lock")
        await lock.acquire()
        waiting = group.create_task(store.new_lock("lock").acquire())
        async with asyncio.timeout(scaled(10)):
            for value in (b"1", b"2"):
                pair = await other.put("dir/key", value)
                assert await anext(watch) == pair
                assert list(await anext(tree)) == [pair]
            await lock.release()
            assert (await waiting).is_held


async def test_a_silent_watch_behind_a_proxy_outlives_any_number_of_tokens(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is begun again and again, and refused whenever the token of its stream has become too old meanwhile."""
    refused = 0
    begun: Counter[tuple[_WatchStream, str]] = Counter()
    add = _WatchStream.add

    def add_or_refuse(stream: _WatchStream, feed: Feed) -> _Watched:
        nonlocal refused
        watched = add(stream, feed)
        begun[stream, feed.path] += 1
        if feed.path == "key" and begun[stream, feed.path] == 2:
            refused += 1
            watched.end(AccessDeniedError("invalid auth token"))
        return watched

    monkeypatch.setattr("aiolibkv.backends.etcd.watching._PROXYS_SILENCE", 0.05)
    monkeypatch.setattr(Connection, "has_user", True)
    monkeypatch.setattr(_WatchStream, "keeps_numbers", property(lambda _: False, lambda *_: None), raising=False)
    monkeypatch.setattr(_WatchStream, "add", add_or_refuse)
    async with EtcdStore([server.endpoint]) as store, store.watch("other"), store.watch("key") as watch:
        assert await anext(watch) is None
        await eventually(lambda: refused >= 5, within=10, message="five tokens have been too old")
        pair = await store.put("key", b"")
        async with asyncio.timeout(scaled(5)):
            assert await anext(watch) == pair
