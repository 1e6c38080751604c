"""What counts as the renewal of a lease."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import Config
from aiolibkv.backends.etcd.codec import Range, encode
from aiolibkv.testing.servers import EtcdServer
from etcd.fronts import swallowing
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
