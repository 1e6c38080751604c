"""What is ZooKeeper's own of locks: sessions, the epochs that guards compare, and what stays behind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from aiolibkv import AsyncStore, CallNotSupportedError, HeldLock, LockLostError
from aiolibkv.store import Guard
from aiolibkv.testing.conformance.locking import is_waiting
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ZooKeeperServer
from stores import ZooKeeperStore
from zookeeper.conftest import MakeStore, make_store
from zookeeper.test_implicit_parents import nodes_below

_NOT_RENEWED = 600.0
"""Seconds: no test is that long."""


async def _put(store: AsyncStore) -> None:
    await store.put("dir/lock", b"foreign")


async def _delete(store: AsyncStore) -> None:
    await store.delete("dir/lock")


async def _replace(store: AsyncStore) -> None:
    await store.delete("dir/lock")
    await store.put("dir/lock", b"foreign")


async def _replace_for_a_while(store: AsyncStore) -> None:
    await store.delete("dir/lock")
    await store.put("dir/lock", b"foreign", ttl=1000)


async def _write_with_ttl(store: AsyncStore) -> None:
    await store.put("dir/lock", b"foreign", ttl=1000)


async def _delete_tree(store: AsyncStore) -> None:
    await store.delete_tree("dir")


async def _take(store: AsyncStore) -> None:
    await store.delete("dir/lock")
    assert await store.new_lock("dir/lock", ttl=5).acquire()


@pytest.mark.asyncio
@pytest.mark.parametrize("write", [_put, _delete, _replace, _replace_for_a_while, _write_with_ttl, _delete_tree, _take])
async def test_a_guard_refuses_after_a_foreign_write(
    make: MakeStore, write: Callable[[AsyncStore], Awaitable[None]]
) -> None:
    async with make() as store, make() as other:
        held = await store.new_lock("dir/lock", value=b"me", ttl=5).acquire()
        pair = await store.put("key", b"", guard=held)
        tree = await store.put("tree/key", b"", guard=held)
        guard = store._guard(held)
        await write(other)
        # The server refuses, whether or not the holder has heard of it.
        _keep_guard(store, guard)
        for call in (
            lambda: store.put("key", b"", guard=held),
            lambda: store.put("new", b"", guard=held),
            lambda: store.atomic_put("key", b"", pair, guard=held),
            lambda: store.atomic_put("new", b"", None, guard=held),
            lambda: store.delete("key", guard=held),
            lambda: store.delete("missing", guard=held),
            lambda: store.atomic_delete("key", pair, guard=held),
            lambda: store.delete_tree("tree", guard=held),
            lambda: store.put("key", b"", ttl=5, guard=held),
        ):
            with pytest.raises(LockLostError) as caught:
                await call()
            assert caught.value.maybe_applied is False
        await asyncio.wait_for(held.wait_lost(), scaled(2))
        assert list(await other.list("tree")) == [tree]
        assert await other.get("key") == pair


def _keep_guard(store: ZooKeeperStore, guard: Guard | None) -> None:
    """Have writes sent with a guard whatever the holder knows of its lock."""
    setattr(store, "_guard", lambda _: guard)  # noqa: B010 - a method cannot be assigned to


async def _is_refused(store: ZooKeeperStore, held: HeldLock, guard: Guard | None) -> None:
    """See that the server refuses a guarded write, whatever the store knows of its lock."""
    _keep_guard(store, guard)
    with pytest.raises(LockLostError):
        await store.put("key", b"", guard=held)


@pytest.mark.asyncio
async def test_a_guard_refuses_after_its_epoch_began_anew(make: MakeStore, prefix: str) -> None:
    """A store above the prefix deletes everything, the library's own keys included."""
    async with make() as store, make() as other, make(prefix=None) as above:
        held = await store.new_lock("lock", ttl=5).acquire()
        guard = store._guard(held)
        await above.delete_tree(prefix)
        successor = await other.new_lock("lock", ttl=5).acquire()
        assert successor.fencing_token > held.fencing_token
        await _is_refused(store, held, guard)
        await other.put("key", b"", guard=successor)


@pytest.mark.asyncio
@pytest.mark.parametrize(("own", "others"), [("", "/a"), ("/a", ""), ("/a", "/a/b"), ("/a/b", "")])
async def test_a_guard_refuses_after_an_acquisition_below_another_prefix(
    make: MakeStore, prefix: str, own: str, others: str
) -> None:
    """Each store counts its acquisitions in an epoch below its own prefix."""

    def name(directory: str) -> str:
        return "/a/b/lock".removeprefix(directory)

    async with make(prefix=prefix + own) as store, make(prefix=prefix + others) as other:
        held = await store.new_lock(name(own), ttl=5).acquire()
        guard = store._guard(held)
        await other.delete(name(others))
        successor = await other.new_lock(name(others), ttl=5).acquire()
        assert successor.fencing_token > held.fencing_token
        await _is_refused(store, held, guard)
        await other.put("key", b"", guard=successor)


@pytest.mark.asyncio
async def test_tokens_increase_and_nothing_is_left_but_the_epoch(make: MakeStore, prefix: str) -> None:
    async with make() as store, make() as other:
        tokens = []
        for number in range(4):
            async with (store, other)[number % 2].new_lock("dir/lock", ttl=5) as held:
                tokens.append(held.fencing_token)
        assert tokens == sorted(set(tokens))

        async def is_clean() -> bool:
            if await nodes_below(store, prefix):
                return False
            own = f"{prefix}/.aiolibkv"
            left = [path.removeprefix(f"{own}/") for path in await nodes_below(store, own)]
            return len(left) == 2 and left[0] == "epochs" and left[1].startswith("epochs/")

        await eventually(is_clean, within=5, message="only the epoch stays")


@pytest.mark.asyncio
async def test_a_directory_is_no_lock(make: MakeStore) -> None:
    async with make() as store:
        await store.put("dir/key", b"")
        with pytest.raises(CallNotSupportedError):
            await store.new_lock("dir").try_acquire()
        async with store.new_lock("lock", ttl=5):
            with pytest.raises(CallNotSupportedError):
                await store.put("lock/key", b"")


@pytest.mark.asyncio
async def test_the_ttl_is_what_was_agreed_with_the_server(make: MakeStore) -> None:
    async with make() as store:
        for asked, agreed in ((2.5, 2.5), (1000, 10)):
            async with store.new_lock("lock", ttl=asked) as held:
                assert held.ttl == agreed
                assert held.freed_within == agreed + 2


@pytest.mark.asyncio
async def test_a_lock_of_a_dead_holder_is_freed_in_time(server: ZooKeeperServer, prefix: str) -> None:
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix) as holder,
        make_store([server.endpoint], prefix=prefix) as other,
    ):
        held = await holder.new_lock("lock", ttl=2).acquire()
        lock = other.new_lock("lock", ttl=2)
        waiting = asyncio.ensure_future(lock.acquire())
        await asyncio.sleep(0)
        proxy.blackhole()
        began = asyncio.get_running_loop().time()
        await asyncio.wait_for(held.wait_lost(), scaled(held.ttl))
        async with asyncio.TaskGroup() as tasks:
            # It waits through the end of the session that the locks of its ttl share.
            again = tasks.create_task(holder.new_lock("lock", ttl=2).acquire())
            next_held = await asyncio.wait_for(waiting, scaled(held.freed_within + 1))
            assert asyncio.get_running_loop().time() - began < scaled(held.freed_within + 1)
            assert next_held.fencing_token > held.fencing_token
            proxy.heal()
            await lock.release()
            last_held = await asyncio.wait_for(again, scaled(10))
            assert last_held.fencing_token > next_held.fencing_token


@pytest.mark.asyncio
async def test_an_outage_shorter_than_half_the_ttl_costs_nothing(server: ZooKeeperServer, prefix: str) -> None:
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix) as store,
    ):
        held = await store.new_lock("lock", ttl=4).acquire()
        proxy.blackhole()
        await asyncio.sleep(1.9)
        proxy.heal()
        await store.put("key", b"", guard=held)
        assert held.is_held


@pytest.mark.asyncio
async def test_a_session_that_was_just_asked_for_is_ended(server: ZooKeeperServer, prefix: str) -> None:
    """By whoever gave up waiting for it, since the server begins it all the same."""

    async def sessions() -> set[str]:
        return set(re.findall(r"^\t(0x[0-9a-f]+)$", await server.four_letter_word("dump"), re.MULTILINE))

    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix) as store,
    ):
        await store.exists("key")
        before = await sessions()
        # Connected at once; what is asked arrives after one delay, and the answer after two.
        proxy.delay(0.1)
        for patience in (0.05, 0.15, 0.19, 0.25):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(patience):
                    await store.new_lock("lock", ttl=10).acquire()

        async def are_ended() -> bool:
            return not await sessions() - before

        await eventually(are_ended, within=10, message="no session is left")


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["before the release", "during the release", "until its session expired"])
async def test_who_waits_is_woken_though_its_connections_broke(server: ZooKeeperServer, prefix: str, how: str) -> None:
    """No watch survives a connection, so the one ahead is looked at again."""
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix) as store,
        make_store([server.endpoint], prefix=prefix) as other,
        make_store([server.endpoint]) as observer,
    ):
        first, second = other.new_lock("lock", ttl=10), store.new_lock("lock", ttl=2)
        await first.acquire()
        third = make_store([server.endpoint], prefix=prefix)
        async with third:
            ahead = asyncio.ensure_future(third.new_lock("lock", ttl=10).acquire())
            await is_waiting(observer, prefix, 1)
            waiting = asyncio.ensure_future(second.acquire())
            await is_waiting(observer, prefix, 2)
            await _is_watching(store)
            proxy.refuse()
            proxy.reset()
            if how == "before the release":
                proxy.accept()
            elif how == "until its session expired":
                await is_waiting(observer, prefix, 1)
                proxy.accept()
                await is_waiting(observer, prefix, 2)
            await first.release()
            assert (await asyncio.wait_for(ahead, scaled(10))).is_held
            assert not waiting.done()
        proxy.accept()
        assert (await asyncio.wait_for(waiting, scaled(10))).is_held
        await second.release()


@pytest.mark.asyncio
async def test_a_foreign_write_is_noticed_though_the_connections_broke(server: ZooKeeperServer, prefix: str) -> None:
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix) as store,
        make_store([server.endpoint], prefix=prefix) as other,
    ):
        held = await store.new_lock("lock", ttl=10).acquire()
        await _is_watching(store)
        proxy.refuse()
        proxy.reset()
        await other.put("lock", b"foreign")
        assert held.is_held
        proxy.accept()
        await asyncio.wait_for(held.wait_lost(), scaled(5))
        assert (await other.get("lock")).value == b"foreign"


@pytest.mark.asyncio
@pytest.mark.parametrize("waiters", [20, 50])
async def test_what_a_release_costs(prefix: str, waiters: int) -> None:
    """Whoever waits in line is in a store of its own; what they send goes through a proxy, pings not counted.

    All of them renew their sessions at a third of the ttl: one so long that it is not while requests are counted.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ZooKeeperServer(max_session_timeout=_NOT_RENEWED))
        proxy = await stack.enter_async_context(FaultProxy(server.host, server.port, protocol="zookeeper"))
        holder = await stack.enter_async_context(make_store([proxy.endpoint], prefix=prefix))
        lock = holder.new_lock("lock", ttl=_NOT_RENEWED)
        await lock.acquire()
        stores = [make_store([proxy.endpoint], prefix=prefix) for _ in range(waiters)]
        for store in stores:
            await stack.enter_async_context(store)
        waiting = [asyncio.ensure_future(store.new_lock("lock", ttl=_NOT_RENEWED).acquire()) for store in stores]
        own = f"{prefix}/.aiolibkv/waiters"

        async def are_in_line() -> bool:
            return len(await nodes_below(holder, own)) == waiters + 1

        await eventually(are_in_line, within=20, message="all of them wait in line")
        await _until_quiet(proxy)
        with proxy.counting() as counts:
            await lock.release()
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=scaled(10))
            await _until_quiet(proxy)
        assert len(done) == 1
        assert counts.requests <= 10
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def _is_watching(store: ZooKeeperStore) -> None:
    """Wait until whoever holds a lock, or waits for one, has seen the key that is watched."""
    await eventually(lambda: any(feed.index for feed in store._watches._feeds), within=10, message="a key is watched")


async def _until_quiet(proxy: FaultProxy) -> None:
    seen = -1
    while seen != proxy.requests:
        seen = proxy.requests
        await asyncio.sleep(0.3)
