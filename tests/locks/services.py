"""The servers on which locks are tried, one description for each backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from aiolibkv.testing.framing import Framing
from aiolibkv.testing.servers import ConsulServer, EtcdServer, ZooKeeperServer


@dataclass(frozen=True)
class Service:
    """A running server.

    Attributes:
        template: of its URLs, with the endpoint and the name of a test's own directory.
        host: where it listens.
        port: where it listens; 0 when it is no server.
        ttl: seconds; what a lock takes so that tests are short.
        restart: restarts it with its data.
        framing: by which a proxy finds requests.
        heartbeats: requests a second that a store sends in any case while it watches something.
    """

    template: str
    host: str
    port: int
    ttl: float
    restart: Callable[[], Awaitable[None]]
    framing: Framing = "raw"
    heartbeats: int = 0

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    def needs_network(self) -> None:
        """Skip the test where no proxy could stand between the service and its client."""
        if not self.port:
            pytest.skip("this backend has no network")

    def url(self, endpoint: str, name: str) -> str:
        """Return a URL for a directory of a test's own, through a given endpoint."""
        return self.template.format(endpoint=endpoint, name=name)


@asynccontextmanager
async def etcd() -> AsyncIterator[Service]:
    async with EtcdServer() as server:
        yield Service("etcd://{endpoint}/{name}", server.host, server.port, 2, server.restart, "http2")


@asynccontextmanager
async def consul() -> AsyncIterator[Service]:
    """Run Consul, of which a store asks every second who leads, and repeats a query that has waited for a second."""
    async with ConsulServer() as server:
        yield Service("consul://{endpoint}/{name}", server.host, server.port, 10, server.restart, "http1", 2)


@asynccontextmanager
async def zookeeper() -> AsyncIterator[Service]:
    async with ZooKeeperServer() as server:
        yield Service("zk://{endpoint}/{name}", server.host, server.port, 2, server.restart, "zookeeper")


@asynccontextmanager
async def sqlite() -> AsyncIterator[Service]:
    async def restart() -> None:
        """Leave it as it is: there is nothing to restart."""

    with TemporaryDirectory() as directory:
        template = f"sqlite:///{Path(directory) / 'locks.db'}?prefix={{name}}"
        yield Service(template, "", 0, 1, restart)


@asynccontextmanager
async def memory() -> AsyncIterator[Service]:
    """Run nothing: what the stores of one loop share; a directory is a space of its own."""

    async def restart() -> None:
        """Leave it as it is: there is nothing to restart."""

    yield Service("memory://{name}", "", 0, 1, restart)


SERVICES: dict[str, Callable[[], AbstractAsyncContextManager[Service]]] = {
    "consul": consul,
    "etcd": etcd,
    "sqlite": sqlite,
    "zookeeper": zookeeper,
}
"""What processes can share."""
