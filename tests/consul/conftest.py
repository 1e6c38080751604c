"""Servers for the tests of the Consul backend; all keys of a test are below a prefix of its own."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv import Config
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.servers import ConsulServer
from stores import ConsulStore

Make = Callable[..., ConsulStore]


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def server() -> AsyncIterator[ConsulServer]:
    """Run one server that no test harms."""
    async with ConsulServer() as running:
        yield running


@pytest_asyncio.fixture
async def proxy(server: ConsulServer) -> AsyncIterator[FaultProxy]:
    """Put a proxy before the server."""
    async with FaultProxy(server.host, server.port, protocol="http1") as running:
        yield running


@pytest.fixture
def make(prefix: str) -> Make:
    """Make stores that are not entered, below the test's own prefix."""

    def make_store(*endpoints: str, **settings: Any) -> ConsulStore:
        return ConsulStore(endpoints, Config(**{"prefix": prefix, **settings}))

    return make_store


@pytest_asyncio.fixture
async def direct(server: ConsulServer, make: Make, entering: AsyncExitStack) -> ConsulStore:
    """Open a store without a proxy."""
    return await entering.enter_async_context(make(server.endpoint))


@pytest_asyncio.fixture
async def proxied(proxy: FaultProxy, make: Make, entering: AsyncExitStack) -> ConsulStore:
    """Open a store through the proxy."""
    return await entering.enter_async_context(make(proxy.endpoint))
