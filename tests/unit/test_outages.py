"""When the log is told of what waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import AccessDeniedError, NotReachableError, RequestTimeoutError
from aiolibkv.store import outages as module
from aiolibkv.store.outages import Outages
from aiolibkv.testing.scale import eventually, scaled

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

TOLD_AFTER = 0.1
LONGEST_CALL = 0.1


@pytest_asyncio.fixture
async def outages(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Outages]:
    monkeypatch.setattr("aiolibkv.store.outages.TOLD_AFTER", scaled(TOLD_AFTER))
    caplog.set_level("INFO", "aiolibkv")
    made = Outages(lambda: "here", scaled(LONGEST_CALL))
    yield made
    made.close()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.levelname} {record.getMessage().rpartition(': ')[2]}" for record in caplog.records]


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_who_gives_up_and_begins_again_is_in_the_same_outage(
    outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(30):
        waiter = object()
        outages.failed(waiter, NotReachableError("refused"))
        await asyncio.sleep(scaled(TOLD_AFTER) / 10)
        outages.ended(waiter)
    assert told(caplog) == ["WARNING refused"]
    outages.call_answered()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert not outages.are_any


async def test_a_call_that_fails_counts_from_its_beginning(
    outages: Outages, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiolibkv.store.outages.TOLD_AFTER", 60)
    outages.call_failed(RequestTimeoutError("no answer"), now() - 30)
    assert told(caplog) == []
    outages.call_answered()
    outages.call_failed(RequestTimeoutError("no answer"), now() - 61)
    outages.call_failed(RequestTimeoutError("no answer"), now() - 5)
    assert told(caplog) == ["WARNING no answer"]


async def test_calls_that_are_answered_in_between_are_no_outage(
    outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        outages.call_failed(NotReachableError("refused"), now())
        outages.call_answered()
        await asyncio.sleep(scaled(TOLD_AFTER) / 2)
    assert told(caplog) == []


async def test_an_outage_that_nobody_meets_any_more_is_forgotten(
    outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    outages.call_failed(NotReachableError("refused"), now())
    await eventually(lambda: not outages.are_any, within=5, message="it is forgotten")
    assert told(caplog) == []


async def test_who_waits_though_others_are_answered_is_told(outages: Outages, caplog: pytest.LogCaptureFixture) -> None:
    stuck, other = object(), object()
    outages.waits(stuck)
    while not told(caplog):
        outages.waits(other)
        outages.healed(other)
        outages.call_answered()
        await asyncio.sleep(scaled(TOLD_AFTER) / 20)
    assert told(caplog) == ["WARNING no answer yet"]
    outages.healed(stuck)
    assert told(caplog)[1].startswith("INFO")


async def test_each_reason_is_told(outages: Outages, caplog: pytest.LogCaptureFixture) -> None:
    first, second = object(), object()
    outages.failed(first, AccessDeniedError("no right"))
    outages.failed(second, NotReachableError("refused"))
    await eventually(lambda: len(told(caplog)) == 2, within=5, message="both are told")
    assert sorted(told(caplog)) == ["WARNING no right", "WARNING refused"]


async def test_an_outage_is_told_after_five_seconds() -> None:
    """As is promised; other tests do not wait so long."""
    assert module.TOLD_AFTER == 5.0
