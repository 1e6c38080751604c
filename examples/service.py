"""What a worker of a service does with a store, whatever its web framework.

A store for the worker's life, settings read without waiting, work that one worker of all does, a nightly report, a pool
that all share, and what tells whether the worker is well. fastapi_service.py, starlette_service.py and
aiohttp_service.py beside this file show where it goes in each framework.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from aiolibkv import (
    AsyncStore,
    Candidate,
    HeldLock,
    Mirror,
    NotReachableError,
    PeriodicJob,
    RequestTimeoutError,
    Semaphore,
    open_store,
)

WORKER = f"worker-{os.getpid()}"
DAY = 24 * 3600
STALE_LIMIT = 2.0


class Service:
    """What a worker has while it runs."""

    def __init__(self, store: AsyncStore, settings: Mirror) -> None:
        self._store = store
        self._settings = settings
        self._tasks = [
            asyncio.create_task(Candidate(store, "leader", WORKER).run(self._lead)),
            asyncio.create_task(PeriodicJob(store, "jobs/report", every=DAY).run(self._report)),
        ]

    def greeting(self) -> str:
        """Read a setting: the mirror has it in the process."""
        pair = self._settings.get("settings/greeting")
        return "hello" if pair is None else pair.value.decode()

    async def work(self) -> int:
        """Do what at most two requests of all workers do at a time."""
        async with Semaphore(self._store, "pool", permits=2) as held:
            await asyncio.sleep(0.1)  # the work
            return held.fencing_token

    def is_whole(self) -> bool:
        """Tell whether the worker is whole; one that is not should be started again."""
        return not any(task.done() for task in self._tasks)

    def is_ready(self) -> bool:
        """Tell whether the worker should be given requests: its settings may be out of date when it is cut off."""
        return self._settings.stale_for <= STALE_LIMIT

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _lead(self, held: HeldLock) -> None:
        """Do what one worker of all does, for as long as it leads."""
        while True:
            await self._write("heartbeat", held)
            await asyncio.sleep(0.2)

    async def _report(self, slot: datetime, held: HeldLock) -> None:
        await self._write(f"reports/{slot:%Y-%m-%d}", held)

    async def _write(self, key: str, held: HeldLock) -> None:
        """Write as the leader; a server that is away costs what is written, not the leader's work."""
        try:
            await self._store.put(key, WORKER.encode(), guard=held)
        except (NotReachableError, RequestTimeoutError) as error:
            print(f"{WORKER}: {key} was not written: {error}", flush=True)


@asynccontextmanager
async def running(url: str) -> AsyncIterator[Service]:
    """Keep a service for an application's life: what uses the store begins after it, and ends before it."""
    async with open_store(url) as store, Mirror(store, "settings") as settings:
        service = Service(store, settings)
        try:
            yield service
        finally:
            await service.stop()
