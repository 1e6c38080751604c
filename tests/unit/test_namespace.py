"""What a namespace hands on, and what a closed one kept alive, on a backend that loses leases and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest

from aiolibkv import (
    CallNotSupportedError,
    Check,
    Config,
    Delete,
    Discovery,
    KVPair,
    Namespace,
    NotReachableError,
    Put,
    StoreClosedError,
    StoreError,
)
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.coordination import namespace as module
from aiolibkv.coordination.removal import _removals
from aiolibkv.store import Call, Driver, Store, WrappedDriver
from aiolibkv.testing.scale import eventually, scaled
from unit.faulty import FaultyStore

T = TypeVar("T")

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


async def _is_empty(store: FaultyStore) -> bool:
    return not list(store.space.below(""))


async def test_a_key_that_was_created_again_ends_with_its_namespace() -> None:
    async with FaultyStore() as store:
        async with Namespace(store, "app") as part:
            before = await part.put("k", b"v", ttl=0.3, keep_alive=True)
            store.space.revoke(store.leases[0])
            await eventually(lambda: store.exists("app/k"), within=5, message="it comes back")
            assert (await part.get("k")).last_index != before.last_index
        assert not await store.exists("app/k")


async def test_what_others_have_written_stays() -> None:
    async with FaultyStore() as store:
        async with Namespace(store, "app") as part:
            await part.put("k", b"v", keep_alive=True)
            await store.put("app/k", b"mine")
        assert (await store.get("app/k")).value == b"mine"


async def test_a_namespace_closed_during_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLOSING_TIME", 0.0)
    async with FaultyStore() as store:
        async with Namespace(store, "app") as part:
            await part.put("k", b"v", keep_alive=True)
            store.faults["delete"].extend(["lost request"] * 3)
        assert await store.exists("app/k")
        await eventually(lambda: _is_empty(store), within=5, message="it is removed")
        # The store's end is the end of it as well.
        async with Namespace(store, "app") as part:
            await part.put("k", b"v", keep_alive=True)
            store.faults["delete"].extend(["lost request"] * 10_000)
    await eventually(lambda: not _removals, within=5, message="nothing is tried any more")


async def test_a_registration_left_with_its_namespace_during_an_outage() -> None:
    async with FaultyStore(config=Config(request_timeout=scaled(5))) as store:
        async with Namespace(store, "app") as part, Discovery(part, "services").register("web", "here"):
            store.faults["delete"].extend(["lost request"] * 8)
        await eventually(lambda: _is_empty(store), within=15, message="it is removed")


async def test_what_the_next_namespace_writes_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLOSING_TIME", 0.0)
    async with FaultyStore() as store:
        async with Namespace(Namespace(store, "app"), "eu") as part:
            await part.put("k", b"v", keep_alive=True)
            store.faults["delete"].extend(["lost request"] * 3)
        async with Namespace(Namespace(store, "app"), "eu") as part:
            store.faults["put"].append("lost request")
            with pytest.raises(NotReachableError):
                await part.put("k", b"v")
            assert _removals
            await part.put("k", b"v", keep_alive=True)
            assert not _removals
            assert await part.exists("k")
        await eventually(lambda: _is_empty(store), within=5, message="it is removed with the next one")


async def test_an_error_of_a_watch_names_the_key_each_time_it_is_asked() -> None:
    async with FaultyStore() as store:
        watch = Namespace(store, "a").watch("a/k")
        await anext(watch)
    for _ in range(2):
        with pytest.raises(StoreClosedError) as closed:
            await anext(watch)
        assert closed.value.key == "a/k"


_ENDS: dict[str, Callable[[Namespace, KVPair], Awaitable[object]]] = {
    "delete": lambda part, _: part.delete("k"),
    "atomic_delete": lambda part, pair: part.atomic_delete("k", pair),
    "delete_tree": lambda part, _: part.delete_tree(""),
    "commit": lambda part, _: part.commit(Delete("k")),
    "commit of a put": lambda part, _: part.commit(Put("k", b"v")),
}


@pytest.mark.parametrize("how", _ENDS)
async def test_what_is_not_kept_alive_any_more_stays_at_the_end(how: str) -> None:
    """Though it has the value that was kept alive."""
    async with FaultyStore() as store:
        async with Namespace(store, "app") as part:
            await _ENDS[how](part, await part.put("k", b"v", keep_alive=True))
            if how != "commit of a put":
                await store.put("app/k", b"v")
        assert await store.exists("app/k")


async def test_what_a_commit_only_checks_ends_with_its_namespace() -> None:
    async with FaultyStore() as store:
        async with Namespace(store, "app") as part:
            await part.put("k", b"v", keep_alive=True)
            await part.commit(Check("k"), Put("other", b""))
        assert [pair.key for pair in await store.list("")] == ["app/other"]


async def test_lifetimes_and_pages_are_those_that_were_asked_for() -> None:
    async with FaultyStore() as store:
        part = Namespace(store, "app")
        await part.put("a", b"", ttl=7)
        await part.atomic_put("b", b"", None, ttl=8)
        await part.put("c", b"", ttl=9, keep_alive=True)
        held = await part.new_lock("d", ttl=10).acquire()
        assert [lease.ttl for lease in store.leases] == [7, 8, 9, 10]
        assert held.ttl == 10
        with pytest.raises(TypeError):
            await part.get_many("ab")


class _Noting(WrappedDriver):
    """Notes which requests are guarded, and how long pages are to be."""

    def __init__(self, inner: Driver[Any]) -> None:
        super().__init__(inner)
        self.noted: list[tuple[str, object]] = []

    async def request(self, name: str, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        if isinstance(work, partial):
            if name == "page":
                self.noted.append((name, work.args[-1]))
            elif work.keywords.get("guard") is not None:
                self.noted.append((name, work.keywords["guard"].path))
        return await super().request(name, call, work)


async def test_guards_and_pages_are_handed_on() -> None:
    driver = _Noting(MemoryDriver())
    async with Store(driver) as store:
        part = Namespace(Namespace(store, "app"), "eu")
        held = await part.new_lock("lock", ttl=60).acquire()
        pair = await part.put("a", b"", guard=held)
        pair = await part.atomic_put("a", b"", pair, guard=held)
        await part.atomic_delete("a", pair, guard=held)
        await part.put("b/c", b"", guard=held)
        await part.delete("b/c", guard=held)
        await part.commit(Put("b/c", b""), guard=held)
        await part.delete_tree("b", guard=held)
        assert [name for name, _ in driver.noted] == [
            *("put", "put", "delete", "put", "delete", "commit", "delete_tree")
        ]
        assert {path for _, path in driver.noted} == {"app/eu/lock"}
        driver.noted.clear()
        assert [each.key async for each in part.scan("", page=3)] == ["lock"]
        await store.put("app/eu/.aiolibkv/x", b"foreign")
        assert await part.delete_tree("", guard=held) == 1
        assert driver.noted == [("page", 3), ("commit", "app/eu/lock")]
        await store.delete_tree("app/eu")
        held = await part.new_lock("lock", ttl=60).acquire()
        driver.noted.clear()
        assert await part.delete_tree("", guard=held) == 1
        assert driver.noted == [("delete_tree", "app/eu/lock")]


async def test_a_root_with_foreign_keys_and_too_many_of_its_own() -> None:
    async with FaultyStore() as store:
        store.capabilities = replace(store.capabilities, max_operations=2)
        part = Namespace(store, "app")
        await store.put("app/.aiolibkv/x", b"foreign")
        for key in "abc":
            await part.put(key, b"")
        with pytest.raises(CallNotSupportedError):
            await part.delete_tree("")
        await part.delete("c")
        assert await part.delete_tree("") == 2


async def test_a_namespace_belongs_to_an_event_loop() -> None:
    async with FaultyStore() as store:
        part = Namespace(store, "app")
        await part.put("k", b"")
        for use in (part.close, part.open):
            with pytest.raises(StoreError, match="the namespace belongs to another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(_await(use)))  # noqa: B023
        assert await part.exists("k")


async def _await(use: Callable[[], Awaitable[object]]) -> None:
    await use()
