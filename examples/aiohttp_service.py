"""An aiohttp application of several workers: ``cleanup_ctx`` keeps what service.py makes, under a key of its own.

Start it several times, the workers share the port: python examples/aiohttp_service.py sqlite:///service.db 8080
"""

import sys
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

from aiolibkv import StoreError
from service import WORKER, Service, running

SERVICE = web.AppKey("SERVICE", Service)

routes = web.RouteTableDef()


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer for a store that cannot."""
    try:
        return await handler(request)
    except StoreError as error:
        raise web.HTTPServiceUnavailable(text=str(error)) from error


@routes.get("/")
async def greet(request: web.Request) -> web.Response:
    return web.json_response({"worker": WORKER, "greeting": request.app[SERVICE].greeting()})


@routes.post("/work")
async def work(request: web.Request) -> web.Response:
    return web.json_response({"token": await request.app[SERVICE].work()})


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    return web.json_response({"worker": WORKER}, status=200 if request.app[SERVICE].is_whole() else 503)


@routes.get("/ready")
async def ready(request: web.Request) -> web.Response:
    return web.json_response({"worker": WORKER}, status=200 if request.app[SERVICE].is_ready() else 503)


def make_app(url: str) -> web.Application:
    async def serving(app: web.Application) -> AsyncIterator[None]:
        async with running(url) as app[SERVICE]:
            yield

    app = web.Application(middlewares=[refuse])
    app.cleanup_ctx.append(serving)
    app.add_routes(routes)
    return app


if __name__ == "__main__":
    store_url = sys.argv[1] if len(sys.argv) > 1 else "sqlite:///service.db"
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8080
    web.run_app(make_app(store_url), host="127.0.0.1", port=port, reuse_port=True)
