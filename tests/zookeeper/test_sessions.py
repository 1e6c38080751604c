"""The sessions that leases share: how many there are, what they agree to, and how a lease ends before its session."""

from __future__ import annotations

import asyncio
import struct

import pytest

from aiolibkv.backends.zookeeper import operations as ops
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ZooKeeperServer
from zookeeper.conftest import MakeStore, make_store

_TRANSACTION = struct.pack("!i", 14)
_HELLO = struct.pack("!ii", 45, 0)
"""How the first request of a connection begins: its length, and the version of the protocol."""
_ALL_BUT_DELETING = ops.encode_acl([ops.Permission(ops.ALL_PERMISSIONS - ops.PERMISSIONS["d"], "world", "anyone")])


@pytest.mark.asyncio
async def test_locks_of_one_ttl_share_a_session() -> None:
    """ZooKeeper allows an address 60 connections if it is not told otherwise."""
    async with (
        ZooKeeperServer(max_connections=2) as server,
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], request_timeout=scaled(20)) as store,
    ):
        held = await asyncio.gather(*(store.new_lock(f"locks/{number}").acquire() for number in range(70)))
        assert proxy.connections_total == 2
        proxy.reset()
        assert not await store.exists("key")
        await asyncio.gather(*(store.put(f"keys/{each.key}", b"", guard=each) for each in held))
        assert all(each.is_held for each in held)
        assert proxy.connections_open == 2


@pytest.mark.asyncio
async def test_sessions_that_exist_come_back_before_new_ones_begin() -> None:
    """Others have taken the places of an address meanwhile: what is held comes before what is wanted."""
    begun: list[int] = []

    def note(request: bytes) -> bool:
        if request.startswith(_HELLO):
            begun.append(int.from_bytes(request[20:28]))
        return False

    async with (
        ZooKeeperServer(max_connections=2, max_session_timeout=60) as server,
        FaultProxy(server.host, server.port) as proxy,
        make_store([proxy.endpoint], request_timeout=scaled(20), options={"session_timeout": 40}) as store,
    ):
        held = await store.new_lock("lock", ttl=40).acquire()
        proxy.refuse()
        proxy.reset()
        others = make_store([server.endpoint]), make_store([server.endpoint])
        async with others[0], others[1]:
            proxy.cut_answers(matching=note)
            proxy.accept()
            await eventually(lambda: len(set(begun)) == 2, within=10, message="both sessions try to come back")
            waiting = asyncio.ensure_future(store.new_lock("other", ttl=30).acquire())
            tried = len(begun)
            await eventually(lambda: len(begun) > tried + 6, within=10, message="they try again and again")
            assert 0 not in begun
        await store.put("key", b"", guard=held)
        assert not waiting.done()
        await eventually(lambda: 0 in begun, within=10, message="the new one may begin")
        waiting.cancel()
        await asyncio.wait([waiting])


@pytest.mark.asyncio
async def test_a_timeout_that_becomes_shorter_at_a_reconnection() -> None:
    """Nobody else has the lock while its holder counts on it."""
    server = ZooKeeperServer(min_session_timeout=1, max_session_timeout=40)
    async with (
        server,
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint]) as store,
        make_store([server.endpoint]) as other,
    ):
        held = await store.new_lock("lock", ttl=20).acquire()
        await server.stop()
        server._max_session_timeout = 3
        await server.start()
        await eventually(lambda: held.ttl == 3, within=10, message="the session is continued")
        await asyncio.sleep(2 * held.ttl)  # the renewals follow, too
        await store.put("key", b"", guard=held)
        proxy.blackhole()
        successor = await asyncio.wait_for(other.new_lock("lock", ttl=3).acquire(), scaled(10))
        assert (held.is_held, successor.is_held) == (False, True)
        await asyncio.wait_for(held.wait_lost(), scaled(1))
        proxy.heal()


@pytest.mark.asyncio
@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_release_whose_answer_is_lost(
    server: ZooKeeperServer, make: MakeStore, prefix: str, *, is_reset: bool
) -> None:
    """The lock is free soon, and the other locks of the session are held as before."""
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix) as store,
        make() as other,
    ):
        kept = await store.new_lock("dir/kept", ttl=5).acquire()
        lock = store.new_lock("dir/lock", ttl=5)
        await lock.acquire()
        if is_reset:
            proxy.reset()
        else:
            proxy.cut_answers(matching=lambda request: request[4:8] == _TRANSACTION and b"dir/lock" in request)
        await lock.release()
        successor = await asyncio.wait_for(other.new_lock("dir/lock", ttl=5).acquire(), scaled(3))
        await store.put("key", b"", guard=kept)
        await other.put("key", b"", guard=successor)
        assert kept.is_held
        assert successor.is_held


@pytest.mark.asyncio
async def test_an_acquisition_that_is_given_up_leaves_nothing(
    server: ZooKeeperServer, make: MakeStore, prefix: str
) -> None:
    """Its answer is never seen, and its session lives on with another lock."""
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix) as store,
        make() as other,
    ):
        kept = await store.new_lock("dir/kept", ttl=5).acquire()
        sent = asyncio.Event()

        def is_acquisition(request: bytes) -> bool:
            if request[4:8] == _TRANSACTION and b"dir/lock" in request:
                sent.set()
            return False

        proxy.cut_answers(matching=is_acquisition)
        acquiring = asyncio.ensure_future(store.new_lock("dir/lock", ttl=5).acquire())
        await asyncio.wait_for(sent.wait(), scaled(5))
        acquiring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acquiring
        successor = await asyncio.wait_for(other.new_lock("dir/lock", ttl=5).acquire(), scaled(3))
        assert successor.is_held
        assert kept.is_held


@pytest.mark.asyncio
async def test_what_may_not_be_deleted_goes_with_its_session(make: MakeStore, prefix: str) -> None:
    async with make() as store:
        await store.put("key", b"")
        connection = await store.driver._session.connection()
        await connection.ask(ops.create(f"/{prefix}/dir", None, _ALL_BUT_DELETING))
        lock = store.new_lock("dir/lock", ttl=5)
        for _ in range(2):
            await asyncio.wait_for(lock.acquire(), scaled(10))
            await lock.release()
            async with make() as other:
                held = await asyncio.wait_for(other.new_lock("dir/lock", ttl=5).acquire(), scaled(3))
                assert held.is_held


@pytest.mark.asyncio
async def test_a_session_that_nobody_uses_is_ended(server: ZooKeeperServer, prefix: str) -> None:
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix) as store,
    ):
        for _ in range(3):
            async with store.new_lock("lock", ttl=5):
                pass
        assert proxy.connections_total == 2
        await eventually(lambda: proxy.connections_open == 1, within=10, message="the locks' session is ended")
