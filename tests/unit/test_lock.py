"""Locks on a backend that loses leases and answers."""

from __future__ import annotations

import asyncio

import pytest

from aiolibkv import AccessDeniedError, CannotLockError, LockLostError, StoreClosedError
from aiolibkv.store import Call, Lease, LeaseLostError
from aiolibkv.store.leases import clock
from aiolibkv.store.locks import StoreHeldLock
from aiolibkv.testing.scale import eventually, scaled
from unit.faulty import FaultyDriver, FaultyStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


def traces(*stores: FaultyStore) -> list[str]:
    """Return the keys that are in a space, and its leases, but for those that are kept for the next lock."""
    space = stores[0].space
    in_use = space.leases - sum(store.idle_leases for store in stores)
    return [pair.key for pair in space.below("")] + ["lease"] * in_use


async def test_lock_and_release() -> None:
    async with FaultyStore() as store:
        lock = store.new_lock("a/lock", value=b"me", ttl=5)
        async with lock as held:
            assert (await store.get("a/lock")).value == b"me"
            assert (held.key, held.value, held.ttl, held.is_held) == ("a/lock", b"me", 5, True)
            await store.put("data", b"1", guard=held)
            with pytest.raises(CannotLockError):
                await lock.acquire()
            assert await store.new_lock("a/lock").try_acquire() is None
        assert not held.is_held
        with pytest.raises(LockLostError):
            await store.put("data", b"2", guard=held)
        assert traces(store) == ["data"]
        with pytest.raises(CannotLockError):
            await lock.release()


async def test_waiters_of_many_stores_are_served_in_turn() -> None:
    stores = [FaultyStore(["shared"]) for _ in range(4)]
    holders = []
    tokens = []

    async def work(store: FaultyStore) -> None:
        async with store.new_lock("lock", ttl=5) as held:
            holders.append(held)
            assert len(holders) == 1
            tokens.append(held.fencing_token)
            await asyncio.sleep(0.001)
            holders.clear()

    for store in stores:
        await store.__aenter__()
    await asyncio.gather(*(work(store) for store in stores for _ in range(5)))
    assert len(tokens) == 20
    assert tokens == sorted(set(tokens))
    assert traces(*stores) == []
    for store in stores:
        await store.close()


@pytest.mark.parametrize("steps", range(40))
async def test_cancelled_acquisitions_leave_nothing(steps: int) -> None:
    async with FaultyStore(["shared"]) as first, FaultyStore(["shared"]) as second:
        holder = first.new_lock("lock", ttl=5)
        held = await holder.acquire()
        lock = second.new_lock("lock", ttl=5)
        task = asyncio.create_task(lock.acquire())
        for step in range(steps):
            if step == 30:
                await holder.release()
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            await lock.release()
        if held.is_held:
            await holder.release()
        await eventually(lambda: traces(first, second) == [], within=2, message="something is left")
        assert await second.new_lock("lock").try_acquire() is not None
        assert await lock.try_acquire() is None


@pytest.mark.parametrize("steps", range(10))
async def test_waiters_that_are_cancelled_together_while_the_lock_is_released(steps: int) -> None:
    async with FaultyStore() as store:
        holder, *waiters = (store.new_lock("lock", ttl=5) for _ in range(4))
        await holder.acquire()
        waiting = [asyncio.create_task(lock.acquire()) for lock in waiters]
        await asyncio.sleep(scaled(0.01))
        releasing = asyncio.create_task(holder.release())
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await releasing
        for lock, task in zip(waiters, waiting, strict=True):
            if not task.cancelled():
                await lock.release()
        async with asyncio.timeout(scaled(5)), store.new_lock("lock", ttl=5):
            pass
        assert traces(store) == []


@pytest.mark.parametrize("how", ["put", "delete", "lease lost"])
async def test_the_body_of_a_lost_lock_is_cancelled(how: str) -> None:
    async with FaultyStore(["shared"]) as store, FaultyStore(["shared"]) as other:
        with pytest.raises(LockLostError):
            async with store.new_lock("lock", ttl=5) as held:
                if how == "put":
                    await other.put("lock", b"mine")
                elif how == "delete":
                    await other.delete("lock")
                else:
                    store.space.revoke(store.leases[0])
                await asyncio.get_running_loop().create_future()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert not held.is_held
        await held.wait_lost()
        assert await other.exists("lock") == (how == "put")


async def test_a_lease_that_turns_out_to_be_lost_while_a_key_is_watched() -> None:
    """The holder has lost the lock, and whoever waits begins again."""
    async with FaultyStore(["shared"]) as store, FaultyStore(["shared"]) as other:
        store.faults["follow"].append(LeaseLostError())
        held = await store.new_lock("lock", ttl=1000).acquire()
        await asyncio.wait_for(held.wait_lost(), scaled(5))
        holder = other.new_lock("lock", ttl=1000)
        await holder.acquire()
        begun = len(store.leases)
        store.faults["follow"].append(LeaseLostError())
        waiting = asyncio.create_task(store.new_lock("lock", ttl=1000).acquire())
        await eventually(lambda: len(store.leases) == begun + 2, within=5, message="it begins again")
        await holder.release()
        assert (await asyncio.wait_for(waiting, scaled(5))).is_held


@pytest.mark.parametrize("how", ["acquire", "try_acquire"])
async def test_a_lease_that_is_lost_before_it_is_granted(how: str) -> None:
    async with FaultyStore() as store:
        store.faults["grant"].extend(["lease lost"] * 2)
        held = await getattr(store.new_lock("lock", ttl=5), how)()
        assert held.is_held
        assert store.calls.count("grant") == 3


async def test_an_outage_beyond_the_ttl_loses_the_lock_by_the_clock() -> None:
    async with FaultyStore() as store:
        loop = asyncio.get_running_loop()
        with pytest.raises(LockLostError):
            async with store.new_lock("lock", ttl=1):
                began = loop.time()
                store.faults["renew"].extend(["unsent"] * 10_000)
                await loop.create_future()
        assert loop.time() - began < scaled(1)


async def test_an_outside_cancellation_stays_one() -> None:
    async with FaultyStore() as store:
        inside = asyncio.Event()

        async def work() -> None:
            async with store.new_lock("lock", ttl=5) as held:
                inside.set()
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    assert isinstance(held, StoreHeldLock)
                    held.lose("by the test")

        task = asyncio.create_task(work())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: traces(store) == [], within=2, message="something is left")


@pytest.mark.parametrize("fault", ["lost request", "lost answer", "lease lost"])
@pytest.mark.parametrize("request_name", ["grant", "put"])
async def test_a_lost_answer_is_resolved(request_name: str, fault: str) -> None:
    async with FaultyStore() as store:
        store.faults[request_name].append(fault if request_name == "put" or fault != "lease lost" else "unsent")
        async with store.new_lock("lock", ttl=5):
            assert traces(store).count("lock") == 1
        await eventually(lambda: traces(store) == [], within=2, message="something is left")


async def test_a_plain_key_of_that_name_is_waited_for() -> None:
    async with FaultyStore() as store:
        await store.put("lock", b"plain")
        lock = store.new_lock("lock", value=b"lock", ttl=5)
        assert await lock.try_acquire() is None
        task = asyncio.create_task(lock.acquire())
        while "follow" not in store.calls:
            await asyncio.sleep(0)
        assert (await store.get("lock")).value == b"plain"
        await store.delete("lock")
        await task
        assert (await store.get("lock")).value == b"lock"
        await lock.release()


async def test_close_ends_waiting_and_holding() -> None:
    async with FaultyStore(["shared"]) as other:
        async with FaultyStore(["shared"]) as store:
            held = await store.new_lock("lock", ttl=5).acquire()
            waiting = asyncio.create_task(store.new_lock("lock", ttl=5).acquire())
            await asyncio.sleep(0)
        with pytest.raises(StoreClosedError):
            await waiting
        await held.wait_lost()
        assert traces(other) == []


async def test_a_guard_is_of_the_same_store() -> None:
    async with FaultyStore() as store, FaultyStore() as other, store.new_lock("lock", ttl=5) as held:
        with pytest.raises(ValueError, match="same store"):
            await other.put("k", b"v", guard=held)


async def test_a_grant_whose_caller_is_cancelled_is_revoked() -> None:
    async with FaultyStore() as store:
        store.faults["grant"].append("mute")
        acquiring = asyncio.create_task(store.new_lock("lock", ttl=60).acquire())
        await eventually(lambda: store.space.leases == 1, within=2, message="it is granted")
        acquiring.cancel()
        await asyncio.wait({acquiring})
        await eventually(lambda: store.space.leases == 0, within=2, message="it is revoked")


@pytest.mark.parametrize(("ttl", "agreed", "margin"), [(0.2, 1, 0.5), (4, 4, 0.5), (30, 30, 3)])
async def test_what_is_told_of_its_time(ttl: float, agreed: float, margin: float) -> None:
    async with FaultyStore() as store:
        store.driver.new_lease = lambda lifetime: Lease(lifetime.ttl, overshoot=7)  # type: ignore[method-assign]
        held = await store.new_lock("lock", ttl=ttl).acquire()
        assert isinstance(held, StoreHeldLock)
        assert (held.ttl, held.freed_within) == (agreed, agreed + 7)
        assert held._session.deadline - held._session.renewed == pytest.approx(agreed - margin)


async def test_a_lock_counts_from_the_sending_of_its_grant() -> None:
    class Noting(FaultyDriver):
        sent = 0.0

        async def grant(self, call: Call, lease: Lease) -> None:
            self.sent = clock()
            await super().grant(call, lease)

    async with FaultyStore(driver=Noting) as store:
        held = await store.new_lock("lock", ttl=30).acquire()
        assert isinstance(held, StoreHeldLock)
        assert isinstance(store.driver, Noting)
        assert held._session.renewed <= store.driver.sent


async def test_a_lock_that_may_not_be_watched_is_held_until_a_guard_is_refused() -> None:
    async with FaultyStore(["shared"]) as store, FaultyStore(["shared"]) as other:
        store.faults["follow"].append(AccessDeniedError())
        held = await store.new_lock("lock", ttl=60).acquire()
        await eventually(lambda: "follow" in store.calls, within=2, message="it is watched")
        await asyncio.sleep(0.05)
        assert held.is_held
        await other.put("lock", b"foreign")
        with pytest.raises(LockLostError):
            await store.put("data", b"", guard=held)
        assert not held.is_held


async def test_a_lock_that_is_lost_by_the_clock_guards_nothing() -> None:
    """Though the server has heard of nothing."""
    async with FaultyStore() as store:
        held = await store.new_lock("lock", ttl=60).acquire()
        assert isinstance(held, StoreHeldLock)
        held._session.renewed -= 60
        with pytest.raises(LockLostError):
            await store.put("data", b"", guard=held)
        assert "data" not in store.space._pairs
