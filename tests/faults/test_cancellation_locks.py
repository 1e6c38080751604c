"""Locks, cancelled at each suspension of acquiring, waiting, holding and releasing.

Afterwards no waiter, key, lease, session or task is left, and another client acquires.
"""

from __future__ import annotations

import asyncio

import pytest

from aiolibkv import HeldLock, Lock, LockLostError
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.store import Call, Lease, Store
from aiolibkv.testing.scale import eventually, scaled
from faults.single import Scene
from faults.stepping import MOMENTS, Moment, every_step, steps
from stores import MemoryStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

TTL = 60.0
"""Seconds: what is left behind does not go by itself while a test looks."""
IDLE = 0.15
"""Seconds without a suspension after which a waiter has come to rest."""


def new_lock(scene: Scene) -> Lock:
    return scene.store.new_lock("lock", value=b"me", ttl=TTL)


async def another_acquires(scene: Scene) -> None:
    """Check that another client gets the lock, and that nothing but its epoch is there when it gave it back."""
    async with asyncio.timeout(scaled(10)), scene.other.new_lock("lock", ttl=TTL):
        pass
    await eventually(lambda: scene.is_free("lock"), within=10, message="nobody stands in line, and the key is gone")


async def used_again(lock: Lock) -> None:
    """Check that a lock whose acquisition was cancelled can be acquired."""
    async with asyncio.timeout(scaled(10)):
        held = await lock.acquire()
    assert held.is_held
    await lock.release()


async def test_acquiring_a_free_lock(scene: Scene) -> None:
    for step in every_step():
        lock = new_lock(scene)
        held = await step(lock.acquire())
        if held is not None:
            assert held.is_held
            await lock.release()
        await another_acquires(scene)
        await used_again(lock)


async def test_try_acquire(scene: Scene) -> None:
    for step in every_step():
        lock = new_lock(scene)
        if await step(lock.try_acquire()) is not None:
            await lock.release()
        await another_acquires(scene)
        await used_again(lock)


async def test_try_acquire_of_a_held_lock(scene: Scene) -> None:
    async with scene.other.new_lock("lock", ttl=TTL) as holding:
        for step in every_step():
            assert await step(new_lock(scene).try_acquire()) is None
        assert holding.is_held
    await another_acquires(scene)


async def test_waiting_while_another_holds_it(scene: Scene) -> None:
    """Up to the suspension in which a waiter rests; the holder notices nothing."""
    for moment in MOMENTS:
        async with scene.other.new_lock("lock", ttl=TTL) as holding:
            for step in steps(moment):
                lock = new_lock(scene)
                await step(lock.acquire(), idle=IDLE)
                assert step.was_cancelled
                await eventually(lambda: waiters(scene, 0), within=10, message="nobody stands in line")
            assert step.was_idle
            assert step.number > 2
            assert holding.is_held
        await another_acquires(scene)
        await used_again(lock)


async def waiters(scene: Scene, number: int) -> bool:
    """Tell whether so many stand in line."""
    keys = (await scene.state())["keys"]
    assert isinstance(keys, list)
    return len([key for key in keys if "/waiters/" in key]) == number


@pytest.mark.parametrize("moment", MOMENTS)
async def test_waiting_when_it_is_released(scene: Scene, moment: Moment) -> None:
    """From the release on, which ends the wait."""
    for step in steps(moment, first=0):
        holder = scene.other.new_lock("lock", ttl=TTL)
        await holder.acquire()
        releasing: asyncio.Task[None] | None = None
        lock = new_lock(scene)
        run = step.start(lock.acquire(), after=lambda: releasing is not None)  # noqa: B023 - it ends within the loop
        await eventually(lambda: waiters(scene, 1), within=10, message="one stands in line")
        before = -1
        while run.counted.suspensions != before:
            before = run.counted.suspensions
            await asyncio.sleep(scaled(0.02))
        releasing = asyncio.ensure_future(holder.release())
        if step.number == 0:
            run.cancel_now()
        if await run.end() is not None:
            await lock.release()
        await releasing
        await another_acquires(scene)
        await used_again(lock)


async def test_waiting_behind_a_task_of_the_same_store(scene: Scene) -> None:
    """Up to where the one in front has released it, and beyond."""
    for step in every_step():
        first, lock = new_lock(scene), new_lock(scene)
        await first.acquire()
        run = step.start(lock.acquire())
        await asyncio.sleep(0)
        await first.release()
        if await run.end() is not None:
            await lock.release()
        await another_acquires(scene)


async def test_three_waiters_of_which_the_middle_one_gives_up(scene: Scene) -> None:
    """Who waits behind it is served, whenever it gave up."""
    async with scene.ground.store(scene.prefix) as third:
        await third.exists("warm")
        for moment in MOMENTS:
            for step in steps(moment):
                holder = scene.other.new_lock("lock", ttl=TTL)
                await holder.acquire()
                run = asyncio.ensure_future(step(new_lock(scene).acquire(), idle=IDLE))
                last = third.new_lock("lock", ttl=TTL)
                waiting = asyncio.ensure_future(last.acquire())
                await run
                assert step.was_cancelled
                assert not waiting.done()
                await holder.release()
                await asyncio.wait_for(waiting, scaled(10))
                await last.release()
        await another_acquires(scene)


async def test_release(scene: Scene) -> None:
    """It is released all the same."""
    for step in every_step():
        lock = new_lock(scene)
        held = await lock.acquire()
        await step(lock.release())
        assert not held.is_held
        await another_acquires(scene)
        await used_again(lock)


class SlowToRelease(MemoryDriver):
    async def release(self, call: Call, path: str, index: int, place: str | None, lease: Lease) -> None:
        for _ in range(50):
            await asyncio.sleep(0)
        await super().release(call, path, index, place, lease)


async def test_a_cancellation_goes_on_after_the_release() -> None:
    """Though it is repeated while the server is waited for."""
    async with Store(SlowToRelease(["slow"])) as store, MemoryStore(["slow"]) as other:
        for step in every_step():
            lock = store.new_lock("lock", ttl=TTL)
            await lock.acquire()
            await step(lock.release())
            assert not await other.exists("lock")


async def test_the_whole_of_async_with(scene: Scene) -> None:
    """Entering, the body, leaving: an outside cancellation stays one, and the lock is free."""
    for step in every_step():
        held: HeldLock | None = None

        async def work() -> None:
            nonlocal held
            async with new_lock(scene) as held:
                await scene.store.put("guarded", b"", guard=held)
                await scene.store.delete("guarded", guard=held)

        await step(work())
        assert held is None or not held.is_held
        if await scene.other.exists("guarded"):
            await scene.other.delete("guarded")
        await another_acquires(scene)


async def test_the_body_when_the_lock_is_lost(scene: Scene) -> None:
    """An outside cancellation that comes with the loss, or while it is dealt with, stays one as well."""

    async def work(inside: asyncio.Event) -> bool:
        try:
            async with new_lock(scene):
                inside.set()
                await asyncio.get_running_loop().create_future()
        except LockLostError:
            return True
        return False

    for step in every_step():
        inside = asyncio.Event()
        run = step.start(work(inside), after=inside.is_set)
        await inside.wait()
        deleting = asyncio.ensure_future(scene.other.delete("lock"))
        assert await run.end() in (True, None)
        await asyncio.wait({deleting})
        # Nobody deletes it twice: whoever was cancelled has released it himself.
        deleting.exception()
        await another_acquires(scene)


async def test_wait_lost(scene: Scene) -> None:
    lock = new_lock(scene)
    held = await lock.acquire()
    for step in every_step():
        await step(held.wait_lost(), idle=IDLE)
        if step.was_idle or not step.was_cancelled:
            break
    assert held.is_held
    run = next(steps("answered")).start(held.wait_lost())
    await asyncio.sleep(0)
    await lock.release()
    await run.end()
    await held.wait_lost()
    await another_acquires(scene)


async def test_close_while_one_waits(scene: Scene) -> None:
    """Of a store that holds the lock, and for which others wait."""
    for step in every_step():
        store = scene.ground.store(scene.prefix)
        await store.__aenter__()
        await store.new_lock("lock", ttl=TTL).acquire()
        waiting = asyncio.ensure_future(scene.other.new_lock("lock", ttl=TTL).acquire())
        await eventually(lambda: waiters(scene, 1), within=10, message="one stands in line")
        await step(store.close())
        held = await asyncio.wait_for(waiting, scaled(10))
        await scene.other.delete("lock")
        await asyncio.wait_for(held.wait_lost(), scaled(10))
        await another_acquires(scene)
