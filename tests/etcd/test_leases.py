"""What counts as the renewal of a lease."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import Config, NotReachableError
from aiolibkv.backends.etcd.codec import LeaseGrant, Range, decode, encode
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import EtcdServer
from etcd.fronts import RESOURCE_EXHAUSTED, front, refusing, swallowing
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

TTL = 2
CONSISTENT_READ = encode(Range(b".aiolibkv", count_only=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer(auth=("root", "secret")) as running:
        await running.add_user("writer", "secret", prefix="open/", access="write")
        yield running


async def test_a_lock_is_lost_when_keep_alives_are_answered_and_reads_are_not(server: EtcdServer) -> None:
    # As by a leader whose disk hangs, after the others have elected another one (seen with 3.4).
    root = Config(username="root", password="secret")
    async with swallowing(server, CONSISTENT_READ) as front, EtcdStore([front], root) as store:
        held = await store.new_lock("lock", ttl=TTL).acquire()
        async with asyncio.timeout(TTL):
            await held.wait_lost()


async def test_who_may_not_read_renews_as_well(server: EtcdServer) -> None:
    async with EtcdStore([server.endpoint], Config(username="writer", password="secret")) as store:
        await store.put("open/key", b"", ttl=TTL, keep_alive=True)
        # It would go after 2.4 s.
        await asyncio.sleep(3)
        assert "open/key" in await server.ctl("get", "open/key")


async def test_a_lease_that_was_refused_for_certain_is_not_revoked() -> None:
    asked = []
    refuse = refusing(RESOURCE_EXHAUSTED, "etcdserver: too many requests")

    def answer(message: bytes) -> bytes | None:
        asked.append(message)
        return refuse(message)

    async with front(answer) as busy, EtcdStore([busy], Config(request_timeout=scaled(0.5))) as store:
        for keep_alive in (False, True):
            with pytest.raises(NotReachableError):
                await store.put("key", b"", ttl=10, keep_alive=keep_alive)
    requests = [decode(LeaseGrant, message) for message in asked if message]
    assert requests
    # A revocation is of one number.
    assert all(request.id for request in requests)


async def test_a_lease_that_was_not_asked_for_is_not_revoked(server: EtcdServer) -> None:
    root = Config(username="root", password="secret", request_timeout=scaled(0.5))
    async with (
        FaultProxy(server.host, server.port, protocol="http2") as proxy,
        EtcdStore([proxy.endpoint], root) as store,
    ):
        proxy.reset()
        proxy.refuse()
        with pytest.raises(NotReachableError):
            await store.get("key")
        puts = (store.put(f"key/{number}", b"", ttl=10) for number in range(5))
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {NotReachableError}
        proxy.accept()
        with proxy.counting() as counts:
            await store.put("key", b"")
            await store.close()
        # That it is etcd, and the put.
        assert counts.requests == 2
