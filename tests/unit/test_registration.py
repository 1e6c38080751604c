"""Registrations that are left, or fail, while something is wrong."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest

from aiolibkv import AccessDeniedError, Discovery, NotReachableError, StoreError, ValueTooLargeError
from aiolibkv.coordination import registration as module
from aiolibkv.store import Call, Guard, Lease, Removal
from aiolibkv.testing.scale import eventually, scaled
from unit.faulty import FaultyDriver, FaultyStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

_KEY = "services/web/id"


async def _is_gone(store: FaultyStore) -> bool:
    return not await store.exists(_KEY)


async def test_left_after_its_lease_was_lost_it_does_not_come_back() -> None:
    async with FaultyStore() as store:
        await store.put("marker", b"", ttl=0.3, keep_alive=True)
        async with Discovery(store, "services").register("web", "here", id="id", ttl=0.3):
            store.faults["put"].extend(["unsent"] * 3)  # until it is left, nothing is created again
            store.space.revoke(store.leases[0])
        await eventually(lambda: store.exists("marker"), within=5, message="other keys come back")
        assert await _is_gone(store)


class Fleeting(FaultyDriver):
    """Once, what is created is gone before any watch sees it."""

    is_over = False

    async def put(
        self, call: Call, path: str, value: bytes, *, expected: int | None, lease: Lease | None, guard: Guard | None
    ) -> int:
        space = self.memory.space
        assert space is not None
        if expected != 0 or Fleeting.is_over:
            return await super().put(call, path, value, expected=expected, lease=lease, guard=guard)
        with patch.object(space, "_tell"):
            index = await super().put(call, path, value, expected=expected, lease=lease, guard=guard)
            space.commit([Removal(path)], None, None)
        Fleeting.is_over = True
        return index


@pytest.mark.parametrize("refused", ["follow", "put"])
async def test_what_a_server_refuses_for_a_time_comes_back(caplog: pytest.LogCaptureFixture, refused: str) -> None:
    async with FaultyStore(["shared"]) as store, FaultyStore(["shared"]) as other:
        store.faults["follow"].extend([AccessDeniedError()] * (refused == "follow"))
        async with Discovery(store, "services").register("web", "here", id="id", ttl=0.1):
            store.faults["put"].extend([AccessDeniedError()] * 2)
            await other.delete(_KEY)
            await eventually(lambda: other.exists(_KEY), within=5, message="it comes back")
        assert await _is_gone(other)
    refusals = [message for message in caplog.messages if "access denied" in message]
    assert len(refusals) == 2 + (refused == "follow")


async def test_leaving_outlasts_what_a_server_refuses_for_a_time() -> None:
    async with FaultyStore() as store:
        async with Discovery(store, "services").register("web", "here", id="id", ttl=0.1):
            store.faults["delete"].extend([AccessDeniedError()] * 3)
        assert await _is_gone(store)


async def test_what_comes_and_goes_unseen_comes_back() -> None:
    async with FaultyStore(["shared"], driver=Fleeting) as store, FaultyStore(["shared"]) as other:
        async with Discovery(store, "services").register("web", "here", id="id", ttl=scaled(0.3)):
            await other.delete(_KEY)
            await eventually(lambda: Fleeting.is_over, within=5, message="it is registered again")
            await eventually(lambda: other.exists(_KEY), within=5, message="it comes back")
        assert await _is_gone(other)


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
async def test_leaving_is_tried_again(fault: str) -> None:
    async with FaultyStore() as store:
        async with Discovery(store, "services").register("web", "here", id="id"):
            store.faults["delete"].extend([fault] * 3)
        assert await _is_gone(store)


async def test_leaving_goes_on_without_being_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAVING_TIME", 0.0)
    async with FaultyStore() as store:
        async with Discovery(store, "services").register("web", "here", id="id"):
            store.faults["delete"].extend(["lost request"] * 3)
        assert not await _is_gone(store)
        await eventually(lambda: _is_gone(store), within=5, message="it is removed")
        # The store's end is the end of it as well.
        async with Discovery(store, "services").register("web", "here", id="id"):
            store.faults["delete"].extend(["lost request"] * 10_000)
    await eventually(lambda: not module._leaving, within=5, message="nothing is tried any more")


@pytest.mark.parametrize("fault", ["lost answer", "lost request"])
async def test_one_that_fails_is_removed_also_when_it_appears_late(fault: str) -> None:
    async with FaultyStore(["shared"]) as store, FaultyStore(["shared"]) as other:
        registration = Discovery(store, "services").register("web", "here", id="id", ttl=scaled(1))
        store.faults["put"].append(fault)
        with pytest.raises(NotReachableError):
            await registration.__aenter__()
        await eventually(lambda: _is_gone(store), within=5, message="it is removed")
        await other.put(_KEY, registration._value)
        await eventually(lambda: _is_gone(store), within=5, message="what came late is removed")
        await eventually(lambda: not module._leaving, within=5, message="it is not looked for any more")


@pytest.mark.parametrize("error", [NotReachableError(), NotReachableError(maybe_applied=True), ValueTooLargeError()])
async def test_what_an_earlier_one_left_is_removed_though_a_later_one_fails(
    monkeypatch: pytest.MonkeyPatch, error: StoreError
) -> None:
    monkeypatch.setattr(module, "_LEAVING_TIME", 0.0)
    async with FaultyStore() as store:
        discovery = Discovery(store, "services")
        async with discovery.register("web", "here", id="id", ttl=scaled(1)):
            store.faults["delete"].extend(["lost request"] * 10_000)
        with patch.object(store, "put", side_effect=error), pytest.raises(type(error)):
            await discovery.register("web", "there", id="id", ttl=scaled(1)).__aenter__()
        store.faults["delete"].clear()
        await eventually(lambda: _is_gone(store), within=5, message="it is removed")


async def test_another_try_is_not_undone() -> None:
    async with FaultyStore() as store:
        discovery = Discovery(store, "services")
        store.faults["put"].append("lost request")
        with pytest.raises(NotReachableError):
            await discovery.register("web", "here", id="id").__aenter__()
        async with discovery.register("web", "here", id="id"), store.watch(_KEY) as watch:
            pair = await anext(watch)
            assert pair is not None
            assert not module._leaving
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await anext(watch)
        assert await _is_gone(store)
