"""Errors, and the beginning and the end of a store."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from aiolibkv import (
    AsyncStore,
    Check,
    InvalidKeyError,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    PreviousNotSpecifiedError,
    Put,
    RequestTimeoutError,
    Scan,
    StoreClosedError,
    StoreError,
    ValueTooLargeError,
)
from aiolibkv.testing.conformance.suite import Stores, Suite, needs, next_of
from aiolibkv.testing.scale import eventually, scaled

_Calls = dict[str, Callable[[AsyncStore], Coroutine[Any, Any, object]]]

CALLS: _Calls = {
    "put": lambda store: store.put("key", b"new"),
    "put with ttl": lambda store: store.put("key", b"new", ttl=100),
    "put and keep alive": lambda store: store.put("key", b"new", keep_alive=True),
    "get": lambda store: store.get("key"),
    "get inconsistently": lambda store: store.get("key", consistent=False),
    "exists": lambda store: store.exists("key"),
    "list": lambda store: store.list("dir"),
    "delete": lambda store: store.delete("key"),
    "delete_tree": lambda store: store.delete_tree("dir"),
    "create": lambda store: store.atomic_put("new", b"", None),
    "atomic_put": lambda store: store.atomic_put("key", b"new", KVPair("key", b"", 1)),
    "atomic_delete": lambda store: store.atomic_delete("key", KVPair("key", b"", 1)),
    "commit": lambda store: store.commit(Put("key", b"new"), Check("dir/key")),
    "get_many": lambda store: store.get_many(["key", "dir/key"]),
    "keys": lambda store: store.keys("dir"),
    "children": lambda store: store.children("dir"),
    "scan": lambda store: _first(store.scan("dir")),
    "lock": lambda store: store.new_lock("lock").try_acquire(),
}
"""One of every call that reaches the server, on ``key`` and ``dir``."""


async def _first(scan: Scan) -> KVPair:
    return await anext(scan)


class Errors(Suite):
    """What an error says."""

    async def test_an_error_says_where_it_happened(self, store: AsyncStore) -> None:
        pair = await store.put("dir/key", b"")
        await store.put("dir/key", b"")
        failing: list[tuple[Callable[[], Coroutine[Any, Any, object]], type[StoreError], str]] = [
            (lambda: store.get("dir/missing"), KeyNotFoundError, "dir/missing"),
            (lambda: store.delete("/dir/missing/"), KeyNotFoundError, "dir/missing"),
            (lambda: store.list("missing/too"), KeyNotFoundError, "missing/too"),
            (lambda: store.delete_tree("missing/too"), KeyNotFoundError, "missing/too"),
            (
                lambda: store.atomic_delete("dir/missing", KVPair("dir/missing", b"", 1)),
                KeyNotFoundError,
                "dir/missing",
            ),
            (lambda: store.atomic_put("dir/key", b"", pair), KeyModifiedError, "dir/key"),
            (lambda: store.atomic_delete("dir/key", pair), KeyModifiedError, "dir/key"),
            (lambda: store.atomic_put("dir/key", b"", None), KeyExistsError, "dir/key"),
            (lambda: store.atomic_delete("dir/key", None), PreviousNotSpecifiedError, "dir/key"),  # type: ignore[arg-type]
            (lambda: store.put("big", bytes(store.capabilities.max_value_bytes + 1)), ValueTooLargeError, "big"),
            (lambda: store.put("bad//key", b""), InvalidKeyError, "bad//key"),
            (lambda: store.list("bad//key"), InvalidKeyError, "bad//key"),
            (lambda: store.keys("missing/too"), KeyNotFoundError, "missing/too"),
            (lambda: store.children("missing/too"), KeyNotFoundError, "missing/too"),
            (lambda: _first(store.scan("missing/too")), KeyNotFoundError, "missing/too"),
            (lambda: store.commit(Put("new", b""), Put("dir/key", b"", previous=pair)), KeyModifiedError, "dir/key"),
            (lambda: store.get_many(["dir/key", "bad//key"]), InvalidKeyError, "bad//key"),
        ]
        for call, kind, key in failing:
            with pytest.raises(kind) as caught:
                await call()
            error = caught.value
            assert type(error) is kind
            assert error.key == key
            assert error.backend
            assert error.endpoint is not None
            for part in (error.message, error.backend, error.endpoint, repr(key)):
                assert part in str(error)
            assert error.maybe_applied is False

    async def test_key_not_found_reads_like_any_error(self, store: AsyncStore) -> None:
        with pytest.raises(KeyError) as caught:
            await store.get("missing")
        assert isinstance(caught.value, KeyNotFoundError)
        text = str(caught.value)
        assert text.startswith(caught.value.message)
        assert text[0] not in "'\""

    async def test_a_timeout_of_the_caller_stays_the_callers(self, store: AsyncStore) -> None:
        for name, call in CALLS.items():
            error = await _error_of(call(store))
            assert not isinstance(error, RequestTimeoutError | StoreClosedError), name
            assert error is None or type(error) is TimeoutError or isinstance(error, StoreError), name
        async with store.watch("key") as watch:
            await next_of(watch)
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.001):
                    while True:
                        await anext(watch)
        assert type(caught.value) is TimeoutError
        await store.put("usable", b"")


class Closing(Suite):
    """Entering and closing."""

    async def test_a_store_that_was_not_entered(self, stores: Stores) -> None:
        store = stores.make()
        for call in CALLS.values():
            with pytest.raises(StoreClosedError):
                await call(store)
        async with store:
            await store.put("key", b"")

    async def test_a_closed_store(self, stores: Stores) -> None:
        store = stores.make()
        async with store as entered:
            assert entered is store
            await store.put("key", b"")
        for name, call in CALLS.items():
            with pytest.raises(StoreClosedError) as caught:
                await call(store)
            assert caught.value.backend, name
            assert caught.value.maybe_applied is False, name
        with pytest.raises(StoreClosedError):
            async with store:
                pass
        await store.close()

    async def test_closing_before_entering(self, stores: Stores) -> None:
        store = stores.make()
        await store.close()
        with pytest.raises(StoreClosedError):
            async with store:
                pass
        with pytest.raises(StoreClosedError):
            await store.get("key")

    async def test_entering_twice(self, stores: Stores) -> None:
        async with stores.make() as store:
            with pytest.raises(StoreError):
                async with store:
                    pass
            await store.put("key", b"")
            assert await store.exists("key")

    async def test_close_may_be_called_again_and_at_once(self, stores: Stores) -> None:
        async with stores.make() as store:
            await store.put("key", b"", keep_alive=True)
            await asyncio.gather(*(store.close() for _ in range(5)))
            await store.close()
            with pytest.raises(StoreClosedError):
                await store.get("key")
        await store.close()

    async def test_open_and_close_by_hand(self, stores: Stores, other: AsyncStore) -> None:
        store = stores.make()
        assert await store.open() is store
        await store.put("key", b"", keep_alive=True)
        with pytest.raises(StoreError):
            await store.open()
        await store.close()
        assert not await other.exists("key")
        with pytest.raises(StoreClosedError):
            await store.open()

    async def test_the_data_outlives_all_stores(self, stores: Stores) -> None:
        async with stores.make() as store:
            needs(store, "durable")
            pair = await store.put("dir/key", b"value")
        async with stores.make() as store:
            assert await store.get("dir/key") == pair
            changed = await store.atomic_put("dir/key", b"value", pair)
            assert changed.last_index > pair.last_index

    async def test_close_keeps_the_data(self, stores: Stores, other: AsyncStore) -> None:
        async with stores.make() as store:
            pair = await store.put("key", b"value")
        assert await other.get("key") == pair
        async with stores.make() as store:
            assert await store.get("key") == pair

    async def test_an_error_in_the_block_comes_out(self, stores: Stores) -> None:
        store = stores.make()
        with pytest.raises(ZeroDivisionError):
            async with store:
                raise ZeroDivisionError
        with pytest.raises(StoreClosedError):
            await store.get("key")

    @pytest.mark.parametrize("steps", range(4))
    async def test_close_fails_what_is_pending(self, stores: Stores, other: AsyncStore, steps: int) -> None:
        await other.put("key", b"")
        await other.put("dir/key", b"")
        store = await stores.open()
        pending = {name: asyncio.ensure_future(call(store)) for name, call in CALLS.items()}
        watch = asyncio.ensure_future(anext(store.watch("never")))
        for _ in range(steps):
            await asyncio.sleep(0)
        async with asyncio.timeout(scaled(5)):
            await store.close()
            await asyncio.wait([*pending.values(), watch])
        for name, call in pending.items():
            error = call.exception()
            usual = KeyNotFoundError | KeyModifiedError | KeyExistsError
            assert error is None or isinstance(error, StoreClosedError | usual), name
        assert watch.exception() is None or isinstance(watch.exception(), StoreClosedError)

    async def test_close_ends_in_time_with_everything_in_use(self, stores: Stores) -> None:
        before = asyncio.all_tasks()
        store = stores.make()
        async with store:
            await store.put("alive", b"", keep_alive=True)
            await store.put("timed", b"", ttl=100)
            watches = [store.watch("alive"), store.watch("missing"), store.watch_tree(""), store.watch_tree("dir")]
            for watch in watches:
                await next_of(watch)
            waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
            await asyncio.sleep(0)
            started = asyncio.get_running_loop().time()
            await store.close()
            assert asyncio.get_running_loop().time() - started < scaled(2)
            results = await asyncio.gather(*waiting, return_exceptions=True)
            # A watch may still tell of the key that close removed.
            assert all(isinstance(result, StoreClosedError) for result in results[1:2])
        assert asyncio.all_tasks() == before

    async def test_stores_opened_again_and_again_use_nothing_up(self, stores: Stores) -> None:
        async def use() -> None:
            async with stores.make() as store:
                await store.put("key", b"", ttl=100)
                await store.put("alive", b"", keep_alive=True)
                async with store.watch_tree("") as watch:
                    await next_of(watch)
                await next_of(store.watch("key"))

        def in_use() -> tuple[int, int, int]:
            gc.collect()
            return len(asyncio.all_tasks()), threading.active_count(), _open_files()

        # The first ones may load what the process then keeps; a library's own thread may close sockets a little later.
        await use()
        await use()
        before = in_use()
        for _ in range(3):
            await use()
        await eventually(
            lambda: all(now <= then for now, then in zip(in_use(), before, strict=True)),
            within=5,
            message=f"after {before}, tasks, threads and files are again as few",
        )

    async def test_use_from_another_event_loop(self, stores: Stores) -> None:
        store = await stores.open()
        await store.put("key", b"")

        def run(call: Callable[[AsyncStore], Coroutine[Any, Any, object]]) -> BaseException | None:
            async def use() -> object:
                return await call(store)

            try:
                asyncio.run(use())
            except Exception as error:  # noqa: BLE001 - looked at below
                return error
            return None

        async def watch(store: AsyncStore) -> object:
            return await anext(store.watch("key"))

        for name, call in {**CALLS, "watch": watch, "close": lambda store: store.close()}.items():
            error = await asyncio.to_thread(run, call)
            assert type(error) is StoreError, (name, error)
            assert "loop" in str(error), name
        await store.put("key", b"still usable")
        assert await store.exists("key")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
    async def test_use_after_a_fork(self, stores: Stores) -> None:
        store = await stores.open()
        pair = await store.put("key", b"")
        with warnings.catch_warnings():
            # That forking a process with threads may lead to deadlocks; the child below does not live that long.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            os._exit(_refuses_every_call(store))
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await store.get("key") == pair


async def _error_of(call: Coroutine[Any, Any, object]) -> Exception | None:
    """Return what a call raises that has no time at all."""
    try:
        async with asyncio.timeout(0):
            await call
    except Exception as error:  # noqa: BLE001 - returned
        return error
    return None


def _refuses_every_call(store: AsyncStore) -> int:
    """Return 0 when every call raises StoreError before it waits for anything."""
    for call in CALLS.values():
        try:
            call(store).send(None)
        except StoreError:
            continue
        except BaseException:  # noqa: BLE001 - nothing may leave the child
            return 2
        return 1
    return 0


def _open_files() -> int:
    files = Path("/proc/self/fd")
    return len(list(files.iterdir())) if files.exists() else 0
