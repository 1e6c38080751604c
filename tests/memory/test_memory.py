"""What is special to the memory backend."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools

import pytest

from aiolibkv import Check, Config, Delete, KeyNotFoundError, LockLostError, StoreError, new_store, open_store
from aiolibkv.backends.memory.space import _shared
from aiolibkv.store import Guard, OwnCall
from aiolibkv.testing.conformance import ConformanceSuite
from counting import counted_turns, indexes_of_writes
from stores import MemoryStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


async def test_stores_of_a_name_share_their_data() -> None:
    async with open_store("memory://shared") as one, new_store("memory", ["shared"]) as two:
        pair = await one.put("key", b"value")
        assert await two.get("key") == pair


async def test_stores_of_other_names_do_not() -> None:
    async with open_store("memory://one") as one, open_store("memory://two") as two:
        await one.put("key", b"value")
        assert not await two.exists("key")


async def test_a_store_without_a_name_is_private() -> None:
    async with open_store("memory://") as one, open_store("memory://") as two, new_store("memory") as three:
        await one.put("key", b"value")
        assert not await two.exists("key")
        assert not await three.exists("key")


async def test_the_data_goes_when_the_last_store_closes() -> None:
    async with open_store("memory://dropped") as one:
        async with open_store("memory://dropped") as two:
            await one.put("key", b"value", ttl=1000)
        async with open_store("memory://dropped") as later:
            assert await later.exists("key")
        assert await one.exists("key")
        with pytest.raises(StoreError):
            await two.exists("key")
    async with open_store("memory://dropped") as three:
        assert not await three.exists("key")
    assert not _shared.get(asyncio.get_running_loop())


async def test_a_store_that_is_only_made_keeps_nothing() -> None:
    made = open_store("memory://made")
    async with open_store("memory://made") as store:
        await store.put("key", b"value")
    async with made:
        assert not await made.exists("key")


async def test_every_event_loop_has_its_own_data() -> None:
    async def use() -> bool:
        async with open_store("memory://loops") as store:
            there = await store.exists("key")
            await store.put("key", b"value")
            return there

    async with open_store("memory://loops") as store:
        await store.put("key", b"of this loop")
        assert not await asyncio.to_thread(lambda: asyncio.run(use()))
        assert not await asyncio.to_thread(lambda: asyncio.run(use()))
        assert (await store.get("key")).value == b"of this loop"


async def test_a_loop_that_is_gone_keeps_no_data() -> None:
    async def use() -> None:
        await open_store("memory://left").__aenter__()

    before = len(_shared)
    await asyncio.to_thread(lambda: asyncio.run(use()))
    gc.collect()
    assert len(_shared) == before


async def test_prefixes_share_a_space() -> None:
    async with open_store("memory://root/a/b") as below, open_store("memory://root") as above:
        pair = await below.put("key", b"value")
        assert (await above.get("a/b/key")).last_index == pair.last_index


async def test_more_than_one_name_is_refused() -> None:
    with pytest.raises(ValueError, match="at most one"):
        new_store("memory", ["one", "two"])
    with pytest.raises(ValueError, match="option"):
        new_store("memory", [], Config(options={"durability": "full"}))


async def test_a_guard_that_stands_lets_writes_through() -> None:
    async with MemoryStore() as store:
        token = (await store.put("lock", b"holder")).last_index
        guard = Guard("lock", token)
        await _put(store, "key", guard)
        await _put(store, "dir/key", guard)
        call = OwnCall()
        assert (await store.driver.delete_tree(call, "dir", guard=guard)).number == 1
        await store.driver.delete(call, "key", expected=None, guard=guard)
        assert [pair.key for pair in await store.list("")] == ["lock"]


@pytest.mark.parametrize("event", ["put", "deleted", "expired", "created again", "another token"])
async def test_a_guard_that_fell_refuses_writes(event: str) -> None:
    async with MemoryStore() as store:
        await store.put("dir/key", b"kept")
        token = (await store.put("lock", b"holder", ttl=0.01 if event == "expired" else None)).last_index
        match event:
            case "put":
                await store.put("lock", b"holder")
            case "deleted":
                await store.delete("lock")
            case "created again":
                await store.delete("lock")
                await store.put("lock", b"holder")
            case "expired":
                async with store.watch("lock") as watch:
                    while await anext(watch) is not None:
                        pass
            case _:
                token += 1
        guard = Guard("lock", token)
        before = await store.list("")
        call = OwnCall()
        for key, expected in (("key", None), ("key", 0), ("dir/key", None), ("dir/key", 1)):
            with pytest.raises(LockLostError):
                await store.driver.put(call, key, b"", expected=expected, lease=None, guard=guard)
        with pytest.raises(LockLostError):
            await store.driver.delete(call, "dir/key", expected=None, guard=guard)
        with pytest.raises(LockLostError):
            await store.driver.delete_tree(call, "dir", guard=guard)
        assert await store.list("") == before


async def test_a_cancelled_call_was_not_applied() -> None:
    async with MemoryStore() as store:
        for call in (store.put("key", b""), store.atomic_put("key", b"", None), store.put("key", b"", ttl=5)):
            task = asyncio.ensure_future(call)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(KeyNotFoundError):
            await store.get("key")


def _let_pass(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have time pass in which the event loop does nothing, as while the application computes."""
    loop = asyncio.get_running_loop()
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + seconds)


async def test_what_expires_while_the_loop_is_busy_is_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    async with MemoryStore() as store:
        await store.put("dir/short", b"", ttl=5)
        await store.put("dir/long", b"", ttl=500)
        _let_pass(monkeypatch, 50)
        assert await store.children("dir") == ["long"]


async def test_a_key_kept_alive_stays_though_the_lease_ended_while_the_loop_was_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with MemoryStore() as store:
        await store.put("one", b"", ttl=5, keep_alive=True)
        _let_pass(monkeypatch, 50)
        pair = await store.put("other", b"", ttl=5, keep_alive=True)
        assert await store.get("other") == pair


@pytest.mark.parametrize("ttl", range(1, 8))
async def test_a_key_that_expires_at_any_moment_of_a_commit(monkeypatch: pytest.MonkeyPatch, ttl: int) -> None:
    async with MemoryStore(config=Config(request_timeout=1000)) as store:
        await store.put("short", b"", ttl=ttl)
        await store.put("long", b"", ttl=500)
        clock = itertools.count(asyncio.get_running_loop().time())
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: next(clock))
        with contextlib.suppress(KeyNotFoundError):
            await store.commit(Delete("short"), Check("long"))
        monkeypatch.undo()


async def _put(store: MemoryStore, path: str, guard: Guard) -> None:
    await store.driver.put(OwnCall(), path, b"", expected=None, lease=None, guard=guard)


async def test_no_test_of_the_suite_hides_another() -> None:
    parts = [part for part in ConformanceSuite.__mro__ if part not in (ConformanceSuite, object)]
    names = [name for part in parts for name in vars(part) if name.startswith("test_")]
    assert len(names) == len(set(names)) > 100
    assert all(inspect.iscoroutinefunction(getattr(ConformanceSuite, name)) for name in names)


async def test_the_index_counts_what_is_written_to_any_key() -> None:
    async with open_store("memory://counted/a") as one, open_store("memory://counted/b") as two:
        assert await indexes_of_writes(one, two) == [1, 2, 3, 5, 6, 6, 8]


async def test_a_task_that_only_reads_lets_others_run() -> None:
    async with MemoryStore() as store:
        await store.put("key", b"")
        async with counted_turns() as turns:
            for _ in range(300):
                await store.get("key")
                await store.exists("key")
            assert turns() >= 8


async def test_a_page_has_no_more_pairs_than_were_asked_for() -> None:
    async with MemoryStore() as store:
        for key in "abc":
            await store.put(key, b"")
        for limit, keys, more in ((2, "ab", True), (3, "abc", False)):
            page = await store.driver.page(OwnCall(), "", "", limit)
            assert ("".join(pair.key for pair in page.pairs), page.more) == (keys, more)


async def test_a_tree_watch_of_all_there_is() -> None:
    """Without a prefix, so that the directory has no name."""
    async with MemoryStore() as store, store.watch_tree("") as watch:
        assert list(await anext(watch)) == []
        for key in ("a", "a/b/c"):
            pair = await store.put(key, b"")
            assert (await anext(watch))[key] == pair
