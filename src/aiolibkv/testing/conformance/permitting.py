"""Semaphores, and locks that readers share: who may, who waits, and what becomes of who is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from aiolibkv import (
    AsyncStore,
    CannotLockError,
    HeldLock,
    KeyNotFoundError,
    Lock,
    LockLostError,
    ReadWriteLock,
    Semaphore,
    StoreClosedError,
)
from aiolibkv.testing.conformance.suite import Stores, Suite
from aiolibkv.testing.scale import eventually, scaled

_TTL = 15.0
_TASKS = 20
_PERMITS = 3


class Permitting(Suite):
    """At most so many, in the order in which they came."""

    async def test_never_more_holders_than_permits(self, stores: Stores) -> None:
        each = [await stores.open() for _ in range(3)]
        holding: list[int] = []
        most = []
        all_granted = asyncio.Event()

        async def work(number: int) -> None:
            async with Semaphore(each[number % 3], "pool", permits=_PERMITS, ttl=_TTL) as held:
                holding.append(number)
                most.append(len(holding))
                assert held.is_held
                if len(holding) == _PERMITS:
                    all_granted.set()
                await all_granted.wait()
                await asyncio.sleep(0.01)
                holding.remove(number)

        async with asyncio.timeout(scaled(60)):
            await asyncio.gather(*(work(number) for number in range(_TASKS)))
        assert len(most) == _TASKS
        assert max(most) == _PERMITS
        assert [pair.key for pair in await each[0].list("pool")] == ["pool/permits"]

    async def test_permits_are_granted_in_order(self, store: AsyncStore, other: AsyncStore) -> None:
        """Also to one whose store has nobody else that waits."""
        granted: list[str] = []
        tokens: list[int] = []
        holder = Semaphore(store, "pool", permits=1, ttl=_TTL)

        async def wait(name: str, through: AsyncStore) -> None:
            async with Semaphore(through, "pool", permits=1, ttl=_TTL) as held:
                granted.append(name)
                tokens.append(held.fencing_token)

        async with asyncio.timeout(scaled(30)):
            tokens.append((await holder.acquire()).fencing_token)
            tasks = []
            for number, (name, through) in enumerate([("a", store), ("b", other), ("c", store)], 2):
                tasks.append(asyncio.ensure_future(wait(name, through)))
                await eventually(lambda: _has_line(other, "pool", number), within=10, message="it waits")  # noqa: B023
            assert await Semaphore(other, "pool", permits=1, ttl=_TTL).try_acquire() is None
            await holder.release()
            await asyncio.gather(*tasks)
        assert granted == ["a", "b", "c"]
        assert tokens == sorted(set(tokens))

    async def test_a_permit_is_a_lock(self, store: AsyncStore, other: AsyncStore) -> None:
        semaphore = Semaphore(store, "pool", permits=2, ttl=_TTL)
        with pytest.raises(CannotLockError):
            await semaphore.release()
        async with asyncio.timeout(scaled(30)):
            held = await semaphore.acquire()
            assert (await other.get(held.key)).value == held.value
            with pytest.raises(CannotLockError):
                await semaphore.acquire()
            await store.put("work", b"", guard=held)
            await semaphore.release()
            assert not held.is_held
            with pytest.raises(LockLostError):
                await store.put("work", b"", guard=held)
            with pytest.raises(CannotLockError):
                await semaphore.release()
            with pytest.raises(LockLostError):
                async with semaphore as again:
                    assert again.fencing_token > held.fencing_token
                    await other.delete(again.key)
                    await asyncio.get_running_loop().create_future()
            assert await semaphore.try_acquire() is not None
            await semaphore.release()

    async def test_who_is_cancelled_keeps_no_permit(self, store: AsyncStore, other: AsyncStore) -> None:
        async with asyncio.timeout(scaled(30)), Semaphore(other, "pool", permits=1, ttl=_TTL):
            waiting = [asyncio.ensure_future(Semaphore(store, "pool", permits=1).acquire()) for _ in range(3)]
            await eventually(lambda: _has_line(other, "pool", 4), within=10, message="all wait")
            last = asyncio.ensure_future(Semaphore(store, "pool", permits=1, ttl=_TTL).acquire())
            await eventually(lambda: _has_line(other, "pool", 5), within=10, message="all wait")
            for each in waiting:
                each.cancel()
            await asyncio.wait(waiting)
            assert await _has_line(other, "pool", 2)
        async with asyncio.timeout(scaled(30)):
            assert (await last).is_held

    async def test_numbers_that_differ_are_named(self, store: AsyncStore, other: AsyncStore) -> None:
        async with asyncio.timeout(scaled(30)), Semaphore(store, "pool", permits=3, ttl=_TTL):
            for acquire in (
                Semaphore(other, "pool", permits=4).acquire,
                Semaphore(other, "pool", permits=4).try_acquire,
            ):
                with pytest.raises(ValueError, match=r"3 .* 4\b"):
                    await acquire()
            assert await _has_line(other, "pool", 1)
            await other.put("pool/permits", b"many")
            with pytest.raises(ValueError, match="many"):
                await Semaphore(other, "pool", permits=3).acquire()
        with pytest.raises(ValueError, match="permit"):
            Semaphore(store, "pool", permits=0)
        with pytest.raises(ValueError, match="permit"):
            await Semaphore(store, "pool", permits=1).resize(0)

    async def test_a_number_that_was_replaced_is_no_mistake(self, store: AsyncStore, other: AsyncStore) -> None:
        """Programs that were given it go on, and get the number that is in force."""
        old, young = (Semaphore(each, "pool", permits=1, ttl=_TTL) for each in (store, other))
        async with asyncio.timeout(scaled(30)):
            async with Semaphore(store, "pool", permits=1, ttl=_TTL):
                for number in (5, 2):
                    await Semaphore(other, "pool", permits=7).resize(number)
                async with old:
                    assert await young.try_acquire() is None
            async with old, young:
                assert await Semaphore(other, "pool", permits=5).try_acquire() is None
                for never in (3, 7):
                    with pytest.raises(ValueError, match=rf"2 .* {never}\b"):
                        await Semaphore(other, "pool", permits=never).try_acquire()

    async def test_a_number_may_be_replaced_before_it_was_used(self, store: AsyncStore, other: AsyncStore) -> None:
        await Semaphore(store, "pool", permits=3).resize(5)
        async with asyncio.timeout(scaled(30)), Semaphore(other, "pool", permits=3, ttl=_TTL) as held:
            assert held.fencing_token

    async def test_resize_wakes_whom_it_lets_in(self, store: AsyncStore, other: AsyncStore) -> None:
        permits = [Semaphore(each, "pool", permits=1, ttl=_TTL) for each in (store, other, store)]
        async with asyncio.timeout(scaled(30)):
            await permits[0].acquire()
            waiting = [asyncio.ensure_future(each.acquire()) for each in permits[1:]]
            await eventually(lambda: _has_line(other, "pool", 3), within=10, message="all wait")
            await Semaphore(other, "pool", permits=7).resize(2)
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1
            await permits[0].resize(1)
            await permits[0].release()
            # One holds the only permit that is left, though there were two when the other began to wait.
            await asyncio.sleep(scaled(0.1))
            assert sum(each.done() for each in waiting) == 1
            for semaphore, each in zip(permits[1:], waiting, strict=True):
                if each in done:
                    await semaphore.release()
            assert all(held.fencing_token for held in await asyncio.gather(*waiting))

    async def test_readers_share_and_a_writer_is_alone(self, stores: Stores) -> None:
        """And who reads never sees what a writer has half done."""
        each = [await stores.open() for _ in range(2)]
        locks = [ReadWriteLock(store, "table", ttl=_TTL) for store in each]
        readers = writers = 0

        async def read(number: int) -> None:
            nonlocal readers
            store = each[number % 2]
            async with locks[number % 2].reading():
                assert not writers
                readers += 1
                pairs = await store.get_many(["table/left", "table/right"])
                await asyncio.sleep(0.01)
                readers -= 1
                assert len({pair.value for pair in pairs.values()}) <= 1

        async def write(number: int) -> None:
            nonlocal writers
            store = each[number % 2]
            async with locks[number % 2].writing() as held:
                assert not readers
                assert not writers
                writers += 1
                await store.put("table/left", b"%d" % number, guard=held)
                await asyncio.sleep(0)
                await store.put("table/right", b"%d" % number, guard=held)
                writers -= 1

        async with asyncio.timeout(scaled(20)), locks[0].reading(), locks[1].reading():
            pass
        async with asyncio.timeout(scaled(60)):
            await asyncio.gather(*((write if number % 4 == 3 else read)(number) for number in range(16)))

    async def test_who_waits_comes_before_who_comes_later(self, store: AsyncStore, other: AsyncStore) -> None:
        """A waiting writer before later readers, a waiting reader before later writers."""
        here, there = ReadWriteLock(store, "table", ttl=_TTL), ReadWriteLock(other, "table", ttl=_TTL)
        order: list[str] = []

        async def enter(name: str, lock: Lock) -> None:
            async with lock:
                order.append(name)

        async with asyncio.timeout(scaled(30)):
            async with here.reading():
                makers: list[tuple[str, Callable[[], Lock]]] = [
                    ("writer", there.writing),
                    ("reader", here.reading),
                    ("later writer", here.writing),
                    ("later reader", there.reading),
                ]
                tasks = []
                for number, (name, make) in enumerate(makers, 2):
                    tasks.append(asyncio.ensure_future(enter(name, make())))
                    await eventually(lambda: _has_line(other, "table", number), within=10, message="it waits")  # noqa: B023
                assert await here.reading().try_acquire() is None
                assert order == []
            await asyncio.gather(*tasks)
        assert order == [name for name, _ in makers]

    async def test_a_reader_that_is_gone_blocks_no_writer(self, stores: Stores, other: AsyncStore) -> None:
        store = await stores.open()
        reading = ReadWriteLock(store, "table", ttl=_TTL).reading()
        async with asyncio.timeout(scaled(30)):
            held = await reading.acquire()
            waiting = asyncio.ensure_future(ReadWriteLock(store, "table", ttl=_TTL).writing().acquire())
            await eventually(lambda: _has_line(other, "table", 2), within=10, message="it waits")
            await store.close()
            assert not held.is_held
            with pytest.raises(StoreClosedError):
                await waiting
            async with ReadWriteLock(other, "table", ttl=_TTL).writing() as mine:
                assert mine.is_held

    async def test_a_waiter_whose_place_is_lost_takes_another(self, store: AsyncStore, other: AsyncStore) -> None:
        async with asyncio.timeout(scaled(30)):
            async with Semaphore(other, "pool", permits=1, ttl=_TTL) as held:
                waiting = asyncio.ensure_future(Semaphore(store, "pool", permits=1, ttl=_TTL).acquire())
                await eventually(lambda: _has_line(other, "pool", 2), within=10, message="it waits")
                for pair in await other.list("pool/line"):
                    if pair.key != held.key:
                        await other.delete(pair.key)
                await eventually(lambda: _has_line(other, "pool", 2), within=10, message="it waits again")
            granted: HeldLock = await waiting
            assert granted.is_held


async def _has_line(store: AsyncStore, name: str, length: int) -> bool:
    try:
        return len(await store.list(f"{name}/line")) == length
    except KeyNotFoundError:
        return length == 0
