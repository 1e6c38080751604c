"""What a listener is told."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest

from aiolibkv import Check, Config, KeyNotFoundError, LockLostError, NotReachableError, Put, events
from aiolibkv.events import CallEnded, Event, LeaseLost, LockAcquired, LockLost, WatchResumed, WatchStale
from aiolibkv.store import Call
from aiolibkv.testing.scale import eventually, scaled
from unit.faulty import FaultyDriver, FaultyStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

_request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


def listening(told: list[Any]) -> Config:
    return Config(prefix="app", listener=told.append)


async def test_what_events_there_are() -> None:
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]
    fields = {kind.__name__: " ".join(field.name for field in dataclasses.fields(kind)[2:]) for kind in kinds}
    assert fields == {
        "Event": "",
        "CallEnded": "call key seconds error",
        "Connected": "",
        "Disconnected": "reason",
        "WatchStale": "key reason",
        "WatchResumed": "key seconds",
        "LockAcquired": "key fencing_token seconds",
        "LockLost": "key reason",
        "LeaseLost": "reason",
    }
    for kind in kinds:
        assert [field.name for field in dataclasses.fields(kind)[:2]] == ["backend", "endpoint"]
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


async def test_each_public_call_is_told_once() -> None:
    told: list[CallEnded] = []
    async with FaultyStore(["here"], listening(told)) as store:
        pair = await store.put("/a/b/", b"1")
        await store.get(key="a/b")
        await store.exists("a/b")
        await store.atomic_put("a/b", b"2", pair)
        await store.commit(Put("c", b""), Check("a/b"))
        await store.get_many(["a/b"])
        await store.list(directory="a")
        with pytest.raises(KeyNotFoundError):
            await store.delete("missing")
        await store.put("kept", b"", ttl=5, keep_alive=True)
    assert [(event.call, event.key) for event in told] == [
        ("put", "a/b"),
        ("get", "a/b"),
        ("exists", "a/b"),
        ("atomic_put", "a/b"),
        ("commit", None),
        ("get_many", None),
        ("list", "a"),
        ("delete", "missing"),
        ("put", "kept"),
    ]
    assert {(event.backend, event.endpoint) for event in told} == {("memory", "here")}
    assert all(event.seconds >= 0 for event in told)
    assert [type(event.error) for event in told if event.error is not None] == [KeyNotFoundError]


async def test_a_call_is_told_in_its_callers_context_also_when_it_is_cancelled() -> None:
    seen: list[tuple[str, type[BaseException] | None]] = []

    def listener(event: Event) -> None:
        if isinstance(event, CallEnded):
            seen.append((_request.get(), None if event.error is None else type(event.error)))

    async with FaultyStore(config=Config(listener=listener)) as store:

        async def call() -> None:
            _request.set("mine")
            await store.put("key", b"")

        await asyncio.create_task(call())
        store.faults["put"].append("mute")
        task = asyncio.create_task(call())
        await eventually(lambda: store.calls.count("put") == 2, within=2, message="it is sent")
        task.cancel()
        await asyncio.wait({task})
    assert seen == [("mine", None), ("mine", asyncio.CancelledError)]


async def test_locks_leases_and_watches_are_told() -> None:
    told: list[Event] = []
    async with FaultyStore(config=listening(told)) as store, store.watch("key") as watch:
        await anext(watch)
        with pytest.raises(LockLostError):
            async with store.new_lock("lock", ttl=5) as held:
                await store.delete("lock")
                await asyncio.get_running_loop().create_future()
        await store.put("kept", b"", ttl=5, keep_alive=True)
        store.space.revoke(store.leases[-1])
        await eventually(lambda: store.exists("kept"), within=10, message="it is created again")
    kinds = [event for event in told if not isinstance(event, CallEnded)]
    assert [type(event) for event in kinds] == [LockAcquired, LockLost, LeaseLost]
    assert isinstance(kinds[0], LockAcquired)
    assert (kinds[0].key, kinds[0].fencing_token) == ("lock", held.fencing_token)
    assert isinstance(kinds[1], LockLost)
    assert (kinds[1].key, kinds[1].reason) == ("lock", "its key was deleted or overwritten")
    assert isinstance(kinds[2], LeaseLost)
    assert kinds[2].reason == "the server does not know it any more"


async def test_how_long_a_call_took_is_told() -> None:
    told: list[CallEnded] = []

    class Slow(FaultyDriver):
        async def put(self, call: Call, path: str, value: bytes, **conditions: Any) -> int:
            await asyncio.sleep(0.05)
            return await super().put(call, path, value, **conditions)

    async with FaultyStore(config=listening(told), driver=Slow) as store:
        began = perf_counter()
        await store.put("k", b"")
        assert 0.04 < told[0].seconds <= perf_counter() - began


async def test_a_stale_watch_is_told_and_that_it_resumed() -> None:
    told: list[Event] = []
    async with FaultyStore(config=listening(told)) as store:
        store.faults["follow"].extend(NotReachableError(reason) for reason in ("gone away", "still away", "away"))
        async with store.watch("key") as watch:
            await anext(watch)
    assert [type(event) for event in told] == [WatchStale, WatchResumed]
    assert isinstance(told[0], WatchStale)
    assert (told[0].key, told[0].reason) == ("key", "gone away")


async def test_what_a_listener_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def listener(_: Event) -> None:
        raise OSError("disk full")

    async with FaultyStore(config=Config(listener=listener)) as store:
        pair = await store.put("key", b"")
        assert await store.get("key") == pair
    assert {record.getMessage() for record in caplog.records} == {"memory: the listener failed"}


async def test_who_waits_for_others_is_in_no_outage() -> None:
    async with FaultyStore(["shared"]) as store, FaultyStore(["shared"]) as other:
        async with other.new_lock("lock", ttl=60):
            waiting = asyncio.create_task(store.new_lock("lock", ttl=60).acquire())
            await eventually(lambda: "follow" in store.calls, within=5, message="it waits")
            await eventually(lambda: not store._calls.outages.are_any, within=5, message="the server is heard")
            assert not waiting.done()
        await waiting


async def _outage(begin: Callable[[FaultyStore], None], caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.set_level(logging.INFO, "aiolibkv")
    async with FaultyStore() as store:
        begin(store)
        async with store.watch("one") as one, store.watch("two") as two:
            await asyncio.gather(anext(one), anext(two))
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


async def test_an_outage_is_told_once_and_that_it_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiolibkv.store.outages.TOLD_AFTER", 0.1)

    def begin(store: FaultyStore) -> None:
        down = asyncio.get_running_loop().time() + scaled(1)
        follow = store.driver.follow

        async def refuse(feed: Any) -> None:
            if asyncio.get_running_loop().time() < down:
                raise NotReachableError("connection refused")
            await follow(feed)

        monkeypatch.setattr(store.driver, "follow", refuse)

    warning, info = await _outage(begin, caplog)
    assert warning.startswith("WARNING memory: has waited for")
    assert "connection refused" in warning
    assert info.startswith("INFO memory: goes on, after")


async def test_what_is_short_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    def begin(store: FaultyStore) -> None:
        store.faults["follow"].extend([NotReachableError("connection refused")] * 3)

    assert await _outage(begin, caplog) == []
