"""A Starlette application of several workers: the lifespan keeps what service.py makes, as ``request.state``.

Start it: uvicorn --app-dir examples --workers 2 starlette_service:app
Its store is in the environment variable STORE, for example etcd://127.0.0.1:2379/service.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from aiolibkv import StoreError
from service import WORKER, Service, running


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Service]]:
    async with running(os.environ.get("STORE", "sqlite:///service.db")) as service:
        yield {"service": service}


async def greet(request: Request) -> JSONResponse:
    return JSONResponse({"worker": WORKER, "greeting": request.state.service.greeting()})


async def work(request: Request) -> JSONResponse:
    return JSONResponse({"token": await request.state.service.work()})


async def health(request: Request) -> JSONResponse:
    return JSONResponse({"worker": WORKER}, status_code=200 if request.state.service.is_whole() else 503)


async def ready(request: Request) -> JSONResponse:
    return JSONResponse({"worker": WORKER}, status_code=200 if request.state.service.is_ready() else 503)


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
