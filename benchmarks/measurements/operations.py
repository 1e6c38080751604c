"""Single operations, by one task or by many at once."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from measurements.base import Bench, Figures, Measurement, spending

LISTED = 100
_DELETED_AT_MOST = 20_000
_WRITERS = 50
_TASKS = (1, 50, 500)

Operation = Callable[[Bench, int, int], Awaitable[None]]
"""Takes the bench, the number of a task, or how many tasks there are, and how often each of them does it."""


async def _get(bench: Bench, task: int, times: int) -> None:
    get, key = bench.subject.get, _key(bench, task)
    for _ in range(times):
        await get(key)


async def _put(bench: Bench, task: int, times: int) -> None:
    put, key, value = bench.subject.put, _key(bench, task), bench.value
    for _ in range(times):
        await put(key, value)


async def _exists(bench: Bench, task: int, times: int) -> None:
    exists, key = bench.subject.exists, _key(bench, task)
    for _ in range(times):
        await exists(key)


async def _atomic_put(bench: Bench, task: int, times: int) -> None:
    atomic_put, key, value = bench.subject.atomic_put, f"{bench.root}/swapped/{task:03}", bench.value
    previous = bench.swapped.get(key)
    for _ in range(times):
        previous = await atomic_put(key, value, previous)
    bench.swapped[key] = previous


async def _delete(bench: Bench, task: int, times: int) -> None:
    delete = bench.subject.delete
    for number in range(times):
        await delete(_key_to_delete(bench, task, number))


async def _list(bench: Bench, task: int, times: int) -> None:
    read, directory = bench.subject.list, f"{bench.root}/list"
    for _ in range(times):
        assert await read(directory) == LISTED


async def _lock(bench: Bench, task: int, times: int) -> None:
    lock, key = bench.subject.lock, f"{bench.root}/locks/{task:03}"
    for _ in range(times):
        async with lock(key):
            pass


async def _nothing(bench: Bench, tasks: int, times: int) -> None:
    """Write nothing before the operation."""


async def _write_keys(bench: Bench, tasks: int, times: int) -> None:
    await _write(bench, [_key(bench, task) for task in range(tasks)])


async def _write_keys_to_delete(bench: Bench, tasks: int, times: int) -> None:
    await _write(bench, [_key_to_delete(bench, task, number) for task in range(tasks) for number in range(times)])


async def _write_directory(bench: Bench, tasks: int, times: int) -> None:
    await _write(bench, [f"{bench.root}/list/{number:03}" for number in range(LISTED)])


async def _write(bench: Bench, keys: Sequence[str]) -> None:
    remaining = iter(keys)

    async def write() -> None:
        for key in remaining:
            await bench.subject.put(key, bench.value)

    await asyncio.gather(*(write() for _ in range(_WRITERS)))


def _key(bench: Bench, task: int) -> str:
    return f"{bench.root}/pairs/{task:03}"


def _key_to_delete(bench: Bench, task: int, number: int) -> str:
    return f"{bench.root}/deleted/{task:03}-{number}"


async def _measure(operation: Operation, prepare: Operation, bench: Bench, tasks: int, seconds: float) -> Figures:
    """Do an operation for about so many seconds.

    Each round tells how many operations fill the next one. The first is preceded by one of each task, to warm up, and
    by a short one to learn from.
    """

    async def run(times: int) -> Figures:
        await prepare(bench, tasks, times)
        gc.collect()
        with spending() as spent:
            await asyncio.gather(*(operation(bench, task, times) for task in range(tasks)))
        done = tasks * times
        bench.rates[operation, tasks] = done / spent.seconds
        return {"per second": done / spent.seconds, "CPU, us": spent.cpu / done * 1e6}

    def times_in(seconds: float) -> int:
        most = _DELETED_AT_MOST // tasks if operation is _delete else sys.maxsize
        return max(1, min(most, int(bench.rates[operation, tasks] * seconds / tasks)))

    if (operation, tasks) not in bench.rates:
        await run(1)
        await run(times_in(seconds / 5))
    return await run(times_in(seconds))


OPERATIONS = [
    Measurement(name, needs=name, unit="task", sizes=sizes, measure=partial(_measure, operation, prepare))
    for name, operation, prepare, sizes in (
        ("get", _get, _write_keys, _TASKS),
        ("put", _put, _nothing, _TASKS),
        ("exists", _exists, _write_keys, _TASKS),
        ("atomic_put", _atomic_put, _nothing, _TASKS),
        ("delete", _delete, _write_keys_to_delete, _TASKS),
        ("list", _list, _write_directory, _TASKS),
        ("lock", _lock, _nothing, (1, 50)),
    )
]
