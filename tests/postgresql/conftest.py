"""Servers for the tests of the PostgreSQL backend; all keys of a test are below a prefix of its own."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv import Config
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.servers import PostgresServer
from stores import PostgresStore

Make = Callable[..., PostgresStore]


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def server() -> AsyncIterator[PostgresServer]:
    """Run one server that no test harms."""
    async with PostgresServer() as running:
        yield running


@pytest_asyncio.fixture
async def proxy(server: PostgresServer) -> AsyncIterator[FaultProxy]:
    """Put a proxy before the server."""
    async with FaultProxy(server.host, server.port) as running:
        yield running


@pytest.fixture
def make(server: PostgresServer, prefix: str) -> Make:
    """Make stores that are not entered, below the test's own prefix."""
    username, password = server.user

    def make_store(*endpoints: str, **settings: Any) -> PostgresStore:
        config = Config(**{"prefix": prefix, "username": username, "password": password, **settings})
        return PostgresStore(endpoints or [server.endpoint], config)

    return make_store


@pytest_asyncio.fixture
async def direct(make: Make, entering: AsyncExitStack) -> PostgresStore:
    """Open a store without a proxy."""
    return await entering.enter_async_context(make())


@pytest_asyncio.fixture
async def proxied(proxy: FaultProxy, make: Make, entering: AsyncExitStack) -> PostgresStore:
    """Open a store through the proxy."""
    return await entering.enter_async_context(make(proxy.endpoint))
