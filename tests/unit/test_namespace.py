"""What a closed namespace kept alive, on a backend that loses leases and answers."""

from __future__ import annotations

import pytest

from aiolibkv import Config, Discovery, Namespace, NotReachableError, StoreClosedError
from aiolibkv.coordination import namespace as module
from aiolibkv.coordination.removal import _removals
from aiolibkv.testing.scale import eventually, scaled
from unit.faulty import FaultyStore

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
