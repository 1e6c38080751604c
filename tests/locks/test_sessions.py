"""What a lock makes of its lease: the ttl agreed upon, renewals, and leases that were not renewed in time."""

from __future__ import annotations

import logging

import pytest

from aiolibkv.backends.memory import MemoryStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


@pytest.mark.parametrize(("asked", "told"), [(0.3, ["memory: the lock 'lock' has a ttl of 1 s"]), (5, [])])
async def test_a_ttl_that_is_not_what_was_asked_for_is_told_once(
    caplog: pytest.LogCaptureFixture, asked: float, told: list[str]
) -> None:
    caplog.set_level(logging.INFO, "aiolibkv")
    async with MemoryStore() as store:
        lock = store.new_lock("lock", ttl=asked)
        for _ in range(3):
            async with lock as held:
                assert held.ttl == max(asked, 1)
    assert caplog.messages == told
