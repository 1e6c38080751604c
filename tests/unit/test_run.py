"""Deadlines, retry and maybe_applied: what a store makes of its driver's faults."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest

from aiolibkv import (
    AccessDeniedError,
    Config,
    KeyExistsError,
    KeyNotFoundError,
    KVPair,
    NotReachableError,
    RequestTimeoutError,
    StoreClosedError,
    StoreError,
)
from aiolibkv.store import UNSEEN, Call, Listing, Unseen
from aiolibkv.testing.scale import scaled
from unit.faulty import FaultyDriver, FaultyStore

pytestmark = pytest.mark.asyncio

SHORT = Config(request_timeout=0.2)


async def test_a_read_is_repeated() -> None:
    async with FaultyStore() as store:
        await store.put("k", b"v")
        store.faults["get"].extend(["unsent", "lost answer"])
        assert (await store.get("k")).value == b"v"
        assert store.calls.count("get") == 3


@pytest.mark.parametrize("ttl", [0, -1.0, float("inf"), float("nan"), 10**400])
async def test_a_ttl_is_finite(ttl: float) -> None:
    async with FaultyStore() as store:
        with pytest.raises(ValueError, match="ttl"):
            await store.put("k", b"v", ttl=ttl)
        with pytest.raises(ValueError, match="ttl"):
            store.new_lock("k", ttl=ttl)
        assert store.calls == []


class AtHand(FaultyDriver):
    """Has what it shows at hand, and asks its space for everything else."""

    shown: ClassVar[dict[str, KVPair | None]] = {}

    def read_at_once(self, path: str) -> KVPair | Unseen | None:
        return self.shown.get(path, UNSEEN)


async def test_what_is_at_hand_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AtHand, "shown", {"app/here": KVPair("app/here", b"v", 7), "app/gone": None})
    async with FaultyStore(config=Config(prefix="app"), driver=AtHand) as store:
        assert await store.get("/here/") == KVPair("here", b"v", 7)
        assert await store.exists("here")
        assert not await store.exists("gone")
        with pytest.raises(KeyNotFoundError, match="'gone'"):
            await store.get("gone")
        assert store.calls == []


async def test_what_is_not_at_hand_is_asked_for() -> None:
    async with FaultyStore(driver=AtHand) as store:
        pair = await store.put("k", b"v")
        assert await store.get("k") == pair
        assert await store.exists("k")
        assert store.calls == ["put", "get", "get"]


async def test_a_closed_store_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AtHand, "shown", {"k": KVPair("k", b"v", 7)})
    store = FaultyStore(driver=AtHand)
    for call in (store.get, store.exists):
        with pytest.raises(StoreClosedError):
            await call("k")
    async with store:
        assert await store.exists("k")
        calls = store.get("k"), store.exists("k")
    for pending in calls:
        with pytest.raises(StoreClosedError):
            await pending


async def test_an_unsent_write_is_repeated() -> None:
    async with FaultyStore() as store:
        store.faults["put"].extend(["unsent", "unsent"])
        await store.put("k", b"v")
        assert store.calls.count("put") == 3


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
async def test_a_write_without_answer_is_not_repeated(fault: str) -> None:
    async with FaultyStore() as store:
        store.faults["put"].append(fault)
        with pytest.raises(NotReachableError) as caught:
            await store.put("k", b"v")
        assert caught.value.maybe_applied
        assert store.calls.count("put") == 1
        assert await store.exists("k") == (fault == "lost answer")


class Denying(FaultyDriver):
    """Cannot tell what became of a write, because it may not look."""

    async def put(self, call: Call, path: str, *args: Any, **kwargs: Any) -> int:
        call.writing()
        raise AccessDeniedError


async def test_an_error_of_a_write_in_doubt_says_so() -> None:
    async with FaultyStore(driver=Denying) as store:
        with pytest.raises(AccessDeniedError) as caught:
            await store.put("k", b"v")
        assert caught.value.maybe_applied


async def test_a_refused_write_was_certainly_not_applied() -> None:
    async with FaultyStore() as store:
        await store.put("k", b"v")
        with pytest.raises(KeyExistsError) as caught:
            await store.atomic_put("k", b"w", None)
        assert not caught.value.maybe_applied


async def test_a_mute_server_ends_in_request_timeout() -> None:
    async with FaultyStore(config=SHORT) as store:
        store.faults["put"].append("mute")
        with pytest.raises(RequestTimeoutError) as caught:
            await store.put("k", b"v")
        assert caught.value.maybe_applied
        store.faults["get"].append("mute")
        with pytest.raises(RequestTimeoutError) as caught:
            await store.get("k")
        assert not caught.value.maybe_applied
        assert (caught.value.backend, caught.value.key) == ("memory", "k")


class Paging(FaultyDriver):
    """Loses the connection at the end of a long list, every time."""

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        for _ in range(10):
            call.extend()
        raise NotReachableError


async def test_a_list_that_begins_again_and_again_ends() -> None:
    """Every page gives it more time, but not every time it is read; the pauses between are shorter than that time."""
    async with FaultyStore(config=Config(request_timeout=0.8), driver=Paging) as store, asyncio.timeout(scaled(10)):
        with pytest.raises(NotReachableError):
            await store.list("")


async def test_an_unreachable_server_ends_in_not_reachable() -> None:
    async with FaultyStore(config=SHORT) as store:
        refused = NotReachableError("refused")
        refused.__cause__ = cause = ConnectionRefusedError()
        store.faults["put"].extend([refused] * 1000)
        with pytest.raises(NotReachableError) as caught:
            await store.put("k", b"v")
        assert not caught.value.maybe_applied
        assert caught.value.__cause__ is cause
        assert 2 < store.calls.count("put") < 50


async def test_the_callers_timeout_stays_the_callers() -> None:
    async with FaultyStore() as store:
        store.faults["get"].append("mute")
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await store.get("k")
        assert not isinstance(caught.value, StoreError)


async def test_an_outside_cancellation_at_the_end_of_the_time_stays_one() -> None:
    class Both(FaultyDriver):
        async def get(self, call: Any, path: str, *, consistent: bool) -> KVPair | None:
            call.expire()
            call.task.cancel()
            return await super().get(call, path, consistent=consistent)

    async with FaultyStore(driver=Both) as store:
        reading = asyncio.create_task(store.get("k"))
        await asyncio.wait({reading})
        assert reading.cancelled()


async def test_close_fails_what_is_pending() -> None:
    async with FaultyStore(config=Config(request_timeout=scaled(50))) as store:
        store.faults["put"].append("mute")
        store.faults["get"].append("mute")
        read, write = asyncio.create_task(store.get("k")), asyncio.create_task(store.put("k", b"v"))
        while store.calls != ["get", "put"]:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    _, unfinished = await asyncio.wait({read, write}, timeout=scaled(5))
    assert not unfinished
    with pytest.raises(StoreClosedError):
        await read
    with pytest.raises(StoreClosedError) as caught:
        await write
    assert caught.value.maybe_applied


async def test_other_errors_pass_located() -> None:
    async with FaultyStore(config=Config(prefix="app")) as store:
        store.faults["get"].append(AccessDeniedError("no permission"))
        with pytest.raises(AccessDeniedError, match=r"no permission \(memory, key 'a/b'\)"):
            await store.get("/a/b/")


async def test_entering_ends_within_connection_timeout() -> None:
    class Mute(FaultyDriver):
        async def connect(self) -> None:
            await asyncio.get_running_loop().create_future()

    store = FaultyStore(config=Config(connection_timeout=0.1), driver=Mute)
    with pytest.raises(NotReachableError, match=r"within 0\.1 s"):
        await store.__aenter__()
    with pytest.raises(StoreClosedError):
        await store.get("k")


async def test_entering_tries_again() -> None:
    class Late(FaultyDriver):
        tries = 0

        async def connect(self) -> None:
            self.tries += 1
            if self.tries == 1:
                raise NotReachableError("refused")
            await super().connect()

    async with FaultyStore(driver=Late) as store:
        assert not await store.exists("k")


@pytest.mark.parametrize("how", ["cancelled", "too late"])
async def test_a_store_that_was_not_entered_can_be_entered(how: str) -> None:
    class Mute(FaultyDriver):
        is_mute = True

        async def connect(self) -> None:
            if self.is_mute:
                await asyncio.get_running_loop().create_future()
            await super().connect()

    store = FaultyStore(config=Config(connection_timeout=0.1 if how == "too late" else 60), driver=Mute)
    entering = asyncio.create_task(store.open())
    await asyncio.sleep(0.01)
    if how == "cancelled":
        entering.cancel()
    await asyncio.wait({entering})
    assert entering.cancelled() or isinstance(entering.exception(), NotReachableError)
    assert isinstance(store.driver, Mute)
    store.driver.is_mute = False
    async with store:
        assert not await store.exists("k")


async def test_close_while_entering() -> None:
    connecting = asyncio.Event()

    class Mute(FaultyDriver):
        async def connect(self) -> None:
            connecting.set()
            await asyncio.get_running_loop().create_future()

    store = FaultyStore(driver=Mute)
    entering = asyncio.create_task(store.__aenter__())
    await connecting.wait()
    await store.close()
    with pytest.raises(StoreClosedError):
        await entering


async def test_closing_is_bounded_and_outlasts_cancellation() -> None:
    ended = []

    class Slow(FaultyDriver):
        async def disconnect(self) -> None:
            await super().disconnect()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(True)

    store = FaultyStore(driver=Slow)
    await store.__aenter__()
    closing = asyncio.create_task(store.close())
    for _ in range(3):
        await asyncio.sleep(0.01)
        closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert ended == [True]
    await store.close()


async def test_bad_endpoints_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown option 'speed'"):
        FaultyStore(config=Config(options={"speed": 1}))


async def test_what_belongs_to_another_event_loop_is_not_waited_for() -> None:
    async with FaultyStore() as store, store.watch("key") as watch:
        await anext(watch)
        lock = store.new_lock("lock")
        held = await lock.acquire()
        for call in (watch.__anext__, watch.aclose, lock.release, held.wait_lost, store.new_lock("other").acquire):
            with pytest.raises(StoreError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, asyncio.wait_for(call(), scaled(5)))
        assert held.is_held
        await store.put("key", b"")
        assert (await anext(watch)) is not None


async def test_a_list_in_pages_ends_when_the_store_is_closed() -> None:
    """Though each page has the whole time again."""

    class Endless(FaultyDriver):
        async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
            while True:
                call.extend()
                await asyncio.sleep(0.001)

    async with FaultyStore(config=Config(request_timeout=scaled(20)), driver=Endless) as store:
        reading = asyncio.ensure_future(store.list("dir"))
        await asyncio.sleep(0.01)
        await store.close()
        await asyncio.wait({reading}, timeout=scaled(2))
        assert reading.done()
        with pytest.raises(StoreClosedError):
            reading.result()


async def test_a_call_that_has_ended_is_not_extended() -> None:
    """As by a reading that goes on for a moment behind its caller: the time would end somebody else's work."""

    class Late(FaultyDriver):
        async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
            asyncio.get_running_loop().call_soon(call.extend)
            return None

    async with FaultyStore(config=Config(request_timeout=0.05), driver=Late) as store:
        with pytest.raises(KeyNotFoundError):
            await store.get("key")
        await asyncio.sleep(0.2)
