"""Locks, cancelled in steps of a millisecond: no key, lease, session, watch or task is left, and another acquires."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from aiolibkv.testing.conformance.locking import is_waiting
from aiolibkv.testing.scale import scaled
from faults.single import Scene

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind, pytest.mark.timeout(600)]

STEPS = 60
TTL = 60.0
"""Seconds: what is left behind does not go by itself while a test looks."""


async def is_cancelled(work: Awaitable[object], after: float) -> bool:
    """Cancel something after so many seconds; False when it was done by then."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
    return task.cancelled()


async def acquire(scene: Scene, after: float) -> None:
    lock = scene.store.new_lock("lock", ttl=TTL)
    if not await is_cancelled(lock.acquire(), after):
        await lock.release()


async def wait(scene: Scene, after: float) -> None:
    async with scene.other.new_lock("lock", ttl=TTL) as holding:
        assert await is_cancelled(scene.store.new_lock("lock", ttl=TTL).acquire(), after)
        assert holding.is_held


async def succeed(scene: Scene, after: float) -> None:
    """Wait, while it is released."""
    holder, lock = scene.other.new_lock("lock", ttl=TTL), scene.store.new_lock("lock", ttl=TTL)
    await holder.acquire()
    waiting = asyncio.ensure_future(lock.acquire())
    await is_waiting(scene.observer, scene.prefix, 1)
    releasing = asyncio.ensure_future(holder.release())
    if not await is_cancelled(waiting, after):
        await lock.release()
    await releasing


async def release(scene: Scene, after: float) -> None:
    lock = scene.store.new_lock("lock", ttl=TTL)
    held = await lock.acquire()
    await is_cancelled(lock.release(), after)
    assert not held.is_held


@pytest.mark.parametrize("call", [acquire, wait, succeed, release])
async def test_cancelling_in_steps_of_a_millisecond(
    scene: Scene, call: Callable[[Scene, float], Awaitable[None]]
) -> None:
    for step in range(STEPS):
        await call(scene, step / 1000)
        async with asyncio.timeout(scaled(20)), scene.other.new_lock("lock", ttl=TTL):
            pass
