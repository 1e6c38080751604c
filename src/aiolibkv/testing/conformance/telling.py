"""What a store tells its listener."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import pytest

from aiolibkv import AsyncStore, Check, KeyNotFoundError, LockLostError, Put, StoreClosedError
from aiolibkv.events import (
    CallEnded,
    Event,
    LeaseLost,
    LockAcquired,
    LockLost,
)
from aiolibkv.testing.conformance.suite import Stores, Suite
from aiolibkv.testing.scale import scaled

_caller: ContextVar[str] = ContextVar("caller", default="nobody")


class Telling(Suite):
    """Config.listener."""

    async def test_each_call_is_told_once(self, stores: Stores) -> None:
        told: list[Event] = []
        store = await stores.open("app", listener=told.append)
        pair = await store.put("/a/b/", b"1")
        missing = dataclasses.replace(pair, key="missing")
        calls: list[tuple[Callable[[], Awaitable[object]], str, str | None]] = [
            (lambda: store.put(key="a/b", value=b"1"), "put", "a/b"),
            (lambda: store.put("a/b", b"1", ttl=60), "put", "a/b"),
            (lambda: store.put("kept", b"", keep_alive=True), "put", "kept"),
            (lambda: store.get("a/b"), "get", "a/b"),
            (lambda: store.exists(key="a/b"), "exists", "a/b"),
            (lambda: store.list(directory="a"), "list", "a"),
            (lambda: store.keys(""), "keys", ""),
            (lambda: store.children("a"), "children", "a"),
            (lambda: store.get_many(["a/b", "c"]), "get_many", None),
            (lambda: store.commit(Put("c", b""), Check("a/b")), "commit", None),
            (lambda: store.atomic_put("a/new", b"", None), "atomic_put", "a/new"),
            (lambda: store.delete("a/new"), "delete", "a/new"),
            (lambda: store.delete_tree("a"), "delete_tree", "a"),
            (lambda: store.delete("missing"), "delete", "missing"),
            (lambda: store.atomic_delete("missing", missing), "atomic_delete", "missing"),
        ]
        for call, name, key in calls:
            told.clear()
            failure: Exception | None = None
            try:
                await call()
            except KeyNotFoundError as error:
                failure = error
            (event,) = (event for event in told if isinstance(event, CallEnded))
            assert (event.call, event.key, event.error) == (name, key, failure)
            assert event.seconds >= 0
            assert event.backend
            assert isinstance(event.endpoint, str)
            with pytest.raises(dataclasses.FrozenInstanceError):
                event.key = ""  # type: ignore[misc]

    async def test_a_call_is_told_in_its_callers_context_also_when_it_is_cancelled(self, stores: Stores) -> None:
        told: list[tuple[str, type[BaseException] | None]] = []

        def listener(event: Event) -> None:
            if isinstance(event, CallEnded):
                told.append((_caller.get(), None if event.error is None else type(event.error)))

        store = await stores.open(listener=listener)

        async def call(name: str) -> None:
            _caller.set(name)
            await store.put("key", b"")

        await asyncio.create_task(call("one"))
        task = asyncio.create_task(call("two"))
        await asyncio.sleep(0)
        is_cancelled = task.cancel()
        await asyncio.wait({task})
        assert told == [("one", None), ("two", asyncio.CancelledError if is_cancelled else None)]

    async def test_locks_are_told(self, stores: Stores, other: AsyncStore) -> None:
        told: list[Event] = []
        store = await stores.open(listener=told.append)
        waiting = store.new_lock("lock", ttl=30)
        holder = other.new_lock("lock", ttl=30)
        await holder.acquire()
        task = asyncio.ensure_future(waiting.acquire())
        await asyncio.wait({task}, timeout=0.1)
        await holder.release()
        held = await asyncio.wait_for(task, scaled(10))
        await other.delete("lock")
        await asyncio.wait_for(held.wait_lost(), scaled(10))
        acquired, lost = (event for event in told if isinstance(event, LockAcquired | LockLost))
        assert isinstance(acquired, LockAcquired)
        assert (acquired.key, acquired.fencing_token) == ("lock", held.fencing_token)
        assert 0.1 - 0.01 <= acquired.seconds < scaled(30)
        assert isinstance(lost, LockLost)
        assert lost.key == "lock"
        assert lost.reason
        assert not any(isinstance(event, LeaseLost) for event in told)
        with pytest.raises(LockLostError):
            await store.put("key", b"", guard=held)
        again = await store.new_lock("lock", ttl=30).acquire()
        await store.close()
        assert not again.is_held
        assert sum(isinstance(event, LockLost) for event in told) == 1, "to close a store loses nothing"

    async def test_what_a_listener_raises_changes_nothing(
        self, stores: Stores, caplog: pytest.LogCaptureFixture
    ) -> None:
        def listener(_: Event) -> None:
            raise ZeroDivisionError

        store = await stores.open(listener=listener)
        pair = await store.put("key", b"")
        assert await store.get("key") == pair
        async with store.new_lock("lock"):
            pass
        await store.close()
        with pytest.raises(StoreClosedError):
            await store.get("key")
        assert any(record.exc_info and record.levelno >= logging.ERROR for record in caplog.records)
