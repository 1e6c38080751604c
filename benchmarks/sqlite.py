"""Measure the SQLite backend, and aiosqlite with the same durability on the same disk.

    pip install aiolibkv aiosqlite
    python benchmarks/sqlite.py

aiosqlite is needed for nothing but this and a test. Each figure is the median of the rounds; the candidates take turns
within a round, so that what else the machine does hits all of them. aiosqlite is measured twice: "apart" gives each put
a transaction of its own, as a store needs so that one caller's failure leaves the others' writes alone; "shared" lets
the tasks write and commit on one connection as they come, so that a commit takes along whatever others have begun.
"apart" reads through a cursor, as aiosqlite's documentation does, which goes to its thread three times: to execute, to
fetch and to close; "shared" by execute_fetchall, which goes there once. Neither keeps a log for watches, nor lifetimes,
nor works with several processes.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import aiosqlite

from aiolibkv import Config, __version__, new_store

ROUNDS = 7
TASKS = 50
WRITES_PER_TASK = 20
READS_PER_TASK = 100
VALUE = bytes(100)
WATCHED_CHANGES = 300
IDLE_SECONDS = 10.0

LIST = "SELECT key, value FROM pairs WHERE key > ? AND key < ? ORDER BY key"
LISTED = 100
"""Keys of the list that is read."""

Calls = tuple[Callable[[str], Awaitable[object]], ...]
"""put, get and list; the argument of list is not looked at."""


@asynccontextmanager
async def ours(directory: Path) -> AsyncIterator[Calls]:
    """Give the calls of a store."""
    async with new_store("sqlite", [str(directory / "aiolibkv.db")], Config(options={"durability": "full"})) as store:
        yield lambda key: store.put(key, VALUE), store.get, lambda _: store.list("listed")


@asynccontextmanager
async def theirs(directory: Path, *, apart: bool) -> AsyncIterator[Calls]:
    """Give the calls of aiosqlite."""
    # Where it is not None, the standard library begins a transaction when a statement needs one.
    level = None if apart else "IMMEDIATE"
    async with aiosqlite.connect(directory / f"aiosqlite-{apart}.db", isolation_level=level) as database:
        await database.execute("PRAGMA journal_mode = WAL")
        await database.execute("PRAGMA synchronous = FULL")
        await database.execute("CREATE TABLE pairs (key TEXT PRIMARY KEY, value BLOB)")
        lock = asyncio.Lock()

        async def put_apart(key: str) -> None:
            async with lock:
                await database.execute("BEGIN IMMEDIATE")
                await database.execute("INSERT OR REPLACE INTO pairs (key, value) VALUES (?, ?)", (key, VALUE))
                await database.commit()

        async def put_shared(key: str) -> None:
            await database.execute("INSERT OR REPLACE INTO pairs (key, value) VALUES (?, ?)", (key, VALUE))
            await database.commit()

        async def get_apart(key: str) -> object:
            async with database.execute("SELECT value FROM pairs WHERE key = ?", (key,)) as rows:
                return await rows.fetchone()

        async def get_shared(key: str) -> object:
            return await database.execute_fetchall("SELECT value FROM pairs WHERE key = ?", (key,))

        async def list_all(_: str) -> object:
            return list(await database.execute_fetchall(LIST, ("listed/", "listed0")))

        yield (put_apart, get_apart, list_all) if apart else (put_shared, get_shared, list_all)


async def microseconds(call: Callable[[str], Awaitable[object]], tasks: int, times: int) -> float:
    """Return the time per call, of so many tasks at once."""

    async def work(task: int) -> None:
        for number in range(times):
            await call(f"{task}/{number % WRITES_PER_TASK}")

    began = time.perf_counter()
    await asyncio.gather(*(work(task) for task in range(tasks)))
    return (time.perf_counter() - began) / tasks / times * 1e6


async def compare(directory: Path) -> None:
    """Compare the candidates' calls."""
    async with (
        ours(directory) as own,
        theirs(directory, apart=True) as apart,
        theirs(directory, apart=False) as shared,
    ):
        candidates = (own, apart, shared)
        for put, *_ in candidates:
            await microseconds(put, TASKS, WRITES_PER_TASK)
            for number in range(LISTED):
                await put(f"listed/{number:03}")
        print(f"{'microseconds per call':24}{'aiolibkv':>10}{'aiosqlite apart':>18}{'aiosqlite shared':>19}")
        for name, call, tasks, times in (
            (f"put, {TASKS} tasks", 0, TASKS, WRITES_PER_TASK),
            ("put, one task", 0, 1, 200),
            (f"get, {TASKS} tasks", 1, TASKS, READS_PER_TASK),
            ("get, one task", 1, 1, 2000),
            (f"list of {LISTED}, {TASKS} tasks", 2, TASKS, 10),
            (f"list of {LISTED}, one task", 2, 1, 500),
        ):
            rounds = [
                [await microseconds(candidate[call], tasks, times) for candidate in candidates] for _ in range(ROUNDS)
            ]
            first, *others = (median(column) for column in zip(*rounds, strict=True))
            ratios = "".join(f"{other:11.1f} ({other / first:4.1f}x)" for other in others)
            print(f"{name:24}{first:10.1f}{ratios}")


def put_when_asked(path: Path, pipe: Connection) -> None:
    """Run in another process: put the time of putting, and tell when it was done."""

    async def run() -> None:
        async with new_store("sqlite", [str(path)]) as store:
            pipe.send("ready")
            while await asyncio.to_thread(pipe.recv):
                await store.put("key", repr(time.monotonic()).encode())
                pipe.send(time.monotonic())

    asyncio.run(run())


async def watch_another_process(path: Path) -> None:
    """Measure how long after a put another process's watch gives it."""
    context = multiprocessing.get_context("spawn")
    pipe, their_end = context.Pipe()
    process = context.Process(target=put_when_asked, args=(path, their_end))
    process.start()
    pipe.recv()
    from_call, from_return = [], []
    async with new_store("sqlite", [str(path)]) as store, store.watch("key") as watch:
        await anext(watch)
        for _ in range(WATCHED_CHANGES):
            pipe.send(True)
            pair = await anext(watch)
            seen = time.monotonic()
            assert pair is not None
            from_call.append(seen - float(pair.value))
            from_return.append(seen - await asyncio.to_thread(pipe.recv))
            await asyncio.sleep(0.005)
    pipe.send(False)
    process.join()
    print(f"\na watch in another process, {WATCHED_CHANGES} changes, milliseconds      p50      p99")
    for name, late in (("from the call of put, its fsync included", from_call), ("from its return", from_return)):
        late.sort()
        print(f"{name:56}{late[len(late) // 2] * 1e3:8.2f}{late[len(late) * 99 // 100] * 1e3:9.2f}")


async def idle(path: Path) -> None:
    """Measure what a watch costs while nothing happens."""
    async with new_store("sqlite", [str(path)]) as store, store.watch_tree("") as watch:
        await anext(watch)
        began, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(IDLE_SECONDS)
        share = (time.process_time() - used) / (time.perf_counter() - began)
    print(f"\nan idle watch uses {share:.3%} of a CPU")


def machine() -> str:
    """Describe the machine."""
    processor = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        processor = f"{len(models)} x {models[0].partition(':')[2].strip()}" if models else processor
    return f"{platform.platform()}, {processor}"


def main() -> None:
    """Measure in a new directory, below the one of the command line if one is given."""
    directory = Path(tempfile.mkdtemp(prefix="aiolibkv-benchmark-", dir=sys.argv[1] if len(sys.argv) > 1 else None))
    print(f"python benchmarks/sqlite.py {' '.join(sys.argv[1:])}".strip())
    print(machine())
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, aiolibkv {__version__}, "
        f"aiosqlite {version('aiosqlite')}; WAL, synchronous=FULL, median of {ROUNDS} rounds\n"
    )
    try:
        asyncio.run(compare(directory))
        asyncio.run(watch_another_process(directory / "watched.db"))
        asyncio.run(idle(directory / "watched.db"))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
