"""Locks: one holder, guards, waiting, losing, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv import (
    AsyncStore,
    CannotLockError,
    Delete,
    HeldLock,
    KeyNotFoundError,
    Lock,
    LockLostError,
    Namespace,
    Put,
    StoreClosedError,
)
from aiolibkv.testing.conformance.cancelling import cancel_at_every_step
from aiolibkv.testing.conformance.suite import CutOff, Stores, Suite, next_of
from aiolibkv.testing.scale import eventually, scaled


async def _never() -> None:
    await asyncio.get_running_loop().create_future()


async def is_waiting(observer: AsyncStore, directory: str, number: int) -> None:
    """Wait until so many stand in line for the locks of a store that is rooted at a directory of the observer's."""

    async def places() -> bool:
        try:
            return len([pair for pair in await observer.list(directory) if "/waiters/" in pair.key]) == number
        except KeyNotFoundError:
            return number == 0

    await eventually(places, within=10, message=f"{number} stand in line")


class Locking(Suite):
    """Holding and waiting."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def first(self, stores: Stores) -> AsyncStore:
        """Open a store below a directory that ``observer`` sees."""
        return await stores.open("locks")

    @pytest_asyncio.fixture(loop_scope="function")
    async def second(self, stores: Stores) -> AsyncStore:
        """Open another store on the same locks."""
        return await stores.open("locks")

    @pytest_asyncio.fixture(loop_scope="function")
    async def observer(self, stores: Stores) -> AsyncStore:
        """Open a store that sees what the library keeps for the locks."""
        return await stores.open()

    async def test_the_key_has_the_value_while_the_lock_is_held(self, first: AsyncStore, second: AsyncStore) -> None:
        async with first.new_lock("/dir/lock/", value=b"me", ttl=10) as held:
            assert (await second.get("dir/lock")).value == b"me"
            assert (held.key, held.value, held.is_held) == ("dir/lock", b"me", True)
            assert held.ttl > 0
            assert held.freed_within >= held.ttl
            assert held.fencing_token == (await second.get("dir/lock")).last_index
        assert not held.is_held
        assert not await second.exists("dir/lock")
        await held.wait_lost()

    async def test_one_holder_at_a_time(self, first: AsyncStore, second: AsyncStore) -> None:
        lock, other = first.new_lock("lock"), second.new_lock("lock")
        assert await lock.try_acquire() is not None
        assert await other.try_acquire() is None
        assert await first.new_lock("lock").try_acquire() is None
        await lock.release()
        held = await other.try_acquire()
        assert held is not None
        assert held.is_held
        assert await lock.try_acquire() is None
        await other.release()

    async def test_misuse(self, first: AsyncStore) -> None:
        lock = first.new_lock("lock")
        with pytest.raises(CannotLockError):
            await lock.release()
        await lock.acquire()
        with pytest.raises(CannotLockError):
            await lock.acquire()
        with pytest.raises(CannotLockError):
            await lock.try_acquire()
        waiting = first.new_lock("lock")
        task = asyncio.ensure_future(waiting.acquire())
        await asyncio.sleep(0)
        with pytest.raises(CannotLockError):
            await waiting.acquire()
        await lock.release()
        await task
        await waiting.release()
        with pytest.raises(CannotLockError):
            await waiting.release()
        with pytest.raises(ValueError, match="ttl"):
            first.new_lock("lock", ttl=0)
        with pytest.raises(TypeError):
            first.new_lock("lock", value="text")  # type: ignore[arg-type]

    async def test_trying_does_not_wait(self, first: AsyncStore) -> None:
        """Not even when the lock was given back a moment ago, and is as good as another task's."""
        holder, waiting = first.new_lock("lock"), first.new_lock("lock")
        await holder.acquire()
        task = asyncio.ensure_future(waiting.acquire())
        await asyncio.sleep(0)
        await holder.release()
        async with asyncio.timeout(scaled(10)):
            assert await first.new_lock("lock").try_acquire() is None
            await task
        await waiting.release()

    async def test_trying_does_not_wait_behind_one_who_waits_for_others(
        self, first: AsyncStore, second: AsyncStore, observer: AsyncStore
    ) -> None:
        async with second.new_lock("lock", ttl=30):
            task = asyncio.ensure_future(first.new_lock("lock").acquire())
            await is_waiting(observer, "locks", 1)
            assert await first.new_lock("lock").try_acquire() is None
        assert (await asyncio.wait_for(task, scaled(10))).is_held

    async def test_a_lock_can_be_used_again(self, first: AsyncStore) -> None:
        lock = first.new_lock("lock")
        tokens = []
        for _ in range(3):
            async with lock as held:
                tokens.append(held.fencing_token)
        assert tokens == sorted(set(tokens))

    async def test_waiters_get_it_one_after_the_other(self, stores: Stores, observer: AsyncStore) -> None:
        """Two of each of four stores; tokens strictly increase; nothing is left."""
        inside: list[HeldLock] = []
        tokens: list[int] = []

        async def work(store: AsyncStore) -> None:
            async with store.new_lock("lock", ttl=10) as held:
                inside.append(held)
                assert inside == [held]
                tokens.append(held.fencing_token)
                await store.put("data", b"", guard=held)
                inside.clear()

        opened = [await stores.open("locks") for _ in range(4)]
        async with asyncio.timeout(scaled(30)):
            await asyncio.gather(*(work(store) for store in opened for _ in range(2)))
        assert len(tokens) == 8
        assert tokens == sorted(set(tokens))
        await is_waiting(observer, "locks", 0)

    async def test_a_key_that_exists_is_not_free(self, first: AsyncStore, second: AsyncStore) -> None:
        await second.put("lock", b"plain")
        lock = first.new_lock("lock", value=b"lock")
        assert await lock.try_acquire() is None
        task = asyncio.ensure_future(lock.acquire())
        await asyncio.wait([task], timeout=0.1)
        assert not task.done()
        assert (await second.get("lock")).value == b"plain"
        await second.delete("lock")
        await asyncio.wait_for(task, scaled(10))
        assert (await second.get("lock")).value == b"lock"
        await lock.release()

    async def test_it_is_renewed(self, first: AsyncStore, second: AsyncStore) -> None:
        lock = first.new_lock("lock", ttl=max(scaled(2.0), first.capabilities.min_ttl))
        held = await lock.acquire()
        await asyncio.sleep(1.4 * held.ttl)
        assert held.is_held
        assert await second.new_lock("lock").try_acquire() is None
        await lock.release()

    async def test_close_frees_it(self, stores: Stores, second: AsyncStore) -> None:
        store = await stores.open("locks")
        held = await store.new_lock("lock", ttl=10).acquire()
        waiting = asyncio.ensure_future(store.new_lock("lock").acquire())
        other = asyncio.ensure_future(second.new_lock("lock").acquire())
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreClosedError):
            await waiting
        assert not held.is_held
        await held.wait_lost()
        assert (await asyncio.wait_for(other, scaled(10))).is_held


class Guarding(Locking):
    """Writes that a lock guards."""

    async def test_writes_while_it_is_held(self, first: AsyncStore) -> None:
        async with first.new_lock("lock") as held:
            pair = await first.put("key", b"1", guard=held)
            pair = await first.atomic_put("key", b"2", pair, guard=held)
            await first.atomic_delete("key", pair, guard=held)
            await first.put("key", b"3", guard=held)
            await first.delete("key", guard=held)
            await first.put("dir/key", b"4", guard=held)
            assert await first.delete_tree("dir", guard=held) == 1
            await first.put("key", b"5", ttl=60, guard=held)
            pair = await first.put("key", b"6", keep_alive=True, guard=held)
            assert (await first.commit(Delete("key", previous=pair), guard=held)) == [None]

    @pytest.mark.parametrize("how", ["released", "put", "deleted", "acquired again", "acquired by another"])
    async def test_writes_after_it_was_lost(self, first: AsyncStore, second: AsyncStore, how: str) -> None:
        pair = await first.put("dir/key", b"old")
        lock = first.new_lock("lock", ttl=30)
        held = await lock.acquire()
        if how == "put":
            await second.put("lock", b"foreign")
        elif how == "released":
            await lock.release()
        else:
            await second.delete("lock")
            if how != "deleted":
                again = (first if how == "acquired again" else second).new_lock("lock", ttl=30)
                await asyncio.wait_for(again.acquire(), scaled(10))
        calls: list[Coroutine[Any, Any, object]] = [
            first.put("dir/key", b"new", guard=held),
            first.put("dir/other", b"new", guard=held),
            first.atomic_put("dir/key", b"new", pair, guard=held),
            first.atomic_put("dir/other", b"new", None, guard=held),
            first.delete("dir/key", guard=held),
            first.atomic_delete("dir/key", pair, guard=held),
            first.delete_tree("dir", guard=held),
            first.put("dir/other", b"new", ttl=60, guard=held),
            first.put("dir/other", b"new", keep_alive=True, guard=held),
            first.atomic_put("dir/other", b"new", None, ttl=60, guard=held),
            first.commit(Put("dir/key", b"new"), Put("dir/other", b"new"), guard=held),
        ]
        for call in calls:
            with pytest.raises(LockLostError) as caught:
                await call
            assert not caught.value.maybe_applied
        assert await second.list("dir") == [pair]
        await asyncio.wait_for(held.wait_lost(), scaled(10))

    async def test_of_stores_with_different_prefixes(self, stores: Stores) -> None:
        """They exclude each other, by whatever name each of them knows the lock's key."""
        ends = [(await stores.open("locks"), "app/lock"), (await stores.open("locks/app"), "lock")]
        token = 0
        for (store, key), (other, same_key) in (ends, reversed(ends), ends):
            held = await asyncio.wait_for(store.new_lock(key, ttl=30).acquire(), scaled(10))
            await store.put("data", b"", guard=held)
            assert await other.new_lock(same_key).try_acquire() is None
            await other.delete(same_key)
            successor = await asyncio.wait_for(other.new_lock(same_key, ttl=30).acquire(), scaled(10))
            assert token < held.fencing_token < successor.fencing_token
            token = successor.fencing_token
            with pytest.raises(LockLostError):
                await store.put("data", b"", guard=held)
            await other.put("data", b"", guard=successor)
            await store.delete(key)

    @pytest.mark.parametrize(
        "call",
        [
            "put",
            "put with ttl",
            "put and keep alive",
            *("atomic_put", "delete", "atomic_delete"),
            "delete_tree",
            "commit",
        ],
    )
    async def test_a_write_that_a_foreign_one_overtakes(self, first: AsyncStore, second: AsyncStore, call: str) -> None:
        """The holder has heard of nothing when it writes: the server lets pass what came before the foreign write."""
        pair = await first.put("dir/key", b"old")
        held = await first.new_lock("lock", ttl=30).acquire()
        guarded: dict[str, Callable[[], Awaitable[object]]] = {
            "put": lambda: first.put("dir/key", b"new", guard=held),
            "put with ttl": lambda: first.put("dir/key", b"new", ttl=60, guard=held),
            "put and keep alive": lambda: first.put("dir/key", b"new", keep_alive=True, guard=held),
            "atomic_put": lambda: first.atomic_put("dir/key", b"new", pair, guard=held),
            "delete": lambda: first.delete("dir/key", guard=held),
            "atomic_delete": lambda: first.atomic_delete("dir/key", pair, guard=held),
            "delete_tree": lambda: first.delete_tree("dir", guard=held),
            "commit": lambda: first.commit(Put("dir/key", b"new", previous=pair), guard=held),
        }
        async with asyncio.timeout(scaled(20)), second.watch_tree("") as watch:
            assert [found.key for found in await next_of(watch)] == ["dir/key", "lock"]
            _, outcome = await asyncio.gather(second.delete("lock"), guarded[call](), return_exceptions=True)
            assert not isinstance(outcome, Exception) or isinstance(outcome, LockLostError)
            while (seen := await next_of(watch)).get("lock") is not None:
                pass
        if isinstance(outcome, LockLostError):
            assert await second.get("dir/key") == pair
        elif second.capabilities.atomic_list:
            assert seen.get("dir/key") != pair

    async def test_of_another_store(self, first: AsyncStore, second: AsyncStore) -> None:
        async with first.new_lock("lock") as held:
            with pytest.raises(ValueError, match="same store"):
                await second.put("key", b"", guard=held)
            with pytest.raises(ValueError, match="same store"):
                await Namespace(second, "app").put("key", b"", guard=held)


class Losing(Locking):
    """Bodies whose lock is lost, and cancellation."""

    @pytest.mark.parametrize("how", ["put", "delete", "delete_tree"])
    async def test_the_body_is_cancelled(self, first: AsyncStore, second: AsyncStore, how: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(LockLostError):
            async with asyncio.timeout(scaled(10)), first.new_lock("dir/lock", ttl=30) as held:
                # By a task of its own: in the body it might be cancelled, by its own effect, before it is complete.
                if how == "put":
                    writing: asyncio.Future[object] = asyncio.ensure_future(second.put("dir/lock", b"foreign"))
                elif how == "delete":
                    writing = asyncio.ensure_future(second.delete("dir/lock"))
                else:
                    writing = asyncio.ensure_future(second.delete_tree("dir"))
                await _never()
        await asyncio.wait_for(writing, scaled(10))
        assert task.cancelling() == 0
        assert not held.is_held
        assert await second.exists("dir/lock") == (how == "put")

    async def test_a_body_that_ends_by_itself_is_told(self, first: AsyncStore, second: AsyncStore) -> None:
        with pytest.raises(LockLostError):
            async with first.new_lock("lock", ttl=30) as held:
                await second.delete("lock")
                try:
                    await held.wait_lost()
                except asyncio.CancelledError:
                    pass

    async def test_a_lock_is_in_use_until_its_body_has_ended(self, first: AsyncStore, second: AsyncStore) -> None:
        """Also when it was lost: what leaves the body must not release what somebody else has acquired by then."""
        lock = first.new_lock("lock", ttl=30)
        ending, may_end = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            async with lock:
                try:
                    await _never()
                finally:
                    ending.set()
                    await may_end.wait()

        task = asyncio.ensure_future(work())
        await _is_taken(second)
        await second.delete("lock")
        await asyncio.wait_for(ending.wait(), scaled(10))
        try:
            with pytest.raises(CannotLockError):
                await lock.acquire()
        finally:
            may_end.set()
            await asyncio.wait([task])
        with pytest.raises(LockLostError):
            task.result()
        async with lock as held:
            assert held.is_held

    async def test_a_body_that_fails_keeps_its_error(self, first: AsyncStore, second: AsyncStore) -> None:
        with pytest.raises(LookupError):
            async with first.new_lock("lock", ttl=30):
                raise LookupError
        assert not await second.exists("lock")

    async def test_a_body_that_fails_after_a_loss_keeps_its_error(self, first: AsyncStore, second: AsyncStore) -> None:
        async def work() -> None:
            async with first.new_lock("lock", ttl=30):
                try:
                    await _never()
                finally:
                    raise LookupError

        task = asyncio.ensure_future(work())
        await _is_taken(second)
        await second.delete("lock")
        with pytest.raises(LookupError):
            await asyncio.wait_for(task, scaled(10))

    async def test_whoever_is_cut_off_stops_before_another_begins(
        self, stores: Stores, second: AsyncStore, cut_off: CutOff
    ) -> None:
        """By its own clock, and a margin before the server may let go of the lock."""
        clock = asyncio.get_running_loop().time
        ttl = max(1.0, second.capabilities.min_ttl)
        acquired: asyncio.Future[HeldLock] = asyncio.get_running_loop().create_future()

        async def hold(store: AsyncStore) -> float:
            with pytest.raises(LockLostError):
                async with store.new_lock("lock", ttl=ttl) as held:
                    acquired.set_result(held)
                    try:
                        await _never()
                    finally:
                        ended = clock()
            return ended

        async def succeed() -> tuple[float, HeldLock]:
            held = await second.new_lock("lock", ttl=ttl).acquire()
            return clock(), held

        async with (
            stores.through(cut_off.factory).make("locks") as store,
            asyncio.timeout(scaled(3 * ttl + 10)),
            asyncio.TaskGroup() as tasks,
        ):
            holding = tasks.create_task(hold(store))
            held = await acquired
            cut_off.cut()
            cut = last_held = clock()
            succeeding = tasks.create_task(succeed())
            # Looked up before is_held says so, the time is one at which it was held, however slow this task is.
            while (now := clock()) and held.is_held:
                last_held = now
                await asyncio.sleep(0.005)
        began, successor = succeeding.result()
        assert last_held < cut + held.ttl - max(0.5, held.ttl / 10)
        assert holding.result() < began
        assert successor.fencing_token > held.fencing_token

    async def test_an_outside_cancellation_stays_one(self, first: AsyncStore, second: AsyncStore) -> None:
        inside = asyncio.Event()

        async def work() -> None:
            async with first.new_lock("lock", ttl=30):
                inside.set()
                await _never()

        task = asyncio.ensure_future(work())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not await second.exists("lock")

    @pytest.mark.parametrize("loss_first", [True, False])
    async def test_a_loss_and_an_outside_cancellation_at_once(
        self, first: AsyncStore, second: AsyncStore, *, loss_first: bool
    ) -> None:
        """Before the body has heard of either: whoever cancelled it from outside sees that it was."""
        lock = first.new_lock("lock", ttl=30)
        inside = asyncio.Event()

        async def work() -> None:
            async with lock:
                inside.set()
                await _never()

        task = asyncio.ensure_future(work())
        await inside.wait()
        # Whoever releases a lock that another task holds takes it from that task, before anything is waited for.
        if loss_first:
            releasing = asyncio.ensure_future(lock.release())
            while not task.cancelling():
                await asyncio.sleep(0)
            task.cancel()
            await releasing
        else:
            task.cancel()
            await lock.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not await second.exists("lock")

    async def test_a_timeout_around_waiting(self, first: AsyncStore, second: AsyncStore, observer: AsyncStore) -> None:
        async with first.new_lock("lock", ttl=30):
            waiting = second.new_lock("lock", ttl=30)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await waiting.acquire()
            await is_waiting(observer, "locks", 0)
        assert await waiting.try_acquire() is not None
        await waiting.release()

    async def test_cancelling_acquire(self, first: AsyncStore, second: AsyncStore, observer: AsyncStore) -> None:
        """At every step: free, and behind another."""

        async def prepare(_: int) -> Lock:
            return second.new_lock("lock", ttl=30)

        async def acquire(lock: Lock) -> None:
            await lock.acquire()
            await lock.release()

        async def check(lock: Lock) -> None:
            next_one = first.new_lock("lock", ttl=30)
            await asyncio.wait_for(next_one.acquire(), scaled(10))
            await next_one.release()
            assert await lock.try_acquire() is not None
            await lock.release()
            await is_waiting(observer, "locks", 0)

        await cancel_at_every_step(prepare, acquire, check)
        for steps in (1, 5, 20, 60, 120):
            holder = first.new_lock("lock", ttl=30)
            await holder.acquire()
            task = asyncio.ensure_future(second.new_lock("lock", ttl=30).acquire())
            for _ in range(steps):
                await asyncio.sleep(0.0005)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await is_waiting(observer, "locks", 0)
            await holder.release()
            assert not await second.exists("lock")

    async def test_cancelling_release(self, first: AsyncStore, second: AsyncStore) -> None:
        """It is freed all the same."""

        async def prepare(_: int) -> Lock:
            lock = first.new_lock("lock", ttl=30)
            await asyncio.wait_for(lock.acquire(), scaled(10))
            return lock

        async def check(lock: Lock) -> None:
            with pytest.raises(CannotLockError):
                await lock.release()
            await eventually(lambda: _is_free(second), within=10, message="the lock is free")

        for steps in range(1, 40):
            lock = await prepare(steps)
            task = asyncio.ensure_future(lock.release())
            for _ in range(steps):
                await asyncio.sleep(0)
            done = task.done()
            task.cancel()
            await asyncio.wait([task])
            await check(lock)
            if done:
                return

    async def test_waiting_is_no_watch_of_users(self, first: AsyncStore, second: AsyncStore) -> None:
        """What the library keeps for those who wait is neither listed nor watched."""
        async with first.watch_tree("") as watch:
            assert list(await next_of(watch)) == []
            holder = first.new_lock("lock", ttl=30)
            await holder.acquire()
            task = asyncio.ensure_future(second.new_lock("lock", ttl=30).acquire())
            snapshot = await next_of(watch)
            assert [pair.key for pair in snapshot] == ["lock"]
            await asyncio.wait([task], timeout=0.2)
            assert [pair.key for pair in await second.list("")] == ["lock"]
            await holder.release()
            await asyncio.wait_for(task, scaled(10))


async def _is_taken(store: AsyncStore) -> None:
    """Wait until the key of a lock is there."""
    await eventually(lambda: store.exists("lock"), within=10, message="the lock is held")


async def _is_free(store: AsyncStore) -> bool:
    return not await store.exists("lock")
