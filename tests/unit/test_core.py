"""What a store keeps, tells and ends: on a driver whose calls fail as a script says."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import traceback
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from aiolibkv import (
    AccessDeniedError,
    Candidate,
    Config,
    Discovery,
    InvalidKeyError,
    KeyModifiedError,
    LockLostError,
    Mirror,
    Namespace,
    NotReachableError,
    RequestTimeoutError,
    StoreClosedError,
    StoreError,
)
from aiolibkv.store import Call, Feed, Lease
from aiolibkv.testing.scale import eventually, scaled
from unit.faulty import FaultyDriver, FaultyStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

T = TypeVar("T")

_request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="entering")


async def test_closing_while_a_failed_entering_still_disconnects() -> None:
    disconnecting, go_on = asyncio.Event(), asyncio.Event()

    class Refusing(FaultyDriver):
        async def connect(self) -> None:
            raise AccessDeniedError

        async def disconnect(self) -> None:
            disconnecting.set()
            await go_on.wait()

    store = FaultyStore(driver=Refusing)
    entering = asyncio.create_task(store.open())
    await disconnecting.wait()
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    with pytest.raises(AccessDeniedError):
        await entering


async def test_entering_tries_until_its_time_is_over_and_tells_the_last_reason() -> None:
    class Down(FaultyDriver):
        async def connect(self) -> None:
            self.calls.append("connect")
            raise NotReachableError("connection refused")

    store = FaultyStore(config=Config(connection_timeout=0.3), driver=Down)
    with pytest.raises(NotReachableError, match=r"within 0\.3 s: connection refused") as caught:
        await store.open()
    assert isinstance(caught.value.__cause__, NotReachableError)
    assert store.calls.count("connect") > 2


async def test_a_store_that_was_not_entered_says_what_to_write() -> None:
    store = FaultyStore()
    with pytest.raises(StoreClosedError, match="async with store"):
        await store.get("key")
    assert repr(store) == "<Store memory, not open>"
    async with store:
        assert repr(store) == "<Store memory, open>"
    assert repr(store) == "<Store memory, closed>"
    assert repr(FaultyStore(["name"], Config(prefix="app"))) == "<Store memory name, prefix 'app', not open>"


async def test_a_store_outside_of_asyncio_says_so() -> None:
    """As in trio, whose tasks run in no loop of asyncio's."""

    def enter() -> None:
        FaultyStore().open().send(None)

    with pytest.raises(StoreError, match=r"asyncio.*not in trio"):
        await asyncio.to_thread(enter)


async def test_a_watch_that_is_left_at_once_leaves_nothing() -> None:
    async with FaultyStore() as store:
        async with store.watch("key"):
            pass
        assert not store._watches._feeds
        assert not store.space.feeds


@pytest.mark.parametrize("kind", [AccessDeniedError, InvalidKeyError])
async def test_the_error_of_a_watch_does_not_grow(kind: type[StoreError]) -> None:
    async with FaultyStore() as store:
        store.faults["follow"].append(kind())
        watch = store.watch("key")
        sizes = []
        for _ in range(5):
            with pytest.raises(kind) as caught:
                await anext(watch)
            sizes.append(len(traceback.extract_tb(caught.value.__traceback__)))
        assert sizes[1:] == sizes[:-1]


async def test_background_tasks_have_the_context_of_entering() -> None:
    seen: dict[str, str] = {}

    class Noting(FaultyDriver):
        async def follow(self, feed: Feed) -> None:
            seen["follow"] = _request.get()
            await super().follow(feed)

        async def renew(self, call: Call, lease: Lease) -> bool:
            seen["renew"] = _request.get()
            return await super().renew(call, lease)

    async def request(store: FaultyStore) -> None:
        _request.set("a request")
        await store.put("kept", b"", ttl=1, keep_alive=True)
        await anext(watch)

    async with FaultyStore(driver=Noting) as store:
        watch = store.watch("kept")
        await asyncio.create_task(request(store))
        await eventually(lambda: "renew" in seen, within=3, message="it is renewed")
    assert seen == {"follow": "entering", "renew": "entering"}


async def test_no_request_is_kept_by_what_it_began() -> None:
    """Neither by a task, its callbacks nor a timer, as long as they may run."""

    class Request:
        pass

    request: contextvars.ContextVar[Request] = contextvars.ContextVar("request")
    began: list[object] = []

    async def answer(store: FaultyStore, what: str) -> weakref.ref[Request]:
        request.set(Request())
        if what == "put":
            await store.put("key", b"", ttl=60)
        elif what == "keep alive":
            await store.put("kept", b"", keep_alive=True)
        elif what == "lock":
            began.append(await store.new_lock("lock").acquire())
        else:
            began.append(watch := store.watch("key"))
            await anext(watch)
        return weakref.ref(request.get())

    async with FaultyStore() as store:
        for what in ("put", "keep alive", "lock", "watch"):
            seen = await asyncio.create_task(answer(store, what))
            await asyncio.sleep(0)
            gc.collect()
            assert seen() is None, what
        began.clear()


async def test_background_tasks_begin_after_who_starts_them_goes_on() -> None:
    """Whatever the loop's task factory: an eager one, of Python 3.12, would have them begin in the middle of it."""
    loop = asyncio.get_running_loop()

    def refuse(_: object, work: Any, **__: object) -> Any:
        work.close()
        raise AssertionError(f"the factory is asked for {work}")

    loop.set_task_factory(refuse)
    try:
        async with FaultyStore() as store:
            await store.put("kept", b"", keep_alive=True)
            async with store.new_lock("lock"), store.watch("kept") as watch:
                await anext(watch)
            async with Namespace(store, "app"), Mirror(store, "app"), Discovery(store, "app").register("web", "here"):
                async with Candidate(store, "leader", node="n").run_for_election() as election:
                    while not await anext(election):
                        pass
                async with Candidate(store, "leader", node="n").lead():
                    pass
    finally:
        loop.set_task_factory(None)


# -- keys kept alive ---------------------------------------------------------------------------------------------------


async def test_each_caller_that_waits_for_a_lease_has_an_error_of_its_own() -> None:
    async with FaultyStore(config=Config(request_timeout=scaled(0.3))) as store:
        store.faults["grant"].extend([AccessDeniedError("no lease")] * 2)
        puts = [store.put(f"k{number}", b"", keep_alive=True) for number in range(2)]
        errors = await asyncio.gather(*puts, return_exceptions=True)
        assert [error.key for error in errors if isinstance(error, AccessDeniedError)] == ["k0", "k1"]
        assert errors[0] is not errors[1]


async def test_a_lease_that_nothing_is_under_ends() -> None:
    async with FaultyStore() as store:
        for _ in range(3):
            await store.put("key", b"", ttl=1, keep_alive=True)
            await store.delete("key")
        assert store.calls.count("grant") == 1
        await eventually(lambda: not store.space.leases, within=5, message="the lease ends")
        assert not store._lifetimes._shared


async def test_refreshing_a_key_does_not_let_the_space_grow() -> None:
    async with FaultyStore() as store:
        for _ in range(1000):
            await store.put("key", b"", ttl=60)
        await store.put("kept", b"", ttl=1, keep_alive=True)
        await eventually(lambda: store.calls.count("renew") > 2, within=5, message="it is renewed")
        assert len(store.space._agenda) < 100


async def test_a_short_ttl_that_is_kept_alive_is_no_storm() -> None:
    async with FaultyStore() as store:
        await store.put("key", b"", ttl=0.001, keep_alive=True)
        await asyncio.sleep(0.5)
        assert await store.exists("key")
        assert store.calls.count("renew") <= 2


async def test_values_of_plain_ttl_keys_are_not_kept() -> None:
    async with FaultyStore() as store:
        await store.put("key", bytes(1000), ttl=60)
        assert [record.value for record in store._lifetimes._records.values()] == [b""]


async def test_a_key_deleted_while_its_creation_is_in_doubt_does_not_come_back() -> None:
    """The request of that creation is carried out only afterwards; its lease is given up, the other key moves."""
    late: list[Any] = []

    class Late(FaultyDriver):
        is_lost = False

        async def put(self, call: Call, path: str, value: bytes, **conditions: Any) -> int:
            if path == "key" and self.is_lost:
                self.is_lost = False
                call.writing()
                late.append(lambda: FaultyDriver.put(self, call, path, value, **conditions))
                raise NotReachableError("the answer is lost")
            return await super().put(call, path, value, **conditions)

    async with FaultyStore(driver=Late) as store:
        await store.put("key", b"v", ttl=3, keep_alive=True)
        await store.put("other", b"o", ttl=3, keep_alive=True)
        driver = store.driver
        assert isinstance(driver, Late)
        driver.is_lost = True
        store.space.revoke(store.leases[0])
        await eventually(lambda: late, within=5, message="it is created again")
        with pytest.raises(StoreError):
            await store.delete("key")
        await late[0]()
        assert await store.exists("key")
        await eventually(lambda: _is_gone(store, "key"), within=2, message="it goes again")
        assert await store.exists("other")


async def _is_gone(store: FaultyStore, key: str) -> bool:
    return not await store.exists(key)


async def test_one_lease_is_asked_for_by_each_put_however_often_it_is_refused() -> None:
    async with FaultyStore(config=Config(request_timeout=scaled(2))) as store:
        store.faults["grant"].extend(["unsent"] * 8)
        await store.put("key", b"", ttl=60)
        assert len(store.leases) == 1
        assert "revoke" not in store.calls


async def test_many_keys_of_a_lost_lease_come_back_together() -> None:
    class Slow(FaultyDriver):
        at_once = most = 0

        async def put(self, call: Call, path: str, value: bytes, **conditions: Any) -> int:
            self.at_once += 1
            Slow.most = max(Slow.most, self.at_once)
            await asyncio.sleep(0)
            try:
                return await super().put(call, path, value, **conditions)
            finally:
                self.at_once -= 1

    async with FaultyStore(driver=Slow) as store:
        for number in range(120):
            await store.put(f"k{number}", b"", ttl=30, keep_alive=True)
        Slow.most = 0
        store.space.revoke(store.leases[0])
        with pytest.raises(StoreError):
            await store.get("k7")
        store._lifetimes._shared[30].session.lose()
        await eventually(lambda: _has_all(store, 120), within=10, message="all come back")
        assert 10 < Slow.most <= 50


async def _has_all(store: FaultyStore, number: int) -> bool:
    return len(await store.list("")) == number


# -- locks -------------------------------------------------------------------------------------------------------------


async def test_is_held_may_be_asked_in_any_thread() -> None:
    async with FaultyStore() as store:
        held = await store.new_lock("lock", ttl=5).acquire()
        assert await asyncio.to_thread(lambda: held.is_held)
        await store.delete("lock")
        await held.wait_lost()
        assert not await asyncio.to_thread(lambda: held.is_held)


async def test_closing_with_a_held_lock_is_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aiolibkv")
    async with FaultyStore() as store:
        held = await store.new_lock("lock", ttl=5).acquire()
    assert not held.is_held
    assert caplog.messages == []


async def test_a_guarded_write_that_is_refused_is_a_loss() -> None:
    async with FaultyStore() as store:
        held = await store.new_lock("lock", ttl=5).acquire()
        store.faults["put"].append(LockLostError())
        with pytest.raises(LockLostError) as caught:
            await store.put("data", b"", guard=held)
        assert caught.value.key == "lock"
        assert not held.is_held
        await asyncio.wait_for(held.wait_lost(), 1)


async def test_a_refused_guard_in_the_locks_own_body_leaves_no_cancellation() -> None:
    async with FaultyStore() as store:
        with pytest.raises(LockLostError):
            async with store.new_lock("lock", ttl=5) as held:
                store.faults["put"].append(LockLostError())
                await store.put("data", b"", guard=held)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        await asyncio.sleep(0)

        with pytest.raises(LockLostError):
            async with store.new_lock("lock", ttl=5) as held:
                store.faults["put"].append(LockLostError())
                with pytest.raises(LockLostError):
                    await store.put("data", b"", guard=held)
                await asyncio.get_running_loop().create_future()
        assert not task.cancelling()
        await asyncio.sleep(0)


async def test_trying_ends_in_time_at_a_server_that_says_nothing() -> None:
    class Mute(FaultyDriver):
        is_mute = False

        async def grant(self, call: Call, lease: Lease) -> None:
            if self.is_mute:
                await asyncio.get_running_loop().create_future()
            await super().grant(call, lease)

        async def revoke(self, call: Call, lease: Lease) -> None:
            if self.is_mute:
                await asyncio.get_running_loop().create_future()
            await super().revoke(call, lease)

    async with FaultyStore(config=Config(request_timeout=0.3), driver=Mute) as store:
        assert isinstance(store.driver, Mute)
        store.driver.is_mute = True
        began = asyncio.get_running_loop().time()
        with pytest.raises(RequestTimeoutError):
            await store.new_lock("lock", ttl=5).try_acquire()
        assert asyncio.get_running_loop().time() - began < 0.3 + scaled(0.3)
        store.driver.is_mute = False


async def test_trying_ends_in_time_at_a_server_that_gets_slower() -> None:
    """What it does one after the other has together the time of one call."""
    limit = 1.0

    class Slow(FaultyDriver):
        async def grant(self, call: Call, lease: Lease) -> None:
            await asyncio.sleep(limit * 0.9)
            await super().grant(call, lease)

    async with FaultyStore(config=Config(request_timeout=limit), driver=Slow) as store:
        store.faults["put"].append("mute")
        began = asyncio.get_running_loop().time()
        with pytest.raises(RequestTimeoutError):
            await store.new_lock("lock", ttl=5).try_acquire()
        assert asyncio.get_running_loop().time() - began < limit * 1.8


async def test_trying_waits_for_a_release_through_the_same_store() -> None:
    async with FaultyStore() as store:
        for _ in range(20):
            lock = store.new_lock("lock", ttl=5)
            await lock.acquire()
            watch = store.watch("lock")
            await anext(watch)
            releasing = asyncio.create_task(lock.release())
            while await anext(watch) is not None:
                pass
            held = await store.new_lock("lock", ttl=5).try_acquire()
            assert held is not None
            await releasing
            await held.release()  # type: ignore[attr-defined]


async def test_what_a_release_could_not_free_is_freed_when_the_server_is_back() -> None:
    class Down(FaultyDriver):
        is_down = False

        async def request(self, name: str, call: Call, work: Callable[[], Awaitable[T]]) -> T:
            if self.is_down:
                raise NotReachableError("down")
            return await super().request(name, call, work)

    settings = Config(request_timeout=0.1)
    async with FaultyStore(["s"], settings, driver=Down) as store, FaultyStore(["s"], driver=FaultyDriver) as other:
        lock = store.new_lock("lock", ttl=600)
        await lock.acquire()
        assert isinstance(store.driver, Down)
        store.driver.is_down = True
        await lock.release()
        await asyncio.sleep(0.3)
        assert await other.exists("lock")
        store.driver.is_down = False
        await eventually(lambda: _is_gone(other, "lock"), within=8, message="it is freed")


async def test_a_store_without_waiters_does_not_pass_the_line_of_others() -> None:
    async with FaultyStore(["s"]) as first, FaultyStore(["s"]) as second, FaultyStore(["s"]) as third:
        order: list[str] = []

        async def hold(store: FaultyStore, name: str) -> None:
            async with store.new_lock("lock", ttl=5):
                order.append(name)
                await asyncio.sleep(0.01)

        async with first.new_lock("lock", ttl=5):
            waiting = asyncio.create_task(hold(second, "waiting"))
            await eventually(lambda: len(first.space._pairs) == 2, within=5, message="it is in line")
        newcomers = [asyncio.create_task(hold(third, "newcomer")), asyncio.create_task(hold(first, "again"))]
        await asyncio.gather(waiting, *newcomers)
        assert order[0] == "waiting"


async def test_a_refusal_ends_an_outage() -> None:
    """The server is there, though nothing succeeds."""
    async with FaultyStore() as store:
        old = await store.put("key", b"1")
        await store.put("key", b"2")
        store.faults["put"].append("unsent")
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("key", b"3", old)
        assert not store.faults["put"]
        assert not store._calls.outages.are_any
