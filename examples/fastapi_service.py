"""A FastAPI application of several workers: the lifespan keeps what service.py makes, a dependency hands it on.

Start it: uvicorn --app-dir examples --workers 2 fastapi_service:app
Its store is in the environment variable STORE, for example etcd://127.0.0.1:2379/service.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypedDict

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from aiolibkv import StoreError
from service import WORKER, Service, running


class State(TypedDict):
    """What the lifespan gives to each request."""

    service: Service


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[State]:
    async with running(os.environ.get("STORE", "sqlite:///service.db")) as service:
        yield {"service": service}


def service_of(request: Request) -> Service:
    service = request.state.service
    assert isinstance(service, Service)
    return service


Here = Annotated[Service, Depends(service_of)]
app = FastAPI(lifespan=lifespan)


@app.exception_handler(StoreError)
async def refuse(_: Request, error: Exception) -> JSONResponse:
    """Answer for a store that cannot."""
    return JSONResponse({"detail": str(error)}, status_code=503)


@app.get("/")
async def greet(service: Here) -> dict[str, str]:
    return {"worker": WORKER, "greeting": service.greeting()}


@app.post("/work")
async def work(service: Here) -> dict[str, int]:
    return {"token": await service.work()}


@app.get("/health")
async def health(service: Here) -> dict[str, str]:
    if not service.is_whole():
        raise HTTPException(503, "a background task has ended")
    return {"worker": WORKER}


@app.get("/ready")
async def ready(service: Here) -> dict[str, str]:
    if not service.is_ready():
        raise HTTPException(503, "the settings are stale")
    return {"worker": WORKER}
