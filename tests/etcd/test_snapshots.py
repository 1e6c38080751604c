"""A server that was restored from a snapshot, under open stores."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aiolibkv import AsyncStore, KeyNotFoundError, LockLostError
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import EtcdServer
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

TTL = 3


@pytest_asyncio.fixture
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer() as running:
        yield running


async def restore(server: EtcdServer, snapshot: Path) -> None:
    """Put a snapshot in the place of a server's data, and start it."""
    await server.kill()
    data = server.data_directory / "etcd"
    shutil.rmtree(data)
    await server.ctl(
        "snapshot",
        "restore",
        str(snapshot),
        f"--data-dir={data}",
        f"--name={server.name}",
        f"--initial-cluster={server.name}={server.peer_url}",
        f"--initial-advertise-peer-urls={server.peer_url}",
    )
    await server.start()


async def test_what_is_not_in_the_snapshot_is_lost_or_comes_back(server: EtcdServer, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    async with EtcdStore([server.endpoint]) as store, EtcdStore([server.endpoint]) as other:
        # The snapshot has the leases of these, which the server goes on to renew.
        await store.put("alive/before", b"old", ttl=TTL, keep_alive=True)
        first = other.new_lock("lock", ttl=TTL)
        await first.acquire()
        await server.ctl("snapshot", "save", str(snapshot))
        await first.release()
        held = await store.new_lock("lock", ttl=TTL).acquire()
        await store.put("alive/before", b"new", ttl=TTL, keep_alive=True)
        await store.put("alive/after", b"", ttl=TTL, keep_alive=True)
        await restore(server, snapshot)
        async with asyncio.timeout(scaled(3)):
            await held.wait_lost()
        with pytest.raises(LockLostError):
            await store.put("guarded", b"", guard=held)

        async def are_back() -> bool:
            return await _values(other, "alive") == {"alive/before": b"new", "alive/after": b""}

        await eventually(are_back, within=5, message="what is kept alive is there again")
        # The first holder's lease, which nobody wants any more, ends in its time.
        async with asyncio.timeout(scaled(5)):
            assert (await store.new_lock("lock", ttl=TTL).acquire()).is_held


async def _values(store: AsyncStore, directory: str) -> dict[str, bytes]:
    try:
        return {pair.key: pair.value for pair in await store.list(directory)}
    except KeyNotFoundError:
        return {}
