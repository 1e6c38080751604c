"""A process that has one client, and measures what it is told to."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from clients import CLIENTS, Client

OPERATIONS = ("get", "put", "exists", "atomic_put", "delete", "list", "lock")
LISTED = 100
DELETED_AT_MOST = 20000
AT_ONCE = 50

Operation = Callable[[int, int], Awaitable[object]]
"""Takes the number of the task, and how many it has done."""


class Sample(NamedTuple):
    """One round of one client.

    Attributes:
        rate: operations in a second.
        cpu: microseconds of this process's CPU for each.
    """

    rate: float
    cpu: float


def serve(pipe: Connection, backend: str, number: int, url: str, value: int) -> None:
    """Connect, tell so, and measure what comes by the pipe until None comes.

    Args:
        pipe: gives the name of an operation, a number of tasks and seconds; takes a Sample, or a str that tells why
            there is none.
        backend: the key in CLIENTS.
        number: the client's place in it.
        url: where the server is.
        value: how many bytes a value has.
    """
    asyncio.run(_serve(pipe, CLIENTS[backend][number](url), bytes(value)))


async def _serve(pipe: Connection, client: Client, value: bytes) -> None:
    try:
        await client.__aenter__()
    except ImportError as error:
        pipe.send(f"not installed: {error}")
        return
    try:
        pipe.send((_version(client), [name for name in OPERATIONS if hasattr(client, name)]))
        bench = Bench(client, value)
        await bench.prepare()
        while (order := await asyncio.to_thread(pipe.recv)) is not None:
            name, tasks, seconds = order
            try:
                pipe.send(await bench.measure(name, tasks, seconds))
            except Exception as error:  # noqa: BLE001 -- of any library, and told in the table
                pipe.send(f"{type(error).__name__}: {error}")
    finally:
        await client.__aexit__()


def _version(client: Client) -> str:
    try:
        return version(client.package) if client.package else ""
    except PackageNotFoundError:
        return "unknown"


class Bench:
    """The operations on a client; the keys are those of its class, so that clients do not meet."""

    def __init__(self, client: Client, value: bytes) -> None:
        """Take a client that is connected."""
        self._client: Any = client
        self._root = type(client).__name__
        self._value = value
        self._previous: dict[int, object] = {}
        self._rates: dict[tuple[str, int], float] = {}

    async def prepare(self) -> None:
        """Write the directory that is listed."""
        for number in range(LISTED):
            await self._client.put(f"{self._root}/list/{number:03}", self._value)

    async def measure(self, name: str, tasks: int, seconds: float) -> Sample:
        """Measure an operation for about so many seconds.

        Args:
            name: one of OPERATIONS.
            tasks: how many tasks do it at once.
            seconds: for how long.
        """
        operation: Operation = getattr(self, f"_{name}")
        rate = self._rates.get((name, tasks))
        if rate is None:
            await self._before(name, tasks, 1)
            rate = (await self._run(operation, tasks, 1)).rate
            await self._before(name, tasks, times := self._times(name, rate, tasks, seconds / 5))
            rate = (await self._run(operation, tasks, times)).rate
        await self._before(name, tasks, times := self._times(name, rate, tasks, seconds))
        sample = await self._run(operation, tasks, times)
        self._rates[name, tasks] = sample.rate
        return sample

    def _times(self, name: str, rate: float, tasks: int, seconds: float) -> int:
        times = max(1, int(rate * seconds / tasks))
        return min(times, max(1, DELETED_AT_MOST // tasks)) if name == "delete" else times

    async def _run(self, operation: Operation, tasks: int, times: int) -> Sample:
        async def work(task: int) -> None:
            for done in range(times):
                await operation(task, done)

        gc.collect()
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.gather(*(work(task) for task in range(tasks)))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        return Sample(tasks * times / took, cpu / (tasks * times) * 1e6)

    async def _before(self, name: str, tasks: int, times: int) -> None:
        """Write what the operation needs; it is not measured."""
        if name in ("get", "exists"):
            keys = [self._key(task) for task in range(tasks)]
        elif name == "delete":
            keys = [self._key_to_delete(task, done) for task in range(tasks) for done in range(times)]
        else:
            keys = []
        remaining = iter(keys)

        async def write() -> None:
            for key in remaining:
                await self._client.put(key, self._value)

        await asyncio.gather(*(write() for _ in range(AT_ONCE)))

    def _key(self, task: int) -> str:
        return f"{self._root}/pairs/{task:03}"

    def _key_to_delete(self, task: int, done: int) -> str:
        return f"{self._root}/deleted/{task:03}-{done}"

    async def _get(self, task: int, done: int) -> None:
        await self._client.get(self._key(task))

    async def _put(self, task: int, done: int) -> None:
        await self._client.put(self._key(task), self._value)

    async def _exists(self, task: int, done: int) -> None:
        await self._client.exists(self._key(task))

    async def _atomic_put(self, task: int, done: int) -> None:
        key = f"{self._root}/swapped/{task:03}"
        self._previous[task] = await self._client.atomic_put(key, self._value, self._previous.get(task))

    async def _delete(self, task: int, done: int) -> None:
        await self._client.delete(self._key_to_delete(task, done))

    async def _list(self, task: int, done: int) -> None:
        assert await self._client.list(f"{self._root}/list") == LISTED

    async def _lock(self, task: int, done: int) -> None:
        await self._client.lock(f"{self._root}/locks/{task:03}")
