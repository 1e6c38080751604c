"""Cancellation, at every step of every call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from aiolibkv import AsyncStore, KeyExistsError, KeyModifiedError, KeyNotFoundError, KVPair, StoreClosedError
from aiolibkv.testing.conformance.suite import Stores, Suite, next_of
from aiolibkv.testing.scale import eventually, scaled

T = TypeVar("T")

_EVERY = 24
"""Steps of the event loop up to which every one is tried; beyond, fewer and fewer."""


async def cancel_at_every_step(
    prepare: Callable[[int], Awaitable[T]],
    call: Callable[[T], Coroutine[Any, Any, object]],
    check: Callable[[T], Awaitable[object]],
    *,
    every: int = _EVERY,
) -> None:
    """Cancel a call after 0, 1, 2... steps of the event loop, until it is done before.

    Args:
        prepare: makes what the next call works on; given its number of steps.
        call: makes the call.
        check: looks at what a cancelled call has left.
        every: steps up to which every one is tried; beyond, fewer and fewer.

    Raises:
        AssertionError: a call swallowed its cancellation, or did not end.
    """
    steps = 0
    while True:
        subject = await prepare(steps)
        task = asyncio.ensure_future(call(subject))
        for _ in range(steps):
            await asyncio.sleep(0)
        if task.done():
            await task
            return
        task.cancel()
        await asyncio.wait([task], timeout=scaled(10))
        assert task.cancelled(), f"cancelled after {steps} steps, the call went on: {task!r}"
        await check(subject)
        steps += 1 if steps < every else max(1, steps // 4)


async def _check_usable(store: AsyncStore, other: AsyncStore) -> None:
    pair = await store.put("usable", b"")
    assert await other.get("usable") == pair
    await store.atomic_delete("usable", pair)


class Cancelling(Suite):
    """Cancelling calls."""

    @pytest.mark.parametrize("name", ["put", "put with ttl", "put and keep alive", "swap", "swap with ttl"])
    async def test_cancelling_a_put(self, store: AsyncStore, other: AsyncStore, name: str) -> None:
        """It was applied or not, and the next call works."""

        async def prepare(steps: int) -> KVPair:
            return await other.put(f"dir/{steps}", b"old")

        def call(pair: KVPair) -> Coroutine[Any, Any, object]:
            match name:
                case "put":
                    return store.put(pair.key, b"new")
                case "put with ttl":
                    return store.put(pair.key, b"new", ttl=1000)
                case "put and keep alive":
                    return store.put(pair.key, b"new", keep_alive=True)
                case "swap":
                    return store.atomic_put(pair.key, b"new", pair)
                case _:
                    return store.atomic_put(pair.key, b"new", pair, ttl=1000)

        async def check(pair: KVPair) -> None:
            assert (await other.get(pair.key)).value in (b"old", b"new")
            await _check_usable(store, other)

        await cancel_at_every_step(prepare, call, check)

    @pytest.mark.parametrize("name", ["delete", "atomic_delete", "delete_tree"])
    async def test_cancelling_a_deletion(self, store: AsyncStore, other: AsyncStore, name: str) -> None:
        """It was applied or not, and the next call works."""

        async def prepare(steps: int) -> KVPair:
            return await other.put(f"dir/{steps}/key", b"old")

        def call(pair: KVPair) -> Coroutine[Any, Any, object]:
            match name:
                case "delete":
                    return store.delete(pair.key)
                case "atomic_delete":
                    return store.atomic_delete(pair.key, pair)
                case _:
                    return store.delete_tree(pair.key.removesuffix("/key"))

        async def check(pair: KVPair) -> None:
            try:
                assert await other.get(pair.key) == pair
            except KeyNotFoundError:
                assert not await other.exists(pair.key)
            await _check_usable(store, other)

        await cancel_at_every_step(prepare, call, check)

    async def test_cancelling_a_create(self, store: AsyncStore, other: AsyncStore) -> None:
        async def prepare(steps: int) -> str:
            return f"dir/{steps}"

        async def check(key: str) -> None:
            async with asyncio.timeout(scaled(10)):
                while True:
                    try:
                        await other.atomic_put(key, b"", await other.get(key) if await other.exists(key) else None)
                    except (KeyExistsError, KeyModifiedError):
                        continue
                    break
            await _check_usable(store, other)

        await cancel_at_every_step(prepare, lambda key: store.atomic_put(key, b"new", None), check)

    async def test_cancelling_a_read(self, store: AsyncStore, other: AsyncStore) -> None:
        pair = await store.put("dir/key", b"value")
        calls: list[tuple[Callable[[], Coroutine[Any, Any, object]], object]] = [
            (lambda: store.get("dir/key"), pair),
            (lambda: store.exists("dir/key"), True),
            (lambda: store.list("dir"), [pair]),
        ]

        for read, expected in calls:

            async def prepare(
                _: int, read: Callable[[], Coroutine[Any, Any, object]] = read
            ) -> Callable[[], Coroutine[Any, Any, object]]:
                return read

            async def check(read: Callable[[], Awaitable[object]], expected: object = expected) -> None:
                assert await read() == expected

            await cancel_at_every_step(prepare, lambda read: read(), check)
        await _check_usable(store, other)

    async def test_a_task_that_was_cancelled_while_it_ran(self, store: AsyncStore, other: AsyncStore) -> None:
        """As by Ctrl-C: it hears of it at its next await."""
        pair = await store.put("dir/key", b"value")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.get("dir/key"),
            lambda: store.list("dir"),
            lambda: store.put("dir/new", b""),
            lambda: store.put("dir/ttl", b"", ttl=1000),
            lambda: store.atomic_put("dir/key", b"new", pair),
            lambda: store.delete_tree("dir"),
            lambda: store.new_lock("lock").acquire(),
            lambda: anext(store.watch("dir/key")),
        ]

        async def cancelled(call: Callable[[], Awaitable[object]]) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await call()

        for call in calls:
            task = asyncio.ensure_future(cancelled(call))
            await asyncio.wait([task], timeout=scaled(10))
            assert task.cancelled()
        await _check_usable(store, other)

    async def test_cancelled_calls_leave_no_task(self, store: AsyncStore, other: AsyncStore) -> None:
        await _check_usable(store, other)
        await store.put("dir/key", b"")
        before = len(asyncio.all_tasks())
        for steps in range(6):
            calls = [
                *(store.put(f"dir/{number}", b"") for number in range(10)),
                *(store.put(f"dir/ttl/{number}", b"", ttl=1000) for number in range(10)),
                *(store.get("dir/key") for _ in range(10)),
                *(store.list("dir") for _ in range(10)),
            ]
            tasks = [asyncio.ensure_future(call) for call in calls]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            del tasks, task
        await eventually(
            lambda: len(asyncio.all_tasks()) <= before, within=5, message="cancelled calls have left no task"
        )
        await _check_usable(store, other)

    async def test_cancelling_entering(self, stores: Stores) -> None:
        before = asyncio.all_tasks()

        async def prepare(_: int) -> AsyncStore:
            return stores.make()

        async def use(store: AsyncStore) -> None:
            async with store:
                await store.put("key", b"")

        async def check(_: AsyncStore) -> None:
            assert asyncio.all_tasks() == before

        await cancel_at_every_step(prepare, use, check)

    async def test_a_store_whose_entering_was_cancelled_can_be_entered(self, stores: Stores) -> None:
        store = stores.make()
        task = asyncio.ensure_future(store.__aenter__())
        if not task.cancel():
            # An eager task may be over by now.
            await store.close()
            return
        await asyncio.wait([task])
        async with store:
            await store.put("key", b"")

    async def test_cancelling_close(self, stores: Stores, other: AsyncStore) -> None:
        """The store is closed all the same, before the cancellation goes on."""
        before = asyncio.all_tasks()

        async def prepare(steps: int) -> tuple[AsyncStore, int]:
            store = stores.make()
            await store.__aenter__()
            await store.put("alive", b"", keep_alive=True)
            await next_of(store.watch("alive"))
            return store, steps

        async def check(subject: tuple[AsyncStore, int]) -> None:
            store, steps = subject
            if not steps:
                await store.close()
            assert asyncio.all_tasks() == before
            assert not await other.exists("alive")
            with pytest.raises(StoreClosedError):
                await store.get("key")
            await store.close()

        await cancel_at_every_step(prepare, lambda subject: subject[0].close(), check, every=8)
        assert not await other.exists("alive")

    async def test_cancelling_aclose(self, store: AsyncStore) -> None:
        async with store.watch("key") as watch:
            await next_of(watch)
        before = len(asyncio.all_tasks())
        for steps in range(6):
            watch = store.watch("key")
            await next_of(watch)
            task = asyncio.ensure_future(watch.aclose())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if steps:
                assert [pair async for pair in watch] == []
            await watch.aclose()
        await eventually(
            lambda: len(asyncio.all_tasks()) <= before, within=5, message="released watches have left no task"
        )

    async def test_a_cancelled_waiter_of_a_group_cancels_only_its_own(self, store: AsyncStore) -> None:
        """Calls that share what the store does for them do not share their cancellation."""
        first = asyncio.ensure_future(store.put("alive/1", b"", keep_alive=True))
        second = asyncio.ensure_future(store.put("alive/2", b"", keep_alive=True))
        await asyncio.sleep(0)
        first.cancel()
        pair = await second
        await asyncio.wait([first])
        assert first.cancelled()
        assert await store.get("alive/2") == pair

    async def test_a_swap_after_a_cancelled_swap(self, store: AsyncStore, other: AsyncStore) -> None:
        """Whatever became of a cancelled swap, what is read afterwards can be swapped."""
        await store.put("key", b"0")
        for steps in range(12):
            previous = await store.get("key")
            task = asyncio.ensure_future(store.atomic_put("key", b"cancelled", previous))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            async with asyncio.timeout(scaled(10)):
                while True:
                    try:
                        await other.atomic_put("key", b"0", await other.get("key"))
                    except KeyModifiedError:
                        continue
                    break
