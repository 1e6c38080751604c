"""A FastAPI application of several workers: settings, one leader, a nightly report, a pool, health and readiness.

Start it: uvicorn --app-dir examples --workers 2 fastapi_service:app
Its store is in the environment variable STORE, for example etcd://127.0.0.1:2379/service.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, TypedDict

from fastapi import Depends, FastAPI, HTTPException, Request

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


@dataclass
class Service:
    """What a worker has while it runs."""

    store: AsyncStore
    settings: Mirror
    tasks: list[asyncio.Task[None]]

    async def lead(self, held: HeldLock) -> None:
        """Do what one worker of all does, for as long as it leads."""
        while True:
            try:
                await self.store.put("heartbeat", WORKER.encode(), guard=held)
            except (NotReachableError, RequestTimeoutError) as error:
                print(f"{WORKER}: no heartbeat: {error}", flush=True)
            await asyncio.sleep(0.2)

    async def report(self, slot: datetime, held: HeldLock) -> None:
        """Write the report of a day; a server that is away costs the report, not the job."""
        try:
            await self.store.put(f"reports/{slot:%Y-%m-%d}", WORKER.encode(), guard=held)
        except (NotReachableError, RequestTimeoutError) as error:
            print(f"{WORKER}: no report: {error}", flush=True)


class State(TypedDict):
    """What the lifespan gives to each request."""

    service: Service


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[State]:
    async with (
        open_store(os.environ.get("STORE", "sqlite:///service.db")) as store,
        Mirror(store, "settings") as mirror,
    ):
        service = Service(store, mirror, [])
        leading = Candidate(store, "leader", WORKER).run(service.lead)
        reporting = PeriodicJob(store, "jobs/report", every=DAY).run(service.report)
        service.tasks += [asyncio.create_task(leading), asyncio.create_task(reporting)]
        try:
            yield {"service": service}
        finally:
            for task in service.tasks:
                task.cancel()
            await asyncio.wait(service.tasks)


def service_of(request: Request) -> Service:
    service = request.state.service
    assert isinstance(service, Service)
    return service


Here = Annotated[Service, Depends(service_of)]
app = FastAPI(lifespan=lifespan)


@app.get("/")
async def greet(service: Here) -> dict[str, str]:
    """Answer by a setting, read without waiting."""
    greeting = service.settings.get("settings/greeting")
    return {"worker": WORKER, "greeting": greeting.value.decode() if greeting else "hello"}


@app.post("/work")
async def work(service: Here) -> dict[str, int]:
    """Do what at most two requests of all workers do at a time."""
    try:
        async with Semaphore(service.store, "pool", permits=2) as held:
            await asyncio.sleep(0.1)  # the work
            return {"token": held.fencing_token}
    except StoreError as error:
        raise HTTPException(503, str(error)) from error


@app.get("/health")
async def health(service: Here) -> dict[str, str]:
    """Tell whether the worker is whole; one that is not should be started again."""
    if any(task.done() for task in service.tasks):
        raise HTTPException(503, "a background task has ended")
    return {"worker": WORKER}


@app.get("/ready")
async def ready(service: Here) -> dict[str, float]:
    """Tell whether the worker should be given requests: its settings may be out of date when it is cut off."""
    try:
        stale_for = service.settings.stale_for
    except StoreError as error:
        raise HTTPException(503, str(error)) from error
    if stale_for > STALE_LIMIT:
        raise HTTPException(503, f"the settings are stale for {stale_for:.1f} s")
    return {"stale_for": stale_for}
