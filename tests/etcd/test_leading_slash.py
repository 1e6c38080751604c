"""With the option leading_slash a store reads and writes what others keep below "/"."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import AsyncStore, Config, KeyExistsError, KeyNotFoundError, LockLostError, open_store
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import EtcdServer
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer() as running:
        yield running


@pytest.fixture(params=["", "app"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(prefix: str) -> str:
    """Return what stands before a store's keys at the server."""
    return f"/{prefix}/" if prefix else "/"


@pytest_asyncio.fixture
async def store(server: EtcdServer, prefix: str) -> AsyncIterator[AsyncStore]:
    async with open_store(f"etcd://{server.endpoint}/{prefix}?leading_slash=true") as entered:
        yield entered
        await server.ctl("del", "--prefix", "")


async def stored(server: EtcdServer) -> list[str]:
    """Return the keys at the server, without those that the library keeps for itself."""
    keys = (await server.ctl("get", "--prefix", "--keys-only", "")).split()
    return [key for key in keys if ".aiolibkv/" not in key]


async def test_keys(store: AsyncStore, server: EtcdServer, root: str) -> None:
    pair = await store.put("a/b", b"1")
    assert pair.key == "a/b"
    assert await store.get("/a/b") == pair
    assert await store.exists("a/b")
    assert await stored(server) == [f"{root}a/b"]
    pair = await store.atomic_put("a/b", b"2", pair)
    with pytest.raises(KeyExistsError):
        await store.atomic_put("a/b", b"3", None)
    await store.atomic_delete("a/b", pair)
    with pytest.raises(KeyNotFoundError):
        await store.delete("a/b")
    assert await stored(server) == []


async def test_what_others_write(store: AsyncStore, server: EtcdServer, root: str) -> None:
    for key in (f"{root}dir/1", f"{root}dir/2", f"{root}directory", f"{root}dir"):
        await server.ctl("put", key, "theirs")
    # Keys of other layouts, and what no path can name.
    for key in ("dir/1", "app/dir/1", f"/{root}dir/3", "/"):
        await server.ctl("put", key, "other")
    assert [pair.key for pair in await store.list("dir")] == ["dir/1", "dir/2"]
    everything = ["dir", "dir/1", "dir/2", "directory"]
    assert [pair.key for pair in await store.list("") if not pair.key.startswith("app/")] == everything
    tree, watch = store.watch_tree("dir"), store.watch("dir/1")
    assert [pair.key for pair in await anext(tree)] == ["dir/1", "dir/2"]
    first = await anext(watch)
    assert first is not None
    assert first.value == b"theirs"
    await server.ctl("put", f"{root}dir/1", "new")
    async with asyncio.timeout(scaled(5)):
        changed = (await anext(tree)).get("dir/1")
        assert changed is not None
        assert changed.value == b"new"
        assert await anext(watch) == changed
    assert await store.delete_tree("dir") == 2
    assert f"{root}dir/1" not in await stored(server)
    assert {"dir/1", "app/dir/1", f"{root}dir"} <= set(await stored(server))


async def test_everything_is_deleted_but_what_has_no_slash(store: AsyncStore, server: EtcdServer) -> None:
    await server.ctl("put", "other", "")
    await store.put("a", b"")
    held = await store.new_lock("lock").acquire()
    assert len(await store.list("")) == 2
    assert await store.delete_tree("", guard=held) == 2
    await held.wait_lost()
    assert await stored(server) == ["other"]
    with pytest.raises(LockLostError):
        await store.put("a", b"", guard=held)


async def test_a_lock_is_handed_over(store: AsyncStore, server: EtcdServer, root: str, prefix: str) -> None:
    other = EtcdStore([server.endpoint], Config(prefix=prefix, options={"leading_slash": True}))
    async with other:
        async with store.new_lock("lock", value=b"first"):
            assert await stored(server) == [f"{root}lock"]
            assert (await other.get("lock")).value == b"first"
            waiting = asyncio.ensure_future(other.new_lock("lock").acquire())
            async with asyncio.timeout(scaled(5)):
                while not (waiters := await server.ctl("get", "--prefix", "--keys-only", f"{root}.aiolibkv/")):
                    pass
            assert waiters.startswith(f"{root}.aiolibkv/waiters/")
        async with asyncio.timeout(scaled(5)):
            held = await waiting
        assert (await other.put("key", b"", guard=held)).key == "key"
        assert [pair.key for pair in await other.list("")] == ["key", "lock"]


async def test_keys_kept_alive_are_removed_at_close(store: AsyncStore, server: EtcdServer, prefix: str) -> None:
    async with open_store(f"etcd://{server.endpoint}/{prefix}?leading_slash=true") as own:
        await own.put("alive", b"", keep_alive=True)
        assert await store.exists("alive")
    assert not await store.exists("alive")


@pytest.mark.parametrize("value", ["yes", "", 1, None])
async def test_what_the_option_cannot_be(value: object) -> None:
    with pytest.raises(ValueError, match="leading_slash is true or false"):
        EtcdStore(["host"], Config(options={"leading_slash": value}))
