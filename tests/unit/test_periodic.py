"""Slots of time, and claims whose answers are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from aiolibkv import HeldLock, PeriodicJob, StoreError
from aiolibkv.coordination import periodic
from aiolibkv.testing.scale import eventually, scaled
from stores import MemoryStore
from unit.faulty import FaultyStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


@pytest.mark.parametrize("fault", ["lost answer", "lost request", StoreError("no space")])
async def test_a_claim_whose_answer_is_lost(fault: str | StoreError, caplog: pytest.LogCaptureFixture) -> None:
    """It is found again by its mark, or made again: the slot begins, and once. A refusal is logged."""
    seen: list[datetime] = []

    async def work(slot: datetime, held: HeldLock) -> None:
        assert held.is_held
        seen.append(slot)
        store.faults["put"].append(fault)
        if len(seen) == 3:
            raise ZeroDivisionError

    async with FaultyStore() as store, asyncio.timeout(scaled(30)):
        with pytest.raises(ZeroDivisionError):
            await PeriodicJob(store, "job", every=0.05).run(work)
    assert seen == sorted(set(seen))
    assert any("no space" in message for message in caplog.messages) is isinstance(fault, StoreError)


async def test_the_latest_slot_after_a_long_pause() -> None:
    """Of a function that has a slot each second of office hours, and none on other hours."""
    asked = 0

    def in_office_hours(moment: datetime) -> datetime:
        nonlocal asked
        asked += 1
        slot = moment.replace(microsecond=0) + timedelta(seconds=1)
        if slot.hour < 9:
            return slot.replace(hour=9, minute=0, second=0)
        if slot.hour < 17:
            return slot
        return slot.replace(hour=9, minute=0, second=0) + timedelta(days=1)

    store = FaultyStore()
    job = PeriodicJob(store, "job", every=in_office_hours)
    last = datetime(2020, 1, 1, 10, tzinfo=UTC)
    for now, latest in [
        (datetime(2026, 5, 4, 20, 30, tzinfo=UTC), datetime(2026, 5, 4, 16, 59, 59, tzinfo=UTC)),
        (datetime(2026, 5, 4, 8, 59, 59, tzinfo=UTC), datetime(2026, 5, 3, 16, 59, 59, tzinfo=UTC)),
        (datetime(2026, 5, 4, 12, 0, 0, 500, tzinfo=UTC), datetime(2026, 5, 4, 12, tzinfo=UTC)),
        (last + timedelta(seconds=5.5), last + timedelta(seconds=5)),
    ]:
        asked = 0
        assert job._latest(job._following(last), now) == latest
        assert asked < 400
    await store.close()


class _Clock:
    """A wall clock that is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, hour: int) -> None:
        self.now = datetime(2026, 5, 4, hour, tzinfo=UTC)
        monkeypatch.setattr(periodic, "_now", lambda: self.now)
        monkeypatch.setattr(periodic, "_LONGEST_SLEEP", 0.01)


async def test_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Forward: the latest slot runs, once. Back: no slot begins again, and it is told why nothing happens."""
    clock = _Clock(monkeypatch, hour=1)
    seen: list[int] = []

    async def work(slot: datetime, _: HeldLock) -> None:
        seen.append(slot.hour)

    async with MemoryStore() as store, asyncio.timeout(scaled(20)):
        running = asyncio.ensure_future(PeriodicJob(store, "job", every=3600).run(work))
        for hour in (1, 2, 6):
            clock.now = clock.now.replace(hour=hour)
            await eventually(lambda: seen[-1:] == [hour], within=10, message=f"the slot of {hour}")  # noqa: B023
        assert caplog.messages == []
        clock.now = clock.now.replace(hour=3)
        await eventually(lambda: caplog.messages, within=10, message="it is told")
        assert caplog.messages == ["the last slot of 'job' is 10800 s ahead of this clock: none begins before"]
        clock.now = clock.now.replace(hour=7)
        await eventually(lambda: seen[-1:] == [7], within=10, message="the slot of 7")
        running.cancel()
        await asyncio.wait({running})
    assert seen == [1, 2, 6, 7]


async def test_slots_of_two_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every day at three, in Berlin for one process and in New York for another: each instant is a slot of its own."""
    clock = _Clock(monkeypatch, hour=0)
    seen: list[datetime] = []

    def at_three(hours: int) -> Callable[[datetime], datetime]:
        def following(moment: datetime) -> datetime:
            there = moment.astimezone(timezone(timedelta(hours=hours)))
            slot = there.replace(hour=3, minute=0, second=0, microsecond=0)
            return slot if slot > there else slot + timedelta(days=1)

        return following

    async def work(slot: datetime, _: HeldLock) -> None:
        seen.append(slot)

    async with MemoryStore() as store, asyncio.timeout(scaled(20)):
        await store.put("job/slot", b'{"slot": "2026-05-04T00:00:00+00:00"}')
        for hours, hour in ((2, 1), (-4, 7)):
            clock.now = clock.now.replace(hour=hour - 1)
            running = asyncio.ensure_future(PeriodicJob(store, "job", every=at_three(hours)).run(work))
            await eventually(lambda: store.exists("job/leader"), within=10, message="it leads")
            clock.now = clock.now.replace(hour=hour)
            await eventually(lambda: seen[-1:] == [clock.now], within=10, message="the slot of its own three o'clock")
            running.cancel()
            await asyncio.wait({running})
    assert [(slot.hour, slot.tzinfo) for slot in seen] == [(1, UTC), (7, UTC)]


async def test_no_work_begins_under_a_lock_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a process that stood still after its claim."""
    seen: list[HeldLock] = []

    async def claim(_: PeriodicJob, held: HeldLock) -> datetime:
        if not seen and not deleted:
            deleted.append(held)
            task = asyncio.ensure_future(store.delete("job/leader"))
            while held.is_held:
                await asyncio.sleep(0)
            await task
        return datetime(2026, 5, 4, tzinfo=UTC)

    async def work(_: datetime, held: HeldLock) -> None:
        seen.append(held)
        raise ZeroDivisionError

    deleted: list[HeldLock] = []
    monkeypatch.setattr(PeriodicJob, "_claim_next", claim)
    async with MemoryStore() as store, asyncio.timeout(scaled(20)):
        with pytest.raises(ZeroDivisionError):
            await PeriodicJob(store, "job", every=3600).run(work)
    assert seen != deleted
