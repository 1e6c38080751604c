"""The servers on which locks are tried, one description for each backend."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from aiolibkv.testing.framing import Framing
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.servers import ConsulServer, EtcdServer, PostgresServer, ZooKeeperServer
from aiolibkv.testing.servers.base import Server


@dataclass(frozen=True)
class Service:
    """A running server.

    Attributes:
        template: of its URLs, with the endpoint and the name of a test's own directory.
        server: None where there is no server.
        ttl: seconds; what a lock takes so that tests are short.
        framing: by which a proxy finds requests.
        heartbeats: requests a second that a store sends in any case while it watches something.
        end_session: has the server end the session under which a lock is held, as an administrator may who knows that
            its holder is dead; None where it ends soon enough.
    """

    template: str
    server: Server | None
    ttl: float
    framing: Framing = "raw"
    heartbeats: int = 0
    end_session: Callable[[str], Awaitable[None]] | None = None

    @property
    def endpoint(self) -> str:
        return "" if self.server is None else self.server.endpoint

    def needs_server(self) -> Server:
        """Return the server; skip the test where there is none, and no proxy before it."""
        if self.server is None:
            pytest.skip("this backend has no server")
        return self.server

    def proxy(self) -> FaultProxy:
        """Make a proxy before the server."""
        server = self.needs_server()
        return FaultProxy(server.host, server.port, protocol=self.framing)

    async def restart(self) -> None:
        """Restart the server with its data, where there is one."""
        if self.server is not None:
            await self.server.restart()

    def url(self, endpoint: str, name: str) -> str:
        """Return a URL for a directory of a test's own, through a given endpoint."""
        return self.template.format(endpoint=endpoint, name=name)


@asynccontextmanager
async def etcd() -> AsyncIterator[Service]:
    async with EtcdServer() as server:
        yield Service("etcd://{endpoint}/{name}", server, 2, "http2")


@asynccontextmanager
async def consul() -> AsyncIterator[Service]:
    """Run Consul, of which a store asks every second who leads, and repeats a query that has waited for a second."""
    async with ConsulServer() as server:

        async def end_session(lock: str) -> None:
            (pair,) = json.loads(await server.api("GET", f"/v1/kv/{lock}"))
            await server.api("PUT", f"/v1/session/destroy/{pair['Session']}")

        yield Service("consul://{endpoint}/{name}", server, 10, "http1", 2, end_session)


@asynccontextmanager
async def zookeeper() -> AsyncIterator[Service]:
    async with ZooKeeperServer() as server:
        yield Service("zk://{endpoint}/{name}", server, 2, "zookeeper")


@asynccontextmanager
async def postgresql() -> AsyncIterator[Service]:
    """Run PostgreSQL, of which a store asks every two seconds what is new."""
    async with PostgresServer() as server:
        user = ":".join(server.user)
        yield Service(f"postgresql://{user}@{{endpoint}}/{server.database}?prefix={{name}}", server, 2, heartbeats=1)


@asynccontextmanager
async def sqlite() -> AsyncIterator[Service]:
    with TemporaryDirectory() as directory:
        template = f"sqlite:///{Path(directory) / 'locks.db'}?prefix={{name}}"
        yield Service(template, None, 2)


@asynccontextmanager
async def memory() -> AsyncIterator[Service]:
    """Run nothing: what the stores of one loop share; a directory is a space of its own."""
    yield Service("memory://{name}", None, 2)


SERVICES: dict[str, Callable[[], AbstractAsyncContextManager[Service]]] = {
    "consul": consul,
    "etcd": etcd,
    "postgresql": postgresql,
    "sqlite": sqlite,
    "zookeeper": zookeeper,
}
"""What processes can share."""
