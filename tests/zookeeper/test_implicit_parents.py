"""Directories that keys need without being keys: seen by nobody, lost by nobody, left by nobody."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from aiolibkv import AsyncStore, CallNotSupportedError, KeyExistsError, KeyModifiedError, KeyNotFoundError, KVPair
from aiolibkv.backends.zookeeper import operations as ops
from aiolibkv.backends.zookeeper.tree import PARENT_VERSION
from aiolibkv.errors import StoreError
from aiolibkv.testing.scale import eventually, scaled
from stores import ZooKeeperStore
from zookeeper.conftest import MakeStore

_KEYS = ["a", "a/b", "a/b/c", "a/b/d", "a/e", "f/g/h"]
_CLIENTS = 6


async def nodes_below(store: ZooKeeperStore, directory: str) -> list[str]:
    """Return every node below a directory, whatever it is."""
    connection = await store.driver._session.connection()
    await connection.ask(ops.sync())
    tree = await store.driver._reader.read_tree(connection, directory, consistent=True)
    return sorted(tree.nodes)


async def raw_exists(store: ZooKeeperStore, path: str) -> bool:
    connection = await store.driver._session.connection()
    result = (await connection.ask_all([ops.sync(), ops.exists(f"/{path}")])).values[-1]
    return not isinstance(result, StoreError)


class _Model:
    """What each key may hold, given what was answered so far: a value that was written and not replaced for certain.

    Every value is written once, so a read says which write it saw. A write is over when another one that began after
    its answer was itself answered.
    """

    def __init__(self) -> None:
        self._clock = 0
        self._writes: dict[str, list[tuple[int, int, bytes | None]]] = {key: [(0, 0, None)] for key in _KEYS}

    def tick(self) -> int:
        self._clock += 1
        return self._clock

    def wrote(self, key: str, began: int, value: bytes | None) -> None:
        self._writes[key].append((began, self.tick(), value))

    def possible(self, key: str) -> set[bytes | None]:
        """Return the values that may be there when nothing is under way: those of no write that another one follows."""
        writes = self._writes[key]
        return {
            value
            for began, ended, value in writes
            if not any(other_began > ended for other_began, _, _ in writes if other_began != began)
        }


async def _drive(model: _Model, store: AsyncStore, seed: int, count: int) -> None:
    chance = random.Random(seed)
    previous: dict[str, KVPair] = {}
    for number in range(count):
        key = chance.choice(_KEYS)
        value = f"{seed}:{number}".encode()
        began = model.tick()
        try:
            match chance.choice(["put", "put", "delete", "delete", "create", "swap", "remove", "get"]):
                case "put":
                    previous[key] = await store.put(key, value)
                    model.wrote(key, began, value)
                case "create":
                    previous[key] = await store.atomic_put(key, value, None)
                    model.wrote(key, began, value)
                case "swap" if key in previous:
                    previous[key] = await store.atomic_put(key, value, previous[key])
                    model.wrote(key, began, value)
                case "delete":
                    await store.delete(key)
                    model.wrote(key, began, None)
                case "remove" if key in previous:
                    await store.atomic_delete(key, previous[key])
                    model.wrote(key, began, None)
                case _:
                    previous[key] = await store.get(key)
        except (KeyNotFoundError, KeyExistsError, KeyModifiedError):
            continue


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(3))
async def test_random_writers_and_deleters(make: MakeStore, prefix: str, seed: int) -> None:
    stores = [make() for _ in range(_CLIENTS)]
    async with stores[0] as reader, stores[1], stores[2], stores[3], stores[4], stores[5]:
        for part in range(10):
            model = _Model()
            async with asyncio.timeout(scaled(60)), asyncio.TaskGroup() as tasks:
                for client, store in enumerate(stores):
                    tasks.create_task(_drive(model, store, 1000 * seed + 100 * part + client, 30))
            listed = {pair.key: pair.value for pair in await reader.list("")}
            for key in _KEYS:
                assert listed.get(key) in model.possible(key), key
                assert await reader.exists(key) == (key in listed)
            needed = {"/".join(key.split("/")[:end]) for key in listed for end in range(1, key.count("/") + 2)}
            assert await nodes_below(reader, prefix) == sorted(f"{prefix}/{path}" for path in needed)
            for key in sorted(listed, reverse=True):
                await reader.delete(key)
            assert not await raw_exists(reader, prefix)


@pytest.mark.asyncio
async def test_two_that_delete_the_last_keys_at_once_leave_no_directory(make: MakeStore, prefix: str) -> None:
    async with make() as store, make() as other:
        for _ in range(20):
            await asyncio.gather(*(store.put(f"dir/sub/{number}", b"") for number in range(6)))
            await asyncio.gather(*((store, other)[number % 2].delete(f"dir/sub/{number}") for number in range(6)))
            assert not await raw_exists(store, prefix)


@pytest.mark.asyncio
async def test_a_key_that_loses_its_value_and_its_children_at_once(make: MakeStore, prefix: str) -> None:
    async with make() as store, make() as other:
        for _ in range(20):
            await store.put("dir", b"")
            await store.put("dir/key", b"")
            await asyncio.gather(store.delete("dir"), other.delete("dir/key"))
            assert not await raw_exists(store, prefix)


@pytest.mark.asyncio
async def test_a_tree_and_its_neighbour_deleted_at_once(make: MakeStore, prefix: str) -> None:
    async with make() as store, make() as other:
        for _ in range(20):
            await store.put("dir/tree/key", b"")
            await store.put("dir/key", b"")
            await asyncio.gather(store.delete_tree("dir/tree"), other.delete("dir/key"))
            assert not await raw_exists(store, prefix)


@pytest.mark.asyncio
@pytest.mark.parametrize("ttl", [0.05, None])
async def test_keys_that_go_by_themselves_leave_no_directory(make: MakeStore, prefix: str, ttl: float | None) -> None:
    async with make() as other:
        async with make() as store, other.watch_tree("") as watch:
            await store.put("dir/sub/key", b"", ttl=ttl or 15, keep_alive=ttl is None)
            while not await anext(watch):
                pass
            if ttl is not None:
                while await anext(watch):
                    pass
        assert not await raw_exists(other, prefix)


@pytest.mark.asyncio
async def test_what_others_made_is_no_key_without_data_and_one_with_empty_data(make: MakeStore, prefix: str) -> None:
    prefix = prefix.replace("/", "-")  # a node of the root, which the test can make alone
    async with make(prefix=prefix) as store:
        connection = await store.driver._session.connection()
        for path, data in (("", None), ("/null", None), ("/empty", b"")):
            await connection.ask(ops.create(f"/{prefix}{path}", data, ops.WORLD))
        assert [pair.key for pair in await store.list("")] == ["empty"]
        assert not await store.exists("null")
        with pytest.raises(KeyNotFoundError):
            await store.list("null")
        await store.put("null/key", b"")
        await store.delete("null/key")
        # It was there without the library, which might not be allowed to make it again.
        assert await raw_exists(store, f"{prefix}/null")
        assert (await store.atomic_put("null", b"now a key", None)).value == b"now a key"
        assert await store.delete_tree("") == 2
        assert await nodes_below(store, prefix) == []


@pytest.mark.asyncio
async def test_an_implicit_parent_is_told_from_a_key_made_again(make: MakeStore, prefix: str) -> None:
    """A transaction that depends on an implicit parent's version does not hold for a key of the same name."""
    async with make() as store:
        connection = await store.driver._session.connection()
        await store.put("dir/key", b"")
        node = await connection.ask(ops.get(f"/{prefix}/dir"))
        assert node.data is None
        assert node.stat.version == PARENT_VERSION
        await store.delete("dir/key")
        await store.put("dir", b"")
        assert (await connection.ask(ops.get(f"/{prefix}/dir"))).stat.version < PARENT_VERSION
        await store.put("dir/key", b"")
        await store.delete("dir")
        node = await connection.ask(ops.get(f"/{prefix}/dir"))
        assert node.data is None
        assert node.stat.version >= PARENT_VERSION
        for writes in range(1, 9):
            for number in range(writes):
                await store.put("dir", str(number).encode())
            await store.delete("dir")
            node = await connection.ask(ops.get(f"/{prefix}/dir"))
            async with store.new_lock("lock", ttl=5):
                lock = await connection.ask(ops.get(f"/{prefix}/lock"))
            assert node.stat.version % 2 == 0 != lock.stat.version % 2, "no version is both a parent's and a lock's"
        await store.delete("dir/key")
        assert await nodes_below(store, prefix) == []


@pytest.mark.asyncio
async def test_lifetimes_and_children_exclude_each_other(make: MakeStore, prefix: str) -> None:
    async with make() as store:
        lives: Sequence[dict[str, object]] = [{"ttl": 100}, {"keep_alive": True}]
        for live in lives:
            await store.put("dir/key", b"kept")
            before = await nodes_below(store, prefix)
            for previous in (None, "create"):
                with pytest.raises(CallNotSupportedError):
                    if previous is None:
                        await store.put("dir", b"", **live)  # type: ignore[arg-type]
                    else:
                        await store.atomic_put("dir", b"", None, **live)  # type: ignore[arg-type]
            pair = await store.put("dir", b"stays")
            with pytest.raises(CallNotSupportedError):
                await store.put("dir", b"", **live)  # type: ignore[arg-type]
            with pytest.raises(CallNotSupportedError):
                await store.atomic_put("dir", b"", pair, **live)  # type: ignore[arg-type]
            assert await store.get("dir") == pair
            assert await nodes_below(store, prefix) == before
            await store.delete_tree("")
            lease = await store.put("dir", b"", **live)  # type: ignore[arg-type]
            for key in ("dir/key", "dir/sub/key"):
                with pytest.raises(CallNotSupportedError) as caught:
                    await store.put(key, b"")
                assert caught.value.maybe_applied is False
                with pytest.raises(CallNotSupportedError):
                    await store.atomic_put(key, b"", None)
            assert list(await store.list("")) == [lease]
            await store.delete("dir")


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["dir", "dir/sub"])
async def test_directories_that_sessions_left_are_in_nobodys_way(make: MakeStore, prefix: str, path: str) -> None:
    """When a session ends the server deletes its keys, and nothing else."""

    async def leave() -> None:
        await store.put("dir/sub/key", b"", ttl=100)
        await (await store.driver._session.connection()).ask(ops.delete(f"/{prefix}/dir/sub/key"))
        assert await nodes_below(store, prefix) == [f"{prefix}/dir", f"{prefix}/dir/sub"]

    async with make() as store:
        lives: Sequence[dict[str, object]] = [{"ttl": 100}, {"keep_alive": True}]
        for live in lives:
            await leave()
            pair = await store.put(path, b"alive", **live)  # type: ignore[arg-type]
            assert list(await store.list("")) == [pair]
            await store.delete(path)
        await leave()
        async with store.new_lock(path, ttl=5) as held:
            assert [found.key for found in await store.list("")] == [path]
            await store.put("guarded", b"", guard=held)
        await store.delete("guarded")

        async def are_pruned() -> bool:
            return not await nodes_below(store, prefix)

        await eventually(are_pruned, within=5, message="the lock's directories are pruned")
        await leave()
        await store.put("dir/other/key", b"")
        with pytest.raises(CallNotSupportedError):
            await store.new_lock("dir").try_acquire()
        with pytest.raises(CallNotSupportedError):
            await store.put("dir", b"", keep_alive=True)
        assert [found.key for found in await store.list("")] == ["dir/other/key"]


@pytest.mark.asyncio
async def test_deep_keys(make: MakeStore, prefix: str) -> None:
    """As many directories as can be, with the largest value."""
    key = "a/" * 255 + "b"
    async with make(prefix=f"{prefix}/" + "p/" * 200 + "p") as store, make() as above:
        pair = await store.put(key, bytes(store.capabilities.max_value_bytes))
        assert await store.get(key) == pair
        await store.delete(key)
        assert not await raw_exists(above, prefix)
