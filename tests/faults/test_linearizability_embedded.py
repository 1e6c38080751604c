"""Histories of concurrent clients of the stores without servers: each key behaves like one register."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import randrange
from uuid import uuid4

import pytest

from aiolibkv import open_store
from faults.histories import History, check_history, record, record_alone
from faults.linearizability import Operation, check


async def _go_on(history: History) -> None:
    await history.go_on(reads=100, writes=100)


@pytest.mark.asyncio
async def test_stores_of_one_memory() -> None:
    name = uuid4().hex
    await check_history([open_store(f"memory://{name}") for _ in range(8)], _go_on)


@pytest.mark.asyncio
async def test_stores_of_one_file(tmp_path: Path) -> None:
    await check_history([open_store(f"sqlite:///{tmp_path}/db") for _ in range(8)], _go_on)


@pytest.mark.asyncio
async def test_processes_with_one_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/db"
    seed = randrange(2**32)
    print(f"seed {seed}")
    loop = asyncio.get_running_loop()
    others: list[Operation] = []
    # Their clocks are one: time.monotonic counts for the whole machine.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:

        async def wait_for_others(_: History) -> None:
            names = [f"process {number} client" for number in range(2)]
            works = [loop.run_in_executor(pool, record_alone, url, seed + n, name) for n, name in enumerate(names)]
            for operations in await asyncio.gather(*works):
                others.extend(operations)

        here = await record([open_store(url) for _ in range(3)], seed, wait_for_others)
    assert len({operation.client for operation in others}) == 6
    check([*here.operations, *others])
