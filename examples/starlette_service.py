"""A Starlette application of several workers: settings, one leader, a nightly report, a pool, health and readiness.

Start it: uvicorn --app-dir examples --workers 2 starlette_service:app
Its store is in the environment variable STORE, for example etcd://127.0.0.1:2379/service.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TypedDict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from aiolibkv import (
    AsyncStore,
    Candidate,
    HeldLock,
    Mirror,
    NotReachableError,
    PeriodicJob,
    RequestTimeoutError,
    Semaphore,
    StoreError,
    open_store,
)

WORKER = f"worker-{os.getpid()}"
DAY = 24 * 3600
STALE_LIMIT = 2.0


class State(TypedDict):
    """What the lifespan gives to each request, as ``request.state``."""

    store: AsyncStore
    settings: Mirror
    tasks: list[asyncio.Task[None]]


async def lead(store: AsyncStore, held: HeldLock) -> None:
    """Do what one worker of all does, for as long as it leads."""
    while True:
        try:
            await store.put("heartbeat", WORKER.encode(), guard=held)
        except (NotReachableError, RequestTimeoutError) as error:
            print(f"{WORKER}: no heartbeat: {error}", flush=True)
        await asyncio.sleep(0.2)


async def report(store: AsyncStore, slot: datetime, held: HeldLock) -> None:
    """Write the report of a day; a server that is away costs the report, not the job."""
    try:
        await store.put(f"reports/{slot:%Y-%m-%d}", WORKER.encode(), guard=held)
    except (NotReachableError, RequestTimeoutError) as error:
        print(f"{WORKER}: no report: {error}", flush=True)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[State]:
    url = os.environ.get("STORE", "sqlite:///service.db")
    async with open_store(url) as store, Mirror(store, "settings") as settings:
        tasks = [
            asyncio.create_task(Candidate(store, "leader", WORKER).run(partial(lead, store))),
            asyncio.create_task(PeriodicJob(store, "jobs/report", every=DAY).run(partial(report, store))),
        ]
        try:
            yield {"store": store, "settings": settings, "tasks": tasks}
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def greet(request: Request) -> JSONResponse:
    """Answer by a setting, read without waiting."""
    greeting = request.state.settings.get("settings/greeting")
    return JSONResponse({"worker": WORKER, "greeting": greeting.value.decode() if greeting else "hello"})


async def work(request: Request) -> JSONResponse:
    """Do what at most two requests of all workers do at a time."""
    async with Semaphore(request.state.store, "pool", permits=2) as held:
        await asyncio.sleep(0.1)  # the work
        return JSONResponse({"token": held.fencing_token})


async def health(request: Request) -> JSONResponse:
    """Tell whether the worker is whole; one that is not should be started again."""
    is_whole = not any(task.done() for task in request.state.tasks)
    return JSONResponse({"worker": WORKER}, status_code=200 if is_whole else 503)


async def ready(request: Request) -> JSONResponse:
    """Tell whether the worker should be given requests: its settings may be out of date when it is cut off."""
    stale_for = request.state.settings.stale_for
    return JSONResponse({"stale_for": stale_for}, status_code=200 if stale_for <= STALE_LIMIT else 503)


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """Answer for a store that cannot."""
    return JSONResponse({"error": str(error)}, status_code=503)


app = Starlette(
    routes=[
        Route("/", greet),
        Route("/work", work, methods=["POST"]),
        Route("/health", health),
        Route("/ready", ready),
    ],
    exception_handlers={StoreError: refuse},
    lifespan=lifespan,
)
