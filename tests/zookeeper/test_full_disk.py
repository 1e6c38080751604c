"""A disk without space: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aiolibkv import KVPair, StoreError
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import ZooKeeperServer
from zookeeper.conftest import make_store

_KIB = 1024


def _run(*command: str | Path) -> str:
    """Return what went wrong."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return (done.stderr or "it failed") if done.returncode else ""


@pytest_asyncio.fixture
async def small_server() -> AsyncIterator[ZooKeeperServer]:
    """Start a server whose data is in a file system of 3 MiB, of which its log takes 256 KiB at a time."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    server = ZooKeeperServer(extra_args=["-Dzookeeper.preAllocSize=256"])
    try:
        server.data_directory.mkdir()
        if failure := _run("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", server.data_directory):
            pytest.skip(f"a small file system cannot be mounted here: {failure}")
        try:
            await server.start()
            yield server
            await server.kill()
        finally:
            assert not _run("umount", "-l", server.data_directory)
    finally:
        await server.close()


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
        assert not _run("mount", "-o", "remount,size=30m", small_server.data_directory)
        await small_server.start()
        for pair in written:
            assert await store.get(pair.key) == pair
        again = await store.put("again", b"")
        assert await asyncio.wait_for(anext(watch), scaled(10)) == again
