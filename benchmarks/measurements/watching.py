"""Watches: how late they tell, and how many changes they keep up with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median, quantiles

from measurements.base import Bench, Figures, Measurement, spending

_FEWEST_CHANGES = 20
_OPENED_AT_ONCE = 50


class _Watched:
    """What watches tell.

    Attributes:
        awaited: the value that is waited for, if one is.
        at: when it was told.
        told: how many values were.
    """

    def __init__(self) -> None:
        self.awaited: bytes | None = None
        self.at = 0.0
        self.told = 0
        self._came = asyncio.Event()
        self._error: BaseException | None = None

    def tell(self, value: bytes) -> None:
        """Take a value of a watch."""
        self.told += 1
        if value == self.awaited:
            self.at = time.perf_counter()
            self._came.set()

    def end(self, watch: asyncio.Task[None]) -> None:
        """Take it that a watch has ended, by an error unless it was cancelled."""
        if not watch.cancelled():
            self._error = watch.exception()
            self._came.set()

    async def wait(self) -> None:
        """Wait until the awaited value came; raises what a watch has ended by."""
        await self._came.wait()
        self._came.clear()
        if self._error:
            raise self._error


@asynccontextmanager
async def _watching(bench: Bench, keys: Sequence[str], watched: _Watched) -> AsyncIterator[None]:
    """Watch keys, all set up when this is entered."""
    turns = asyncio.Semaphore(_OPENED_AT_ONCE)
    tasks = []

    async def watch(key: str) -> None:
        set_up = asyncio.get_running_loop().create_future()

        def tell(value: bytes) -> None:
            if not set_up.done():
                set_up.set_result(None)
            watched.tell(value)

        async with turns:
            task = asyncio.create_task(bench.subject.watch(key, tell))
            tasks.append(task)
            await asyncio.wait([task, set_up], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
            task.add_done_callback(watched.end)

    try:
        await asyncio.gather(*(watch(key) for key in keys))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _measure_lateness(bench: Bench, watches: int, seconds: float) -> Figures:
    """Change one of the watched keys after the other, by another client, and look when the watch tells."""
    keys = [f"{bench.root}/watched/{number:04}" for number in range(watches)]
    watched = _Watched()
    late: list[float] = []
    [other] = await bench.others(1)
    await asyncio.gather(*(bench.subject.put(key, b"-") for key in keys))
    async with AsyncExitStack() as stack:
        with spending() as opening:
            await stack.enter_async_context(_watching(bench, keys, watched))
        with spending() as changing:
            end = time.perf_counter() + seconds
            while len(late) < _FEWEST_CHANGES or time.perf_counter() < end:
                watched.awaited = str(time.monotonic_ns()).encode()
                began = time.perf_counter()
                await other.change(keys[len(late) % watches], watched.awaited)
                await watched.wait()
                late.append((watched.at - began) * 1e3)
    return {
        "p50, ms": median(late),
        "p95, ms": quantiles(late, n=20)[-1],
        "CPU of a change, us": changing.cpu / len(late) * 1e6,
        "CPU of opening, us": opening.cpu / watches * 1e6,
    }


async def _measure_changes(bench: Bench, tasks: int, seconds: float) -> Figures:
    """Let tasks of another client change a watched key, until the watch has told the last value."""
    key = f"{bench.root}/watched/hot"
    [other] = await bench.others(1)
    watched = _Watched()
    await bench.subject.put(key, b"-")
    changes = 0
    end = time.perf_counter() + seconds

    async def change() -> None:
        nonlocal changes
        while time.perf_counter() < end:
            changes += 1
            await other.change(key, b"%d" % changes)

    async with _watching(bench, [key], watched):
        watched.told = 0
        with spending() as spent:
            await asyncio.gather(*(change() for _ in range(tasks)))
            watched.awaited = b"last"
            await other.change(key, watched.awaited)
            await watched.wait()
    changes += 1
    return {
        "per second": changes / spent.seconds,
        "told, %": watched.told / changes * 100,
        "CPU, us": spent.cpu / changes * 1e6,
    }


WATCHING = [
    Measurement("put to watch", "watch", "watch", (1, 1000), _measure_lateness, most_rounds=3),
    Measurement("changes", "watch", "task", (50,), _measure_changes),
]
