"""An aiohttp application of several workers: settings, one leader, a nightly report, a pool, health and readiness.

Start it several times, the workers share the port: python examples/aiohttp_service.py sqlite:///service.db 8080
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from datetime import datetime

from aiohttp import web
from aiohttp.typedefs import Handler

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

URL = web.AppKey("URL", str)
STORE = web.AppKey("STORE", AsyncStore)
SETTINGS = web.AppKey("SETTINGS", Mirror)
TASKS = web.AppKey("TASKS", list[asyncio.Task[None]])

routes = web.RouteTableDef()


async def stored(app: web.Application) -> AsyncIterator[None]:
    """Keep a store and the settings for the application's life."""
    async with open_store(app[URL]) as app[STORE], Mirror(app[STORE], "settings") as app[SETTINGS]:
        yield


async def working(app: web.Application) -> AsyncIterator[None]:
    """Keep the work that no request asks for; it is entered after the store, and left before it."""
    store = app[STORE]

    async def lead(held: HeldLock) -> None:
        while True:
            try:
                await store.put("heartbeat", WORKER.encode(), guard=held)
            except (NotReachableError, RequestTimeoutError) as error:
                print(f"{WORKER}: no heartbeat: {error}", flush=True)
            await asyncio.sleep(0.2)

    async def report(slot: datetime, held: HeldLock) -> None:
        try:
            await store.put(f"reports/{slot:%Y-%m-%d}", WORKER.encode(), guard=held)
        except (NotReachableError, RequestTimeoutError) as error:
            print(f"{WORKER}: no report: {error}", flush=True)

    tasks = app[TASKS] = [
        asyncio.create_task(Candidate(store, "leader", WORKER).run(lead)),
        asyncio.create_task(PeriodicJob(store, "jobs/report", every=DAY).run(report)),
    ]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer for a store that cannot."""
    try:
        return await handler(request)
    except StoreError as error:
        raise web.HTTPServiceUnavailable(text=str(error)) from error


@routes.get("/")
async def greet(request: web.Request) -> web.Response:
    """Answer by a setting, read without waiting."""
    greeting = request.app[SETTINGS].get("settings/greeting")
    return web.json_response({"worker": WORKER, "greeting": greeting.value.decode() if greeting else "hello"})


@routes.post("/work")
async def work(request: web.Request) -> web.Response:
    """Do what at most two requests of all workers do at a time."""
    async with Semaphore(request.app[STORE], "pool", permits=2) as held:
        await asyncio.sleep(0.1)  # the work
        return web.json_response({"token": held.fencing_token})


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    """Tell whether the worker is whole; one that is not should be started again."""
    is_whole = not any(task.done() for task in request.app[TASKS])
    return web.json_response({"worker": WORKER}, status=200 if is_whole else 503)


@routes.get("/ready")
async def ready(request: web.Request) -> web.Response:
    """Tell whether the worker should be given requests: its settings may be out of date when it is cut off."""
    stale_for = request.app[SETTINGS].stale_for
    return web.json_response({"stale_for": stale_for}, status=200 if stale_for <= STALE_LIMIT else 503)


def make_app(url: str) -> web.Application:
    app = web.Application(middlewares=[refuse])
    app[URL] = url
    app.cleanup_ctx.extend([stored, working])
    app.add_routes(routes)
    return app


if __name__ == "__main__":
    store_url = sys.argv[1] if len(sys.argv) > 1 else "sqlite:///service.db"
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8080
    web.run_app(make_app(store_url), host="127.0.0.1", port=port, reuse_port=True)
