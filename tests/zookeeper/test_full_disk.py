"""A disk without space: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import KVPair, StoreError
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import ZooKeeperServer
from disks import enlarge, on_small_disk
from zookeeper.conftest import make_store

_KIB = 1024


@pytest_asyncio.fixture
async def small_server() -> AsyncIterator[ZooKeeperServer]:
    """Start a server whose data is in a file system of 3 MiB, of which its log takes 256 KiB at a time."""
    server = ZooKeeperServer(extra_args=["-Dzookeeper.preAllocSize=256"])
    async with on_small_disk(server, 3) as running:
        yield running


@pytest.mark.asyncio
async def test_a_full_disk(small_server: ZooKeeperServer) -> None:
    """ZooKeeper ends, as it cannot go on without its log (3.8); with space again it has what it acknowledged."""
    async with make_store([small_server.endpoint], request_timeout=scaled(3)) as store, store.watch("again") as watch:
        assert await anext(watch) is None
        written: list[KVPair] = []
        with pytest.raises(StoreError) as caught:
            while len(written) < 1000:
                written.append(await store.put(f"key{len(written)}", bytes(20 * _KIB)))
        assert len(written) > 5
        assert small_server.endpoint in str(caught.value)
        assert caught.value.maybe_applied
        await small_server.kill()
        enlarge(small_server.data_directory, 30)
        await small_server.start()
        for pair in written:
            assert await store.get(pair.key) == pair
        again = await store.put("again", b"")
        assert await asyncio.wait_for(anext(watch), scaled(10)) == again
