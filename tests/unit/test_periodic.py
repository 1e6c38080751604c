"""Slots of time, and claims whose answers are lost."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from aiolibkv import HeldLock, PeriodicJob, StoreError
from aiolibkv.testing.scale import scaled
from unit.faulty import FaultyStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


@pytest.mark.parametrize("fault", ["lost answer", "lost request", StoreError("no space")])
async def test_a_claim_whose_answer_is_lost(fault: str | StoreError) -> None:
    """It is found again by its mark, or made again: the slot begins, and once."""
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
