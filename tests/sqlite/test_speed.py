"""How fast it is, ten times looser than it was measured: ``benchmarks`` measures."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from statistics import median

import aiosqlite
import pytest

from aiolibkv.backends.sqlite.schema import Tables
from aiolibkv.backends.sqlite.transaction import Transaction
from aiolibkv.testing.scale import scaled
from sqlite.workers import open_sqlite, put_on_demand, worker

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

_TASKS = 50
_KEYS = 10
_ROUNDS = 3
_VALUE = bytes(100)


async def seconds(call: Callable[[str], Awaitable[object]], times: int) -> float:
    """Return what so many calls of each task take."""

    async def work(task: int) -> None:
        for number in range(times):
            await call(f"{task}/{number % _KEYS}")

    began = time.monotonic()
    await asyncio.gather(*(work(task) for task in range(_TASKS)))
    return time.monotonic() - began


async def test_puts_and_gets_of_many_tasks_beside_aiosqlite(database: Path) -> None:
    """At the same durability, ten times the puts and five times the gets were measured; here half as many will do.

    That is with a transaction for each put. Where all share one, the puts of both were measured to be about as fast.
    """
    async with (
        open_sqlite(database) as store,
        aiosqlite.connect(database.with_name("other.db"), isolation_level=None) as other,
    ):
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            await other.execute(f"PRAGMA {pragma}")
        await other.execute("CREATE TABLE pairs (key TEXT PRIMARY KEY, value BLOB)")
        turn = asyncio.Lock()

        async def put(key: str) -> None:
            # A transaction of its own, so that the failure of one caller leaves what others write alone.
            async with turn:
                await other.execute("BEGIN IMMEDIATE")
                await other.execute("INSERT OR REPLACE INTO pairs (key, value) VALUES (?, ?)", (key, _VALUE))
                await other.commit()

        async def get(key: str) -> object:
            async with other.execute("SELECT value FROM pairs WHERE key = ?", (key,)) as rows:
                return await rows.fetchone()

        for name, ours, theirs, times in (
            ("put", lambda key: store.put(key, _VALUE), put, _KEYS),
            ("get", store.get, get, 2 * _KEYS),
        ):
            # By turns, so that what else the machine does hits both.
            rounds = [(await seconds(ours, times), await seconds(theirs, times)) for _ in range(_ROUNDS)]
            own, foreign = (median(column) for column in zip(*rounds, strict=True))
            assert own < 2 * foreign, name


async def test_a_watch_hears_of_another_process_at_once(database: Path) -> None:
    with worker(put_on_demand, database, "key") as other:
        assert await other.receive() == "ready"
        async with open_sqlite(database) as store, store.watch("key") as watch:
            assert await anext(watch) is None
            late: list[float] = []
            for _ in range(50):
                other.send(True)
                pair = await anext(watch)
                assert pair is not None
                late.append(time.monotonic() - float(pair.value))
            other.send(False)
            # The time that the write itself takes is part of it. Looking for changes at intervals would take 500 ms.
            assert median(late) < 0.2
            await other.join()


async def test_a_watch_costs_nothing_while_nothing_happens(database: Path) -> None:
    async with open_sqlite(database) as store, store.watch_tree("") as watch:
        await anext(watch)
        began, used = time.monotonic(), time.process_time()
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.wait({waiting}, timeout=2)
        assert (time.process_time() - used) / (time.monotonic() - began) < scaled(0.05)
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_what_a_call_costs_does_not_grow_with_the_leases() -> None:
    tables = Tables("pairs")
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in tables.creation():
            connection.execute(statement)
        transaction = Transaction(connection, tables)
        for statement, parameters in (
            (transaction._head, (0.0, 0.0)),
            (transaction._current, {"key": "key", "now": 0.0}),
        ):
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            assert any(step.startswith(f"SEARCH {tables.sessions_name}") for step in plan), plan
            assert not any(step.startswith(f"SCAN {tables.sessions_name}") for step in plan), plan
