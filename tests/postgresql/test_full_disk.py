"""A disk without space: nothing that was acknowledged is lost."""

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import KVPair, StoreError
from aiolibkv.testing.conformance.suite import follow, next_of
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import PostgresServer
from disks import enlarge, on_small_disk
from postgresql.conftest import Make

_KIB = 1024


@pytest_asyncio.fixture
async def small_server() -> AsyncIterator[PostgresServer]:
    """Start a server whose data is in a small file system."""
    server = PostgresServer(settings={"wal_level": "minimal", "max_wal_senders": "0", "max_wal_size": "32MB"})
    async with on_small_disk(server, 90) as running:
        yield running


@pytest.mark.asyncio
async def test_a_full_disk(small_server: PostgresServer, make: Make) -> None:
    """A write is refused, or in doubt when the server ends for want of its log; with space again all goes on."""
    async with make(small_server.endpoint, request_timeout=scaled(5)) as store, store.watch("again") as watch:
        assert await next_of(watch) is None
        written: list[KVPair] = []
        with pytest.raises(StoreError) as caught:
            while len(written) < 1000:
                written.append(await store.put(f"key{len(written)}", os.urandom(300 * _KIB)))
        assert len(written) > 5
        assert small_server.endpoint in str(caught.value)
        assert "disk is full" in str(caught.value) or not small_server.running
        enlarge(small_server.data_directory, 300)
        if not small_server.running:
            await small_server.start()
        again: list[KVPair] = []

        async def goes_on() -> bool:
            try:
                again.append(await store.put("again", b""))
            except StoreError:
                return False
            return True

        await eventually(goes_on, within=20, message="it goes on")
        for pair in written:
            assert await store.get(pair.key) == pair
        await follow(watch, lambda pair: pair == again[-1])
