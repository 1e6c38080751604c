"""An aiohttp application that registers itself and answers with all of its instances.

Start it several times: python examples/discovery_app.py sqlite:///shop.db 8080 (then 8081, 8082)
Then: curl http://127.0.0.1:8080/instances
"""

import sys
from collections.abc import AsyncIterator

from aiohttp import web

from aiolibkv import Discovery, open_store

DISCOVERY = web.AppKey("discovery", Discovery)


async def list_instances(request: web.Request) -> web.Response:
    instances = await request.app[DISCOVERY].instances("web")
    return web.json_response([instance.address for instance in instances])


def make_app(url: str, address: str) -> web.Application:
    async def registered(app: web.Application) -> AsyncIterator[None]:
        async with open_store(url) as store:
            app[DISCOVERY] = Discovery(store, "services")
            async with app[DISCOVERY].register("web", address, metadata={"version": "1"}):
                yield

    app = web.Application()
    app.router.add_get("/instances", list_instances)
    app.cleanup_ctx.append(registered)
    return app


if __name__ == "__main__":
    store_url = sys.argv[1] if len(sys.argv) > 1 else "sqlite:///shop.db"
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8080
    web.run_app(make_app(store_url, f"127.0.0.1:{port}"), host="127.0.0.1", port=port)
