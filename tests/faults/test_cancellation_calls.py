"""Every call of a store, cancelled at each of its suspensions: the store works on, and nothing is left anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv import HeldLock, KeyNotFoundError, KVPair, StoreClosedError, Watch
from aiolibkv.testing.scale import eventually, scaled
from faults.single import Ground, Scene, on_scene
from faults.stepping import Run, every_step

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

TTL = 1.0


@pytest_asyncio.fixture
async def scene(ground: Ground) -> AsyncIterator[Scene]:
    async with on_scene(ground, delete=True) as made:
        yield made


# -- writes and reads --------------------------------------------------------------------------------------------------

Write = Callable[[Scene, str, KVPair], Awaitable[object]]
"""Writes a key that is at a pair; the key with "/new" at the end is absent."""

PUTS: dict[str, Write] = {
    "put": lambda scene, key, _: scene.store.put(key, b"new"),
    "put a new key": lambda scene, key, _: scene.store.put(f"{key}/new", b"new"),
    "swap": lambda scene, key, pair: scene.store.atomic_put(key, b"new", pair),
    "create": lambda scene, key, _: scene.store.atomic_put(f"{key}/new", b"new", None),
    "put and keep alive": lambda scene, key, _: scene.store.put(key, b"new", keep_alive=True),
    "swap and keep alive": lambda scene, key, pair: scene.store.atomic_put(key, b"new", pair, keep_alive=True),
    "create and keep alive": lambda scene, key, _: scene.store.atomic_put(f"{key}/new", b"new", None, keep_alive=True),
    "put with ttl": lambda scene, key, _: scene.store.put(key, b"new", ttl=TTL),
    "swap with ttl": lambda scene, key, pair: scene.store.atomic_put(key, b"new", pair, ttl=TTL),
    "create with ttl": lambda scene, key, _: scene.store.atomic_put(f"{key}/new", b"new", None, ttl=TTL),
}
DELETIONS: dict[str, Write] = {
    "delete": lambda scene, key, _: scene.store.delete(key),
    "atomic_delete": lambda scene, key, pair: scene.store.atomic_delete(key, pair),
    "delete_tree": lambda scene, key, _: scene.store.delete_tree(key.rpartition("/")[0]),
}
GUARDED: dict[str, Callable[[Scene, str, KVPair, HeldLock], Awaitable[object]]] = {
    "put": lambda scene, key, _, held: scene.store.put(key, b"new", guard=held),
    "put with ttl": lambda scene, key, _, held: scene.store.put(key, b"new", ttl=TTL, guard=held),
    "create": lambda scene, key, _, held: scene.store.atomic_put(f"{key}/new", b"new", None, guard=held),
    "swap": lambda scene, key, pair, held: scene.store.atomic_put(key, b"new", pair, guard=held),
    "delete": lambda scene, key, _, held: scene.store.delete(key, guard=held),
    "atomic_delete": lambda scene, key, pair, held: scene.store.atomic_delete(key, pair, guard=held),
    "delete_tree": lambda scene, key, _, held: scene.store.delete_tree(key.rpartition("/")[0], guard=held),
}
READS: dict[str, Callable[[Scene], Awaitable[object]]] = {
    "get": lambda scene: scene.store.get("dir/key"),
    "get inconsistently": lambda scene: scene.store.get("dir/key", consistent=False),
    "exists": lambda scene: scene.store.exists("dir/key"),
    "exists not": lambda scene: scene.store.exists("dir/no"),
    "list": lambda scene: scene.store.list("dir"),
    "list of a key": lambda scene: scene.store.list("dir/key"),
}


async def awaited(call: Awaitable[object]) -> object:
    return await call


async def values_of(scene: Scene, key: str) -> list[bytes]:
    found = []
    for name in (key, f"{key}/new"):
        try:
            found.append((await scene.other.get(name)).value)
        except KeyNotFoundError:
            continue
    return found


@pytest.mark.parametrize("name", [*PUTS, *DELETIONS])
async def test_writes(scene: Scene, name: str) -> None:
    for step in every_step():
        key = f"{step.name}/key"
        pair = await scene.other.put(key, b"old")
        await step(awaited((PUTS | DELETIONS)[name](scene, key, pair)))
        # A ttl may be over before anybody looks.
        expected = [[b"old"], [] if name in DELETIONS else [b"new"], [b"old", b"new"]]
        assert await values_of(scene, key) in [*expected, []] if "ttl" in name else expected
        await scene.usable()
        await scene.other.put(key, b"after")


@pytest.mark.parametrize("name", GUARDED)
async def test_guarded_writes(scene: Scene, name: str) -> None:
    """The lock stays as it is."""
    lock = scene.store.new_lock("lock", ttl=60)
    held = await lock.acquire()
    for step in every_step():
        key = f"{step.name}/key"
        pair = await scene.other.put(key, b"old")
        await step(awaited(GUARDED[name](scene, key, pair, held)))
        assert held.is_held
        await scene.store.put("guarded", b"", guard=held)
        await scene.other.put(key, b"after")
    await lock.release()


@pytest.mark.parametrize("name", READS)
async def test_reads(scene: Scene, name: str) -> None:
    await scene.other.put("dir/key", b"value")
    read = READS[name]
    expected = await read(scene)
    for step in every_step():
        await step(awaited(read(scene)))
        assert await read(scene) == expected
        await scene.usable()


async def test_a_cancelled_put_with_a_ttl_goes_on_time(scene: Scene) -> None:
    """Whether or not it was applied, and though its server would keep it longer."""
    names = []
    for step in every_step():
        names.append(step.name)
        await step(scene.store.put(step.name, b"", ttl=TTL))

    async def are_gone() -> bool:
        return not any([await scene.other.exists(name) for name in names])

    # The servers themselves would let them stay for 2 s (etcd), 20 s (Consul), as long as the session (ZooKeeper).
    await eventually(are_gone, within=TTL + 6, message="all of them are gone")


# -- watches -----------------------------------------------------------------------------------------------------------


async def test_the_first_item_of_a_watch(scene: Scene) -> None:
    pair = await scene.other.put("key", b"0")
    for step in every_step():
        watch = scene.store.watch("key")
        await step(awaited(anext(watch)))
        if step.was_cancelled:
            assert await anext(watch) == pair
        await watch.aclose()
    await scene.usable()


async def test_a_later_item_of_a_watch(scene: Scene) -> None:
    """What comes when anext is cancelled is given by the next one."""
    pair = await scene.other.put("key", b"0")
    async with scene.store.watch("key") as watch, scene.store.watch_tree("") as tree:
        await anext(watch)
        await anext(tree)
        for step in every_step():
            runs = [step.start(awaited(anext(watch))), step.start(awaited(anext(tree)))]
            pair = await scene.other.put("key", step.name.encode())
            for run in runs:
                await run.end()
            if step.was_cancelled:
                assert await anext(watch) == pair
                assert list(await anext(tree)) == [pair]


async def test_entering_a_watch(scene: Scene) -> None:
    await scene.other.put("key", b"")

    async def use(watch: Watch[KVPair | None]) -> None:
        async with watch:
            async for pair in watch:
                assert pair is not None
                return

    for step in every_step():
        await step(use(scene.store.watch("key")))
    await scene.usable()


async def test_aclose(scene: Scene) -> None:
    await scene.other.put("key", b"")
    released = []
    for step in every_step():
        watch = scene.store.watch("key")
        await anext(watch)
        await step(watch.aclose())
        assert [pair async for pair in watch] == []
        released.append(watch)
    await scene.usable()
    # They are gone though they are still referred to.
    await scene.leave(delete=True)
    assert released


# -- the store ---------------------------------------------------------------------------------------------------------


async def test_entering(scene: Scene) -> None:
    """It can be entered again."""
    for step in every_step():
        store = scene.ground.store(scene.prefix)
        await step(store.__aenter__())
        if step.was_cancelled:
            async with store:
                await store.put("key", b"")
        await store.close()


async def test_close(scene: Scene) -> None:
    """It is closed all the same, with what it had."""
    for step in every_step():
        store = scene.ground.store(scene.prefix)
        await store.__aenter__()
        await store.put("alive", b"", keep_alive=True)
        watch = store.watch("alive")
        await anext(watch)
        lock = store.new_lock("lock", ttl=60)
        held = await lock.acquire()
        await step(store.close())
        assert not held.is_held
        with pytest.raises(StoreClosedError):
            await anext(watch)
        with pytest.raises(StoreClosedError):
            await store.get("alive")
        async with asyncio.timeout(scaled(10)), scene.other.new_lock("lock", ttl=60):
            assert not await scene.other.exists("alive")
        await store.close()


async def test_many_calls_at_once(scene: Scene) -> None:
    """Calls that share connections and sessions do not share their cancellation."""
    await scene.other.put("dir/key", b"")
    for step in every_step():
        runs: list[Run[Any]] = [
            *(step.start(scene.store.put(f"{step.name}/{number}", b"")) for number in range(4)),
            *(step.start(scene.store.put(f"{step.name}/alive/{number}", b"", keep_alive=True)) for number in range(4)),
            *(step.start(scene.store.get("dir/key")) for _ in range(4)),
            *(step.start(awaited(scene.store.list("dir"))) for _ in range(4)),
        ]
        kept = [
            asyncio.ensure_future(scene.store.put(f"{step.name}/kept", b"")),
            asyncio.ensure_future(scene.store.put(f"{step.name}/kept alive", b"", keep_alive=True)),
            asyncio.ensure_future(scene.store.get("dir/key")),
        ]
        were_cancelled = False
        for run in runs:
            await run.end()
            were_cancelled = were_cancelled or step.was_cancelled
        step.was_cancelled = were_cancelled
        for pair in await asyncio.gather(*kept):
            assert await scene.other.get(pair.key) == pair
    await scene.usable()
