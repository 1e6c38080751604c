"""Campaigns that a server refuses for a time."""

from __future__ import annotations

import asyncio

import pytest

from aiolibkv import AccessDeniedError, CallNotSupportedError, Candidate, HeldLock, StoreError
from aiolibkv.coordination import election
from aiolibkv.testing.scale import eventually, scaled
from stores import MemoryStore
from unit.faulty import FaultyStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


async def _return(held: HeldLock) -> str:
    assert held.is_held
    return "done"


@pytest.mark.parametrize("way", ["run", "run_for_election"])
@pytest.mark.parametrize("error", [StoreError("no space"), AccessDeniedError()])
async def test_a_campaign_goes_on_through_refusals(
    caplog: pytest.LogCaptureFixture, way: str, error: StoreError
) -> None:
    async with FaultyStore() as store, asyncio.timeout(scaled(20)):
        candidate = Candidate(store, "leader", "one")
        store.faults["put"].extend([error] * 3)
        if way == "run":
            assert await candidate.run(_return) == "done"
        else:
            async with candidate.run_for_election() as election:
                assert [await anext(election), await anext(election)] == [False, True]
    assert len([message for message in caplog.messages if "is tried again" in message]) == 3


async def test_lead_tells_a_refusal() -> None:
    async with FaultyStore() as store:
        store.faults["put"].append(AccessDeniedError())
        with pytest.raises(AccessDeniedError):
            await Candidate(store, "leader", "one").lead().__aenter__()


@pytest.mark.parametrize("way", ["run", "run_for_election"])
async def test_what_cannot_heal_ends_a_campaign(way: str) -> None:
    async with FaultyStore() as store, asyncio.timeout(scaled(20)):
        candidate = Candidate(store, "leader", "one")
        store.faults["put"].append(CallNotSupportedError())
        if way == "run":
            with pytest.raises(CallNotSupportedError):
                await candidate.run(_return)
            return
        election = candidate.run_for_election()
        assert await anext(election) is False
        for _ in range(2):
            with pytest.raises(CallNotSupportedError):
                await anext(election)


async def test_a_campaign_that_is_refused_ends_with_the_store() -> None:
    async with FaultyStore() as store:
        candidate = Candidate(store, "leader", "one", ttl=3600)
        store.faults["put"].extend([AccessDeniedError()] * 1000)
        running = asyncio.ensure_future(candidate.run(_return))
        await eventually(lambda: len(store.faults["put"]) < 996, within=20, message="it is tried with growing pauses")
    done, _ = await asyncio.wait({running}, timeout=scaled(1))
    assert done, "the pause outlives the store"
    assert isinstance(running.exception(), StoreError)


async def test_who_resigns_lets_those_who_just_begin_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(election, "_STANDING_BACK", scaled(1))
    async with MemoryStore() as store, asyncio.timeout(scaled(20)):
        one, two = (Candidate(store, "leader", node) for node in ("one", "two"))
        async with one.run_for_election() as first:
            assert [await anext(first), await anext(first)] == [False, True]
            await one.resign()
            assert await anext(first) is False
            async with two.lead():
                assert (await store.get("leader")).value == b"two"
            assert await anext(first) is True
            await one.resign()
            await one.stop()
        assert not one.is_leader
