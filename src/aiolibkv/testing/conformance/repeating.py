"""Periodic jobs: one of all processes at each slot, and no slot twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from aiolibkv import AsyncStore, HeldLock, PeriodicJob, StoreClosedError
from aiolibkv.testing.conformance.suite import Stores, Suite
from aiolibkv.testing.scale import eventually, scaled

_TTL = 15.0
Work = Callable[[datetime, HeldLock], Awaitable[None]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Repeating(Suite):
    """What exactly one process does now and then."""

    async def test_each_slot_begins_once(self, store: AsyncStore, other: AsyncStore) -> None:
        """Though whoever runs it is cancelled again and again."""
        every = timedelta(seconds=0.2)
        seen: list[datetime] = []
        running = 0

        async def work(slot: datetime, held: HeldLock) -> None:
            nonlocal running
            running += 1
            seen.append(slot)
            assert running == 1
            assert held.is_held
            try:
                await asyncio.sleep(0.02)
            finally:
                running -= 1

        tasks = [_run(through, work) for through in (store, other, store, other)]
        try:
            async with asyncio.timeout(scaled(30)):
                for task in tasks:
                    before = len(seen)
                    await eventually(lambda: len(seen) > before, within=20, message="slots begin")  # noqa: B023
                    task.cancel()
        finally:
            await _end(tasks)
        assert seen == sorted(set(seen))
        assert all((slot - _EPOCH) % every == timedelta(0) for slot in seen)
        assert all(slot.tzinfo is UTC for slot in seen)

    async def test_a_slot_is_claimed_before_its_work(self, store: AsyncStore, other: AsyncStore) -> None:
        """So it does not begin again when the work was cut short, and one that was missed is made up for once."""
        seen: list[datetime] = []
        claimed: list[datetime] = []
        every = 3600.0

        async def work(slot: datetime, _: HeldLock) -> None:
            claimed.append(datetime.fromisoformat(json.loads((await other.get("job/slot")).value)["slot"]))
            seen.append(slot)
            await asyncio.get_running_loop().create_future()

        async with asyncio.timeout(scaled(30)):
            task = _run(store, work, every)
            await eventually(lambda: seen, within=10, message="the latest slot is due at once")
            await _end([task])
            assert claimed == seen
            task = _run(other, work, every)
            await eventually(lambda: other.exists("job/leader"), within=10, message="it leads")
            await asyncio.sleep(scaled(0.1))
            await _end([task])
            assert len(seen) == 1
            missed = seen[0] - timedelta(hours=5)
            await other.put("job/slot", json.dumps({"slot": missed.isoformat()}).encode())
            task = _run(other, work, every)
            await eventually(lambda: len(seen) == 2, within=10, message="it is made up for once")
            await _end([task])
        assert seen[1] == seen[0]

    async def test_a_slot_of_a_clock_ahead_is_not_repeated(self, store: AsyncStore) -> None:
        ahead = datetime.now(UTC) + timedelta(seconds=30)
        await store.put("job/slot", json.dumps({"slot": ahead.isoformat()}).encode())
        seen: list[datetime] = []

        async def work(slot: datetime, _: HeldLock) -> None:
            seen.append(slot)

        task = _run(store, work, 0.05)
        await eventually(lambda: store.exists("job/leader"), within=10, message="it leads")
        await asyncio.sleep(scaled(0.2))
        await _end([task])
        assert seen == []

    async def test_slots_of_a_function(self, store: AsyncStore) -> None:
        seen: list[datetime] = []

        def following(moment: datetime) -> datetime:
            assert moment.tzinfo is UTC
            return moment + timedelta(seconds=0.05)

        async def work(slot: datetime, _: HeldLock) -> None:
            seen.append(slot)
            if len(seen) == 3:
                raise ZeroDivisionError

        async with asyncio.timeout(scaled(30)):
            with pytest.raises(ZeroDivisionError):
                await PeriodicJob(store, "job", every=following, ttl=_TTL).run(work)
            with pytest.raises(ValueError, match="later"):
                await PeriodicJob(store, "job", every=lambda moment: moment, ttl=_TTL).run(work)
        assert seen == sorted(set(seen))
        assert not await store.exists("job/leader")

    @pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf"), 1e15, 1e-9])
    async def test_seconds_that_cannot_be(self, store: AsyncStore, every: float) -> None:
        with pytest.raises(ValueError, match="every"):
            PeriodicJob(store, "job", every=every)

    async def test_a_job_ends_with_its_store(self, stores: Stores) -> None:
        store = await stores.open()
        seen: list[datetime] = []

        async def work(slot: datetime, _: HeldLock) -> None:
            seen.append(slot)
            await asyncio.get_running_loop().create_future()

        task = _run(store, work, 3600)
        await eventually(lambda: seen, within=10, message="it works")
        await store.close()
        await asyncio.wait({task}, timeout=scaled(5))
        assert isinstance(task.exception(), StoreClosedError)


def _run(store: AsyncStore, work: Work, every: float = 0.2) -> asyncio.Task[None]:
    return asyncio.ensure_future(PeriodicJob(store, "job", every=every, ttl=_TTL).run(work))


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
